"""Starts a run in its OUTPUT folder, or goes on with the one that is there.

Adds the units whose parts hold failed clips to what a start has to do.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from framescribe.publish.tables import is_table_file
from framescribe.storage.journal import (
    OtherRunError,
    RunRecord,
    add_to_plan,
    holds_run,
    list_done_units,
    read_plan,
    read_run,
    record_start,
    remove_set_aside,
)
from framescribe.storage.output import PARTS_FOLDER, PLAN_FOLDER, RUN_FILE, SUCCESS_FILE, OutputStore
from framescribe.storage.parts import read_parts
from schemas.part_rows import FAILED
from schemas.records import WorkUnit
from schemas.run_columns import OtherVersionsError, describe_other_versions
from schemas.tables import TABLES

_SHOWN_CHARACTERS = 80
_NOT_SET = "(not set)"


@dataclass(frozen=True, slots=True)
class StartedRun:
    """What a start found.

    Attributes:
        todo: the planned units to do, in the planner's order: those without a part, and those to be done again.
        num_planned: units of this start's plan.
        num_outdated: parts of earlier starts that count no more, because their shard was cut into other units since:
            its contents changed, or the size of units did. Their clips are done again.
        num_clips_again: clips in those of the outdated parts that counted until this start.
        num_failed_clips: failed clips in units that are done again; none unless they are asked for.
    """

    todo: tuple[WorkUnit, ...]
    num_planned: int
    num_outdated: int = 0
    num_clips_again: int = 0
    num_failed_clips: int = 0

    @property
    def num_done(self) -> int:
        """Units of this plan that were committed before."""
        return self.num_planned - len(self.todo)


def start_run(store: OutputStore, run: RunRecord, units: Sequence[WorkUnit]) -> StartedRun:
    """Records a run and its planned units, clears up after a killed one and finds what is still to do.

    Shards that an earlier start planned stay planned, so a rerun may come with more inputs, or with new ones only.

    Raises:
        OtherRunError: the folder holds parts of other settings, or tables of no run; nothing was changed.
    """
    check_same_run(store, run)
    _check_tables(store)
    store.remove_leftovers()
    with store.turn():
        while True:
            seen = store.version(RUN_FILE)
            check_same_run(store, run)
            if record_start(store, run, seen):
                return _plan_start(store, units)


def overwrite_run(store: OutputStore, run: RunRecord, units: Sequence[WorkUnit]) -> StartedRun:
    """Removes the run that the folder holds, whatever its settings, and starts this one.

    Raises:
        OtherRunError: the folder holds tables of no run; nothing was changed.
    """
    _check_tables(store)
    store.remove_leftovers()
    with store.turn():
        seen = store.version(RUN_FILE)
        if holds_run(store):
            _remove_run(store)
        if not record_start(store, run, seen):
            raise OtherRunError(f"another run was started in {store.address('')} at the same moment: start again")
        return _plan_start(store, units)


def check_same_run(store: OutputStore, run: RunRecord) -> None:
    """Raises `OtherRunError`, with the difference, when the folder holds a run with another fingerprint."""
    recorded = read_run(store)
    if recorded is None and list_done_units(store):
        raise OtherRunError(
            f"{store.address(PARTS_FOLDER)} holds parts, but there is no run.json that says with which settings they "
            "were made: restore it, choose another --output, or start with --overwrite to remove them"
        )
    if recorded is not None and recorded.fingerprint != run.fingerprint:
        raise OtherRunError(
            f"{store.address('')} holds a run with other settings (there -> now):\n"
            + "\n".join(f"  {line}" for line in describe_difference(recorded, run))
            + "\nUse the same settings, choose another --output, or start with --overwrite to remove that run. "
            "Where only the recipe differs, another --output with --reuse-from this one asks only what changed."
        )


def check_same_versions(store: OutputStore, run: RunRecord) -> None:
    """Raises `OtherVersionsError` when the run that the folder holds was last started under other minor versions.

    A run without any part has no rows yet that could be others.
    """
    recorded = read_run(store)
    differing = describe_other_versions({} if recorded is None else recorded.versions, run.versions)
    if differing and list_done_units(store):
        raise OtherVersionsError(
            f"{store.address('')} holds a run that was written under other versions (there -> now): {differing}. "
            "Answers may differ from those that are there. Install the versions of then, choose another --output, or "
            "start with --allow-other-versions; each part says which versions wrote it"
        )


def describe_difference(recorded: RunRecord, wanted: RunRecord) -> list[str]:
    """Returns one line for each setting or prompt that differs: `sampling.max_frames: 64 -> 32`."""
    before, after = dict(_flatten(recorded)), dict(_flatten(wanted))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    lines = [_describe_change(name, before.get(name, _NOT_SET), after.get(name, _NOT_SET)) for name in names]
    return lines or [f"fingerprint: {recorded.fingerprint} -> {wanted.fingerprint} (the program's own rules changed)"]


def _plan_start(store: OutputStore, units: Sequence[WorkUnit]) -> StartedRun:
    done = set(list_done_units(store))
    counted = [unit for unit in read_plan(store) if unit.unit_id in done]
    add_to_plan(store, units)
    planned = {unit.unit_id for unit in read_plan(store)}
    todo = tuple(unit for unit in units if unit.unit_id not in done)
    if todo:
        store.remove(SUCCESS_FILE)  # it spoke of fewer units
    num_clips_again = sum(unit.stop - unit.start for unit in counted if unit.unit_id not in planned)
    return StartedRun(todo, len(units), len(done - planned), num_clips_again)


def _check_tables(store: OutputStore) -> None:
    """Raises `OtherRunError` when publishing would replace or remove files that no run recorded here has written."""
    found = [] if holds_run(store) else list(_find_tables(store))
    if found:
        raise OtherRunError(
            f"{store.address(found[0])} has the name of one of our tables, but no run is recorded in "
            f"{store.address('')}: it would be replaced. Choose another --output, or move the file away"
        )


def _remove_run(store: OutputStore) -> None:
    # run.json stays until the new run writes its own: a crash half-way leaves a folder that is still refused.
    # Other files in these folders, and the card with the user's own text, stay.
    store.remove(SUCCESS_FILE)
    for name in _find_tables(store):
        store.remove(name)
    remove_set_aside(store)
    for folder in (PARTS_FOLDER, PLAN_FOLDER):
        for file_name in store.list_files(folder):
            if file_name.endswith(".parquet"):
                store.remove(f"{folder}/{file_name}")


def _find_tables(store: OutputStore) -> Iterator[str]:
    for table in TABLES:
        yield from (f"{table}/{name}" for name in store.list_files(table) if is_table_file(table, name))


def _describe_change(name: str, before: str, after: str) -> str:
    # Long prompts usually differ in a few words: show these, not the beginning.
    num_equal = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    cut = max(0, num_equal - _SHOWN_CHARACTERS // 4) if max(len(before), len(after)) > _SHOWN_CHARACTERS else 0
    return f"{name}: {_shorten(before, cut)} -> {_shorten(after, cut)}"


def _shorten(text: str, cut: int) -> str:
    end = cut + _SHOWN_CHARACTERS
    return f"{'...' if cut else ''}{text[cut:end]}{'...' if end < len(text) else ''}"


def _flatten(run: RunRecord) -> Iterator[tuple[str, str]]:
    yield "model_name", json.dumps(run.model_name)
    yield from _flatten_settings("", run.settings)
    yield from _flatten_settings("prompts.", run.prompts)


def _flatten_settings(prefix: str, settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten_settings(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)


def add_failed_units(
    store: OutputStore, started: StartedRun, units: Sequence[WorkUnit], fingerprint: str
) -> StartedRun:
    """Returns a start that also does the units again of which a clip failed.

    Their parts stay in place until they are written again, so nothing is lost when this start is killed.

    Args:
        units: the plan of this start.
    """
    failed = count_failed_clips(store, [unit.unit_id for unit in units], fingerprint)
    if failed:
        store.remove(SUCCESS_FILE)  # before work begins: a killed retry must not look finished
    todo = {unit.unit_id for unit in started.todo} | failed.keys()
    return replace(
        started,
        todo=tuple(unit for unit in units if unit.unit_id in todo),
        num_failed_clips=sum(failed.values()),
    )


def count_failed_clips(store: OutputStore, unit_ids: Sequence[str], fingerprint: str) -> dict[str, int]:
    """Returns unit id to failed clips, of the units whose part holds any; a unit without a part has none."""
    done = sorted({*unit_ids} & {*list_done_units(store)})
    statuses = (part["status"] for part in read_parts(store, done, fingerprint, ["status"]))
    counts = {
        unit_id: pc.sum(pc.equal(status, FAILED), min_count=0).as_py()
        for unit_id, status in zip(done, statuses, strict=True)
    }
    return {unit_id: number for unit_id, number in counts.items() if number}
