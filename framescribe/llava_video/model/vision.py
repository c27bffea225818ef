"""The model's input and output around the vision tower: frames to pixel values, projected patches to video tokens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from framescribe.llava_video.model.config import POOL_STRIDE, ModelConfig, pooled_side


def resize_frames(frames: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes uint8 frames [T, H, W, 3] to [T, S, S, 3] as the reference does: PIL bicubic, aspect ratio not kept."""
    if frames.shape[1:3] == (image_size, image_size):
        return frames
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


def find_unique_frames(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames with consecutive repeats dropped [U, H, W, 3], and for each of the T frames its index there [T].

    Sampling a short clip repeats frames, and a slide show holds them: each is encoded once.
    """
    is_new = np.ones(len(frames), dtype=bool)
    for index in range(1, len(frames)):
        is_new[index] = not np.array_equal(frames[index], frames[index - 1])
    return (frames if is_new.all() else frames[is_new]), np.cumsum(is_new) - 1


def normalise_pixels(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Maps uint8 frames [T, S, S, 3] to pixel values [T, 3, S, S] between -1 and 1.

    Bit-equal to SigLIP's rescale by 1/255 and normalisation with mean and deviation 0.5, for all 256 values.
    """
    return ((frames.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).to(dtype)


def pool_patches(patches: Tensor, config: ModelConfig, stride: int = POOL_STRIDE) -> Tensor:
    """Pools the projected patches of each frame, [T, P, D] to [T, p, D] with p a square number, row by row."""
    side = config.tower.grid_size
    grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [T, D, side, side]
    if config.pool_mode == "average":
        pooled = F.avg_pool2d(grid, stride)
    elif config.pool_mode == "max":
        pooled = F.max_pool2d(grid, stride)
    else:
        target = pooled_side(side, stride, "bilinear")
        pooled = F.interpolate(grid, size=(target, target), mode="bilinear")
    return pooled.flatten(2).transpose(1, 2)


def arrange_video_tokens(pooled: Tensor, newline: Tensor | None, config: ModelConfig) -> Tensor:
    """Strings the pooled tokens [T, p, D] of one clip together with its newlines: [V, D]."""
    if not config.needs_newline:
        return pooled.flatten(0, 1)
    assert newline is not None, "read_model_config lets no layout through whose newline embedding is missing"
    if config.newline_position == "grid":
        return _end_rows(pooled, newline).flatten(0, 1)
    if config.newline_position == "frame":
        return torch.cat([pooled, newline.expand(len(pooled), 1, -1)], dim=1).flatten(0, 1)
    return torch.cat([pooled.flatten(0, 1), newline[None]])


def arrange_faster_video_tokens(
    slow: Tensor, fast: Tensor, newline: Tensor, faster_token: Tensor, stride: int
) -> Tensor:
    """Strings slow tokens [T, p, D] of every `stride`-th frame and fast ones [T, q, D] of the others: [V, D].

    Each frame ends with the learnt `faster_token`. The public code builds this but cannot run it (a NameError); this
    follows its design, with the stride of one video.
    """
    slow, fast, end = _end_rows(slow, newline), _end_rows(fast, newline), faster_token[None]
    frames = [slow[index] if index % stride == 0 else fast[index] for index in range(len(slow))]
    return torch.cat([part for frame in frames for part in (frame, end)])


def _end_rows(pooled: Tensor, newline: Tensor) -> Tensor:
    side = int(pooled.shape[1] ** 0.5)
    rows = pooled.unflatten(1, (side, side))  # [T, side, side, D]
    return torch.cat([rows, newline.expand(len(rows), side, 1, -1)], dim=2).flatten(1, 2)
