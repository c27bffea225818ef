"""From a decoded frame to the pixels that the model's processor would see: turned upright, and resized as PIL does.

The resize is PIL's bicubic one to the bit, in three quarters of its CPU time: matrix products in place of its scalar
loops, over weights that are the whole numbers PIL computes with.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

CHANNELS = 3
_COLUMNS_A_BLOCK, _ROWS_A_BLOCK = 8, 16  # measured: smaller ones cost calls, larger ones multiply more zeros
_COARSE_BITS = 8  # weights that end in so many zeros leave room for the largest sum in the 24 bits of a float32
_TILE_SAMPLES = 3 << 20  # of a frame that are float32 at once: 12 MB, whatever its size
PRECISION_BITS = 22
_REACH = 2.0  # the kernel is zero from here on, in input pixels, or in output pixels where the picture shrinks
_A = -0.5


@dataclass(frozen=True, slots=True)
class DecodedFrames:
    """The wanted frames of a video, uint8 [S, S, 3] RGB by key, and the size of the frames before the resize."""

    by_key: dict[int, np.ndarray]
    width_px: int
    height_px: int


class FrameResizer:
    """Turns decoded frames into uint8 [S, S, 3] RGB, bit-equal to PIL's bicubic resize of the whole RGB frame."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._reformatter = VideoReformatter()  # kept, so that swscale is set up once per clip and not once per frame

    def resize(self, frame: VideoFrame) -> np.ndarray:
        """Returns uint8 [S, S, 3]: converted, turned upright, resized without keeping the aspect ratio."""
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        rows = np.frombuffer(memoryview(rgb.planes[0]), dtype=np.uint8).reshape(rgb.height, -1)  # padded; no copy
        resampler = _resampler(rgb.width, rgb.height, self._image_size, orientation_of(frame))
        return resampler.resize(rows[:, : rgb.width * CHANNELS])


def resize_frame(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Returns uint8 [S, S, 3] of an upright RGB picture uint8 [H, W, 3], as `FrameResizer` does."""
    height_px, width_px, _ = picture.shape
    return _resampler(width_px, height_px, image_size).resize(picture.reshape(height_px, -1))


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a frame is shown: its columns and rows in the opposite order, then one in place of the other (transposed)."""

    mirrors_columns: bool = False
    mirrors_rows: bool = False
    is_transposed: bool = False

    @property
    def is_mirrored(self) -> bool:
        """Whether no rotation comes to the same."""
        return (self.mirrors_columns != self.mirrors_rows) != self.is_transposed


AS_STORED = Orientation()


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


class BicubicResampler:
    """Resizes RGB frames of one size to squares.

    As in PIL, sums along x are rounded to 8 bits before those along y. Both are products with banded matrices, in
    float32. A sum so close to a half that float32 might round it to the wrong side (about one in a thousand) is
    computed again in whole numbers, as PIL does.
    """

    def __init__(self, width_px: int, height_px: int, image_size: int, orientation: Orientation = AS_STORED) -> None:
        """Prepares the weights.

        Args:
            width_px, height_px: of the frames as they come.
            orientation: what is done to them before the resize. The weights are mirrored, no pixel moves.
        """
        columns, rows = bicubic_taps(width_px, image_size), bicubic_taps(height_px, image_size)
        self._columns = _Columns(columns.mirrored(width_px) if orientation.mirrors_columns else columns)
        self._rows = _Rows(rows.mirrored(height_px) if orientation.mirrors_rows else rows)
        self._is_on_its_side = orientation.is_transposed
        upright_px = (height_px, width_px) if self._is_on_its_side else (width_px, height_px)
        starts_along_y = upright_px[1] > max(100 * upright_px[0], image_size)  # Pillow's exception for a ribbon
        self._starts_with_rows = self._is_on_its_side != starts_along_y
        between = (image_size, width_px) if self._starts_with_rows else (height_px, image_size)
        self._between = np.empty((between[0], between[1] * CHANNELS), dtype=np.float32)
        self._resized = np.empty((image_size, image_size * CHANNELS), dtype=np.float32)

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """Returns uint8 [S, S, 3] of a frame uint8 [H, 3 W], whose rows are R, G, B, R, G, B and so on."""
        first, last = (self._rows, self._columns) if self._starts_with_rows else (self._columns, self._rows)
        for tile, sums in self._tiles(frame):
            first.fill(sums, tile.astype(np.float32))
        last.fill(self._resized, self._between)
        picture = self._resized.astype(np.uint8).reshape(len(self._resized), -1, CHANNELS)
        return np.ascontiguousarray(picture.transpose(1, 0, 2)) if self._is_on_its_side else picture

    def _tiles(self, frame: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields parts of the frame, each whole along the axis of the first sums, and the places of these sums."""
        height, width = frame.shape
        if self._starts_with_rows:
            step = max(1, _TILE_SAMPLES // height)
            yield from ((frame[:, i : i + step], self._between[:, i : i + step]) for i in range(0, width, step))
        else:
            step = max(1, _TILE_SAMPLES // width)
            yield from ((frame[i : i + step], self._between[i : i + step]) for i in range(0, height, step))


# Its weights take 2 to 5 ms to make: most clips have the size of one before them.
_resampler = lru_cache(maxsize=4)(BicubicResampler)


@dataclass(frozen=True, slots=True)
class _Block:
    """The weights of some neighbouring outputs: a dense float32 piece of the banded matrix."""

    inputs: slice
    outputs: slice
    weights: np.ndarray


class _Axis:
    """Weighted sums along one axis of float32 frames of whole grey levels, rounded to such levels."""

    def __init__(self, taps: Taps, outputs_a_block: int) -> None:
        num_outputs, num_taps = taps.weights.shape
        self._taps = taps
        self._blocks = [_make_block(taps, i, outputs_a_block) for i in range(0, num_outputs, outputs_a_block)]
        largest_sum = 255 * int(np.abs(taps.weights).sum(axis=1).max()) / (1 << PRECISION_BITS)
        error = (num_taps + 2) * 2.0**-24 * largest_sum  # at most, in whatever order a float32 sum is made
        # Sizes in a simple ratio to ours have coarse weights, and true halves in plenty. float32 sums these without
        # error: moved up by less than their spacing they round as PIL rounds halves, and none is in doubt.
        is_coarse = (taps.weights % (1 << _COARSE_BITS) == 0).all(axis=1)
        self._bias = np.where(is_coarse, np.float32(2.0 ** (_COARSE_BITS - 1 - PRECISION_BITS)), np.float32(0))
        self._doubt_from = np.where(is_coarse, 0.5, 0.5 - error).astype(np.float32)

    def _round(self, sums: np.ndarray, bias: np.ndarray, doubt_from: np.ndarray) -> np.ndarray:
        """Rounds sums in place; returns the flat places of those that float32 may have rounded to the wrong side."""
        if bias.any():
            sums += bias
        rounded = np.rint(sums)
        sums -= rounded
        doubtful = np.flatnonzero(np.abs(sums, out=sums) > doubt_from)
        np.clip(rounded, 0, 255, out=sums)
        return doubtful

    def _inputs_of(self, outputs: np.ndarray) -> np.ndarray:
        """[N] -> [N, K]."""
        return self._taps.first[outputs, None] + np.arange(self._taps.weights.shape[1])

    def _sum_exactly(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """[N, K] grey levels -> [N] rounded sums."""
        sums = np.einsum("nk,nk->n", inputs.astype(np.int64), self._taps.weights[outputs])
        return np.clip((sums + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS, 0, 255)


class _Rows(_Axis):
    """Sums along y."""

    def __init__(self, taps: Taps) -> None:
        super().__init__(taps, _ROWS_A_BLOCK)

    def fill(self, sums: np.ndarray, picture: np.ndarray) -> None:
        """Fills `sums` [S, 3 W] from a picture [H, 3 W]."""
        for block in self._blocks:
            np.matmul(block.weights, picture[block.inputs], out=sums[block.outputs])
        doubtful = self._round(sums, self._bias[:, None], self._doubt_from[:, None])
        outputs, places = np.divmod(doubtful, sums.shape[1])
        inputs = self._inputs_of(outputs) * picture.shape[1] + places[:, None]
        np.put(sums, doubtful, self._sum_exactly(picture.take(inputs), outputs))


class _Columns(_Axis):
    """Sums along x; rows hold three channels side by side, so every weight becomes a diagonal of three."""

    def __init__(self, taps: Taps) -> None:
        super().__init__(taps, _COLUMNS_A_BLOCK)
        self._wide_blocks = [_widen(block) for block in self._blocks]
        self._wide_bias, self._wide_doubt_from = self._bias.repeat(CHANNELS), self._doubt_from.repeat(CHANNELS)

    def fill(self, sums: np.ndarray, picture: np.ndarray) -> None:
        """Fills `sums` [H, 3 S] from a picture [H, 3 W]."""
        for block in self._wide_blocks:
            np.matmul(picture[:, block.inputs], block.weights, out=sums[:, block.outputs])
        doubtful = self._round(sums, self._wide_bias, self._wide_doubt_from)
        rows, places = np.divmod(doubtful, sums.shape[1])
        outputs, channels = np.divmod(places, CHANNELS)
        inputs = self._inputs_of(outputs) * CHANNELS + (rows * picture.shape[1] + channels)[:, None]
        np.put(sums, doubtful, self._sum_exactly(picture.take(inputs), outputs))


def _make_block(taps: Taps, start: int, num_outputs: int) -> _Block:
    first, weights = taps.first[start : start + num_outputs], taps.weights[start : start + num_outputs]
    low = int(first.min())
    dense = np.zeros((len(first), int(first.max()) + weights.shape[1] - low), dtype=np.float32)
    inputs = first[:, None] - low + np.arange(weights.shape[1])
    np.put_along_axis(dense, inputs, (weights / (1 << PRECISION_BITS)).astype(np.float32), axis=1)
    return _Block(slice(low, low + dense.shape[1]), slice(start, start + len(first)), dense)


def _widen(block: _Block) -> _Block:
    num_outputs, num_inputs = block.weights.shape
    wide = np.zeros((num_inputs, CHANNELS, num_outputs, CHANNELS), dtype=np.float32)
    for channel in range(CHANNELS):
        wide[:, channel, :, channel] = block.weights.T
    inputs, outputs = (slice(s.start * CHANNELS, s.stop * CHANNELS) for s in (block.inputs, block.outputs))
    return _Block(inputs, outputs, wide.reshape(num_inputs * CHANNELS, -1))


@dataclass(frozen=True, slots=True)
class Taps:
    """Which inputs each output is a sum of.

    Attributes:
        first: int64 [S] position of the first input; all K from there on exist.
        weights: int64 [S, K] in units of 2**-22.
    """

    first: np.ndarray
    weights: np.ndarray

    def mirrored(self, num_inputs: int) -> Taps:
        """Returns the taps for inputs that come in the opposite order, the outputs in the same."""
        return Taps(num_inputs - self.first - self.weights.shape[1], self.weights[:, ::-1])


@lru_cache(maxsize=16)
def bicubic_taps(num_inputs: int, num_outputs: int) -> Taps:
    """Returns what `ImagingResample` of Pillow computes from the same doubles in the same order."""
    scale = num_inputs / num_outputs
    stretch = max(scale, 1.0)
    centre = (np.arange(num_outputs) + 0.5) * scale
    start = np.maximum((centre - _REACH * stretch + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + _REACH * stretch + 0.5).astype(np.int64), num_inputs)
    num_taps = int((stop - start).max())
    first = np.minimum(start, num_inputs - num_taps)
    place = first[:, None] + np.arange(num_taps)  # [S, K]
    kernel = _kernel((place - centre[:, None] + 0.5) * (1.0 / stretch))
    kernel[(place < start[:, None]) | (place >= stop[:, None])] = 0.0
    kernel /= np.cumsum(kernel, axis=1)[:, -1:]  # a running sum, as PIL's: a pairwise one may differ in the last bit
    return Taps(first, np.trunc(kernel * (1 << PRECISION_BITS) + np.copysign(0.5, kernel)).astype(np.int64))


def _kernel(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1.0, near, np.where(x < _REACH, far, 0.0))
