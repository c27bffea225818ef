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

    A worker that lacks a package is named by the folder that its packages lie in: runners hand on no other name.

    Args:
        runner_text: whatever the runner raised, with the worker's traceback in it.
    """
    ours, missing = _OUR_ERROR.search(runner_text), _NO_MODULE.search(runner_text)
    if ours:
        message = ours["message"].strip()
        # Of stores whose client is not installed; here it is, or the run had not started.
        return WorkerStopped(f"{message}; in {_name_worker(runner_text)}" if _INSTALL.search(message) else message)
    if missing:
        return WorkerStopped(
            f"{_name_worker(runner_text)} has no module {missing['module']!r}: install this version of FrameScribe "
            "there, with all that this machine has of it, or name an image that holds it (--sdk_container_image)"
        )
    return None


def _name_worker(runner_text: str) -> str:
    folder = _PACKAGES_OF_WORKER.search(runner_text)
    return f"the worker whose packages lie in {folder['folder']}" if folder else "a worker"


_NO_MODULE = re.compile(r"^ModuleNotFoundError: No module named '(?P<module>[\w.]+)'", re.MULTILINE)
_INSTALL = re.compile(r"\b[Ii]nstall\b")
_PACKAGES_OF_WORKER = re.compile(r'^ *File "(?P<folder>[^"\n]+)/apache_beam/runners/worker/', re.MULTILINE)
