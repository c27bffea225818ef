"""Starts runs as processes that are forked from one that has imported everything: a tenth of a cold start's work."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# Only to have them: a forked process finds them imported.
import apache_beam.runners.portability.fn_api_runner.fn_runner  # noqa: F401

import framescribe.llava_video.engine.engine  # noqa: F401
import pipeline.commands
import pipeline.graph  # noqa: F401
from run_pipeline import main


def fork_run(arguments: Sequence[str], log: Path) -> BaseProcess:
    """Starts `framescribe` with these arguments as a process of its own; what it says goes to the end of `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.warm"])
    process = context.Process(target=_run, args=(tuple(arguments), str(log)))
    process.start()
    return process


def _run(arguments: Sequence[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    sys.exit(main(arguments))
