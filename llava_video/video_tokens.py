"""From projected patches to the video tokens that stand in the prompt: pooling, newlines, faster video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_video.model_config import POOL_STRIDE, ModelConfig, pooled_side


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


def lay_out_video(pooled: Tensor, newline: Tensor | None, config: ModelConfig) -> Tensor:
    """Strings the pooled tokens [T, p, D] of one clip together with its newlines: [V, D]."""
    if not config.needs_newline:
        return pooled.flatten(0, 1)
    assert newline is not None, "read_model_config lets no layout through whose newline embedding is missing"
    if config.newline_position == "grid":
        return _end_rows(pooled, newline).flatten(0, 1)
    if config.newline_position == "frame":
        return torch.cat([pooled, newline.expand(len(pooled), 1, -1)], dim=1).flatten(0, 1)
    return torch.cat([pooled.flatten(0, 1), newline[None]])


def lay_out_faster_video(slow: Tensor, fast: Tensor, newline: Tensor, faster_token: Tensor, stride: int) -> Tensor:
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
