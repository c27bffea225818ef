"""Files of a local disk that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_SCRATCH = ".framescribe-scratch-"
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_HELD_BY_ANOTHER = frozenset({errno.EACCES, errno.EAGAIN})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_LOOK_EVERY_S = 0.05


def write_file(path: Path, payload: bytes, lock_folder: Path) -> None:
    """Writes a file so that readers see the old content or the new, and a power cut leaves one of them.

    Args:
        lock_folder: an existing folder whose lock tells `remove_leftovers` that a writer is at work.
    """
    with _temporary_file(path, payload, lock_folder) as temporary:
        temporary.replace(path)


def create_file(path: Path, payload: bytes, lock_folder: Path) -> None:
    """Writes a file that nobody has written yet, whole or not at all.

    Raises:
        FileExistsError: there is one of this name; it was left as it is.
    """
    with _temporary_file(path, payload, lock_folder) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _rename_to_absent(temporary, path)


def move_file(source: Path, path: Path) -> None:
    """Moves a finished file to its place on the same disk; readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def hold_lock(path: Path, holder: str, patience_s: float) -> Iterator[Callable[[], bool]]:
    """Holds the lock of a file, which contains the holder's name meanwhile; the kernel releases that of a dead process.

    Where the file system has no locks, everybody holds it: `has_locks` tells.

    Yields:
        Whether the file is still the one that was locked: false once its folder was removed.

    Raises:
        TimeoutError: another process held it for so long; the message is what the file says about that one.
    """
    descriptor = _open_locked(path, time.monotonic() + patience_s)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        yield lambda: _is_same_file(descriptor, path)
    finally:
        if _is_same_file(descriptor, path):
            path.unlink()  # before the lock is released: who waited for it finds that it is gone, and makes its own
        os.close(descriptor)


def has_locks(path: Path) -> bool:
    """Returns whether a lock of this file, which is made for it, keeps others out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as first, path.open("wb") as second:
        path.unlink()
        return _lock(first.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB) and not _lock(
            second.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB
        )


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


@contextlib.contextmanager
def _temporary_file(path: Path, payload: bytes, lock_folder: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with _locked(lock_folder, fcntl.LOCK_SH):
        try:
            _write_synced(temporary, payload)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _rename_to_absent(temporary: Path, path: Path) -> None:
    """Renames on a file system without links; only the writers of this program keep to its lock."""
    with _locked(path.parent, fcntl.LOCK_EX):
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.replace(path)


def _open_locked(path: Path, deadline_s: float) -> int:
    """Opens a file once its lock is free; a file that was replaced while this waited is opened again."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = _is_same_file(descriptor, path)
        except OSError as error:
            is_held = error.errno not in _HELD_BY_ANOTHER  # a file system without locks keeps nobody out
        if is_held:
            return descriptor
        holder = os.pread(descriptor, 500, 0).decode("utf-8", "replace")
        os.close(descriptor)
        if time.monotonic() >= deadline_s:
            raise TimeoutError(holder or "another process")
        time.sleep(_LOOK_EVERY_S)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


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
