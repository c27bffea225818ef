"""What the model card does with a video before the model: its `load_video` and LLaVA's image processor."""

from __future__ import annotations

import time

import numpy as np

from framescribe.digests import digest_frames

_SIZE = (384, 384)


def cpu_seconds_of_model_card(path: str, num_frames: int) -> tuple[float, str] | None:
    """Returns the CPU seconds of this process and the digest of the resized frames; None where decord fails."""
    import decord  # here, because it has no wheels for ARM and macOS

    started_s = time.process_time()
    try:
        frames = load_video(path, num_frames)
    except (decord.DECORDError, RuntimeError):
        return None
    pixels = preprocess(frames)
    cpu_s = time.process_time() - started_s
    shown = np.rint((pixels * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return cpu_s, digest_frames(shown)


def load_video(path: str, num_frames: int) -> np.ndarray:
    """Returns uint8 [T, H, W, 3], spread evenly over decord's count of the frames."""
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    indices = np.linspace(0, len(reader) - 1, num_frames, dtype=int)
    frames: np.ndarray = reader.get_batch(indices.tolist()).asnumpy()
    return frames


def preprocess(frames: np.ndarray) -> np.ndarray:
    """Returns float32 [T, 3, S, S] in -1..1, by those functions of transformers that the card's processor uses.

    Every frame is treated by itself, repeats too; the stack is copied once more, as `return_tensors="pt"` does.
    """
    import torch
    from transformers.image_transforms import normalize, rescale, resize, to_channel_dimension_format
    from transformers.image_utils import ChannelDimension, PILImageResampling

    last, first = ChannelDimension.LAST, ChannelDimension.FIRST
    resized = [resize(f, _SIZE, resample=PILImageResampling.BICUBIC, input_data_format=last) for f in frames]
    rescaled = [rescale(f, 1 / 255, input_data_format=last) for f in resized]
    normalized = [normalize(f, [0.5] * 3, [0.5] * 3, input_data_format=last) for f in rescaled]
    planar = [to_channel_dimension_format(f, first, input_channel_dim=last) for f in normalized]
    return torch.tensor(np.array(planar)).numpy()
