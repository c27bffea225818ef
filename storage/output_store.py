"""One OUTPUT folder, on a local disk or in any store that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.layout import JOURNAL_FOLDER
from storage.local_files import move_file, remove_leftovers, scratch_folder, write_file
from storage.redaction import redact, secrets_of, strip_credentials
from storage.retries import Result, RetryPolicy, StoreError, retry_passing_errors, stopping_where_full

StorageOptions = Mapping[str, Any]  # the values are whatever the user's fsspec file system takes


def open_output(output: str, storage_options: StorageOptions | None = None) -> OutputStore:
    """Opens an output folder by its path or fsspec URI; it need not exist yet.

    Args:
        storage_options: for the output's file system, or one dictionary a protocol: `{"s3": {"anon": false}}`.

    Raises:
        StoreError: no such kind of store, or its package is not installed.
    """
    options = storage_options or {}
    try:
        file_system, root = fsspec.core.url_to_fs(output, **_select_options(output, options))
    except (ValueError, ImportError) as error:
        reason = redact(f"cannot open the output {output!r}: {error}", secrets_of(options))
        raise StoreError(f"{reason}. It takes a local path or an fsspec URI such as s3://bucket/folder") from None
    return OutputStore(file_system, root, secrets=secrets_of(options))


def _select_options(output: str, options: StorageOptions) -> StorageOptions:
    protocol = fsspec.utils.get_protocol(output)
    if protocol in ("file", "local"):
        return {}
    is_by_protocol = all(isinstance(value, Mapping) for value in options.values())
    if is_by_protocol and options.keys() <= set(fsspec.available_protocols()):
        return options.get(protocol, {})
    return options


@dataclass(frozen=True, slots=True)
class OutputStore:
    """Reads and writes whole objects under one folder; names are relative to it, with `/` between folders.

    Every write is atomic: a local file is renamed into place, an object of a store is put once.
    Every method raises `StoreError` when the store goes on refusing.
    """

    file_system: fsspec.AbstractFileSystem
    root: str
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def put(self, name: str, payload: bytes) -> None:
        """Writes an object, in place of an older one of this name."""
        self._retry("write", name, lambda: self._put(name, payload))

    def put_file(self, name: str, source: Path) -> None:
        """Writes an object from a finished file in `scratch_folder`; a local file is moved, not copied."""
        self._retry("write", name, lambda: self._put_file(name, source))

    def read(self, name: str) -> bytes:
        """Returns the whole object.

        Raises:
            FileNotFoundError: there is none of this name.
        """
        payload = self._retry("read", name, lambda: self._read(name))
        if payload is None:
            raise FileNotFoundError(f"{self.address(name)} is not there")
        return payload

    def list_files(self, folder: str) -> list[str]:
        """Returns the sorted names of the files directly in a folder, without hidden ones; empty if it is missing."""
        return sorted(name for name in self._retry("list", folder, lambda: self._list(folder)) if name[:1] != ".")

    def remove(self, name: str) -> None:
        """Removes an object if it is there."""
        self._retry("remove", name, lambda: self._remove(name))

    def remove_leftovers(self) -> None:
        """Removes what killed writers left on a local disk; a store holds nothing unfinished."""
        if self.local_path is not None and self.local_path.is_dir():
            local = self.local_path
            self._retry("write", JOURNAL_FOLDER, lambda: remove_leftovers(local, self._lock_folder(local)))

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """Yields an empty local folder that is removed at the end, on the output's own disk if that is local.

        A disk that gets full while the folder is filled is a `StoreError`.
        """
        # There a finished table is renamed into place, and /tmp may be small.
        local = self.local_path
        if local is None:
            place = _system_scratch_folder()
        else:
            place = scratch_folder(self._retry("write", JOURNAL_FOLDER, lambda: self._lock_folder(local)))
        with place as folder, stopping_where_full(f"build the tables in {folder.parent}"):
            yield folder

    @property
    def local_path(self) -> Path | None:
        """The folder on a local disk, or None for a store."""
        return Path(self.root) if isinstance(self.file_system, LocalFileSystem) else None

    def address(self, name: str) -> str:
        """Returns the full address of an object for people to read, without credentials."""
        return strip_credentials(str(self.file_system.unstrip_protocol(self._path(name)))).removeprefix("file://")

    def _path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def _retry(self, verb: str, name: str, operation: Callable[[], Result]) -> Result:
        return retry_passing_errors(f"{verb} {self.address(name)}", operation, self.retries, self.secrets)

    def _put(self, name: str, payload: bytes) -> None:
        if self.local_path is None:
            self.file_system.pipe_file(self._path(name), payload)
        else:
            write_file(self.local_path / name, payload, self._lock_folder(self.local_path))

    def _put_file(self, name: str, source: Path) -> None:
        if self.local_path is None:
            self.file_system.put_file(str(source), self._path(name))
        else:
            move_file(source, self.local_path / name)

    def _read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return bytes(self.file_system.cat_file(self._path(name)))
        return None

    def _list(self, folder: str) -> list[str]:
        # Another process may have written since this one last looked.
        self.file_system.invalidate_cache(self._path(folder))
        with contextlib.suppress(FileNotFoundError):
            entries = self.file_system.ls(self._path(folder), detail=True)
            return [posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "file"]
        return []

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.file_system.rm_file(self._path(name))

    @staticmethod
    def _lock_folder(local: Path) -> Path:
        folder = local / JOURNAL_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return folder


@contextlib.contextmanager
def _system_scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="framescribe-") as folder:
        yield Path(folder)
