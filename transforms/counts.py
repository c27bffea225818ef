"""What a worker process counts of a run: Beam's counters with a total that can be read at any time, and failures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from schemas.records import ClipAnnotation, FailedClip, FailurePolicy

if TYPE_CHECKING:
    from transforms.worker import Worker


class Counts:
    """Totals of this process since it began, by `namespace.name`."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._lock = threading.RLock()  # a signal may come while the main thread counts

    def add(self, name: str, number: int) -> None:
        """Adds to a total."""
        with self._lock:
            self._totals[name] += number

    def read(self) -> dict[str, int]:
        """Returns all totals."""
        with self._lock:
            return dict(self._totals)


class UnitTimes:
    """How long units took in this process, from the first read of one to its part; of the last try of each."""

    def __init__(self) -> None:
        self._begun_s: dict[str, float] = {}
        self._ended: dict[str, tuple[float, float]] = {}  # unit id to when it ended, and how long it took

    def begin(self, unit_id: str) -> None:
        """Says that a unit is read now."""
        self._begun_s[unit_id] = time.monotonic()

    def end(self, unit_id: str) -> None:
        """Says that its part is there now."""
        now_s = time.monotonic()
        self._ended[unit_id] = now_s, now_s - self._begun_s.pop(unit_id, now_s)

    def read(self, since_s: float) -> dict[str, float]:
        """Returns unit id to seconds of the units that ended since a moment of `time.monotonic`."""
        return {unit_id: took_s for unit_id, (ended_s, took_s) in list(self._ended.items()) if ended_s >= since_s}


class WorkerCounter:
    """A counter of Beam's whose total of this process can be read while the run goes on.

    The in-process runner tells its counters when the run has ended, and not before.
    """

    def __init__(self, worker: Worker, namespace: str, name: str) -> None:
        from apache_beam.metrics import Metrics  # here: the command line knows the worker's settings without Beam

        self._worker, self._name = worker, f"{namespace}.{name}"
        self._counter = Metrics.counter(namespace, name)

    def inc(self, number: int = 1) -> None:
        """Adds to the counter; to be called on a bundle's thread."""
        self._counter.inc(number)
        self._worker.counts.add(self._name, number)


class FailureTally:
    """Clips and failures of a run in this process, by reason; shared by its bundle threads."""

    def __init__(self) -> None:
        self._num_clips = 0
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def admit(self, outcomes: Iterable[ClipAnnotation | FailedClip], failures: FailurePolicy) -> None:
        """Counts the clips of a unit that is about to be committed.

        Raises:
            TooManyFailedClipsError: with them, more failed than allowed; the unit is not counted and must not be
                committed.
        """
        outcomes = list(outcomes)
        with self._lock:
            reasons = self._reasons + Counter(_reason(one) for one in outcomes if isinstance(one, FailedClip))
            num_clips = self._num_clips + len(outcomes)
            failures.check_worker(reasons.total(), num_clips, reasons)
            self._reasons, self._num_clips = reasons, num_clips


def _reason(failed: FailedClip) -> str:
    return f"{failed.reason} ({failed.stage.value})"
