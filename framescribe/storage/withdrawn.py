"""Clips that were withdrawn: the list that keeps them out, and what is taken out of parts and plan."""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from framescribe.storage.journal import DamagedRunError, commit_part, list_parts, read_part
from framescribe.storage.output import JOURNAL_FOLDER, PLAN_FOLDER, OutputStore, part_name
from framescribe.storage.plan import UNITS_PER_SLICE, blank_metadata, list_plans
from framescribe.storage.retries import StoreError
from schemas.part_rows import withdraw_row
from schemas.records import WITHDRAWN

WITHDRAWN_FILE = posixpath.join(JOURNAL_FOLDER, "withdrawn.json")
_MAX_TRIES = 20


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What was taken out: clips that had an annotation or a failure of their own, and the parts that were rewritten."""

    num_clips: int = 0
    num_parts: int = 0


def read_withdrawn(store: OutputStore) -> frozenset[str]:
    """Returns the ids of all clips that were ever withdrawn from an output, whatever run it holds.

    Raises:
        DamagedRunError: the list is not what `add_withdrawn` writes.
    """
    try:
        listed = json.loads(store.read(WITHDRAWN_FILE))
    except FileNotFoundError:
        return frozenset()
    except ValueError as error:
        raise DamagedRunError(f"{store.address(WITHDRAWN_FILE)} is damaged ({error}): restore it") from error
    if not isinstance(listed, list) or not all(isinstance(clip_id, str) for clip_id in listed):
        raise DamagedRunError(f"{store.address(WITHDRAWN_FILE)} is damaged: wanted a JSON list of clip ids")
    return frozenset(listed)


def add_withdrawn(store: OutputStore, clip_ids: Collection[str]) -> None:
    """Adds to the list; of two that add at once both are in it.

    Raises:
        StoreError: others change the list again and again.
    """
    if not clip_ids:
        return
    for _ in range(_MAX_TRIES):
        version = store.version(WITHDRAWN_FILE)
        listed = sorted(read_withdrawn(store).union(clip_ids))
        if store.replace(WITHDRAWN_FILE, f"{json.dumps(listed, indent=1, ensure_ascii=False)}\n".encode(), version):
            return
    raise StoreError(f"{store.address(WITHDRAWN_FILE)} is written by others again and again: start again")


def take_out_withdrawn(store: OutputStore, fingerprint: str) -> Withdrawal:
    """Takes what the list names out of every part of a run and out of its plan.

    The clip's row stays as a failed one, of which the reason is `withdrawn`: each planned clip has one row. It keeps
    its id and where it lay; captions, pairs, completions and metadata are gone.
    """
    withdrawn = read_withdrawn(store)
    if not withdrawn:
        return Withdrawal()
    counts = [_take_out_of_part(store, unit_id, withdrawn, fingerprint) for unit_id in sorted(list_parts(store))]
    for name in list_plans(store):
        _take_out_of_plan(store, f"{PLAN_FOLDER}/{name}", withdrawn)
    return Withdrawal(sum(counts), sum(count > 0 for count in counts))


def _take_out_of_part(store: OutputStore, unit_id: str, withdrawn: frozenset[str], fingerprint: str) -> int:
    for _ in range(_MAX_TRIES):
        version = store.version(part_name(unit_id))
        if version is None or not _has_to_go(read_part(store, unit_id, ["clip_id", "reason"]), withdrawn):
            return 0
        part = read_part(store, unit_id)
        num_clips = _has_to_go(part, withdrawn)
        rows = [withdraw_row(row) if row["clip_id"] in withdrawn else row for row in part.to_pylist()]
        if commit_part(store, unit_id, pa.Table.from_pylist(rows, schema=part.schema), fingerprint, version):
            return num_clips
    raise StoreError(f"{store.address(part_name(unit_id))} is written by others again and again: start again")


def _has_to_go(part: pa.Table, withdrawn: frozenset[str]) -> int:
    named = pc.is_in(part["clip_id"], pa.array(sorted(withdrawn), pa.string()))
    is_there = pc.fill_null(pc.not_equal(part["reason"], WITHDRAWN), True)
    return pc.sum(pc.and_(named, is_there), min_count=0).as_py()


def _take_out_of_plan(store: OutputStore, name: str, withdrawn: frozenset[str]) -> None:
    """Blanks the metadata that the plan carries for single videos; their versions, and so what is compared, stay."""
    version = store.version(name)
    table = pq.read_table(io.BytesIO(store.read(name)))
    if not {"clip_ids", "metadata"} <= {*table.column_names}:
        return  # of an earlier FrameScribe: it carries none
    rows = table.select(["clip_ids", "metadata"]).to_pylist()
    fresh = [blank_metadata(row["clip_ids"], row["metadata"], withdrawn) for row in rows]
    if fresh == [row["metadata"] for row in rows]:
        return
    place = table.column_names.index("metadata")
    blanked = table.set_column(
        place, table.schema.field("metadata"), pa.array(fresh, table.schema.field("metadata").type)
    )
    buffer = io.BytesIO()
    pq.write_table(blanked, buffer, compression="zstd", row_group_size=UNITS_PER_SLICE)
    if not store.replace(name, buffer.getvalue(), version):
        raise StoreError(f"{store.address(name)} changed in the same moment: start again")
