"""Reads the packets of a video stream: its frames as the container stores them, not decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import av
import av.container
import av.error
from av.video.stream import VideoStream

from decoding.ffmpeg_log import LogLine, ffmpeg_log, has_error

# What FFmpeg says, without an error, when a file ends before its container does.
_END_MARKS = ("ended prematurely", "partial file")
_TRUNCATION_MARKS = (*_END_MARKS, "Packet corrupt", "exceeds containing master element")


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


def read_packets(container: av.container.InputContainer, stream: VideoStream, said: list[LogLine]) -> VideoPackets:
    """Reads the file to its end or to the first error; `said` is what FFmpeg said when it opened the file."""
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
    errors = [line for line in (*said, *logs) if line[1] == demuxer and has_error([line]) and not _ends(line[2])]
    packets.has_holes = bool(errors) and "mov" not in demuxer.split(",")  # MP4's index is exact
    packets.problem = packets.problem or _find_truncation([*said, *logs])
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


def _ends(text: str) -> bool:
    return any(mark in text for mark in _END_MARKS)


def _find_truncation(said: list[LogLine]) -> str | None:
    return next((f"FFmpeg: {line.strip()}" for _, _, line in said if any(m in line for m in _TRUNCATION_MARKS)), None)
