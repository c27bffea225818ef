"""What all errors have in common that end a run, or a call of the library, with a message for its user."""

from __future__ import annotations


class FrameScribeError(Exception):
    """Nothing went on after this; the message says what was seen, what was wanted and what to do.

    The command line shows it without a trace, and finds it again in what a runner says about a worker that stopped.
    Errors that are caught again on the way, such as that a clip cannot be decoded, are none.
    """
