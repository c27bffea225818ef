"""Tries again what a store refused for a moment, and stops clearly when it goes on refusing."""

from __future__ import annotations

import contextlib
import errno
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from framescribe.storage.redaction import redact

Result = TypeVar("Result")

_OUT_OF_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PERMANENT = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_PERMANENT_CODES = frozenset({errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP})
_PASSING_HTTP_STATUS = frozenset({408, 425, 429})
_PHRASES = {status.value: status.phrase for status in HTTPStatus}

# The stores' own exceptions that are no OSError. They are looked up among the modules that are
# already loaded: an exception of a library that nobody imported cannot be raised.
_FOREIGN_ERRORS = (
    ("asyncio", "TimeoutError"),  # an OSError from Python 3.11 on only
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("fsspec.exceptions", "FSTimeoutError"),
    ("ftplib", "Error"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),  # what huggingface_hub uses from 2 on
    ("huggingface_hub.errors", "HfHubHTTPError"),
    ("requests", "RequestException"),
)


class StoreError(RuntimeError):
    """A store could not be read or written; the run stops and can be started again."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a store is asked again.

    Attributes:
        max_tries: the first try included. Seven span half a minute, which outlasts a throttled or restarting store.
        first_delay_s: the pause after the first refusal; it doubles each time, up to `max_delay_s`.
        sleep: waits so many seconds; a test passes its own.
    """

    max_tries: int = 7
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ValueError(f"max_tries must be at least 1, got {self.max_tries}")


def retry_passing_errors(
    action: str, operation: Callable[[], Result], policy: RetryPolicy, secrets: Iterable[str] = ()
) -> Result:
    """Returns what `operation` returns, asked again with growing pauses while its errors may pass.

    Args:
        action: what is tried, for messages: `write out/_SUCCESS`.
        secrets: texts that no message may repeat; nor does one repeat the credentials inside a URL.

    Raises:
        StoreError: out of room, not permitted, or still refused after the last try.
    """
    for num_tries in range(1, policy.max_tries + 1):
        try:
            return operation()
        except store_errors() as error:
            if not may_pass(error) or num_tries == policy.max_tries:
                # Not chained: the store's own message may repeat a signed URL.
                raise StoreError(_explain(action, error, num_tries, secrets)) from None
        policy.sleep(_delay_s(policy, num_tries))
    raise AssertionError("unreachable: the last try returns or raises")


@contextlib.contextmanager
def stopping_where_full(action: str) -> Iterator[None]:
    """Turns the error of a disk that gets full, by whatever library, into a `StoreError`; others pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno in _OUT_OF_ROOM:
            raise StoreError(_explain(action, error, num_tries=1)) from None
        raise


def may_pass(error: BaseException) -> bool:
    """Returns whether the same request may succeed a moment later."""
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_HTTP_STATUS
    if isinstance(error, _PERMANENT):
        return False
    code = error.errno if isinstance(error, OSError) else None
    return code not in _OUT_OF_ROOM | _PERMANENT_CODES


def store_errors() -> tuple[type[BaseException], ...]:
    """Returns the classes of everything that a store which is in use raises when it refuses."""
    loaded = (getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN_ERRORS)
    return (OSError, EOFError, *(kind for kind in loaded if isinstance(kind, type)))


def http_status(error: BaseException) -> int | None:
    """Returns the status of the HTTP answer behind an error, or None where there was none."""
    for source in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    # botocore's errors, which s3fs turns into an OSError and keeps as its cause.
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    about = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return about.get("HTTPStatusCode")


def describe_error(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Returns what a store's client said, without credentials; what a web server says for a status is left out."""
    kind, status = type(error).__name__, http_status(error)
    if status is not None and type(error).__module__.startswith("aiohttp"):
        return f"{kind} {status} {_PHRASES.get(status, '')}".strip()
    return redact(f"{kind}: {error}".removesuffix(": "), secrets)


def _explain(action: str, error: BaseException, num_tries: int, secrets: Iterable[str] = ()) -> str:
    action, cause = redact(action, secrets), describe_error(error, secrets)
    if isinstance(error, OSError) and error.errno in _OUT_OF_ROOM:
        return f"cannot {action}: no room left ({cause}). Free some space, then start the same command again to resume."
    if not may_pass(error):
        return f"cannot {action}: {cause}. Check the address and the permissions, then start the same command again."
    return (
        f"cannot {action}: still refused after {num_tries} tries ({cause}). Check the store, then start the same "
        "command again: finished units are kept."
    )


def _delay_s(policy: RetryPolicy, num_tries: int) -> float:
    # Jitter, so that thousands of workers throttled together do not come back together.
    return min(policy.max_delay_s, policy.first_delay_s * 2 ** (num_tries - 1)) * random.uniform(0.5, 1.0)
