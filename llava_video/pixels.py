"""From frames to the pixel values that the vision tower was trained on."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resize_frames(frames: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes uint8 frames [T, H, W, 3] to [T, S, S, 3] as the reference does: PIL bicubic, aspect ratio not kept."""
    if frames.shape[1:3] == (image_size, image_size):
        return frames
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


def normalise_pixels(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Maps uint8 frames [T, S, S, 3] to pixel values [T, 3, S, S] between -1 and 1.

    Bit-equal to SigLIP's rescale by 1/255 and normalisation with mean and deviation 0.5, for all 256 values.
    """
    return ((frames.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).to(dtype)


def find_unique_frames(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames with consecutive repeats dropped [U, H, W, 3], and for each of the T frames its index there [T].

    Sampling a short clip repeats frames, and a slide show holds them: each is encoded once.
    """
    is_new = np.ones(len(frames), dtype=bool)
    for index in range(1, len(frames)):
        is_new[index] = not np.array_equal(frames[index], frames[index - 1])
    return (frames if is_new.all() else frames[is_new]), np.cumsum(is_new) - 1
