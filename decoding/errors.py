"""The one exception for a video that cannot be decoded."""

from __future__ import annotations


class UndecodableClip(Exception):
    """A clip of which no faithful frames can be had.

    Attributes:
        reason: short and for people, for example `no video stream` or `truncated after 3.2 s`.
        message: the details: what was seen, what was wanted.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
