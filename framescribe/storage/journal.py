"""The run's own records under OUTPUT/_framescribe: its settings, its planned units and the parts that are done."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framescribe.errors import FrameScribeError
from framescribe.storage.output import (
    JOURNAL_FOLDER,
    PARTS_FOLDER,
    RUN_FILE,
    SET_ASIDE_FOLDER,
    OutputStore,
    part_name,
    unit_of_part,
)
from schemas.tables import OUTPUT_FORMAT, PART_SCHEMA

Settings = Mapping[str, Any]  # JSON: the settings of other modules, nested as they like

_MAX_TRIES = 20


class DamagedRunError(FrameScribeError, ValueError):
    """A file of the run is not what was written, or does not belong to it."""


class NewerFormatError(DamagedRunError):
    """A file was written by a later FrameScribe in a form that this one does not know."""


class OtherRunError(FrameScribeError, ValueError):
    """The output folder holds a run with other settings."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run was started with.

    Attributes:
        fingerprint: digest of everything that changes rows: of `settings` and `prompts`, at least.
        settings: JSON object, nested as it likes, without credentials.
        prompts: prompt id to text.
        versions: package to version; not part of what is compared.
        counters: what the last start that ended counted, such as the engine's seconds; not compared either.
        summary: how the last start that ended went: seconds, clips, their failures and what limited it.
        model_name: hub id, URI or folder of the checkpoint; not compared, since it may be moved.
        reused_run: address and fingerprint of the run that the last start took answers from; empty for none, and not
            compared: rows with such answers are those that asking would have given.
        limited: the part of its inputs that the last start took, as `LimitedTo` has it; empty for all of them.
        measured: what the last start that ended took, as `pipeline.cost.Measured` has it: calibrates later predictions.
        predicted: name of a figure to what was predicted for that start, and what came.
    """

    fingerprint: str
    settings: Settings
    prompts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    summary: Settings = field(default_factory=dict)
    model_name: str = ""
    reused_run: Mapping[str, str] = field(default_factory=dict)
    limited: Settings = field(default_factory=dict)
    measured: Settings = field(default_factory=dict)
    predicted: Settings = field(default_factory=dict)


def record_start(store: OutputStore, run: RunRecord, instead_of: str | None) -> bool:
    """Writes run.json in place of the version that was seen, or None; returns False where another start was faster."""
    return store.replace(RUN_FILE, _run_to_json(run), instead_of)


def record_end(store: OutputStore, run: RunRecord) -> None:
    """Writes run.json in place of that of the same run, whichever start of it wrote last.

    Raises:
        OtherRunError: the folder holds no run any more, or another one.
    """
    for _ in range(_MAX_TRIES):
        version = store.version(RUN_FILE)
        check_still_ours(store, run.fingerprint)
        if store.replace(RUN_FILE, _run_to_json(run), version):
            return
    raise OtherRunError(f"{store.address(RUN_FILE)} is written by others again and again: start fewer runs at a time")


def check_still_ours(store: OutputStore, fingerprint: str) -> RunRecord:
    """Returns what run.json says.

    Raises:
        OtherRunError: it says so of other settings, or is gone.
    """
    recorded = read_run(store)
    if recorded is not None and recorded.fingerprint == fingerprint:
        return recorded
    found = "holds no run any more" if recorded is None else "holds a run with other settings by now"
    raise OtherRunError(
        f"{store.address('')} {found}: it was removed, or started anew, while this run was at work. Find out who did "
        "that, or choose another --output, and start again"
    )


def read_run(store: OutputStore) -> RunRecord | None:
    """Returns what run.json says, or None where no run was started.

    Raises:
        NewerFormatError: a later FrameScribe wrote it.
        DamagedRunError: the file is not what `record_start` writes.
    """
    try:
        content = dict(json.loads(store.read(RUN_FILE)))
        _check_format(store, RUN_FILE, content.pop("format", 1), content.get("versions"))
        return RunRecord(**content)
    except FileNotFoundError:
        return None
    except NewerFormatError:
        raise
    except (ValueError, TypeError) as error:
        raise DamagedRunError(
            f"{store.address(RUN_FILE)} is damaged ({error}); restore it or start with --overwrite"
        ) from error


def holds_run(store: OutputStore) -> bool:
    """Returns whether a run was started here: its run.json, damaged or not, or at least parts are there."""
    return posixpath.basename(RUN_FILE) in store.list_files(JOURNAL_FOLDER) or bool(list_done_units(store))


def list_done_units(store: OutputStore) -> list[str]:
    """Returns the sorted ids of the units whose part is committed."""
    return sorted(list_parts(store))


def set_part_aside(store: OutputStore, unit_id: str) -> None:
    """Moves a part to where its answers are found while the unit is done again; nothing is lost when this is killed."""
    try:
        payload = store.read(part_name(unit_id))
    except FileNotFoundError:
        return  # another start was faster
    store.put(f"{SET_ASIDE_FOLDER}/{part_name(unit_id)}", payload)
    store.remove(part_name(unit_id))


def list_set_aside(store: OutputStore) -> list[str]:
    """Returns the sorted ids of the units whose part was set aside."""
    units = (unit_of_part(name) for name in store.list_files(f"{SET_ASIDE_FOLDER}/{PARTS_FOLDER}"))
    return sorted(unit for unit in units if unit is not None)


def remove_set_aside(store: OutputStore) -> None:
    """Removes the parts that were set aside."""
    for unit_id in list_set_aside(store):
        store.remove(f"{SET_ASIDE_FOLDER}/{part_name(unit_id)}")


def list_parts(store: OutputStore) -> dict[str, str]:
    """Returns unit id to the version of its part."""
    units = ((unit_of_part(name), version) for name, version in store.list_versions(PARTS_FOLDER).items())
    return {unit_id: version for unit_id, version in units if unit_id is not None}


def commit_part(
    store: OutputStore, unit_id: str, part: pa.Table, fingerprint: str, replaces: str | None = None
) -> bool:
    """Commits a part by one atomic write; returns False, and writes nothing, where another worker's came first.

    Args:
        fingerprint: of the run that the part belongs to.
        replaces: the version of the part that this one was made from, for units that are done again.

    Raises:
        OtherRunError: a part of other settings is there, and the output belongs to its run, not to this one.
    """
    buffer = io.BytesIO()
    pq.write_table(part, buffer, compression="zstd")
    name, payload = part_name(unit_id), buffer.getvalue()
    for _ in range(_MAX_TRIES):
        if store.create(name, payload) if replaces is None else store.replace(name, payload, replaces):
            return True
        there = store.version(name)
        if there is not None and read_fingerprint(store, unit_id) != fingerprint:
            check_still_ours(store, fingerprint)  # then the other is what an overwritten run's worker left
            replaces = there
        elif there is not None or replaces is not None:
            return False
    return False


def read_fingerprint(store: OutputStore, unit_id: str) -> str | None:
    """Returns the fingerprint of the settings that a unit's part was made with, or None where it has no sound part.

    Raises:
        NewerFormatError: a later FrameScribe wrote it.
    """
    if store.version(part_name(unit_id)) is None:
        return None
    try:
        metadata = read_part(store, unit_id, []).schema.metadata or {}
    except NewerFormatError:
        raise
    except (FileNotFoundError, DamagedRunError):
        return None
    return metadata.get(b"fingerprint", b"").decode()


def read_part(store: OutputStore, unit_id: str, columns: list[str] | None = None) -> pa.Table:
    """Returns a part, or some of its columns; those that came with a later format than the part's are null.

    Raises:
        FileNotFoundError: the unit has no part.
        NewerFormatError: a later FrameScribe wrote it.
        DamagedRunError: the file is no Parquet.
    """
    return read_part_and_digest(store, unit_id, columns)[0]


def read_part_and_digest(store: OutputStore, unit_id: str, columns: list[str] | None = None) -> tuple[pa.Table, str]:
    """Returns a part, or some of its columns, and the SHA-256 (hex) of its file; raises as `read_part` does."""
    name = part_name(unit_id)
    payload = store.read(name)
    try:
        file = pq.ParquetFile(pa.BufferReader(payload))
        written_in = int((file.schema_arrow.metadata or {}).get(b"format", b"1"))
        is_older = written_in < OUTPUT_FORMAT
        part = file.read(columns=None if is_older else columns, use_threads=False)
    except (pa.ArrowInvalid, ValueError) as error:
        raise DamagedRunError(
            f"{store.address(name)} is damaged ({error}); remove it and start the run again"
        ) from error
    _check_format(store, name, written_in)
    if is_older:
        part = _bring_up_to_date(part, PART_SCHEMA.names if columns is None else columns)
    return part, hashlib.sha256(payload).hexdigest()


# Columns of format 1 that are called otherwise since.
_NEW_NAMES = {
    "decoded_share": "decoded_fraction",
    "num_qa_pairs_verified": "num_qa_pairs_consistent",
    "seen_answer": "recheck_answer",
    "seen_score": "recheck_score",
    "verified": "is_consistent",
}


def _bring_up_to_date(part: pa.Table, names: Sequence[str]) -> pa.Table:
    """Returns a part of an older format with today's names; what came later is null."""
    schema = pa.schema([PART_SCHEMA.field(name) for name in names], metadata=part.schema.metadata)
    return pa.Table.from_pylist([_rename_keys(row) for row in part.to_pylist()], schema=schema)


def _rename_keys(value: Any) -> Any:  # Any: a row, or what one holds
    if isinstance(value, list):
        return [_rename_keys(one) for one in value]
    if isinstance(value, dict):
        return {_NEW_NAMES.get(name, name): _rename_keys(one) for name, one in value.items()}
    return value


def _check_format(store: OutputStore, name: str, written_in: int, versions: Mapping[str, str] | None = None) -> None:
    if written_in > OUTPUT_FORMAT:
        writer = (versions or {}).get("framescribe")
        raise NewerFormatError(
            f"{store.address(name)} has format {written_in}, this FrameScribe reads formats up to {OUTPUT_FORMAT}: use "
            f"{f'FrameScribe {writer}' if writer else 'the FrameScribe that wrote it'} or a later one, or choose "
            "another --output"
        )


def _run_to_json(run: RunRecord) -> bytes:
    content = {one.name: getattr(run, one.name) for one in fields(run)}
    return _to_json({"format": OUTPUT_FORMAT, **content})


def _to_json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8", "backslashreplace")
