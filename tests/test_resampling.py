"""Frames are resized to the very bits of Pillow's bicubic resize, which the model's image processor uses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from framescribe.decoding.resize import AS_STORED, BicubicResampler, Orientation

# Larger and smaller than the square, in simple ratios to it (many sums are exact halves), a pixel, and ribbons.
SIZES = [
    (1280, 720), (640, 360), (340, 256), (768, 432), (576, 768), (384, 384), (192, 192), (96, 64), (131, 97),
    (1, 1), (1921, 3), (3, 1921), (2, 150), (2001, 1999),
]  # fmt: skip


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def black_and_white(width: int, height: int) -> np.ndarray:
    """Every sum overshoots, or is a half."""
    return noise(width, height) // 128 * 255


def stripes(width: int, height: int) -> np.ndarray:
    return np.broadcast_to((np.arange(width) % 4 // 2 * 7 + 100).astype(np.uint8)[:, None], (height, width, 3))


def resize_with_pillow(picture: np.ndarray, image_size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((image_size, image_size), Image.Resampling.BICUBIC))


def resize(picture: np.ndarray, image_size: int, orientation: Orientation = AS_STORED) -> np.ndarray:
    height, width, _ = picture.shape
    return BicubicResampler(width, height, image_size, orientation).resize(picture.reshape(height, -1))


@pytest.mark.parametrize("make_picture", [noise, black_and_white, stripes])
@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_is_pillows(size, make_picture):
    picture = make_picture(*size)
    np.testing.assert_array_equal(resize(picture, 384), resize_with_pillow(picture, 384))


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("mirrors", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", [(1280, 720), (360, 640), (768, 256), (3, 1921), (1921, 3)])
def test_a_mirrored_or_turned_picture_is_set_right_before_it_is_resized(size, mirrors, is_transposed):
    picture = noise(*size)
    upright = np.flip(picture, [axis for axis, is_mirrored in zip((1, 0), mirrors, strict=True) if is_mirrored])
    upright = np.ascontiguousarray(upright.transpose(1, 0, 2) if is_transposed else upright)
    resized = resize(picture, 384, Orientation(*mirrors, is_transposed))
    np.testing.assert_array_equal(resized, resize_with_pillow(upright, 384))


@pytest.mark.parametrize("seed", range(40))
def test_pictures_of_any_size_become_pillows_squares_of_any_size(seed):
    width, height, image_size = np.random.default_rng(seed).integers(1, [900, 900, 500]).tolist()
    picture = noise(width, height, seed)
    np.testing.assert_array_equal(resize(picture, image_size), resize_with_pillow(picture, image_size))


def test_rows_may_be_padded():
    padded = noise(200, 90).reshape(90, -1)
    resized = BicubicResampler(190, 90, 384).resize(padded[:, : 190 * 3])
    np.testing.assert_array_equal(resized, resize_with_pillow(noise(200, 90)[:, :190].copy(), 384))
