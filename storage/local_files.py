"""Files of a local disk that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

_SCRATCH = ".framescribe-scratch-"
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def write_file(path: Path, payload: bytes, lock_folder: Path) -> None:
    """Writes a file so that readers see the old content or the new, and a power cut leaves one of them.

    Args:
        lock_folder: an existing folder whose lock tells `remove_leftovers` that a writer is at work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with _locked(lock_folder, fcntl.LOCK_SH):
        try:
            _write_synced(temporary, payload)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def move_file(source: Path, path: Path) -> None:
    """Moves a finished file to its place on the same disk; readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def scratch_folder(lock_folder: Path) -> Iterator[Path]:
    """Yields an empty folder inside `lock_folder`, removed at the end; `remove_leftovers` removes a killed one's."""
    with _locked(lock_folder, fcntl.LOCK_SH), tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=lock_folder) as folder:
        yield Path(folder)


def remove_leftovers(root: Path, lock_folder: Path) -> None:
    """Removes the temporary files and folders of killed writers below `root`, unless a living one is at work."""
    with _locked(lock_folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        if not alone:
            return
        for leftover in _find_leftovers(root, lock_folder):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def _find_leftovers(root: Path, lock_folder: Path) -> list[Path]:
    # Only where this program writes: the folder may be a large one of the user's that holds other things too.
    hidden = itertools.chain(root.glob(".*"), root.glob("*/.*"), lock_folder.glob("*/.*"))
    return [path for path in hidden if _is_leftover(path.name)]


def _is_leftover(name: str) -> bool:
    return name.startswith(_SCRATCH) or _TEMPORARY_NAME.fullmatch(name) is not None


def _write_synced(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(folder: Path, operation: int) -> Iterator[bool]:
    # The kernel drops the lock when its process dies, so a killed writer never blocks anybody.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, operation)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except OSError:  # held by another, or a file system that has no locks
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
