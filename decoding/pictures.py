"""From a decoded frame to the pixels the model's processor would see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from decoding.resampling import CHANNELS, BicubicResampler

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
        resampler = _resampler(rgb.width, rgb.height, self._image_size, quarter_turns(frame))
        return resampler.resize(rows[:, : rgb.width * CHANNELS])


def resize_picture(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Returns uint8 [S, S, 3] of an upright RGB picture uint8 [H, W, 3], as `FrameResizer` does."""
    height_px, width_px, _ = picture.shape
    return _resampler(width_px, height_px, image_size).resize(picture.reshape(height_px, -1))


def quarter_turns(frame: VideoFrame) -> int:
    """Returns how many counterclockwise turns the frame's display matrix asks for; other angles are left alone."""
    return round(frame.rotation / 90) % 4


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Returns width and height in pixels as the frame is shown."""
    return (frame.height, frame.width) if quarter_turns(frame) % 2 else (frame.width, frame.height)
