"""Counts the failed clips of a worker process, and stops it when there are too many."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from schemas.records import ClipAnnotation, FailedClip
from transforms.pending_unit import check_failed_share


class FailureTally:
    """Clips and failures of a run in this process, by reason; shared by its bundle threads."""

    def __init__(self) -> None:
        self._num_clips = 0
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def admit(self, outcomes: Iterable[ClipAnnotation | FailedClip], max_failed_share: float) -> None:
        """Counts the clips of a unit that is about to be committed.

        Raises:
            TooManyFailedClipsError: with them, more failed than allowed; the unit is not counted and must not be
                committed.
        """
        outcomes = list(outcomes)
        with self._lock:
            reasons = self._reasons + Counter(_reason(one) for one in outcomes if isinstance(one, FailedClip))
            num_clips = self._num_clips + len(outcomes)
            check_failed_share(reasons.total(), num_clips, max_failed_share, reasons=reasons)
            self._reasons, self._num_clips = reasons, num_clips


_tallies: dict[str, FailureTally] = {}
_tallies_lock = threading.Lock()


def get_failure_tally(run_key: str) -> FailureTally:
    """Returns this process's tally of a run, made when first asked for."""
    with _tallies_lock:
        return _tallies.setdefault(run_key, FailureTally())


def _reason(failed: FailedClip) -> str:
    return f"{failed.reason} ({failed.stage.value})"
