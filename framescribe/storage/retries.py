"""How every store is asked again: one policy, one table of the errors that clients of stores raise, one judgement.

Inputs are read through `framescribe.storage.access.Store`, outputs through `framescribe.storage.output.OutputStore`;
both ask with `call_with_retries` and differ only in what they raise when a store goes on refusing.
"""

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

from framescribe.errors import FrameScribeError
from framescribe.storage.redaction import redact

Result = TypeVar("Result")

# What file systems raise for an address or an option that makes no sense to them, besides what their store says.
ADDRESS_ERRORS = (AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
MISSING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_OUT_OF_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PERMANENT = (*MISSING_ERRORS, *ADDRESS_ERRORS, PermissionError, FileExistsError)
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


class StoreError(FrameScribeError, RuntimeError):
    """A store could not be read or written; the run stops and can be started again."""


class GaveUp(Exception):
    """A call to a store failed for good, or at every attempt.

    Attributes:
        error: what the store's client raised at the last attempt.
        num_attempts: how often it was asked.
    """

    def __init__(self, error: BaseException, num_attempts: int) -> None:
        super().__init__(error, num_attempts)
        self.error, self.num_attempts = error, num_attempts


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a store is asked again.

    Attributes:
        max_attempts: the first one included. Seven span half a minute, which outlasts a throttled or restarting store.
        first_delay_s: the longest pause after the first refusal; it doubles each time, up to `max_delay_s`.
        patience_s: no further attempt after so long: most clients of stores try for half a minute by themselves.
        sleep: waits so many seconds; a test passes its own.
    """

    max_attempts: int = 7
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    patience_s: float = float("inf")
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        for name in ("first_delay_s", "max_delay_s", "patience_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def call_with_retries(
    operation: Callable[[], Result], policy: RetryPolicy, final: tuple[type[BaseException], ...] = ()
) -> Result:
    """Returns what `operation` returns, asked again with growing pauses while its errors may pass.

    Args:
        final: errors that end it at once, beside those of stores.

    Raises:
        GaveUp: the error will not pass, or it was the last attempt.
    """
    started_s = time.monotonic()
    for num_attempts in range(1, policy.max_attempts + 1):
        try:
            return operation()
        except store_errors() + final as raised:
            error = _find_cause(raised)
            is_last = num_attempts == policy.max_attempts or time.monotonic() - started_s > policy.patience_s
            if is_last or isinstance(error, final) or not may_pass(error):
                # Not chained: the store's own message may repeat a signed URL.
                raise GaveUp(error, num_attempts) from None
        policy.sleep(_delay_s(policy, num_attempts))
    raise AssertionError("unreachable: the last attempt returns or raises")


def retry_passing_errors(
    action: str, operation: Callable[[], Result], policy: RetryPolicy, secrets: Iterable[str] = ()
) -> Result:
    """Calls a store that the run cannot do without: its output, its model.

    Args:
        action: what is tried, for messages: `write out/_SUCCESS`.
        secrets: texts that no message may repeat; nor does one repeat the credentials inside a URL.

    Raises:
        StoreError: out of room, not permitted, or still refused after the last attempt.
    """
    try:
        return call_with_retries(operation, policy)
    except GaveUp as gave_up:
        raise StoreError(_explain(action, gave_up.error, gave_up.num_attempts, secrets)) from None


@contextlib.contextmanager
def stopping_where_full(action: str) -> Iterator[None]:
    """Turns the error of a disk that gets full, by whatever library, into a `StoreError`; others pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno in _OUT_OF_ROOM:
            raise StoreError(_explain(action, error, num_attempts=1)) from None
        raise


def may_pass(error: BaseException) -> bool:
    """Returns whether the same request may succeed a moment later."""
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_HTTP_STATUS
    if isinstance(error, _PERMANENT) or is_bad_request(error) or lacks_credentials(error):
        return False
    code = error.errno if isinstance(error, OSError) else None
    return code not in _OUT_OF_ROOM | _PERMANENT_CODES


def is_missing(error: BaseException) -> bool:
    """Returns whether a store says that nothing is there."""
    return isinstance(error, MISSING_ERRORS) or http_status(error) in (404, 410)


def is_bad_request(error: BaseException) -> bool:
    """Returns whether a client could make nothing of the address or of its options, and asked nobody."""
    return isinstance(error, ADDRESS_ERRORS) or type(error).__name__ == "ParamValidationError"  # botocore's


def lacks_credentials(error: BaseException) -> bool:
    """Returns whether a client has no credentials to show, as those of S3 and GCS call it."""
    return "Credential" in type(error).__name__


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


def _explain(action: str, error: BaseException, num_attempts: int, secrets: Iterable[str] = ()) -> str:
    action, cause = redact(action, secrets), describe_error(error, secrets)
    if isinstance(error, OSError) and error.errno in _OUT_OF_ROOM:
        return f"cannot {action}: no room left ({cause}). Free some space, then start the same command again to resume."
    if not may_pass(error):
        return f"cannot {action}: {cause}. Check the address and the permissions, then start the same command again."
    return (
        f"cannot {action}: still refused after {num_attempts} attempts ({cause}). Check the store, then start the same "
        "command again: finished units are kept."
    )


def _delay_s(policy: RetryPolicy, num_attempts: int) -> float:
    # Jitter, so that thousands of workers throttled together do not come back together.
    return min(policy.max_delay_s, policy.first_delay_s * 2 ** (num_attempts - 1)) * random.uniform(0.5, 1.0)


def _find_cause(error: BaseException) -> BaseException:
    """Returns what lies behind "not found": fsspec's client for web servers says so for every failure to connect."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or isinstance(cause, MISSING_ERRORS):
        return error
    is_told = isinstance(cause, (OSError, *ADDRESS_ERRORS)) or type(cause).__module__.startswith("aiohttp")
    return cause if is_told else error
