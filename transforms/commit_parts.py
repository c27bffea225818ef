"""Writes each unit's clips as one part, once all of them are there, and leaves out units that have one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace

import apache_beam as beam
from apache_beam.metrics import Metrics

from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import commit_part, read_fingerprint
from framescribe.storage.output import OutputStore, open_output
from schemas.part_rows import build_part
from schemas.records import ClipAnnotation, CommittedPart, FailedClip, UnitEnd, WorkUnit
from schemas.run_columns import OtherVersionsError, RunColumns, describe_other_versions, find_versions
from transforms.unit_outcomes import LostClipsError, PendingUnit
from transforms.worker import FailureTally, computed_dtype, describe_worker, get_failure_tally

_NAMESPACE = "framescribe"


class SkipCommitted(beam.DoFn):
    """Lets the units pass that have no part of these settings yet.

    A runner that loses a worker starts the job, or a bundle of many units, from the beginning: what was committed
    until then is not annotated again.
    """

    def __init__(self, output: str, fingerprint: str, storage_options: StorageOptions | None = None) -> None:
        super().__init__()
        self._output = output
        self._fingerprint = fingerprint
        self._storage_options = storage_options
        self._num_skipped = Metrics.counter(_NAMESPACE, "units_skipped")

    def setup(self) -> None:
        """Opens the output in the worker."""
        self._store: OutputStore = open_output(self._output, self._storage_options)

    def process(self, unit: WorkUnit) -> Iterator[WorkUnit]:
        """Yields the unit, or nothing."""
        if read_fingerprint(self._store, unit.unit_id) == self._fingerprint:
            self._num_skipped.inc()
        else:
            yield unit


class CommitParts(beam.DoFn):
    """Gathers the clips of each unit in any order and commits them as one part; yields a `CommittedPart` for each.

    Of a unit that is executed twice the first part stays: on a GPU the second has other last bits, and rows that were
    published do not change. A bundle that ends before a unit is complete raises `LostClipsError`; a store that goes on
    refusing raises `StoreError`.

    Args:
        max_failed_fraction: stop, before committing, once more than this share of this worker process's clips failed.
        versions: package to version where the run was started, which this worker's must not differ from in
            their minor version; None takes any.
    """

    def __init__(
        self,
        output: str,
        run: RunColumns,
        storage_options: StorageOptions | None = None,
        max_failed_fraction: float = 1.0,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._output = output
        self._run = run
        self._storage_options = storage_options
        self._max_failed_fraction = max_failed_fraction
        self._versions = versions
        self._run_key = uuid.uuid4().hex  # travels with the step: all its copies in a process count together
        self._num_parts = Metrics.counter(_NAMESPACE, "parts_committed")
        self._num_discarded = Metrics.counter(_NAMESPACE, "parts_discarded")
        self._num_annotated = Metrics.counter(_NAMESPACE, "clips_annotated")
        self._num_failed = Metrics.counter(_NAMESPACE, "clips_failed")

    def setup(self) -> None:
        """Opens the output in the worker: file systems do not travel well.

        Raises:
            OtherVersionsError: the worker has another minor version of a package that answers depend on.
        """
        differing = describe_other_versions(self._versions or {}, find_versions())
        if differing:
            raise OtherVersionsError(
                f"this worker has other versions than the place where the run was started: {differing}. Give both the "
                "same, or start with --allow-other-versions, which mixes rows of both"
            )
        self._store: OutputStore = open_output(self._output, self._storage_options)
        self._tally: FailureTally = get_failure_tally(self._run_key)

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
        if unit.is_complete:
            yield self._commit(unit)

    def finish_bundle(self) -> None:
        """Checks that nothing is left over."""
        if self._pending:
            missing = "; ".join(unit.describe_missing() for unit in self._pending.values())
            raise LostClipsError(f"the bundle ended before its units were complete: {missing}")

    def _commit(self, unit: PendingUnit) -> CommittedPart:
        num_clips, num_failed = len(unit.outcomes), unit.num_failed
        self._tally.admit(unit.outcomes.values(), self._max_failed_fraction)
        # What `auto` came to is only known where the engine runs: here.
        run = replace(self._run, dtype=computed_dtype() or self._run.dtype) if self._run.dtype == "auto" else self._run
        part = build_part(unit.unit_id, unit.outcomes.values(), run, describe_worker())
        is_first = commit_part(self._store, unit.unit_id, part, run.fingerprint, unit.replaces)
        self._committed.add(unit.unit_id)
        del self._pending[unit.unit_id]
        if is_first:
            self._num_parts.inc()
            self._num_annotated.inc(num_clips - num_failed)
            self._num_failed.inc(num_failed)
        else:
            self._num_discarded.inc()
        return CommittedPart(unit.unit_id, num_clips - num_failed, num_failed)
