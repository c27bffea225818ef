"""What can be wrong with the input: of one clip, of a shard, or of the store that holds it."""

from __future__ import annotations

from framescribe.errors import FrameScribeError
from framescribe.storage.redaction import clean_text


class _CleanMessage(FrameScribeError):
    """An error whose message quotes names from the data and is shown on terminals: without control characters."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(clean_text, message.split("\n"))))


class InputError(_CleanMessage, ValueError):
    """The input cannot be annotated as it is: a bad manifest line, a damaged shard, a duplicate clip id."""


class NoVideos(InputError):
    """A tar or Parquet file is whole but holds no videos: an error where it was named, left out where it was found."""


class AddressRefused(InputError):
    """An address that is not opened: a row names what rows may not name, or a host that nobody listed."""


class NoInputFound(_CleanMessage, FileNotFoundError):
    """Nothing to annotate was found where `--input` points."""


class StoreUnavailable(_CleanMessage, OSError):
    """A store did not answer, or not with what was asked for, after all attempts: the run stops.

    Attributes:
        cause: what its client says of it.
        status: the HTTP status that it answered with, None where it gave no answer at all.
    """

    def __init__(self, message: str, cause: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.status = status


class CutShort(StoreUnavailable):
    """A store ended a file before the size that it had announced, at every attempt."""


class StoreRefused(_CleanMessage, PermissionError):
    """A store refused to hand out a file: credentials are wrong, missing, or do not permit it."""


class ShardChanged(_CleanMessage, RuntimeError):
    """A shard no longer holds what it held when the work was planned: the run stops."""


class VideoUnreadable(Exception):
    """One video cannot be read; its clip fails and the others go on.

    Attributes:
        reason: short and groupable, for example `video not found`.
        message: the details.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = clean_text(message)
