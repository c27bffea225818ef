"""What an output folder holds when a start finds it, and which answers in it the start may take."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from framescribe.publish.tables import is_table_file
from framescribe.shards.videos import find_versions
from framescribe.storage.access import Store
from framescribe.storage.journal import DamagedRunError, RunRecord, list_done_units, list_set_aside, read_run
from framescribe.storage.output import RUN_FILE, OutputStore
from framescribe.storage.parts import read_parts, read_source_versions
from framescribe.storage.plan import PlannedUnit, read_plan
from framescribe.storage.withdrawn import read_withdrawn
from pipeline.units import PlannedInputs
from schemas.part_rows import FAILED
from schemas.records import WITHDRAWN, InputKind, WorkUnit
from schemas.tables import TABLES
from transforms.answer_index import AnsweredClips, list_answered, write_answer_index
from transforms.answer_reuse import ReusableRun


class FoundOutput:
    """What an output folder holds, read only; each thing is looked up when first asked for, and once."""

    def __init__(self, store: OutputStore) -> None:
        self.store = store

    @cached_property
    def withdrawn(self) -> frozenset[str]:
        """Ids of clips that were withdrawn from it."""
        return read_withdrawn(self.store)

    @cached_property
    def version(self) -> str | None:
        """Version of run.json, to be replaced only as it was seen; None where there is none."""
        return self.store.version(RUN_FILE)

    @cached_property
    def record(self) -> RunRecord | None:
        """What run.json says; raises `DamagedRunError` where it says nothing."""
        return read_run(self.store) if self.version is not None else None  # the version first: it may change between

    @cached_property
    def done(self) -> frozenset[str]:
        """Ids of the units with a part."""
        return frozenset(list_done_units(self.store))

    @cached_property
    def planned(self) -> tuple[PlannedUnit, ...]:
        """The units that earlier starts planned."""
        return tuple(read_plan(self.store))

    @cached_property
    def set_aside(self) -> frozenset[str]:
        """Ids of the units whose part was set aside to be done again."""
        return frozenset(list_set_aside(self.store))

    def find_changed_rows(
        self, units: Iterable[WorkUnit], done: Collection[str], reader: Store
    ) -> Iterator[tuple[str, str, str]]:
        """Yields unit, video and change where a row of a finished unit names a video that is not the one it read."""
        naming = (InputKind.MANIFEST, InputKind.PARQUET)
        unit_ids = [unit.unit_id for unit in units if unit.unit_id in done and unit.kind in naming]
        read = read_source_versions(self.store, unit_ids)
        videos = sorted({uri for versions in read.values() for uri in versions})
        now = find_versions(reader, videos, self.store.address("")) if videos else {}
        for unit_id, versions in read.items():
            for uri in sorted(versions.keys() & now.keys()):
                if versions[uri] != now[uri]:
                    yield unit_id, uri, f"{uri} ({versions[uri]} -> {now[uri]})"

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here, its record damaged or not, or at least parts are there."""
        return self.version is not None or bool(self.done)

    def list_tables(self) -> Iterator[str]:
        """Yields the names of files that publishing would replace or remove."""
        for table in TABLES:
            yield from (f"{table}/{name}" for name in self.store.list_files(table) if is_table_file(table, name))


@dataclass(frozen=True, slots=True)
class ChangedInputs:
    """Finished units of which a file has changed since, under the same name and size, and those files."""

    unit_ids: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundAnswers:
    """A run whose answers may be taken, and which clips it has.

    Attributes:
        num_clips: clips of the new run, or videos of such, that it has: some may have failed, or have other frames now.
        others: its clips in units that the new run does not have.
    """

    run: ReusableRun
    num_clips: int
    others: AnsweredClips = field(default_factory=AnsweredClips.none, repr=False)

    def write_index(self, store: OutputStore, output: str, inputs: PlannedInputs) -> ReusableRun:
        """Writes to the output of the new run, which workers open as `output`, where they find these clips."""
        if not len(self.others.clip_hashes):
            return self.run
        index = write_answer_index(store, self.others, inputs.units, inputs.video_hashes)
        return replace(self.run, index=index, index_output=output)


def find_answers(
    store: OutputStore, run: ReusableRun, unit_ids: Collection[str], inputs: PlannedInputs
) -> FoundAnswers:
    """Looks up which of the clips of a new run are in these units of an earlier one.

    The earlier run's parts are opened only where the new run has units that it does not have.

    Raises:
        DamagedRunError: a part is damaged or of other settings than the run.
    """
    same = {unit.unit_id for unit in inputs.units}.intersection(unit_ids)
    others = AnsweredClips.none()
    if len(same) < len(inputs.units):
        others = list_answered(store, {*unit_ids} - same, run.fingerprint)
    in_same = sum(unit.num_clips for unit in inputs.units if unit.unit_id in same)
    in_others = int(others.contains(inputs.video_hashes).sum())
    return FoundAnswers(run, min(in_same + in_others, sum(unit.num_clips for unit in inputs.units)), others)


def find_own_answers(
    store: OutputStore, run: ReusableRun, unit_ids: Collection[str], inputs: PlannedInputs
) -> FoundAnswers:
    """Does so in parts of the run itself that are in no table any more; damaged ones are no reason to stop."""
    try:
        return find_answers(store, run, unit_ids, inputs)
    except DamagedRunError:
        return FoundAnswers(run, num_clips=0)


def count_failed_clips(store: OutputStore, unit_ids: Sequence[str], fingerprint: str) -> dict[str, int]:
    """Returns unit id to failed clips, of the finished units whose part holds any."""
    parts = read_parts(store, unit_ids, fingerprint, ["status", "reason"])
    counts = {unit_id: _count_failed(part) for unit_id, part in zip(unit_ids, parts, strict=True)}
    return {unit_id: number for unit_id, number in counts.items() if number}


def _count_failed(part: pa.Table) -> int:
    is_failed = pc.equal(part["status"], FAILED)
    return pc.sum(pc.and_(is_failed, pc.fill_null(pc.not_equal(part["reason"], WITHDRAWN), True)), min_count=0).as_py()
