"""The weights of PIL's bicubic resize along one axis, as the whole numbers PIL computes with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

PRECISION_BITS = 22
_REACH = 2.0  # the kernel is zero from here on, in input pixels, or in output pixels where the picture shrinks
_A = -0.5


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
