"""The digest that ties an answer to the frames it was given for."""

import hashlib
from collections.abc import Sequence

import numpy as np


def digest_frames(frames: Sequence[np.ndarray] | np.ndarray) -> str:
    """Returns the SHA-256 (64 hex digits) over the shape and the bytes of uint8 frames [T, H, W, 3], T at least 1."""
    digest = hashlib.sha256(repr((len(frames), *frames[0].shape)).encode())
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()
