"""Moments at which a run is killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

Moment = Callable[[Path], bool]
_GONE_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class AfterSeconds:
    """Some seconds after the start."""

    started_s: float
    seconds: float

    def __call__(self, output: Path) -> bool:
        return time.monotonic() - self.started_s >= self.seconds


@dataclass(frozen=True, slots=True)
class OnSight:
    """As soon as so many files match a pattern: `*` at the start of a name does not match temporary ones."""

    pattern: str
    num_files: int = 1

    def __call__(self, output: Path) -> bool:
        return sum(1 for _ in output.glob(self.pattern)) >= self.num_files


# The temporary file of a part lives for the milliseconds of its commit, so does that of _SUCCESS.
_SIGHTS = (
    OnSight("_framescribe/parts/.*.tmp"),
    OnSight("_framescribe/plan/*"),
    OnSight("_framescribe/.framescribe-scratch-*/*"),
    OnSight("qa/*.parquet"),
    OnSight(".*.tmp"),
)


def draw_moment(rng: random.Random, undisturbed_s: float, num_units: int) -> Moment:
    """Draws a moment: any time of the run, the commit of any unit, or something that is about to be finished."""
    kind = rng.choice(("time", "time", "part", "sight"))
    if kind == "time":
        return AfterSeconds(time.monotonic(), rng.uniform(0, undisturbed_s))
    if kind == "part":
        return OnSight("_framescribe/parts/*.parquet", rng.randint(1, num_units))
    return rng.choice(_SIGHTS)


def kill_at(process: BaseProcess, moment: Moment, output: Path) -> bool:
    """Kills a run when the moment has come, and waits until its decoder processes are gone too.

    Returns:
        False where it ended by itself before.
    """
    while process.is_alive() and not moment(output):
        time.sleep(0.001)
    children = _children_of(process)
    process.kill()
    process.join()
    _, left = psutil.wait_procs(children, timeout=_GONE_WITHIN_S)
    assert not left, f"decoder processes outlive their killed worker: {left}"
    return process.exitcode == -9


def _children_of(process: BaseProcess) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
