"""Reads inputs from local files and from any fsspec store: what rows may name, retries, errors people understand."""

from __future__ import annotations

import datetime as dt
import errno
import os
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from framescribe.storage.addresses import (
    ROW_PROTOCOLS,
    AddressError,
    families_of,
    is_by_protocol,
    links_of,
    open_file_system,
    origin_of,
    origins_of,
    protocol_of,
    select_options,
)
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import (
    AddressRefused,
    CutShort,
    InputError,
    ShardChanged,
    StoreRefused,
    StoreUnavailable,
)
from framescribe.storage.redaction import secrets_in, secrets_of, strip_credentials
from framescribe.storage.retries import (
    ADDRESS_ERRORS,
    GaveUp,
    call_with_retries,
    describe_error,
    http_status,
    is_bad_request,
    is_missing,
    lacks_credentials,
    may_pass,
)
from framescribe.storage.web_client import HostRefused

_Result = TypeVar("_Result")
_NO_NAME = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP})
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError)  # of an input inside of an archive
_TRANSLATED = (StoreUnavailable, StoreRefused, InputError)  # by a call inside of the one that is made
_FINAL = (*_TRANSLATED, *ADDRESS_ERRORS, *_DAMAGED)
_STREAM_BYTES = 1 << 20
_QUOTES = '"'
# What stores call the marks of a file's contents, the surest first.
_VERSIONS = (
    ("generation", ("generation",)),
    ("etag", ("ETag", "etag", "blob_id")),
    ("mtime", ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")),
)
_AZURE = ("az", "abfs", "abfss")


class _ShortBody(OSError):
    """Fewer bytes came than the store had announced."""


@dataclass(frozen=True, slots=True)
class Location:
    """One place in a store: the URI as written, and the file system and path that fsspec makes of it."""

    uri: str
    fs: fsspec.AbstractFileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def local_path(self) -> Path:
        """Its path on this machine."""
        return Path(self.path)

    @property
    def is_web(self) -> bool:
        """Whether a web server has it."""
        return protocol_of(self.uri) in ("http", "https") and len(links_of(self.uri)) == 1

    def sibling(self, path: str) -> Location:
        """Returns another path of the same store, as its listing gave it."""
        if self.is_local:
            return Location(path, self.fs, path)
        # By the protocol it was asked for with (az, not abfs): storage options are found by it again in the worker.
        below = self.fs.unstrip_protocol(path).partition("://")[2]
        links = links_of(self.uri)
        inside_of = "".join(f"::{link}" for link in links[1:]) if "://" in links[0] else ""  # zip://a.mp4::b.zip
        return Location(f"{self.uri.partition('://')[0]}://{below}{inside_of}", self.fs, path)


@dataclass(frozen=True, slots=True)
class Store:
    """The way to every input: all storage options, and how often a failing store is asked.

    Attributes:
        options: fsspec storage options for every remote store, or one dictionary per protocol (`{"s3": {...}}`).
        rows_of: the shard whose rows name what is opened; None for addresses that the user named.
    """

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # Any: fsspec takes what each store defines
    config: ReadConfig = field(default_factory=ReadConfig)
    rows_of: str | None = None

    def for_rows(self, shard: str) -> Store:
        """Returns the store that opens what rows of a shard may name, and nothing else."""
        trusted = tuple(sorted(origins_of([shard]) | {*self.config.trusted_hosts}))
        return replace(self, config=replace(self.config, trusted_hosts=trusted), rows_of=shard)

    def without_retries(self) -> Store:
        """Returns the same store, of which each thing is asked once only."""
        return replace(self, config=replace(self.config, retries=replace(self.config.retries, max_attempts=1)))

    def locate(self, uri: str) -> Location:
        """Finds the file system of a URI.

        Raises:
            InputError: the protocol is unknown or its client is not installed.
            AddressRefused: a row may not name it.
            StoreUnavailable, StoreRefused: its client connects at once, and was not let in.
        """
        options, trusted = self.options, {*self.config.trusted_hosts}
        if self.rows_of is None:
            trusted |= origins_of([uri])
        else:
            self._judge_row(uri, self.rows_of)
            options = options if self._are_for_rows(uri) else {}
        if "://" not in uri:  # fsspec would take a "::" in a file's name for a chain of stores
            path = os.path.abspath(os.path.expanduser(uri))
            return Location(path, fsspec.filesystem("file"), path)
        what = f"open {strip_credentials(uri)!r}"
        fs, path = self.ask(what, lambda: open_file_system(uri, options, trusted), uri)
        return Location(path if isinstance(fs, LocalFileSystem) else uri, fs, path)

    def _judge_row(self, uri: str, shard: str) -> None:
        """Raises `AddressRefused` for what rows of a shard may not name, whatever they call it."""
        scheme = uri.partition("://")[0].lower() if "://" in uri else "file"
        if scheme in ("file", "local"):
            allowed = protocol_of(shard) == "file" or self._is_below_root(uri)
        elif uri.partition("://")[2].startswith("arn:"):  # of a bucket that lies elsewhere than at the endpoint
            allowed = origin_of(uri) in self.config.trusted_hosts
        elif scheme in _AZURE and "@" in uri.partition("://")[2].partition("/")[0]:
            # It names the account too, to which the credentials would go.
            allowed = origin_of(uri) in self.config.trusted_hosts or self._is_own_account(uri)
        else:
            allowed = scheme in ROW_PROTOCOLS or origin_of(uri) in self.config.trusted_hosts
        if not allowed:
            raise AddressRefused(
                f"a row names {strip_credentials(uri)!r}, wanted a path or {', '.join(ROW_PROTOCOLS)}: other addresses "
                "are opened where --input names them, or --trusted-hosts their protocol and host"
            )

    def _is_below_root(self, uri: str) -> bool:
        """Whether a local path lies in the folder of this machine that `--video-root` names."""
        root = self.config.video_root
        if root is None or protocol_of(root) != "file" or "://" in uri:
            return False
        root = os.path.abspath(os.path.expanduser(root.removeprefix("file://")))
        return os.path.normpath(uri).startswith(os.path.join(root, ""))

    def _is_own_account(self, uri: str) -> bool:
        options = select_options(uri, self.options)
        return (origin_of(uri) or "").partition("://")[2].partition(".")[0] == options.get("account_name", "")

    def _are_for_rows(self, uri: str) -> bool:
        """Whether options are for a row's store: without a protocol, they are for the stores that the user named."""
        named = families_of(host for host in self.config.trusted_hosts if "://" in host)
        return not named or is_by_protocol(self.options) or families_of([uri]) <= named

    def ask(self, what: str, action: Callable[[], _Result], uri: str = "") -> _Result:
        """Runs one call to a store, again and again while it fails for reasons that may pass.

        Args:
            what: is tried, for messages: `read s3://bucket/a.tar`.
            uri: is asked for; no message repeats what is secret in it.

        Raises:
            FileNotFoundError: there is no such file.
            StoreRefused: the credentials are missing, or do not permit it.
            StoreUnavailable: it still failed at the last attempt; `CutShort` where it ended too early each time.
            InputError: the address or the storage options make no sense to its client.
        """
        try:
            return call_with_retries(action, self.config.retries, _FINAL)
        except GaveUp as gave_up:
            raise self._translate(what, gave_up, uri) from None

    def size(self, location: Location) -> int | None:
        """Returns the bytes of a file, or None where the store does not say."""
        return self.describe(location)[0]

    def describe(self, location: Location, planned: str = "") -> tuple[int | None, str]:
        """Returns the bytes of a file, or None, and its version, see `input_version`, as far as the store says.

        Args:
            planned: the version that the file had when the work was planned, empty where nobody knows.

        Raises:
            ShardChanged: it has another one now.
        """
        name = strip_credentials(location.uri)
        size: int | None
        if location.is_local:
            found = self.ask(f"open {name}", location.local_path.stat)
            if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
                raise FileNotFoundError(f"{name} is no regular file")
            size, version = found.st_size, input_version({"mtime": found.st_mtime})
        else:
            what = f"ask for the size of {name}"
            described = self.ask(what, lambda: location.fs.info(location.path), location.uri)
            if described.get("type") == "directory":
                raise FileNotFoundError(f"{name} is a folder, wanted a file")
            size, version = described.get("size"), input_version(described)
        _check_version(name, planned, version)
        return (int(size) if size is not None else None), version

    def read_range(self, location: Location, start: int, stop: int) -> bytes:
        """Returns the bytes [start, stop) of a file, or all of it where ranges are ignored.

        Raises:
            CutShort: there are fewer.
        """

        def read() -> bytes:
            # Keywords matter: the second positional parameter of s3fs' cat_file is a version id.
            data = bytes(location.fs.cat_file(location.path, start=start, end=stop))
            return _check_length(data, stop - start)

        return self.ask(f"read {strip_credentials(location.uri)} from byte {start} to {stop}", read, location.uri)

    def read_file(self, location: Location, size: int | None, max_bytes: int = -1) -> bytes:
        """Returns a whole file, or its first `max_bytes` if there are more.

        Args:
            size: how many bytes the store announced; None where it did not.

        Raises:
            CutShort: there are fewer.
        """

        def read() -> bytes:
            if location.is_web:  # in one stream, which ends at the limit whatever was announced
                data = _read_stream(location, size, max_bytes)
            elif size is None:
                with location.fs.open(location.path, "rb") as stream:
                    data = bytes(stream.read(max_bytes))
            else:
                data = bytes(location.fs.cat_file(location.path))
            return _check_length(data, size)

        return self.ask(f"read {strip_credentials(location.uri)}", read, location.uri)

    def _translate(self, what: str, gave_up: GaveUp, uri: str) -> Exception:
        """Returns the error to raise for one that a store goes on raising, without what is secret in it."""
        error = gave_up.error
        if isinstance(error, _TRANSLATED):
            return error
        if isinstance(error, AddressError):
            return InputError(str(error))
        if isinstance(error, HostRefused):
            return AddressRefused(f"cannot {what}: {error}")
        if is_missing(error):
            return FileNotFoundError(f"cannot {what}: not found")
        if isinstance(error, OSError) and error.errno in _NO_NAME:
            return FileNotFoundError(f"cannot {what}: {os.strerror(error.errno or 0)}")
        cause = describe_error(error, (*secrets_in(uri), *secrets_of(self.options)))
        if isinstance(error, _DAMAGED) or is_bad_request(error):
            return InputError(f"cannot {what}: {cause}")
        is_refused = http_status(error) is not None and not may_pass(error)
        if isinstance(error, PermissionError) or lacks_credentials(error) or is_refused:
            return StoreRefused(f"cannot {what}: {cause}; check the credentials")
        message = (
            f"cannot {what}: {cause}, at attempt {gave_up.num_attempts} of {self.config.retries.max_attempts}; "
            "run the same command again once the store answers: finished units are kept"
        )
        if isinstance(error, _ShortBody) or type(error).__name__ == "ClientPayloadError":  # aiohttp's
            return CutShort(message, cause)
        return StoreUnavailable(message, cause, http_status(error))


def input_version(entry: Mapping[str, Any]) -> str:
    """Returns what changes with the contents of an input, fit to be shown: `etag abc`, `mtime 1.500000`.

    It is taken from the file's entry in a listing, and empty where that says nothing. Where there is none of a store's
    own marks, it is the time of the last change.
    """
    for name, keys in _VERSIONS:
        value = next((entry[key] for key in keys if entry.get(key)), None)
        # A weak ETag says that two contents mean the same, and servers behind one address give different ones.
        if value is not None and not str(value).startswith("W/"):
            return f"{name} {_write_version(value)}"
    return ""


def _write_version(value: object) -> str:
    """Returns the same text for the same mark, whichever call of a store's client gave it."""
    if isinstance(value, dt.datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=dt.timezone.utc)).timestamp()
    return f"{value:.6f}" if isinstance(value, float) else str(value).strip(_QUOTES)


def _check_version(name: str, planned: str, now: str) -> None:
    if planned and now and planned != now:
        raise ShardChanged(
            f"{name} changed after the work was planned ({planned} -> {now}): leave inputs alone during a run, and run "
            "again"
        )


def _read_stream(location: Location, size: int | None, max_bytes: int) -> bytes:
    pieces, left = [], max_bytes if max_bytes >= 0 else sys.maxsize
    # A size of 0 or None would be asked for again.
    with location.fs.open(location.path, "rb", block_size=0, size=size or _STREAM_BYTES) as stream:
        while left > 0:
            piece = bytes(stream.read(min(_STREAM_BYTES, left)))  # what is there, which may be less
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def _check_length(data: bytes, announced: int | None) -> bytes:
    if announced is not None and len(data) < announced:
        raise _ShortBody(f"{len(data)} of {announced} bytes came")
    return data
