"""From a decoded frame to the pixels the model's processor would see."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from decoding.resampling import AS_STORED, CHANNELS, BicubicResampler, Orientation

# Its weights take 2 to 5 ms to make: most clips have the size of one before them.
_resampler = lru_cache(maxsize=4)(BicubicResampler)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of wanted frames, uint8 [S, S, 3] RGB by key, and the size of the frames before the resize."""

    by_key: dict[int, np.ndarray]
    width_px: int
    height_px: int


class FrameResizer:
    """Turns decoded frames into uint8 [S, S, 3] RGB, bit-equal to PIL's bicubic resize of the whole RGB frame."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._reformatter = VideoReformatter()  # kept, so that swscale is set up once a clip and not once a frame

    def resize(self, frame: VideoFrame) -> np.ndarray:
        """Returns uint8 [S, S, 3]: converted, turned upright, resized without keeping the aspect ratio."""
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        rows = np.frombuffer(memoryview(rgb.planes[0]), dtype=np.uint8).reshape(rgb.height, -1)  # padded; no copy
        resampler = _resampler(rgb.width, rgb.height, self._image_size, orientation_of(frame))
        return resampler.resize(rows[:, : rgb.width * CHANNELS])


def resize_picture(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Returns uint8 [S, S, 3] of an upright RGB picture uint8 [H, W, 3], as `FrameResizer` does."""
    height_px, width_px, _ = picture.shape
    return _resampler(width_px, height_px, image_size).resize(picture.reshape(height_px, -1))


def orientation_of(frame: VideoFrame) -> Orientation:
    """Returns how the frame's display matrix wants it shown; angles between quarter turns go to the nearest one."""
    side_data: Any = frame.side_data  # Any: a mapping by name, which PyAV's types call a single entry
    if "DISPLAYMATRIX" not in side_data:
        return AS_STORED
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), shifted into view.
    a, b, _, c, d = struct.unpack_from("=5i", memoryview(side_data["DISPLAYMATRIX"]))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(mirrors_columns=a < 0, mirrors_rows=d < 0)
    return Orientation(mirrors_columns=b < 0, mirrors_rows=c < 0, is_transposed=True)


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Returns width and height in pixels as the frame is shown."""
    return (frame.height, frame.width) if orientation_of(frame).is_transposed else (frame.width, frame.height)
