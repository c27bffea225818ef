"""What can be wrong with the input: of one clip, of a shard, or of the store that holds it."""

from __future__ import annotations

from framescribe.errors import FrameScribeError
from framescribe.storage.redaction import clean_text


def _clean_lines(message: str) -> str:
    return "\n".join(map(clean_text, message.split("\n")))


class InputError(FrameScribeError, ValueError):
    """The input cannot be annotated as it is: a bad manifest line, a damaged shard, a duplicate clip id."""

    def __init__(self, message: str) -> None:
        super().__init__(_clean_lines(message))  # it quotes names from the data, and is shown on terminals


class NoVideos(InputError):
    """A tar or Parquet file is whole but holds no videos: an error where it was named, left out where it was found."""


class AddressRefused(InputError):
    """An address that is not opened: a row names what rows may not name, or a host that nobody listed."""


class NoInputFound(FrameScribeError, FileNotFoundError):
    """Nothing to annotate was found where `--input` points."""

    def __init__(self, message: str) -> None:
        super().__init__(_clean_lines(message))


class StoreUnavailable(FrameScribeError, OSError):
    """A store did not answer, or not with what was asked for, after all attempts: the run stops.

    Attributes:
        cause: what its client says of it.
        status: the HTTP status that it answered with, None where it gave no answer at all.
    """

    def __init__(self, message: str, cause: str = "", status: int | None = None) -> None:
        super().__init__(_clean_lines(message))
        self.cause = cause
        self.status = status


class CutShort(StoreUnavailable):
    """A store ended a file before the size that it had announced, at every attempt."""


class StoreRefused(FrameScribeError, PermissionError):
    """A store refused to hand out a file: credentials are wrong, missing, or do not permit it."""

    def __init__(self, message: str) -> None:
        super().__init__(_clean_lines(message))


class ShardChanged(FrameScribeError, RuntimeError):
    """A shard no longer holds what it held when the work was planned: the run stops."""

    def __init__(self, message: str) -> None:
        super().__init__(_clean_lines(message))


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
