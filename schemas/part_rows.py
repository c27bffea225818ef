"""Clips as rows of a part, and back again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from enum import Enum
from typing import Any

import pyarrow as pa

from framescribe.decoding.sampling import Sampling
from framescribe.recipes.annotation import Caption, QAPair, ScoreStatus, Status
from schemas.records import WITHDRAWN, ClipAnnotation, ClipRef, FailedClip, KeptCompletion, Stage
from schemas.run_columns import RunColumns, WorkerRecord
from schemas.tables import OUTPUT_FORMAT, PART_SCHEMA

ANNOTATED = "annotated"
FAILED = "failed"

Row = dict[str, Any]  # the cells have their columns' types, which PART_SCHEMA checks
Record = ClipRef | Sampling | Caption | QAPair | KeptCompletion

# In a row `start_s` is where the clip starts in its source video: the caption's own bounds need other names.
_CAPTION_NAMES = {"start_s": "caption_start_s", "end_s": "caption_end_s"}


def build_part(
    unit_id: str,
    outcomes: Iterable[ClipAnnotation | FailedClip],
    run: RunColumns,
    worker: WorkerRecord | None = None,
) -> pa.Table:
    """Returns the part of a unit: one row per clip in the order of their ids, the same for the same outcomes.

    The schema's metadata holds `unit_id`, `fingerprint`, `format`, `workers`: a JSON list of who wrote the rows, this
    worker first, then those whose rows were kept; and `sources`: a JSON object of the videos' versions when they were
    read, as far as they are known.
    """
    run_cells = _cells(run)
    ordered = sorted(outcomes, key=lambda outcome: outcome.ref.clip_id)
    rows = [{**_outcome_cells(outcome), **run_cells} for outcome in ordered]
    metadata = {
        "unit_id": unit_id,
        "fingerprint": run.fingerprint,
        "format": str(OUTPUT_FORMAT),
        "workers": _list_workers(ordered, worker),
        "sources": json.dumps({one.ref.source: one.ref.source_version for one in ordered if one.ref.source_version}),
    }
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA.with_metadata(metadata))


def withdraw(ref: ClipRef) -> FailedClip:
    """Returns what is left of a clip that was withdrawn: who it is and where it lay, and none of its content."""
    return FailedClip(replace(ref, metadata="{}"), Stage.READ, WITHDRAWN, "taken out of the run with `withdraw`")


def withdraw_row(row: Row) -> Row:
    """Returns the row of a part as that of a withdrawn clip, with the run's own columns."""
    run_cells = {field.name: row[field.name] for field in fields(RunColumns)}
    ref = ClipRef(**_select(ClipRef, {**row, "source_version": ""}))  # that stands in the part's metadata
    return {**_failed_cells(withdraw(ref)), **run_cells}


def read_outcomes(part: pa.Table) -> list[ClipAnnotation | FailedClip]:
    """Returns what a part was built from, in the order of its rows."""
    workers = tuple(json.dumps(worker, sort_keys=True) for worker in read_workers(part.schema))
    versions = sources_in(part.schema)
    rows = ({**row, "source_version": versions.get(row["source"], "")} for row in part.to_pylist())
    return [_read_outcome(row, workers) for row in rows]


def read_workers(schema: pa.Schema) -> list[dict[str, Any]]:  # Any: JSON values
    """Returns the `WorkerRecord`s, as JSON objects, of a part's schema; none where it says nothing of them."""
    return json.loads((schema.metadata or {}).get(b"workers", b"[]"))


def sources_in(schema: pa.Schema) -> dict[str, str]:
    """Returns source to version of the videos that a part's rows were made of; none where it says nothing of them."""
    return json.loads((schema.metadata or {}).get(b"sources", b"{}"))


def read_completions(cells: Iterable[Row]) -> tuple[KeptCompletion, ...]:
    """Returns the completions that the column of this name holds for one clip."""
    return tuple(KeptCompletion(**_select(KeptCompletion, completion)) for completion in cells)


def _list_workers(outcomes: Sequence[ClipAnnotation | FailedClip], worker: WorkerRecord | None) -> str:
    own = [] if worker is None else [worker.to_json()]
    kept = {text for one in outcomes if isinstance(one, ClipAnnotation) for text in one.workers}
    return f"[{', '.join([*own, *sorted(kept.difference(own))])}]"


def _outcome_cells(outcome: ClipAnnotation | FailedClip) -> Row:
    if isinstance(outcome, FailedClip):
        return _failed_cells(outcome)
    return {
        **_cells(outcome.ref),
        "status": ANNOTATED,
        **_cells(outcome.sampling),
        **_answer_cells(outcome.captions, outcome.qa_pairs),
        "completions": [_cells(completion) for completion in outcome.completions],
    }


def _failed_cells(failed: FailedClip) -> Row:
    return {
        **_cells(failed.ref),
        "status": FAILED,
        "stage": failed.stage.value,
        "reason": _cell(failed.reason),
        "message": _cell(failed.message),
        **_answer_cells((), ()),
        "completions": [],
    }


def _answer_cells(captions: Sequence[Caption], qa_pairs: Sequence[QAPair]) -> Row:
    return {
        "captions": [_caption_cells(caption) for caption in captions],
        "qa_pairs": [_cells(pair) for pair in qa_pairs],
        "num_captions": len(captions),
        "num_captions_ok": sum(caption.status is Status.OK for caption in captions),
        "num_qa_pairs": len(qa_pairs),
        "num_qa_pairs_ok": sum(pair.status is Status.OK for pair in qa_pairs),
        "num_qa_pairs_consistent": sum(pair.is_consistent is True for pair in qa_pairs),
    }


def _caption_cells(caption: Caption) -> Row:
    return {_CAPTION_NAMES.get(name, name): cell for name, cell in _cells(caption).items()}


def _cells(record: Record | RunColumns) -> Row:
    return {field.name: _cell(getattr(record, field.name)) for field in fields(record)}


def _cell(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        # File names that are not UTF-8 reach Python with lone surrogates, which no Parquet reader takes.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, tuple):
        return [_cell(element) for element in value]
    return value


def _read_outcome(row: Row, workers: tuple[str, ...]) -> ClipAnnotation | FailedClip:
    ref = ClipRef(**_select(ClipRef, row))
    if row["status"] == FAILED:
        return FailedClip(ref=ref, stage=Stage(row["stage"]), reason=row["reason"], message=row["message"])
    return ClipAnnotation(
        ref=ref,
        sampling=Sampling(**_select(Sampling, row)),
        captions=tuple(_read_caption(cells) for cells in row["captions"]),
        qa_pairs=tuple(QAPair(**_select(QAPair, cells)) for cells in row["qa_pairs"]),
        completions=read_completions(row["completions"]),
        workers=workers,
    )


def _read_caption(cells: Row) -> Caption:
    own_names = {name: cells[_CAPTION_NAMES.get(name, name)] for name in _names(Caption)}
    return Caption(**_select(Caption, own_names))


def _select(record: type[Record], row: Row) -> Row:
    return {name: _value(name, row[name]) for name in _names(record)}


def _names(record: type[Record]) -> list[str]:
    return [field.name for field in fields(record)]


def _value(name: str, cell: object) -> object:
    if name == "status":
        return Status(cell)
    if name == "score_status":
        return None if cell is None else ScoreStatus(cell)
    return tuple(cell) if isinstance(cell, list) else cell
