"""What the model card does with a video before the model: its `load_video` and its processor, in plain numpy."""

from __future__ import annotations

import time

import numpy as np
from PIL import Image

from schemas.digest import digest_frames

_IMAGE_SIZE = 384


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
    """Returns float32 [T, 3, S, S] in -1..1: every frame, repeats too, resized, rescaled and normalized by itself."""
    resized = [np.asarray(Image.fromarray(f).resize((_IMAGE_SIZE, _IMAGE_SIZE), Image.Resampling.BICUBIC)) for f in frames]
    rescaled = [(frame.astype(np.float64) / 255).astype(np.float32) for frame in resized]
    half = np.full(3, 0.5, dtype=np.float32)
    normalized = [(frame - half) / half for frame in rescaled]
    return np.stack([frame.transpose(2, 0, 1) for frame in normalized])
