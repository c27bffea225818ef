"""Reads the packets of a video stream: its frames as the container stores them, not decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import av
import av.container
import av.error
from av.video.stream import VideoStream

from decoding.ffmpeg_log import LogLine, ffmpeg_log

# What FFmpeg says, without an error, when a file ends before its container does.
_TRUNCATION_MARKS = ("ended prematurely", "partial file", "Packet corrupt", "exceeds containing master element")


@dataclass(slots=True)
class VideoPackets:
    """The packets that are shown, in decoding order; times in ticks of the stream.

    Attributes:
        pts, durations: of each packet; a missing duration is 0.
        key_pts: of the key frames.
        has_discarded: whether an edit list hides packets.
        has_leading_pictures: whether a packet is shown before a key frame that it follows.
        num_corrupt: packets that are not whole; they are not in `pts`.
        problem: what FFmpeg said about the file ending too early, or the error at which reading ended, or None.
    """

    pts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    key_pts: list[int] = field(default_factory=list)
    has_discarded: bool = False
    has_leading_pictures: bool = False
    num_corrupt: int = 0
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
    with ffmpeg_log() as logs:
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    packets.num_corrupt += 1
                elif packet.is_discard:
                    packets.has_discarded = True
                elif packet.size and not _is_hidden_vp8(stream, packet):
                    packets.add(packet)
        except av.error.FFmpegError as error:
            packets.problem = str(error.strerror)
    packets.problem = packets.problem or _find_truncation([*said, *logs])
    return packets


def _is_hidden_vp8(stream: VideoStream, packet: av.Packet) -> bool:
    """VP8 keeps its alternate references in packets of their own; bit 4 of the frame tag says whether one is shown."""
    return stream.codec_context.name in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def _find_truncation(said: list[LogLine]) -> str | None:
    return next((line.strip() for _, _, line in said if any(mark in line for mark in _TRUNCATION_MARKS)), None)
