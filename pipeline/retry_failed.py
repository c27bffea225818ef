"""Adds the units whose parts hold failed clips to what a start has to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow.compute as pc

from framescribe.storage.journal import list_done_units
from framescribe.storage.output import SUCCESS_FILE, OutputStore
from framescribe.storage.parts import read_parts
from pipeline.run_folder import StartedRun
from schemas.part_rows import FAILED
from schemas.records import WorkUnit


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
