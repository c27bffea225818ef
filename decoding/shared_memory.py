"""Memory that two processes see: encoded videos go to the decoder in it, frames come back in it."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Iterable

import numpy as np

# Linux has memory that is opened like a file; where there is none, encoded videos go through a temporary file.
HAS_MEMORY_FILES = sys.platform == "linux"


def allocate(num_bytes: int) -> int:
    """Returns a descriptor of `num_bytes` of zeroed memory without a name; the caller closes it."""
    descriptor = _create()
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def store(content: bytes) -> int:
    """Returns a descriptor of memory that holds `content`; the caller closes it."""
    descriptor = _create()
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor


def write_frames(descriptor: int, pictures: Iterable[np.ndarray]) -> None:
    """Lays pictures into the memory one after another: a page first touched through a mapping takes twice the time."""
    with open(descriptor, "wb", closefd=False) as file:
        for picture in pictures:
            file.write(picture.data)


def map_frames(descriptor: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Returns uint8 [T, H, W, 3] over the start of the memory; the array keeps it alive after the descriptor closes."""
    return np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), dtype=np.uint8).reshape(shape)


def path_of(descriptor: int) -> str:
    """Returns a path under which this process can open stored memory, each time from its start."""
    return f"/proc/self/fd/{descriptor}"


def _create() -> int:
    if HAS_MEMORY_FILES:
        return os.memfd_create("framescribe", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # macOS: a file whose name is gone already
        return os.dup(file.fileno())
