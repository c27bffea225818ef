"""The plan of a run in its output: which units each start planned, and the units themselves for the workers to read."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framescribe.storage.journal import DamagedRunError
from framescribe.storage.output import PLAN_FOLDER, OutputStore
from framescribe.storage.redaction import clean_text, redact, strip_credentials
from schemas.records import InputKind, LimitedTo, PlanSlice, WorkUnit

# A slice of the plan is read at once by a worker, so a million clips are some 120 elements of a job.
UNITS_PER_SLICE = 256
_SIGNS = frozenset("@?#")  # of a password, a query and a fragment
_PLAN_NAME = re.compile(r"\d{6,}-[0-9a-f]{16}\.parquet")

_PLAN_SCHEMA = pa.schema(
    [
        ("unit_id", pa.string()),
        ("shard_id", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("size_bytes", pa.int64()),
        ("sources", pa.list_(pa.struct([("uri", pa.string()), ("version", pa.string())]))),
        # What a worker needs of a unit beyond that; null where it holds credentials, which are written nowhere.
        ("kind", pa.string()),
        ("shard", pa.string()),
        ("byte_start", pa.int64()),
        ("byte_stop", pa.int64()),
        ("files", pa.list_(pa.string())),
        ("clip_ids", pa.list_(pa.string())),
        ("metadata", pa.list_(pa.string())),
        ("versions", pa.list_(pa.string())),
        ("picks", pa.list_(pa.list_(pa.int64()))),
        ("limited", pa.string()),
    ]
)
_UNIT_COLUMNS = [one.name for one in fields(WorkUnit)]
_OF_PLAN = ("sources", "limited")  # of a planned unit, what the unit itself does not say


@dataclass(frozen=True, slots=True)
class Source:
    """A file that a unit reads, without credentials, and its version when that was planned; empty if not known."""

    uri: str
    version: str


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """A unit that some start of the run planned: the clips `start` to `stop` (exclusive) of a shard.

    Attributes:
        sources: the shard, or the single videos; none in plans of FrameScribe 0.1.
        limited: to what part of the inputs the start was limited that planned it; None where it took all.
    """

    unit_id: str
    shard_id: str
    start: int
    stop: int
    size_bytes: int
    sources: tuple[Source, ...] = ()
    limited: LimitedTo | None = None


@dataclass(frozen=True, slots=True)
class PlannedWork:
    """The units of a start that are to be done, as a job carries them.

    Attributes:
        slices: where most of them lie in the plan.
        units: those whose addresses hold credentials, or that no Parquet can hold.
    """

    slices: tuple[PlanSlice, ...]
    units: tuple[WorkUnit, ...]

    @property
    def num_units(self) -> int:
        """Units to do."""
        return len(self.units) + sum(len(one.rows) for one in self.slices)


def add_to_plan(
    store: OutputStore,
    units: Iterable[WorkUnit],
    todo: Collection[str] = (),
    limited: LimitedTo | None = None,
    withdrawn: Collection[str] = (),
) -> PlannedWork:
    """Records the units of a start; shards that earlier starts planned and this one does not name stay planned.

    Args:
        todo: ids of the units that are to be done, for the job.
        limited: as `PlannedUnit` has it.
        withdrawn: ids of clips whose metadata is not written.
    """
    ordered = sorted(units, key=lambda unit: unit.unit_id)
    carried = {unit.unit_id for unit in ordered if not _may_be_written(unit)}
    said = None if limited is None else json.dumps(asdict(limited))
    rows = [{**_row(unit, unit.unit_id not in carried, withdrawn), "limited": said} for unit in ordered]
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=_PLAN_SCHEMA)
    pq.write_table(table, buffer, compression="zstd", row_group_size=UNITS_PER_SLICE)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    names = list_plans(store)
    # One file a start, never one that is changed: jobs started at once cannot lose each other's units.
    if not names or digest not in names[-1]:
        number = int(names[-1].partition("-")[0]) + 1 if names else 0
        names.append(f"{number:06d}-{digest}.parquet")
        store.put(f"{PLAN_FOLDER}/{names[-1]}", buffer.getvalue())
    return _slice(names[-1], ordered, {*todo}, carried)


def _slice(name: str, ordered: Sequence[WorkUnit], todo: set[str], carried: set[str]) -> PlannedWork:
    slices: list[PlanSlice] = []
    for row_group, start in enumerate(range(0, len(ordered), UNITS_PER_SLICE)):
        unit_ids = [unit.unit_id for unit in ordered[start : start + UNITS_PER_SLICE]]
        rows = tuple(row for row, unit_id in enumerate(unit_ids) if unit_id in todo and unit_id not in carried)
        slices += [PlanSlice(name, row_group, rows)] if rows else []
    return PlannedWork(tuple(slices), tuple(unit for unit in ordered if unit.unit_id in todo & carried))


def read_slice(store: OutputStore, place: PlanSlice) -> list[WorkUnit]:
    """Returns the units of a slice, in the plan's order.

    Raises:
        FileNotFoundError: the plan is gone.
    """
    file = _open_plan(store, place.plan)
    rows = (
        file.read_row_group(place.row_group, columns=_UNIT_COLUMNS).take(pa.array(place.rows, pa.int64())).to_pylist()
    )
    return [_read_unit(row) for row in rows]


class OpenedWork:
    """The units of a job, of which each is read from the plan when it is asked for.

    Attributes:
        sizes: unit id to bytes of all of them.

    Raises:
        FileNotFoundError: the plan is gone.
    """

    def __init__(self, store: OutputStore, work: PlannedWork) -> None:
        self._carried = {unit.unit_id: unit for unit in work.units}
        self._places: dict[str, tuple[pq.ParquetFile, int, int]] = {}
        self.sizes = {unit.unit_id: unit.size_bytes for unit in work.units}
        files = {place.plan: _open_plan(store, place.plan) for place in work.slices}
        for place in work.slices:
            file = files[place.plan]
            known = file.read_row_group(place.row_group, columns=["unit_id", "size_bytes"])
            for row, unit in zip(place.rows, known.take(pa.array(place.rows, pa.int64())).to_pylist(), strict=True):
                self._places[unit["unit_id"]] = (file, place.row_group, row)
                self.sizes[unit["unit_id"]] = unit["size_bytes"]

    def read(self, unit_id: str) -> WorkUnit:
        """Returns a unit."""
        if unit_id in self._carried:
            return self._carried[unit_id]
        file, row_group, row = self._places[unit_id]
        return _read_unit(file.read_row_group(row_group, columns=_UNIT_COLUMNS).slice(row, 1).to_pylist()[0])


def _open_plan(store: OutputStore, name: str) -> pq.ParquetFile:
    return pq.ParquetFile(io.BytesIO(store.read(f"{PLAN_FOLDER}/{name}")))


def _read_unit(row: Mapping[str, Any]) -> WorkUnit:  # Any: cells of a row
    texts = {name: tuple(row[name]) for name in ("files", "clip_ids", "metadata", "versions")}
    picks = tuple(windows if windows is None else tuple(windows) for windows in row["picks"])
    return WorkUnit(**{**row, **texts, "picks": picks, "kind": InputKind(row["kind"])})


def blank_metadata(
    clip_ids: Sequence[str], metadata: Sequence[str] | None, withdrawn: Collection[str]
) -> list[str] | None:
    """Returns the metadata of a unit's clips without that of those which were withdrawn."""
    if not metadata:
        return None if metadata is None else []
    return ["{}" if one in withdrawn else about for one, about in zip(clip_ids, metadata, strict=True)]


def _row(unit: WorkUnit, is_whole: bool, withdrawn: Collection[str]) -> dict[str, Any]:  # Any: cells of a row
    names = _UNIT_COLUMNS if is_whole else [one.name for one in fields(PlannedUnit) if one.name not in _OF_PLAN]
    row = {name: getattr(unit, name) for name in names}
    if is_whole and withdrawn:
        row["metadata"] = blank_metadata(unit.clip_ids, unit.metadata, withdrawn)
    sources = [{"uri": source.uri, "version": source.version} for source in list_sources(unit)]
    return {**row, "sources": sources} | ({"kind": unit.kind.value} if is_whole else {})


def _may_be_written(unit: WorkUnit) -> bool:
    try:
        "".join((unit.shard, *unit.files, *unit.clip_ids, *unit.metadata, *unit.versions)).encode()
    except UnicodeEncodeError:
        return False  # names of files may be bytes that are no text
    # A million addresses are looked at: only those closely that have such a sign.
    suspects = [uri for uri in (unit.shard, *unit.files) if not _SIGNS.isdisjoint(uri)]
    is_each_public = all(strip_credentials(uri) == uri for uri in suspects)
    return is_each_public and all(redact(about) == about for about in unit.metadata if "://" in about)


def read_plan(store: OutputStore) -> list[PlannedUnit]:
    """Returns the planned units in the order of their ids: of each shard, those of the newest start that named it.

    A shard that changed between two starts, such as a folder with one more video, is cut anew; the
    units of its older listing are no longer planned.

    Raises:
        DamagedRunError: a file of the plan is not what a start wrote.
    """
    newest: dict[str, list[PlannedUnit]] = {}
    for name in list_plans(store):
        of_start: dict[str, list[PlannedUnit]] = {}
        for unit in _read_plan_file(store, name):
            of_start.setdefault(unit.shard_id, []).append(unit)
        newest.update(of_start)
    return sorted((unit for units in newest.values() for unit in units), key=lambda unit: unit.unit_id)


def list_sources(unit: WorkUnit) -> tuple[Source, ...]:
    """Returns the files of a unit with their versions, of which what a table beside a video says of it is a part."""
    uris = unit.files or (unit.shard,)
    versions = unit.versions or ("",) * len(uris)
    tables = unit.metadata or ("{}",) * len(uris)
    return tuple(
        Source(
            clean_text(strip_credentials(uri)),
            version if about == "{}" else f"{version} metadata {_digest(about)}".strip(),
        )
        for uri, version, about in zip(uris, versions, tables, strict=True)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def list_plans(store: OutputStore) -> list[str]:
    """Returns the names of the files that starts wrote, the oldest first; what others put there is none of ours."""
    return [name for name in store.list_files(PLAN_FOLDER) if _PLAN_NAME.fullmatch(name)]


def _read_plan_file(store: OutputStore, name: str) -> list[PlannedUnit]:
    payload = store.read(f"{PLAN_FOLDER}/{name}")
    try:
        file = pq.ParquetFile(io.BytesIO(payload))
        wanted = [one.name for one in fields(PlannedUnit) if one.name in file.schema_arrow.names]
        return [_read_planned(row) for row in file.read(columns=wanted).to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:  # pyarrow calls some damage an OSError
        raise DamagedRunError(
            f"{store.address(f'{PLAN_FOLDER}/{name}')} is damaged ({error}): remove it and start every `annotate` of "
            "this output again, finished units are kept"
        ) from error


def _read_planned(row: Mapping[str, Any]) -> PlannedUnit:  # Any: cells of a row
    sources = tuple(Source(**source) for source in row.get("sources") or ())
    limited = LimitedTo(**json.loads(row["limited"])) if row.get("limited") else None
    return PlannedUnit(**{**row, "sources": sources, "limited": limited})
