"""Which frames to take and what times to state for them: arithmetic only, tested without a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from decoding.config import SamplingConfig
from decoding.errors import UndecodableClip

# Presentation times are multiples of a container's tick: a frame shown at 0.9999 of a wanted time is meant by it.
_TIME_TOLERANCE_S = 1e-3


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
        UndecodableClip: the model card's arithmetic, asked for by `time_base="seed"`, cannot be done for this clip.
    """
    if config.time_base == "seed":
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
        raise UndecodableClip("no frame rate", "the video states no mean frame rate, which --time-base seed divides by")
    rate = float(average_rate)
    stride = round(rate / (fps or 1))
    if stride == 0:
        raise UndecodableClip(
            f"frame rate {rate:g} too low for the seed time base",
            f"the model card's load_video fails at {rate:g} frames/s sampled at {fps or 1:g}/s; use --time-base pts",
        )
    indices = tuple(range(0, num_frames, stride))
    timestamps_s = tuple(i / stride for i in indices)
    if fps is None or len(indices) > max_frames:
        indices = spread_indices(num_frames, max_frames)
        timestamps_s = tuple(i / rate for i in indices)
    return FrameChoice(indices, timestamps_s, num_frames / rate)
