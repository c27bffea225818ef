"""Opens a video so that FFmpeg reads that one file, in a container we allow, and nothing else; reads its packets.

What FFmpeg says of a file is collected: it is often the only sign that the file is cut short. What it does not say,
such as whether an MP4 file is encrypted, the file's boxes tell.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.container
import av.error
import av.logging
from av.stream import Disposition
from av.video.stream import VideoStream

from framescribe.decoding.config import UndecodableClip

# Demuxers that read one file and follow no reference in it: no HLS, DASH, concat, image sequences or playlists.
ALLOWED_CONTAINERS = (
    "mov", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "obu", "ivf", "ogg",
    "asf", "gif", "mxf", "dv", "nut", "rm", "yuv4mpegpipe",
)  # fmt: skip
# Until PyAV 19, text that is not UTF-8 was an error unless one asked for less.
_LENIENT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(ALLOWED_CONTAINERS)}
# Text that FFmpeg would take for a list of further files. Refused by name for the sake of the reason; the
# allow-list above would refuse it too.
_PLAYLIST_MARKS = (
    b"#extm3u", b"ffconcat", b"[playlist]", b"<mpd", b"<smil", b"<smoothstreamingmedia", b"<asx", b"<playlist",
)  # fmt: skip
# What FFmpeg says, without an error, when a file ends before its container does.
_END_MARKS = ("ended prematurely", "partial file")
_TRUNCATION_MARKS = (*_END_MARKS, "Packet corrupt", "exceeds containing master element")
# Errors to FFmpeg that leave the pictures right: about what stands beside them, or what an earlier line said already.
_HARMLESS = ("mmco: unref short failure", "SEI type ")
LogLine = tuple[int, str, str]  # level, FFmpeg component, text


def open_container(path: str, log: list[LogLine] | None = None) -> av.container.InputContainer:
    """Opens the video file at a local `path`; what FFmpeg says of it goes to the end of `log`.

    Raises:
        UndecodableClip: it is empty, not a video, of a container that is not allowed, or cut before its index.
    """
    head = _read_head(path)
    _refuse_playlists(head)
    with ffmpeg_log() as logs:
        try:
            # `file:` keeps a name such as `concat:a|b` from being read as a protocol.
            container = av.open(f"file:{path}", options=dict(_OPEN_OPTIONS), **_LENIENT)
        except av.error.FFmpegError as error:
            raise _explain_open_error(error, logs, head, Path(path)) from error
    if log is not None:
        log.extend(logs)
    return container


def _read_head(path: str) -> bytes:
    if os.path.getsize(path) == 0:
        raise UndecodableClip("empty file", "the video has 0 bytes")
    with open(path, "rb") as file:
        return file.read(1024)


def _refuse_playlists(head: bytes) -> None:
    text = head.lower().removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(_PLAYLIST_MARKS) or (text.startswith(b"<?xml") and any(m in text for m in _PLAYLIST_MARKS)):
        raise UndecodableClip("playlist, not a video", f"the file starts with {text[:24]!r}: it names other files")


def _explain_open_error(error: av.error.FFmpegError, logs: list[LogLine], head: bytes, path: Path) -> UndecodableClip:
    text = "; ".join(dict.fromkeys(line.strip() for _, _, line in logs)) or str(error.strerror)
    if "not on whitelist" in text:
        return UndecodableClip("container not allowed", f"allowed: {', '.join(ALLOWED_CONTAINERS)}; FFmpeg: {text}")
    is_mp4 = begins_as_mp4(head)
    if is_mp4 and (has_encrypted_video(path) or has_encrypted_fragments(path)):
        return UndecodableClip("encrypted", f"the video is encrypted, and no key is known; FFmpeg: {text}")
    if is_mp4 and "moov atom not found" in text and has_damaged_boxes(path):
        return UndecodableClip("damaged", "the file's boxes do not lead to its moov box, which lists its frames")
    if is_mp4 and "moov atom not found" in text:
        return UndecodableClip(
            "truncated before its index", "the file ends before its moov box, which lists its frames"
        )
    return UndecodableClip("not a readable video", f"FFmpeg: {text}; the file starts with {head[:24]!r}")


def pick_video_stream(container: av.container.InputContainer, path: str, max_pixels: int) -> VideoStream:
    """Returns the video stream that a player shows, if it may be decoded.

    That is FFmpeg's `av_find_best_stream`: default streams first, then those of several frames, then those of a higher
    bit rate. An attached picture is never a video, and a single picture beside a film is its cover.

    Raises:
        UndecodableClip: there is none, or it is encrypted, too large, or of a codec this FFmpeg lacks.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise _explain_no_video(container)
    films = [s for s in streams if s.frames != 1] or streams  # 0 where the container does not count them
    best = container.streams.best("video")
    stream = best if best in films else max(films, key=_player_rank)
    if "enc_key_id" in stream.metadata or has_encrypted_video(Path(path)):
        raise UndecodableClip("encrypted", "the video stream is encrypted, and no key is known")
    if stream.codec_context is None:
        raise UndecodableClip("codec not supported", f"PyAV {av.__version__} has no decoder for this video stream")
    check_dimensions(stream.codec_context.width, stream.codec_context.height, max_pixels)
    stream.codec_context.thread_count = 1  # the pool's processes are the parallelism
    return stream


def _player_rank(stream: VideoStream) -> tuple[bool, int, int]:
    return bool(stream.disposition & Disposition.default), stream.bit_rate or 0, -stream.index


def _explain_no_video(container: av.container.InputContainer) -> UndecodableClip:
    kinds = [s.type for s in container.streams]
    if "video" in kinds:
        return UndecodableClip("cover picture only", "the only video stream is an attached picture")
    return UndecodableClip("no video stream", f"the streams are: {', '.join(kinds) or 'none'}")


def check_dimensions(width_px: int, height_px: int, max_pixels: int) -> None:
    """Raises UndecodableClip for a picture of more than `max_pixels`."""
    if width_px * height_px > max_pixels:
        raise UndecodableClip(
            f"dimensions {width_px}x{height_px} over the limit",
            f"a frame has {width_px * height_px} pixels, the limit is {max_pixels}",
        )


@dataclass(slots=True)
class VideoPackets:
    """The packets that are shown, in decoding order; times in ticks of the stream.

    Attributes:
        pts, durations: of each packet; a missing duration is 0.
        key_pts: of the key frames.
        has_discarded: whether an edit list hides packets.
        has_leading_pictures: whether a packet is shown before a key frame that it follows.
        num_corrupt: packets that are not whole; they are not in `pts`.
        num_unread: packets that the index of an AVI file lists and that were not found.
        has_holes: whether the demuxer went on behind data that it could not read.
        problem: what speaks for a file that is damaged or ends too early, mostly FFmpeg's words, or None.
    """

    pts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    key_pts: list[int] = field(default_factory=list)
    has_discarded: bool = False
    has_leading_pictures: bool = False
    num_corrupt: int = 0
    num_unread: int = 0
    has_holes: bool = False
    problem: str | None = None

    def add(self, packet: av.Packet) -> None:
        """Appends a packet."""
        self.pts.append(packet.pts)
        self.durations.append(packet.duration or 0)
        if packet.pts is None:
            return
        if packet.is_keyframe:
            self.key_pts.append(packet.pts)
        elif self.key_pts and packet.pts < self.key_pts[-1]:
            self.has_leading_pictures = True


def read_packets(container: av.container.InputContainer, stream: VideoStream, log: list[LogLine]) -> VideoPackets:
    """Reads the file to its end or to the first error; `log` is what FFmpeg said when it opened the file."""
    packets = VideoPackets()
    num_read = 0
    with ffmpeg_log() as logs:
        try:
            for packet in container.demux(stream):
                num_read += packet.size > 0
                if packet.is_corrupt:
                    packets.num_corrupt += 1
                elif packet.is_discard:
                    packets.has_discarded = True
                elif packet.size and not _is_hidden(stream, packet):
                    packets.add(packet)
        except av.error.FFmpegError as error:
            packets.problem = f"FFmpeg: {error.strerror}"
    demuxer = container.format.name
    if demuxer == "avi":
        packets.num_unread = max(0, sum(entry.size > 0 for entry in stream.index_entries) - num_read)
    errors = [
        line for line in (*log, *logs) if line[1] == demuxer and has_error([line]) and not _is_end_of_file(line[2])
    ]
    packets.has_holes = bool(errors) and "mov" not in demuxer.split(",")  # MP4's index is exact
    packets.problem = packets.problem or _find_truncation([*log, *logs])
    if packets.has_holes and not packets.problem:
        packets.problem = f"FFmpeg: {errors[0][2].strip()}"
    return packets


def _is_hidden(stream: VideoStream, packet: av.Packet) -> bool:
    """Whether a packet holds nothing but an alternate reference, which VP8 and VP9 decode and do not show."""
    name, content = stream.codec_context.name, memoryview(packet)
    if name in ("vp8", "libvpx"):
        return not content[0] & 0x10
    is_superframe = content[-1] >> 5 == 0b110  # several frames, of which one is shown
    if name not in ("vp9", "libvpx-vp9") or is_superframe or content[0] >> 6 != 0b10:
        return False
    header = content[0] << 1 if content[0] & 0x30 == 0x30 else content[0]  # profile 3 has one bit more
    shows_existing, is_shown = header & 0x08, header & 0x02
    return not shows_existing and not is_shown


def _is_end_of_file(text: str) -> bool:
    return any(mark in text for mark in _END_MARKS)


def _find_truncation(log: list[LogLine]) -> str | None:
    return next((f"FFmpeg: {line.strip()}" for _, _, line in log if any(m in line for m in _TRUNCATION_MARKS)), None)


@contextmanager
def ffmpeg_log() -> Iterator[list[LogLine]]:
    """Collects FFmpeg's warnings and errors of this thread while the context lasts."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    # Or PyAV leaves out a line like the last one, of another file perhaps, and mentions it in a third file's log.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as lines:
            yield lines
    finally:
        av.logging.set_level(level)


def has_error(lines: Iterable[LogLine]) -> bool:
    """Whether FFmpeg says that something could not be read as it was written."""
    return any(level <= av.logging.ERROR and not text.startswith(_HARMLESS) for level, _, text in lines)


_PATH_TO_STSD = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_PATH_TO_SENC = (b"moof", b"traf", b"senc")
_FIRST_BOXES = (b"ftyp", b"styp", b"sidx", b"moov", b"moof", b"free", b"mdat", b"wide", b"skip")
_TOP_BOXES = {*_FIRST_BOXES, b"pnot", b"uuid", b"meta", b"mfra", b"ssix", b"emsg", b"pdin", b"prft"}
_NOWHERE = 1 << 63  # behind the end of any file
_INDEX = re.compile(rb"moov.{4}mvhd", re.DOTALL)
_MAX_BOXES = 10_000


def begins_as_mp4(head: bytes) -> bool:
    """Whether the first bytes of a file, at least 8, are a box that MP4 and MOV files begin with."""
    return head[4:8] in _FIRST_BOXES


def has_encrypted_video(path: Path) -> bool:
    """Whether an MP4 or MOV file declares an encrypted video track (sample entry `encv`); False for other files."""
    with path.open("rb") as file:
        if not begins_as_mp4(file.read(8)):
            return False
        size = file.seek(0, 2)
        return any(_sample_entry(file, start) == b"encv" for start in _find(file, _PATH_TO_STSD, 0, size))


def has_encrypted_fragments(path: Path) -> bool:
    """Whether the fragments of an MP4 file say which of their bytes are encrypted (box `senc`)."""
    with path.open("rb") as file:
        return any(True for _ in _find(file, _PATH_TO_SENC, 0, file.seek(0, 2)))


def is_truncated(path: Path) -> bool:
    """Whether an MP4 or MOV file was cut: its last box goes on beyond it, or has no end, or there are no data."""
    with path.open("rb") as file:
        ends = {kind: end for kind, _, end in _walk(file, 0, _NOWHERE)}
        return b"mdat" not in ends or max(ends.values()) > file.seek(0, 2)


def has_damaged_boxes(path: Path) -> bool:
    """Whether an MP4 or MOV file without a readable index was not just cut: it has an index, or boxes of no kind."""
    with path.open("rb") as file:
        boxes = list(_walk(file, 0, _NOWHERE))
        is_walked = bool(boxes) and boxes[-1][2] >= file.seek(0, 2) and {kind for kind, _, _ in boxes} <= _TOP_BOXES
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return not is_walked or _INDEX.search(content) is not None


def _find(file: BinaryIO, path: tuple[bytes, ...], start: int, stop: int) -> Iterator[int]:
    """Yields where the content of each box at the end of `path` starts, within two offsets of the file."""
    for kind, content, end in _walk(file, start, stop):
        if kind == path[0] and len(path) == 1:
            yield content
        elif kind == path[0]:
            yield from _find(file, path[1:], content, end)


def _walk(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    for _ in range(_MAX_BOXES):
        file.seek(start)
        header = file.read(16)
        if start >= stop or len(header) < 8:
            return
        size, content = int.from_bytes(header[:4], "big"), start + 8
        if size == 1:
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        end = stop if size == 0 else min(start + size, stop)
        if end < content:
            return
        yield header[4:8], content, end
        start = end


def _sample_entry(file: BinaryIO, content: int) -> bytes:
    """The four-character name of the first sample entry of an `stsd` box, after its version and entry count."""
    file.seek(content + 12)
    return file.read(4)
