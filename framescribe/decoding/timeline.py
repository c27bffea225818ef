"""When each frame of a video is shown, read from its packets without decoding any."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av.container
import numpy as np
from av.video.stream import VideoStream

from framescribe.decoding.config import TimeWindow, UndecodableClip
from framescribe.decoding.demux import LogLine, VideoPackets, is_truncated, read_packets

# A window beyond this is a damaged timestamp (some Ogg files reach 300 years) and no recording.
_LONGEST_VIDEO_S = 30 * 86400.0
_FIELD_CONTAINERS = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc"}
USUAL_RATE = 25  # frames per second, where a file states neither times nor a rate
_ROUNDING_S = 1e-6  # a window's bounds come from text: a frame at exactly start_s must not fall out by rounding


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a video in presentation order, as its packets announce them.

    Attributes:
        container: FFmpeg's names of the container, for example `mov,mp4,m4a,3gp,3g2,mj2`.
        codec, pix_fmt: FFmpeg's names of the decoder and of its pixels' format.
        coded_size: width and height in pixels as coded, before any rotation.
        num_video_streams: cover frames included.
        has_leading_pictures: whether frames precede, in time, a key frame that they follow in the file (open GOP).
        pts: int64 [N] presentation timestamps in ticks, increasing.
        key_pts: int64 [K] the same of the key frames, increasing.
        times_s: float64 [N] seconds from the first frame.
        end_s: seconds from the first frame to the end of the last one.
        average_rate: mean frames per second as the container states it, or None.
        rate: frames per second as the stream states it, else `average_rate`; for frames without times.
        tick_s: seconds a tick.
        is_reliable: whether `pts` names the frames; if not, frames can only be counted as they are decoded.
        has_frame_packets: whether the container stores one frame a packet (MPEG streams may store single fields).
        has_discarded: whether the file holds frames that an edit list hides.
        has_holes: whether the demuxer went on behind data that it could not read.
        num_unread: frames that the index of an AVI file lists and that are not where it says.
        num_missing: frames that the file should hold but that lie beyond its end.
        is_cut: whether the file ends too early; a damaged table of frames may name places beyond a whole file's end.
        problem: what speaks for a file that ends too early or is damaged, mostly FFmpeg's words, or None.
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
    rate: Fraction | None
    tick_s: float
    is_reliable: bool
    has_frame_packets: bool
    has_discarded: bool
    has_holes: bool
    num_unread: int
    num_missing: int
    is_cut: bool
    problem: str | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing speaks against taking the timeline at its word."""
        return self.is_reliable and not self.problem and not self.num_missing

    def key_before(self, pts: int) -> int | None:
        """Returns the timestamp of the last key frame up to `pts`, or None where that is the start of the video."""
        place = int(np.searchsorted(self.key_pts, pts, side="right")) - 1
        return int(self.key_pts[place]) if place > 0 else None

    def frames_in(self, window: TimeWindow) -> tuple[int, int]:
        """Returns the first frame of a window and the one after its last: frames with start_s <= time < end_s."""
        low = 0 if window.start_s is None else int(np.searchsorted(self.times_s, window.start_s - _ROUNDING_S))
        high = (
            len(self.times_s)
            if window.end_s is None
            else int(np.searchsorted(self.times_s, window.end_s - _ROUNDING_S))
        )
        return low, max(low, high)


def read_timeline(
    container: av.container.InputContainer, stream: VideoStream, path: str, log: list[LogLine]
) -> Timeline:
    """Reads all packets of `stream`; `log` is what FFmpeg said when it opened the file.

    Raises:
        UndecodableClip: the stream holds no frame to show.
    """
    packets = read_packets(container, stream, log)
    problem = packets.problem or _find_short_riff(path)
    num_missing = _count_missing(stream, os.path.getsize(path))
    is_mp4 = "mov" in container.format.name.split(",")
    is_cut = bool(problem or num_missing) and (not is_mp4 or is_truncated(Path(path)))
    if not packets.pts:
        _refuse_no_frames(stream, packets.has_discarded, is_cut, problem)
    timeline = _arrange(container, stream, packets)
    if problem and not (num_missing and is_mp4):  # MP4's index is exact
        num_missing = max(num_missing, packets.num_corrupt, _estimate_missing(container, stream, timeline))
        if num_missing and container.duration:
            problem += f"; the header states {container.duration / 1e6:.1f} s"
    if packets.num_unread and not num_missing:
        problem = f"the index lists {packets.num_unread} frames that are not where it says"
    if num_missing and not is_cut:
        problem = f"its table names {num_missing} frames beyond the end of a file that is not cut"
    return replace(timeline, problem=problem, num_missing=num_missing, is_cut=is_cut)


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
    # A fraction of a second tells no rate: how long its last frame lasts is a guess.
    rate = num_read / timeline.end_s if timeline.end_s >= 1 else float(timeline.average_rate or USUAL_RATE)
    return max(0, round((stated_s - timeline.end_s) * rate))


def _refuse_no_frames(stream: VideoStream, has_discarded: bool, is_cut: bool, problem: str | None) -> None:
    if is_cut:
        raise UndecodableClip("truncated before its first frame", f"no frame is in the file: {problem or 'no data'}")
    if has_discarded:
        raise UndecodableClip("no frames", "the file's edit list hides all of its frames")
    if stream.frames or problem:
        raise UndecodableClip("damaged", f"the header lists {stream.frames} frames, none of which is where it says")
    raise UndecodableClip("no frames", f"the {stream.codec_context.name} stream holds no frames")


def _arrange(container: av.container.InputContainer, stream: VideoStream, packets: VideoPackets) -> Timeline:
    names = container.format.name.split(",")
    tick_s = float(stream.time_base or 0)
    stated = np.asarray([p for p in packets.pts if p is not None], dtype=np.int64)
    # FFmpeg's mean rate of raw H.264 and HEVC is 25, whatever the stream says of itself.
    rates = (stream.average_rate, stream.guessed_rate) if len(stated) else (stream.guessed_rate, stream.average_rate)
    rate = rates[0] or rates[1]
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
        rate=rate,
        tick_s=tick_s,
        is_reliable=is_reliable,
        has_frame_packets=not set(names) & _FIELD_CONTAINERS,
        has_discarded=packets.has_discarded,
        has_holes=packets.has_holes,
        num_unread=packets.num_unread,
        num_missing=0,
        is_cut=False,
        problem=None,
    )


def usual_gap_s(times_s: np.ndarray, rate: Fraction | None) -> float:
    """How long a frame is shown, for a last frame that does not say: the median gap, or one frame period."""
    if len(times_s) > 1:
        return float(np.median(np.diff(times_s)))
    return float(1 / rate) if rate else 0.0
