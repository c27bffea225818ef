"""Writes each unit's clips as one part, once all of them are there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import apache_beam as beam
import pyarrow as pa

from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import commit_part
from framescribe.storage.output import OutputStore, open_output
from schemas.part_rows import build_part
from schemas.records import ClipAnnotation, CommittedPart, FailedClip, FailurePolicy, UnitEnd, is_withdrawn
from schemas.run_columns import OtherVersionsError, RunColumns, describe_other_versions, find_versions
from transforms.counts import FailureTally, WorkerCounter
from transforms.keep_answers import AnswerStore
from transforms.unit_outcomes import LostClipsError, PendingUnit
from transforms.worker import WORKER, Worker

_NAMESPACE = "framescribe"


@dataclass(frozen=True, slots=True)
class CommitPartsConfig:
    """Where parts are written, and what their rows repeat.

    Attributes:
        run: the columns that every row repeats; a dtype of `auto` is filled in by the worker.
        failures: stops, before committing, once too many of this worker process's clips failed.
        versions: package to version where the run was started, which this worker's must not differ from in
            their minor version; None takes any.
        storage_options: for fsspec, needed in the worker.
    """

    output: str
    run: RunColumns
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    versions: Mapping[str, str] | None = None
    storage_options: StorageOptions = field(default_factory=dict, repr=False)


class CommitParts(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """ClipAnnotation | FailedClip | UnitEnd -> CommittedPart, one for each unit."""

    def __init__(self, config: CommitPartsConfig, worker: Worker = WORKER) -> None:
        super().__init__()
        self._fn = CommitPartsFn(config, worker)

    def expand(self, outcomes: beam.PCollection) -> beam.PCollection:
        """Puts the step behind `outcomes`."""
        return outcomes | "Write parts" >> beam.ParDo(self._fn).with_output_types(CommittedPart)


class CommitPartsFn(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Gathers the clips of each unit in any order and commits them as one part; yields a `CommittedPart` for each.

    Of a unit that is executed twice the first part stays: on a GPU the second has other last bits, and rows that were
    published do not change. A bundle that ends before a unit is complete raises `LostClipsError`; a store that goes on
    refusing raises `StoreError`.
    """

    def __init__(self, config: CommitPartsConfig, worker: Worker = WORKER) -> None:
        super().__init__()
        self._config = config
        self._worker = worker
        self._run_key = uuid.uuid4().hex  # travels with the step: all its copies in a process count together
        self._num_parts = WorkerCounter(worker, _NAMESPACE, "parts_committed")
        self._num_discarded = WorkerCounter(worker, _NAMESPACE, "parts_discarded")
        self._num_annotated = WorkerCounter(worker, _NAMESPACE, "clips_annotated")
        self._num_failed = WorkerCounter(worker, _NAMESPACE, "clips_failed")
        # Of units that may still be incomplete.
        self._num_arrived = WorkerCounter(worker, _NAMESPACE, "clips_arrived")
        self._num_arrived_failed = WorkerCounter(worker, _NAMESPACE, "clips_arrived_failed")
        self._commit_ms = WorkerCounter(worker, _NAMESPACE, "commit_milliseconds")

    def setup(self) -> None:
        """Opens the output in the worker: file systems do not travel well.

        Raises:
            OtherVersionsError: the worker has another minor version of a package that answers depend on.
        """
        differing = describe_other_versions(self._config.versions or {}, find_versions())
        if differing:
            raise OtherVersionsError(
                f"this worker has other versions than the place where the run was started: {differing}. Give both the "
                "same, or start with --allow-other-versions, which mixes rows of both"
            )
        self._store: OutputStore = open_output(self._config.output, self._config.storage_options)
        self._tally: FailureTally = self._worker.get_failure_tally(self._run_key)
        self._worker.keeper.open(AnswerStore(self._store, self._config.run.fingerprint, self._build_part))

    def start_bundle(self) -> None:
        """Forgets the units of a bundle that failed."""
        self._pending: dict[str, PendingUnit] = {}
        self._committed: set[str] = set()

    def process(self, element: ClipAnnotation | FailedClip | UnitEnd) -> Iterator[CommittedPart]:
        """Takes in one clip or the end of a unit."""
        unit_id = element.unit_id if isinstance(element, UnitEnd) else element.ref.unit_id
        if unit_id in self._committed:
            raise LostClipsError(f"one more {type(element).__name__} came after unit {unit_id!r} was complete")
        unit = self._pending.setdefault(unit_id, PendingUnit(unit_id))
        unit.add(element)
        if not isinstance(element, UnitEnd):
            self._num_arrived.inc()
            self._num_arrived_failed.inc(int(isinstance(element, FailedClip)))
        if unit.is_complete:
            yield self._commit(unit)

    def finish_bundle(self) -> None:
        """Checks that nothing is left over."""
        if self._pending:
            missing = "; ".join(unit.describe_missing() for unit in self._pending.values())
            raise LostClipsError(f"the bundle ended before its units were complete: {missing}")

    def _commit(self, unit: PendingUnit) -> CommittedPart:
        num_clips, num_failed = len(unit.outcomes), unit.num_failed
        self._tally.admit((one for one in unit.outcomes.values() if not is_withdrawn(one)), self._config.failures)
        part = self._build_part(unit.unit_id, unit.outcomes.values())
        started_s = time.monotonic()
        with self._worker.committing:
            if commit_part(self._store, unit.unit_id, part, self._config.run.fingerprint, unit.replaces):
                self._num_parts.inc()
                self._num_annotated.inc(num_clips - num_failed)
                self._num_failed.inc(num_failed)
            else:
                self._num_discarded.inc()
            self._worker.keeper.end(unit.unit_id)
            self._worker.unit_times.end(unit.unit_id)
        self._commit_ms.inc(round((time.monotonic() - started_s) * 1000))
        self._committed.add(unit.unit_id)
        del self._pending[unit.unit_id]
        return CommittedPart(unit.unit_id, num_clips - num_failed, num_failed)

    def _build_part(self, unit_id: str, outcomes: Iterable[ClipAnnotation | FailedClip]) -> pa.Table:
        run = self._config.run
        if run.dtype == "auto":  # what that is, only the process with the engine knows: this one
            run = replace(run, dtype=self._worker.dtype or run.dtype)
        return build_part(unit_id, outcomes, run, self._worker.describe())
