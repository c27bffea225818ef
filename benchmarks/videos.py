"""Encoded videos made on the spot, for benchmarks that decode."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

_WIDTH, _HEIGHT, _FPS = 1280, 720, 25


def write_videos(folder: Path, num_videos: int, duration_s: float) -> list[Path]:
    """Writes H.264 videos of a gradient that drifts under noise, each from its own seed."""
    folder.mkdir(parents=True)
    return [_write_video(folder / f"{seed:04d}.mp4", seed, duration_s) for seed in range(num_videos)]


def _write_video(path: Path, seed: int, duration_s: float) -> Path:
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, _WIDTH, dtype=np.float32)[None, :, None] * random.uniform(0.3, 1, 3).astype(np.float32)
    picture = np.broadcast_to(ramp, (_HEIGHT, _WIDTH, 3)) * 0.8 + random.integers(0, 50, (_HEIGHT, _WIDTH, 3))
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast", "crf": "23"})
        track.width, track.height, track.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        for number in range(int(duration_s * _FPS)):
            shifted = np.roll(picture, 4 * number, axis=1).astype(np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(shifted, "rgb24")))
        container.mux(track.encode())
    return path
