"""Opens a video so that FFmpeg reads that one file, in a container we allow, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
from av.stream import Disposition
from av.video.stream import VideoStream

from decoding.boxes import begins_as_mp4, has_damaged_boxes, has_encrypted_fragments, has_encrypted_video
from decoding.errors import UndecodableClip
from decoding.ffmpeg_log import LogLine, ffmpeg_log

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


def open_container(path: str, said: list[LogLine] | None = None) -> av.container.InputContainer:
    """Opens the video file at a local `path`; what FFmpeg says of it goes to the end of `said`.

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
    if said is not None:
        said.extend(logs)
    return container


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


def check_dimensions(width_px: int, height_px: int, max_pixels: int) -> None:
    """Raises UndecodableClip for a picture of more than `max_pixels`."""
    if width_px * height_px > max_pixels:
        raise UndecodableClip(
            f"dimensions {width_px}x{height_px} over the limit",
            f"a frame has {width_px * height_px} pixels, the limit is {max_pixels}",
        )


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
    said = "; ".join(dict.fromkeys(line.strip() for _, _, line in logs)) or str(error.strerror)
    if "not on whitelist" in said:
        return UndecodableClip("container not allowed", f"allowed: {', '.join(ALLOWED_CONTAINERS)}; FFmpeg: {said}")
    is_mp4 = begins_as_mp4(head)
    if is_mp4 and (has_encrypted_video(path) or has_encrypted_fragments(path)):
        return UndecodableClip("encrypted", f"the video is encrypted, and no key is known; FFmpeg: {said}")
    if is_mp4 and "moov atom not found" in said and has_damaged_boxes(path):
        return UndecodableClip("damaged", "the file's boxes do not lead to its moov box, which lists its frames")
    if is_mp4 and "moov atom not found" in said:
        return UndecodableClip(
            "truncated before its index", "the file ends before its moov box, which lists its frames"
        )
    return UndecodableClip("not a readable video", f"FFmpeg: {said}; the file starts with {head[:24]!r}")


def _explain_no_video(container: av.container.InputContainer) -> UndecodableClip:
    kinds = [s.type for s in container.streams]
    if "video" in kinds:
        return UndecodableClip("cover picture only", "the only video stream is an attached picture")
    return UndecodableClip("no video stream", f"the streams are: {', '.join(kinds) or 'none'}")
