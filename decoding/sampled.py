"""What decoders agree on: which frames of a timeline are sampled, and what they hand back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoding.config import SamplingConfig
from decoding.errors import UndecodableClip
from decoding.indices import FrameChoice, choose_frames
from decoding.pictures import Pictures
from decoding.timeline import Span, Timeline


@dataclass(frozen=True, slots=True)
class SampledFrames:
    """The frames chosen for one clip, each decoded once.

    Attributes:
        frame_indices: [T] index in the video of each frame, increasing, with repeats.
        timestamps_s: [T] seconds from the clip's first frame, as the prompt states them.
        duration_s: seconds the clip lasts, as the prompt states it.
        pictures: uint8 [S, S, 3] RGB by index in the video.
        width_px, height_px: size of the frames as shown, before the resize.
        decoded_share: frames decoded over frames expected, 1.0 for a sound clip.
    """

    frame_indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    duration_s: float
    pictures: dict[int, np.ndarray]
    width_px: int
    height_px: int
    decoded_share: float = 1.0


def choose_from(timeline: Timeline, span: Span, config: SamplingConfig) -> tuple[int, FrameChoice]:
    """Returns the index of a span's first frame, and the frames to sample, counted from it.

    Raises:
        UndecodableClip: no frame is shown in the span.
    """
    low, high = timeline.window(span)
    if low == high:
        if timeline.is_cut:
            raise UndecodableClip(f"truncated after {timeline.end_s:.1f} s", "the file ends before the window starts")
        raise UndecodableClip(
            "window outside of the video",
            f"no frame between {span.start_s} s and {span.end_s} s of a video of {timeline.end_s:.3f} s",
        )
    end_s = timeline.times_s[high] if high < len(timeline.times_s) else timeline.end_s
    times_s = timeline.times_s[low:high] - timeline.times_s[low]
    return low, choose_frames(times_s, end_s - timeline.times_s[low], timeline.average_rate, config)


def assemble(choice: FrameChoice, frame_indices: tuple[int, ...], pictures: Pictures, share: float) -> SampledFrames:
    """Joins a choice, its frames' indices in the video and their pictures, kept by those indices."""
    return SampledFrames(
        frame_indices,
        choice.timestamps_s,
        choice.duration_s,
        pictures.by_key,
        pictures.width_px,
        pictures.height_px,
        share,
    )
