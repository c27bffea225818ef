"""Finds our own error in what a runner says about a worker that stopped."""

from __future__ import annotations

import re

# The first one in a chain is the cause; Beam adds the step at the end of the last.
_OUR_ERROR = re.compile(
    r"^(?:decoding|llava_video|pipeline|recipes|schemas|shards|storage|transforms)(?:\.\w+)*\.\w+: (?P<message>.*?)"
    r"(?: \[while running|\n\nDuring handling|\n\nThe above exception|\Z)",
    re.MULTILINE | re.DOTALL,
)


class WorkerStopped(RuntimeError):
    """A worker met what stops a run; the message is the worker's own."""


def explain_worker_error(runner_text: str) -> WorkerStopped | None:
    """Returns the error that stopped a worker, without the runner's traces, or None where it is none of ours.

    Args:
        runner_text: whatever the runner raised, with the worker's traceback in it.
    """
    found = _OUR_ERROR.search(runner_text)
    return WorkerStopped(found["message"].strip()) if found else None
