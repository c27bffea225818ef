"""Scenes as encoded videos, and encoded videos as the frames that the pipeline's decoder samples."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

from demo.world import FPS, FRAME_PX, Scene, draw_frames
from framescribe.decoding.sampling import spread_indices


def encode_scene(scene: Scene, crf: int = 20, preset: str = "veryfast") -> bytes:
    """Renders a scene and encodes it as H.264 in mp4, 8 frames a second."""
    return encode_frames(draw_frames(scene, np.linspace(0, 1, scene.num_frames)), crf, preset)


def encode_frames(frames: np.ndarray, crf: int = 20, preset: str = "veryfast") -> bytes:
    """Encodes uint8 [N, 128, 128, 3] as H.264 in mp4, the same bytes each time on one build of x264."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": str(crf), "preset": preset})
        track.width, track.height, track.pix_fmt = FRAME_PX, FRAME_PX, "yuv420p"
        track.codec_context.thread_count = 1
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(track.encode())
    return stream.getvalue()


def decode_evenly(video: bytes, num_frames: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns frames uint8 [T, H, W, 3], their times in seconds [T] and the duration in seconds."""
    with av.open(io.BytesIO(video), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = np.array(spread_indices(len(frames), num_frames))
    return np.stack([frames[index] for index in chosen]), chosen / FPS, len(frames) / FPS
