"""Reads from local files and from any fsspec store, asking again when a store fails for a moment."""

from __future__ import annotations

import os
import random
import stat
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shards.config import ReadConfig
from shards.errors import InputError, StoreRefused, StoreUnavailable
from storage.redaction import redact, secrets_of, strip_credentials

_Result = TypeVar("_Result")
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az"}  # of pyproject.toml
_PASSING_STATUS = frozenset({408, 425, 429})  # client errors by number, but worth asking again
# What the stores' clients raise besides OSError. They are looked up among the modules that are already loaded: a
# client that was never imported cannot have raised.
_CLIENT_ERRORS = (
    ("asyncio", "TimeoutError"),  # not the built-in one before Python 3.11
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),  # what huggingface_hub uses from 2 on
    ("requests", "RequestException"),
    ("fsspec.exceptions", "FSTimeoutError"),
)


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

    def sibling(self, path: str) -> Location:
        """Returns another path of the same store, as its listing gave it."""
        if self.is_local:
            return Location(path, self.fs, path)
        # By the protocol it was asked for with (az, not abfs): storage options are found by it again in the worker.
        below = self.fs.unstrip_protocol(path).partition("://")[2]
        return Location(f"{self.uri.partition('://')[0]}://{below}", self.fs, path)


@dataclass(frozen=True, slots=True)
class Store:
    """The way to every input: all storage options, and how often a failing store is asked.

    Attributes:
        options: fsspec storage options for every remote store, or one dictionary a protocol (`{"s3": {...}}`).
    """

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # Any: fsspec takes what each store defines
    config: ReadConfig = field(default_factory=ReadConfig)

    def locate(self, uri: str) -> Location:
        """Finds the file system of a URI.

        Raises:
            InputError: the protocol is unknown or its client is not installed.
        """
        protocol = protocol_of(uri)
        if "://" not in uri:  # fsspec would take a "::" in a file's name for a chain of stores
            path = os.path.abspath(os.path.expanduser(uri))
            return Location(path, fsspec.filesystem("file"), path)
        try:
            fs, path = fsspec.core.url_to_fs(uri, **self._options_for(protocol))
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            how = f"; with FrameScribe's extra: pip install '.[{extra}]' in its folder" if extra else ""
            raise InputError(f"cannot open {strip_credentials(uri)!r}: {error}{how}") from None
        except ValueError as error:
            message = f"cannot open {strip_credentials(uri)!r}: {redact(str(error))}; local paths and fsspec URIs work"
            raise InputError(message) from None
        return Location(str(path) if isinstance(fs, LocalFileSystem) else uri, fs, str(path))

    def ask(self, what: str, action: Callable[[], _Result]) -> _Result:
        """Runs one call to a store, again and again while it fails for reasons that may pass.

        Raises:
            FileNotFoundError: there is no such file.
            StoreRefused: the store knows us not, or not well enough.
            StoreUnavailable: it still failed at the last attempt.
        """
        started_s = time.monotonic()
        for attempt in range(1, self.config.max_attempts + 1):
            try:
                return action()
            except (StoreUnavailable, StoreRefused):
                raise
            except store_errors() as error:
                cause = _cause_of(error)
                self._raise_permanent(what, cause)
                if attempt == self.config.max_attempts or time.monotonic() - started_s > self.config.patience_s:
                    self._give_up(what, cause, attempt)
            time.sleep(self.config.backoff_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def size(self, location: Location) -> int | None:
        """Returns the bytes of a file, or None where the store does not say."""
        name = strip_credentials(location.uri)
        if location.is_local:
            found = self.ask(f"open {name}", local_path(location).stat)
            if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
                raise FileNotFoundError(f"{name} is no regular file")
            return found.st_size
        described = self.ask(f"ask for the size of {name}", lambda: location.fs.info(location.path))
        if described.get("type") == "directory":
            raise FileNotFoundError(f"{name} is a folder, wanted a file")
        size = described.get("size")
        return int(size) if size is not None else None

    def read_range(self, location: Location, start: int, stop: int) -> bytes:
        """Returns the bytes [start, stop) of a file; fewer where it is shorter, all of it where ranges are ignored."""
        # Keywords matter: the second positional parameter of s3fs' cat_file is a version id.
        what = f"read {strip_credentials(location.uri)} from byte {start} to {stop}"
        return self.ask(what, lambda: bytes(location.fs.cat_file(location.path, start=start, end=stop)))

    def read_file(self, location: Location) -> bytes:
        """Returns a whole file."""
        what = f"read {strip_credentials(location.uri)}"
        return self.ask(what, lambda: bytes(location.fs.cat_file(location.path)))

    def read_start(self, location: Location, max_bytes: int) -> bytes:
        """Returns a file of unknown size, at most its first `max_bytes`, in one stream."""

        def read() -> bytes:
            with location.fs.open(location.path, "rb") as stream:
                return bytes(stream.read(max_bytes))

        return self.ask(f"read {strip_credentials(location.uri)}", read)

    def _options_for(self, protocol: str) -> Mapping[str, Any]:
        if protocol == "file":
            return {}
        by_protocol = {name: value for name, value in self.options.items() if isinstance(value, Mapping)}
        if by_protocol.keys() == self.options.keys() <= fsspec.registry.keys() | set(fsspec.available_protocols()):
            return by_protocol.get(protocol, {})
        return self.options

    def _raise_permanent(self, what: str, error: BaseException) -> None:
        status = _status_of(error)
        if isinstance(error, _MISSING) or status in (404, 410):
            raise FileNotFoundError(f"cannot {what}: not found") from None
        passing = status is None or status >= 500 or status in _PASSING_STATUS
        without_key = "Credential" in type(error).__name__  # as the clients of S3 and GCS say that they have none
        if isinstance(error, PermissionError) or without_key or not passing:
            raise StoreRefused(f"cannot {what}: {self._describe(error)}; check the credentials") from None

    def _give_up(self, what: str, error: BaseException, attempt: int) -> NoReturn:
        cause = self._describe(error)
        raise StoreUnavailable(
            f"cannot {what}: {cause}, at attempt {attempt} of {self.config.max_attempts}; "
            "run the same command again once the store answers: finished units are kept",
            silence=cause if _status_of(error) is None else None,
        ) from None

    def _describe(self, error: BaseException) -> str:
        return redact(f"{type(error).__name__} {error}".strip(), secrets_of(self.options))


def protocol_of(uri: str) -> str:
    """Returns the protocol of a URI, `file` for a plain path."""
    scheme, separator, _ = uri.partition("://")
    protocol = scheme.split("::")[-1].lower() if separator else "file"
    return "file" if protocol == "local" else protocol


def local_path(location: Location) -> Path:
    """Returns the path of a local file."""
    return Path(location.path)


def store_errors() -> tuple[type[BaseException], ...]:
    """Returns every exception type with which a store that is in use says that it could not do it."""
    found = [
        getattr(sys.modules[module], name)
        for module, name in _CLIENT_ERRORS
        if module in sys.modules and hasattr(sys.modules[module], name)
    ]
    return (OSError, TimeoutError, EOFError, *found)


def _cause_of(error: BaseException) -> BaseException:
    """Returns what lies behind "not found": fsspec's client for web servers says so for every failure to connect."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or isinstance(cause, _MISSING):
        return error
    return cause if isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp") else error


def _status_of(error: BaseException) -> int | None:
    for name in ("status", "code", "status_code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None
