"""From a decoded frame to the pixels the model's processor would see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from PIL import Image


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of wanted frames, uint8 [S, S, 3] RGB by key, and the size of the frames before the resize."""

    by_key: dict[int, np.ndarray]
    width_px: int
    height_px: int


class FrameResizer:
    """Turns decoded frames into uint8 [S, S, 3] RGB, bit-equal to PIL's bicubic resize of the whole RGB frame."""

    def __init__(self, image_size: int) -> None:
        self._size = (image_size, image_size)
        self._reformatter = VideoReformatter()  # kept, so that swscale is set up once a clip and not once a frame

    def resize(self, frame: VideoFrame) -> np.ndarray:
        """Returns uint8 [S, S, 3]: converted, turned upright, resized without keeping the aspect ratio."""
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane = rgb.planes[0]
        # Rows are padded: Pillow is told their length, and copies the plane once.
        picture = Image.frombuffer("RGB", (rgb.width, rgb.height), _rows(plane), "raw", "RGB", plane.line_size, 1)
        return resize_picture(turn_upright(picture, frame.rotation), self._size[0])


def _rows(plane: VideoPlane) -> np.ndarray:
    return np.frombuffer(memoryview(plane), dtype=np.uint8)  # no copy


def resize_picture(picture: Image.Image, image_size: int) -> np.ndarray:
    """Returns uint8 [S, S, 3] of an RGB picture, resized as the model card's processor does it."""
    return np.asarray(picture.resize((image_size, image_size), Image.Resampling.BICUBIC))


def turn_upright(picture: Image.Image, rotation_degrees: int) -> Image.Image:
    """Turns a picture counterclockwise by the quarter turns of its display matrix; other angles are left alone."""
    turns = {
        1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    turn = turns.get(round(rotation_degrees / 90) % 4)
    return picture if turn is None else picture.transpose(turn)


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Returns width and height in pixels as the frame is shown."""
    if round(frame.rotation / 90) % 2:
        return frame.height, frame.width
    return frame.width, frame.height
