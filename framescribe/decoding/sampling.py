"""Which frames of a video to take, which times to state for them, and which parts of it have to be decoded for them.

Arithmetic only, tested without a video.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from framescribe.decoding.config import SamplingConfig, UndecodableClip

if TYPE_CHECKING:  # records are imported everywhere, also where PyAV cannot be
    from framescribe.decoding.config import TimeWindow
    from framescribe.decoding.resize import DecodedFrames
    from framescribe.decoding.timeline import Timeline

# Presentation times are multiples of a container's tick: a frame shown at 0.9999 of a wanted time is meant by it.
_TIME_TOLERANCE_S = 1e-3
# Decoders hand frames out up to 16 frames late, so the last frame of a range needs some of what follows it.
_LEAST_GAP_FRAMES = 32


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a clip the model saw, and how they were decoded.

    Attributes:
        frame_indices: [T] index of each sampled frame in presentation order, from the start of the video.
        timestamps_s: [T] seconds from the first frame of the clip, as the prompt states them.
        duration_s: seconds the clip lasts, as the prompt states it.
        frames_digest: SHA-256 (hex) over shape and bytes of the frames, see `framescribe.digests.digest_frames`.
        decoder: name and version, for example `pyav 18.1.0`; a warning follows after `; ` where there is one.
        width_px, height_px: size of the decoded frames after rotation, before the resize.
        decoded_fraction: decoded frames over expected frames of the clip, 1.0 unless the file is damaged.
    """

    frame_indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    duration_s: float
    frames_digest: str
    decoder: str
    width_px: int
    height_px: int
    decoded_fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """The sampled frames of one clip, repeats included: uint8 [T, S, S, 3] RGB, resized to the model's input size."""

    sampling: Sampling
    frames: np.ndarray = field(repr=False)


@dataclass(frozen=True, slots=True)
class SampledFrames:
    """The frames chosen for one clip, each decoded once.

    Attributes:
        frame_indices: [T] index in the video of each frame, increasing, with repeats.
        timestamps_s: [T] seconds from the clip's first frame, as the prompt states them.
        duration_s: seconds the clip lasts, as the prompt states it.
        frames: uint8 [S, S, 3] RGB by index in the video.
        width_px, height_px: size of the frames as shown, before the resize.
        decoded_fraction: frames decoded over frames expected, 1.0 for a sound clip.
    """

    frame_indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    duration_s: float
    frames: dict[int, np.ndarray]
    width_px: int
    height_px: int
    decoded_fraction: float = 1.0

    def stack(self) -> np.ndarray:
        """Returns uint8 [T, S, S, 3] RGB: the frames in their order, repeats included."""
        return np.stack([self.frames[index] for index in self.frame_indices])


def choose_from(timeline: Timeline, window: TimeWindow, config: SamplingConfig) -> tuple[int, FrameChoice]:
    """Returns the index of a window's first frame, and the frames to sample, counted from it.

    Raises:
        UndecodableClip: no frame is shown in the window.
    """
    low, high = timeline.frames_in(window)
    if low == high:
        if timeline.is_cut:
            raise UndecodableClip(f"truncated after {timeline.end_s:.1f} s", "the file ends before the window starts")
        raise UndecodableClip(
            "window outside of the video",
            f"no frame between {window.start_s} s and {window.end_s} s of a video of {timeline.end_s:.3f} s",
        )
    end_s = timeline.times_s[high] if high < len(timeline.times_s) else timeline.end_s
    times_s = timeline.times_s[low:high] - timeline.times_s[low]
    return low, choose_frames(times_s, end_s - timeline.times_s[low], timeline.average_rate, config)


def assemble(
    choice: FrameChoice, frame_indices: tuple[int, ...], frames: DecodedFrames, fraction: float
) -> SampledFrames:
    """Joins a choice, its frames' indices in the video and their frames, kept by those indices."""
    return SampledFrames(
        frame_indices,
        choice.timestamps_s,
        choice.duration_s,
        frames.by_key,
        frames.width_px,
        frames.height_px,
        fraction,
    )


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """The frames of a clip that are sampled.

    Attributes:
        indices: [T] positions in the clip's frames, increasing, with repeats where a clip has fewer than T frames.
        timestamps_s: [T] seconds from the clip's first frame, as the prompt states them.
        duration_s: seconds the clip lasts, as the prompt states it.
    """

    indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    duration_s: float


def choose_frames(
    times_s: Sequence[float], duration_s: float, average_rate: Fraction | None, config: SamplingConfig
) -> FrameChoice:
    """Chooses frames of a clip whose frames are shown at `times_s` (seconds from the first, increasing).

    Raises:
        UndecodableClip: the model card's arithmetic, asked for by `time_base="model_card"`, cannot be done for this
            clip.
    """
    if config.time_base == "model_card":
        return choose_as_model_card(len(times_s), average_rate, config.max_frames, config.fps)
    if config.fps is None:
        indices = spread_indices(len(times_s), config.max_frames)
    else:
        indices = rate_indices(times_s, duration_s, config.fps, config.max_frames)
    return FrameChoice(indices, tuple(float(times_s[i]) for i in indices), float(duration_s))


def spread_indices(num_frames: int, max_frames: int) -> tuple[int, ...]:
    """Returns `max_frames` indices from the first to the last frame, truncated as the model card does, with repeats."""
    return tuple(np.linspace(0, num_frames - 1, max_frames, dtype=int).tolist())


def rate_indices(times_s: Sequence[float], duration_s: float, fps: float, max_frames: int) -> tuple[int, ...]:
    """Returns the frames on screen at 0, 1/fps, 2/fps, ..., each once; more than `max_frames` are spread evenly."""
    bounds_s = np.append(np.asarray(times_s, dtype=np.float64), duration_s) - _TIME_TOLERANCE_S
    first_tick = np.ceil(bounds_s * fps)  # [N + 1]: the first multiple of 1/fps at or after each frame's start
    wanted = first_tick[:-1] < first_tick[1:]
    wanted[0] = True
    indices = np.flatnonzero(wanted)
    if len(indices) > max_frames:
        return spread_indices(len(times_s), max_frames)
    return tuple(indices.tolist())


def choose_as_model_card(
    num_frames: int, average_rate: Fraction | None, max_frames: int, fps: float | None
) -> FrameChoice:
    """Does the index and time arithmetic of the model card's `load_video`, its oddities included.

    `fps=None` is the card's `force_sample=True` with its `fps=1`. Without it, times are positions over the stride and
    not over the frame rate: right at `fps=1` alone. Models were shown these very times.

    Raises:
        UndecodableClip: the stride comes out as 0, where `load_video` raises, or the video states no frame rate.
    """
    if not average_rate:
        raise UndecodableClip(
            "no frame rate", "the video states no mean frame rate, which --time-base model_card divides by"
        )
    rate = float(average_rate)
    stride = round(rate / (fps or 1))
    if stride == 0:
        raise UndecodableClip(
            f"frame rate {rate:g} too low for the time base model_card",
            f"the model card's load_video fails at {rate:g} frames/s sampled at {fps or 1:g}/s; use --time-base pts",
        )
    indices = tuple(range(0, num_frames, stride))
    timestamps_s = tuple(i / stride for i in indices)
    if fps is None or len(indices) > max_frames:
        indices = spread_indices(num_frames, max_frames)
        timestamps_s = tuple(i / rate for i in indices)
    return FrameChoice(indices, timestamps_s, num_frames / rate)


@dataclass(frozen=True, slots=True)
class SeekRange:
    """A part of a video that is decoded in order.

    Attributes:
        key_pts: timestamp of the key frame it starts at, None for the start of the video.
        wanted: index in the video by timestamp of the frames to keep.
    """

    key_pts: int | None
    wanted: dict[int, int] = field(default_factory=dict)


def plan_seek_ranges(timeline: Timeline, indices: Iterable[int]) -> list[SeekRange]:
    """Leaves out what lies between a wanted frame and the key frame before the next, where that is long enough."""
    seek_ranges: list[SeekRange] = []
    last = 0
    for index in sorted(set(indices)):
        key_pts = timeline.key_before(int(timeline.pts[index]))
        key_index = 0 if key_pts is None else int(np.searchsorted(timeline.pts, key_pts))
        if not seek_ranges or key_index - last > _LEAST_GAP_FRAMES:
            seek_ranges.append(SeekRange(key_pts))
        seek_ranges[-1].wanted[int(timeline.pts[index])] = last = index
    return seek_ranges
