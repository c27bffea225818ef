"""When each frame of a video is shown, read from its packets without decoding any."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction

import av.container
import numpy as np
from av.video.stream import VideoStream

from decoding.errors import UndecodableClip
from decoding.ffmpeg_log import LogLine
from decoding.packets import VideoPackets, read_packets

# A span beyond this is a damaged timestamp (some Ogg files reach 300 years) and no recording.
_LONGEST_VIDEO_S = 30 * 86400.0
_FIELD_CONTAINERS = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc"}
USUAL_RATE = 25  # frames a second, where a file states neither times nor a rate
_ROUNDING_S = 1e-6  # a window's bounds come from text: a frame at exactly start_s must not fall out by rounding


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a video that is the clip, in seconds from its first frame; None for the video's own bounds."""

    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a video in presentation order, as its packets announce them.

    Attributes:
        container: FFmpeg's names of the container, for example `mov,mp4,m4a,3gp,3g2,mj2`.
        codec, pix_fmt: FFmpeg's names of the decoder and of its pixels' format.
        coded_size: width and height in pixels as coded, before any rotation.
        num_video_streams: cover pictures included.
        has_leading_pictures: whether frames precede, in time, a key frame that they follow in the file (open GOP).
        pts: int64 [N] presentation timestamps in ticks, increasing.
        key_pts: int64 [K] the same of the key frames, increasing.
        times_s: float64 [N] seconds from the first frame.
        end_s: seconds from the first frame to the end of the last one.
        average_rate: mean frames a second as the container states it, or None.
        tick_s: seconds a tick.
        is_reliable: whether `pts` names the frames; if not, frames can only be counted as they are decoded.
        has_frame_packets: whether the container stores one frame a packet (MPEG streams may store single fields).
        has_discarded: whether the file holds frames that an edit list hides.
        num_missing: frames that the file should hold but that lie beyond its end.
        problem: what FFmpeg said about a file that ends too early or is damaged, or None.
    """

    container: str
    codec: str
    pix_fmt: str
    coded_size: tuple[int, int]
    num_video_streams: int
    has_leading_pictures: bool
    pts: np.ndarray
    key_pts: np.ndarray
    times_s: np.ndarray
    end_s: float
    average_rate: Fraction | None
    tick_s: float
    is_reliable: bool
    has_frame_packets: bool
    has_discarded: bool
    num_missing: int
    problem: str | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing speaks against taking the timeline at its word."""
        return self.is_reliable and not self.problem and not self.num_missing

    def key_before(self, pts: int) -> int | None:
        """Returns the timestamp of the last key frame up to `pts`, or None where that is the start of the video."""
        place = int(np.searchsorted(self.key_pts, pts, side="right")) - 1
        return int(self.key_pts[place]) if place > 0 else None

    def window(self, span: Span) -> tuple[int, int]:
        """Returns the first frame of a span and the one after its last: frames with start_s <= time < end_s."""
        low = 0 if span.start_s is None else int(np.searchsorted(self.times_s, span.start_s - _ROUNDING_S))
        high = len(self.times_s) if span.end_s is None else int(np.searchsorted(self.times_s, span.end_s - _ROUNDING_S))
        return low, max(low, high)


def read_timeline(
    container: av.container.InputContainer, stream: VideoStream, path: str, said: list[LogLine]
) -> Timeline:
    """Reads all packets of `stream`; `said` is what FFmpeg said when it opened the file.

    Raises:
        UndecodableClip: the stream holds no frame to show.
    """
    packets = read_packets(container, stream, said)
    problem = packets.problem or _find_short_riff(path)
    num_missing = _count_missing(stream, os.path.getsize(path))
    if not packets.pts:
        _refuse_no_frames(stream, packets.has_discarded, num_missing, problem)
    timeline = _arrange(container, stream, packets)
    if problem and not (num_missing and "mov" in timeline.container.split(",")):  # MP4's index is exact
        num_missing = max(num_missing, packets.num_corrupt, _estimate_missing(container, stream, timeline))
    return replace(timeline, problem=problem, num_missing=num_missing)


def _find_short_riff(path: str) -> str | None:
    """An AVI file states its size: FFmpeg reads a shorter one to its end without a word."""
    with open(path, "rb") as file:
        head = file.read(12)
    stated = int.from_bytes(head[4:8], "little") + 8
    if head[:4] == b"RIFF" and head[8:] == b"AVI " and stated > os.path.getsize(path):
        return f"the RIFF header states {stated} bytes, the file has {os.path.getsize(path)}"
    return None


def _count_missing(stream: VideoStream, size_bytes: int) -> int:
    return sum(not e.is_discard and e.pos + e.size > size_bytes for e in stream.index_entries)


def _estimate_missing(container: av.container.InputContainer, stream: VideoStream, timeline: Timeline) -> int:
    """How many frames a file that ends too early lacks, from the length that its header states."""
    num_read = len(timeline.times_s)
    if "avi" in timeline.container.split(","):  # its stated seconds are FFmpeg's guess from the size of the file
        return max(0, stream.frames - num_read)
    stated_s = min((container.duration or 0) / 1e6, _LONGEST_VIDEO_S)
    rate = num_read / timeline.end_s if timeline.end_s else 0.0
    return max(0, round((stated_s - timeline.end_s) * rate))


def _refuse_no_frames(stream: VideoStream, has_discarded: bool, num_missing: int, problem: str | None) -> None:
    if problem or num_missing:
        raise UndecodableClip("truncated before its first frame", f"no frame is in the file: {problem or 'no data'}")
    if has_discarded:
        raise UndecodableClip("no frames", "the file's edit list hides all of its frames")
    raise UndecodableClip("no frames", f"the {stream.codec_context.name} stream holds no frames")


def _arrange(container: av.container.InputContainer, stream: VideoStream, packets: VideoPackets) -> Timeline:
    names = container.format.name.split(",")
    rate = stream.average_rate or stream.guessed_rate
    tick_s = float(stream.time_base or 0)
    stated = np.asarray([p for p in packets.pts if p is not None], dtype=np.int64)
    ticks = np.sort(stated)
    is_complete = len(ticks) == len(packets.pts) == len(np.unique(ticks))
    if is_complete and tick_s > 0 and (int(ticks[-1]) - int(ticks[0])) * tick_s < _LONGEST_VIDEO_S:
        times_s = (ticks - ticks[0]) * tick_s
        last_s = packets.durations[int(np.argmax(stated))] * tick_s
        # AVI stores decoding times only; the presentation times FFmpeg makes of them are swapped around B-frames.
        is_reliable = "avi" not in names
    else:
        ticks = np.arange(len(packets.pts))
        times_s, last_s, is_reliable = ticks / float(rate or USUAL_RATE), 0.0, False
    end_s = float(times_s[-1]) + (last_s or usual_gap_s(times_s, rate))
    return Timeline(
        container=container.format.name,
        codec=stream.codec_context.name,
        pix_fmt=stream.codec_context.format.name
        if stream.codec_context.format
        else "",  # PyAV 17 crashes over no pix_fmt
        coded_size=(stream.codec_context.width, stream.codec_context.height),
        num_video_streams=len(container.streams.video),
        has_leading_pictures=packets.has_leading_pictures,
        pts=ticks,
        key_pts=np.sort(np.asarray(packets.key_pts, dtype=np.int64)),
        times_s=times_s,
        end_s=end_s,
        average_rate=stream.average_rate,
        tick_s=tick_s,
        is_reliable=is_reliable,
        has_frame_packets=not set(names) & _FIELD_CONTAINERS,
        has_discarded=packets.has_discarded,
        num_missing=0,
        problem=None,
    )


def usual_gap_s(times_s: np.ndarray, rate: Fraction | None) -> float:
    """How long a frame is shown, for a last frame that does not say: the median gap, or one frame period."""
    if len(times_s) > 1:
        return float(np.median(np.diff(times_s)))
    return float(1 / rate) if rate else 0.0
