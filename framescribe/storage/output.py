"""One output folder, on a local disk or in any store that fsspec knows, and the names of what lies in it."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from framescribe.storage.addresses import AddressError, StorageOptions, open_file_system
from framescribe.storage.exclusion import (
    ConditionFailed,
    describe_process,
    may_live,
    name_process,
    object_version,
    put_if,
    takes_conditions,
)
from framescribe.storage.local_files import (
    create_file,
    has_locks,
    hold_lock,
    move_file,
    remove_leftovers,
    scratch_folder,
    write_file,
)
from framescribe.storage.redaction import secrets_in, secrets_of, strip_credentials
from framescribe.storage.retries import Result, RetryPolicy, StoreError, retry_passing_errors, stopping_where_full

# A turn is a few renames, or requests; one that lasts longer than this is held by a process that is suspended.
TURN_PATIENCE_S = 60.0
JOURNAL_FOLDER = "_framescribe"
RUN_FILE = f"{JOURNAL_FOLDER}/run.json"
PLAN_FOLDER = f"{JOURNAL_FOLDER}/plan"
PARTS_FOLDER = f"{JOURNAL_FOLDER}/parts"
TURN_FILE = f"{JOURNAL_FOLDER}/locks/turn"
REPLACE_FILE = f"{JOURNAL_FOLDER}/locks/replace"
PROBE_PREFIX = f"{JOURNAL_FOLDER}/locks/probe-"
SET_ASIDE_FOLDER = f"{JOURNAL_FOLDER}/set_aside"  # laid out like an output of its own, so that it can be read as one
ANSWER_INDEX_FOLDER = f"{JOURNAL_FOLDER}/earlier"  # which part of an earlier run has a clip, while a run is at work
CARD_FILE = "README.md"
SUCCESS_FILE = "_SUCCESS"
_PARQUET = ".parquet"


def open_output(output: str, storage_options: StorageOptions | None = None) -> OutputStore:
    """Opens an output folder by its path or fsspec URI; it need not exist yet.

    Args:
        storage_options: for the output's file system, or one dictionary per protocol: `{"s3": {"anon": false}}`.

    Raises:
        StoreError: no such kind of store, or its package is not installed.
    """
    options = storage_options or {}
    secrets = (*secrets_in(output), *secrets_of(options))
    what = f"open the output {strip_credentials(output)!r}"
    try:
        file_system, root = retry_passing_errors(
            what, lambda: open_file_system(output, options), RetryPolicy(), secrets
        )
    except AddressError as error:
        reason = f"cannot open the output: {error}"
        raise StoreError(f"{reason}. It takes a local path or an fsspec URI such as s3://bucket/folder") from None
    return OutputStore(file_system, root, secrets=secrets)


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

    def create(self, name: str, payload: bytes) -> bool:
        """Writes an object that is not there yet; returns False, and writes nothing, where another one is."""
        return self._retry("write", name, lambda: self._put_if(name, payload, None))

    def replace(self, name: str, payload: bytes, version: str | None) -> bool:
        """Writes an object in place of the one with this version; returns False where it has another one by now."""
        return self._retry("write", name, lambda: self._put_if(name, payload, version))

    def replace_with_file(self, name: str, source: Path, version: str | None) -> bool:
        """Replaces it by a finished file in `scratch_folder`; on a local disk it is moved, in the caller's `turn`."""
        return self._retry("write", name, lambda: self._put_file_if(name, source, version))

    def version(self, name: str) -> str | None:
        """Returns what changes whenever the object is written with other contents, or None if it is not there."""
        return self._retry("look for", name, lambda: self._version(name))

    def read(self, name: str) -> bytes:
        """Returns the whole object.

        Raises:
            FileNotFoundError: there is none of this name.
        """
        payload = self._retry("read", name, lambda: self._read(name))
        if payload is None:
            raise FileNotFoundError(f"{self.address(name)} is not there")
        return payload

    def read_text(self, name: str) -> str:
        """Returns an object as text, which is empty where there is none of this name."""
        try:
            return self.read(name).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def list_files(self, folder: str) -> list[str]:
        """Returns the sorted names of the files directly in a folder, without hidden ones; empty if it is missing."""
        return sorted(self.list_versions(folder))

    def list_versions(self, folder: str) -> dict[str, str]:
        """Returns name to version of what `list_files` names."""
        return self._retry("list", folder, lambda: self._list(folder))

    def remove(self, name: str) -> None:
        """Removes an object if it is there."""
        self._retry("remove", name, lambda: self._remove(name))

    def remove_folder(self, folder: str) -> None:
        """Removes a folder with all that is in it, if it is there."""
        self._retry("remove", folder, lambda: self._remove_folder(folder))

    def remove_leftovers(self) -> None:
        """Removes what killed writers left on a local disk; a store holds nothing unfinished."""
        if self.local_path is not None and self.local_path.is_dir():
            local = self.local_path
            self._retry("write", JOURNAL_FOLDER, lambda: remove_leftovers(local, self._lock_folder(local)))

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[], bool]]:
        """Lets one process at a time change what a start or a publisher changes.

        On a local disk that is a lock. In a store the last one who begins has the turn: who had it before learns of it
        when it asks, and by conditional writes that fail.

        Yields:
            Whether this process still has the turn.

        Raises:
            StoreError: another process has it and goes on having it.
        """
        local, mine = self.local_path, describe_process(time.time())
        place = self._claimed_turn(mine) if local is None else self._locked_turn(local, mine)
        with place as has_turn:
            yield has_turn

    def honours_conditions(self) -> bool:
        """Tries out whether this very store, or disk, keeps two writers apart: some servers ignore conditions."""
        local, probe = self.local_path, f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        if local is not None:
            return self._retry("write", JOURNAL_FOLDER, lambda: self._has_locks(local, probe))
        if not takes_conditions(self.file_system):
            return False
        self.put(probe, b"first")
        first = self.version(probe)
        self.put(probe, b"second")
        try:
            return not any(self._is_put(probe, version) for version in (None, first))
        finally:
            self.remove(probe)

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

    def _put_if(self, name: str, payload: bytes, version: str | None) -> bool:
        if self._version(name) == version:
            try:
                self._write_if(name, payload, version)
            except (ConditionFailed, FileExistsError):
                if self._version(name) == version:  # another writer was there at the same time, and gave up
                    raise TimeoutError("another write at the same time") from None
            else:
                return True
        return self._read(name) == payload  # ours, by a try whose answer was lost

    def _write_if(self, name: str, payload: bytes, version: str | None) -> None:
        local = self.local_path
        if local is None:
            put_if(self.file_system, self._path(name), payload, version)
        elif version is None:
            create_file(local / name, payload, self._lock_folder(local))
        else:
            with hold_lock(local / REPLACE_FILE, describe_process(time.time()), TURN_PATIENCE_S):
                if self._version(name) != version:
                    raise ConditionFailed(name)
                write_file(local / name, payload, self._lock_folder(local))

    def _put_file_if(self, name: str, source: Path, version: str | None) -> bool:
        local = self.local_path
        if local is None:
            return self._put_if(name, source.read_bytes(), version)
        if self._version(name) != version:
            return False
        move_file(source, local / name)
        return True

    def _has_locks(self, local: Path, probe: str) -> bool:
        self._lock_folder(local)
        return has_locks(local / probe)

    def _is_put(self, name: str, version: str | None) -> bool:
        try:
            self._retry("write", name, lambda: put_if(self.file_system, self._path(name), b"third", version))
        except ConditionFailed:
            return False
        return True

    def _version(self, name: str) -> str | None:
        path = self._path(name)
        self.file_system.invalidate_cache(posixpath.dirname(path))  # another process may have written since
        with contextlib.suppress(FileNotFoundError):
            entry = self.file_system.info(path)
            return object_version(entry) if entry["type"] == "file" else None
        return None

    @contextlib.contextmanager
    def _locked_turn(self, local: Path, mine: str) -> Iterator[Callable[[], bool]]:
        self._retry("write", JOURNAL_FOLDER, lambda: self._lock_folder(local))
        with contextlib.ExitStack() as held:
            try:
                has_turn = held.enter_context(hold_lock(local / TURN_FILE, mine, TURN_PATIENCE_S))
            except TimeoutError as error:
                raise self._busy(str(error)) from None
            yield has_turn

    @contextlib.contextmanager
    def _claimed_turn(self, mine: str) -> Iterator[Callable[[], bool]]:
        if may_live(self.read_text(TURN_FILE), time.time()) and not self.honours_conditions():
            self._wait_for_turn()
        self.put(TURN_FILE, mine.encode())
        try:
            yield lambda: self.read_text(TURN_FILE) == mine
        finally:
            if self.read_text(TURN_FILE) == mine:
                self.remove(TURN_FILE)

    def _wait_for_turn(self) -> None:
        deadline_s = time.monotonic() + TURN_PATIENCE_S
        while may_live(there := self.read_text(TURN_FILE), time.time()):
            if time.monotonic() > deadline_s:
                raise self._busy(there)
            time.sleep(min(1.0, TURN_PATIENCE_S / 10))

    def _busy(self, holder: str) -> StoreError:
        return StoreError(
            f"{name_process(holder)} is starting or publishing a run in {self.address('')} and does not come to an "
            "end. Wait for it, or end it if it hangs, then start the same command again: finished units are kept"
        )

    def _read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return bytes(self.file_system.cat_file(self._path(name)))
        return None

    def _list(self, folder: str) -> dict[str, str]:
        # Another process may have written since this one last looked.
        path = self._path(folder).rstrip("/")
        self.file_system.invalidate_cache(path)
        with contextlib.suppress(FileNotFoundError):
            entries = self.file_system.ls(path, detail=True)
            # Object stores may hold a key for the folder itself, empty and with or without a slash at its end.
            files = {
                posixpath.basename(entry["name"]): object_version(entry)
                for entry in entries
                if entry["type"] == "file" and entry["name"].rstrip("/") != path
            }
            return {name: version for name, version in files.items() if name and name[:1] != "."}
        return {}

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.file_system.rm_file(self._path(name))

    def _remove_folder(self, folder: str) -> None:
        path = self._path(folder)
        self.file_system.invalidate_cache(path)  # other processes wrote there
        with contextlib.suppress(FileNotFoundError):
            self.file_system.rm(path, recursive=True)

    @staticmethod
    def _lock_folder(local: Path) -> Path:
        folder = local / JOURNAL_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return folder


def part_name(unit_id: str) -> str:
    """Returns the name of a unit's part.

    Raises:
        ValueError: the unit id would be a path, a hidden file or too long for one.
    """
    # 200 leaves room for the temporary name within the 255 bytes of a file name.
    if "/" in unit_id or "\\" in unit_id or unit_id[:1] in ("", ".") or len(unit_id.encode()) > 200:
        raise ValueError(f"unit id {unit_id!r} is no file name: it must have 1 to 200 bytes, no slash, no leading dot")
    return f"{PARTS_FOLDER}/{unit_id}{_PARQUET}"


def unit_of_part(file_name: str) -> str | None:
    """Returns the unit id that a file in the folder of parts belongs to, or None for a foreign file."""
    return file_name.removesuffix(_PARQUET) if file_name.endswith(_PARQUET) else None


@contextlib.contextmanager
def _system_scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="framescribe-") as folder:
        yield Path(folder)
