"""What a decoder hands back for one clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
