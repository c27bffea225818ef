"""An index of which part of an earlier run holds a clip's answers: a start writes it, its workers read it.

Units of two runs need not be the same: another size, a filter, a shard packed anew. So a start looks up the clip ids of
the earlier run once, and joins them with the units of its own plan by 64 bits of each id. What is written for the
workers is a row for each clip that the earlier run has, in files of many units each. A worker reads those of the units
that come to it, and so learns which part of the earlier run to open. An entry is only a hint: the part itself says
whether it has the clip, of the same frames.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from framescribe.publish.tables import is_table_file
from framescribe.shards.naming import hash_id, hash_video_id
from framescribe.storage.output import ANSWER_INDEX_FOLDER, SUCCESS_FILE, OutputStore
from framescribe.storage.parts import read_parts
from schemas.part_rows import ANNOTATED
from schemas.records import WorkUnit

_CLIPS_PER_FILE = 100_000  # about 1 MB of a file, a second or two of planning
_FILES_AT_HAND = 2
_SCHEMA = pa.schema([("clip_hash", pa.uint64()), ("unit_id", pa.string())])


@dataclass(frozen=True, slots=True)
class AnsweredClips:
    """The annotated clips of an earlier run, in the order of `video_hashes`: 20 bytes of memory per clip.

    Attributes:
        video_hashes: uint64 [N], increasing, `hash_video_id` of each clip.
        clip_hashes: uint64 [N], `hash_id` of each clip.
        places: int32 [N], of the clip's part in `unit_ids`.
    """

    video_hashes: np.ndarray
    clip_hashes: np.ndarray
    places: np.ndarray
    unit_ids: tuple[str, ...]

    @staticmethod
    def none() -> AnsweredClips:
        """Returns those of a run without any."""
        return _Collected().finish()

    def contains(self, video_hashes: np.ndarray) -> np.ndarray:
        """Returns for each video whether the earlier run has a clip of it, bool [M]."""
        return np.isin(video_hashes, self.video_hashes)

    def rows_of(self, video_hashes: np.ndarray) -> np.ndarray:
        """Returns the rows with clips of these videos, int64."""
        wanted = np.unique(video_hashes)
        starts = np.searchsorted(self.video_hashes, wanted, "left")
        counts = np.searchsorted(self.video_hashes, wanted, "right") - starts
        return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


@dataclass(frozen=True, slots=True)
class AnswerIndex:
    """Where the index of an earlier run lies: file `names[n]` has the units from `first_units[n]` on, by their ids."""

    first_units: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def list_answered(store: OutputStore, unit_ids: Collection[str], fingerprint: str) -> AnsweredClips:
    """Returns the annotated clips in parts of an earlier run.

    Of a run that is published they are read from its table `clips`, which takes a few files instead of a part for every
    few clips.

    Raises:
        DamagedRunError: a part is damaged or of other settings than the run.
    """
    found, wanted = _Collected(), {*unit_ids}
    published = _read_published(store, fingerprint) if wanted else None
    if published is not None:
        in_tables, clips = wanted & published[0], published[1]
        for ids, of_units in clips:
            found.add(ids, of_units, in_tables)
        wanted -= in_tables
    ordered = sorted(wanted)
    parts = read_parts(store, ordered, fingerprint, ["clip_id", "status"])
    for unit_id, part in zip(ordered, parts, strict=True):
        ids = part["clip_id"].filter(pc.equal(part["status"], ANNOTATED)).to_pylist()
        found.add(ids, [unit_id] * len(ids), {unit_id})
    return found.finish()


def _read_published(
    store: OutputStore, fingerprint: str
) -> tuple[set[str], Iterator[tuple[list[str], list[str]]]] | None:
    """Returns the units that are in the published tables, and clip ids with their unit ids; None without whole ones."""
    try:
        success = json.loads(store.read(SUCCESS_FILE))
        is_whole = success["fingerprint"] == fingerprint
        units, wanted = {*success["parts"]}, [f"clips/{name}" for name in success["tables"]["clips"]["files"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    there = {f"clips/{name}" for name in store.list_files("clips") if is_table_file("clips", name)}
    return (units, _read_tables(store, wanted)) if is_whole and there >= {*wanted} else None


def _read_tables(store: OutputStore, names: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    for name in names:
        table = pq.ParquetFile(io.BytesIO(store.read(name))).read(columns=["clip_id", "unit_id"])
        yield table["clip_id"].to_pylist(), table["unit_id"].to_pylist()


class _Collected:
    """Clips with their units, as they come."""

    def __init__(self) -> None:
        self._videos, self._clips, self._places = array("Q"), array("Q"), array("i")
        self._place_of: dict[str, int] = {}

    def add(self, clip_ids: Sequence[str], unit_ids: Sequence[str], wanted: Collection[str]) -> None:
        """Takes those clips whose unit is wanted."""
        for clip_id, unit_id in zip(clip_ids, unit_ids, strict=True):
            if unit_id in wanted:
                self._clips.append(hash_id(clip_id))
                self._videos.append(hash_video_id(clip_id) if "@" in clip_id else self._clips[-1])
                self._places.append(self._place_of.setdefault(unit_id, len(self._place_of)))

    def finish(self) -> AnsweredClips:
        """Returns them in order."""
        videos = np.array(self._videos, np.uint64)
        order = np.argsort(videos, kind="stable")
        clips, places = np.array(self._clips, np.uint64), np.array(self._places, np.int32)
        return AnsweredClips(videos[order], clips[order], places[order], tuple(self._place_of))


def write_answer_index(
    store: OutputStore,
    answered: AnsweredClips,
    units: Sequence[WorkUnit],
    video_hashes: np.ndarray,
    clips_per_file: int = _CLIPS_PER_FILE,
) -> AnswerIndex:
    """Writes which parts of an earlier run have the clips of these units; files that are there are not written again.

    Args:
        units, video_hashes: as `pipeline.units.PlannedInputs` has them.
    """
    sizes = np.array([unit.stop - unit.start for unit in units], np.int64)
    stops = np.cumsum(sizes)
    order = np.array(sorted(range(len(units)), key=lambda place: units[place].unit_id), np.int64)
    file_numbers = (np.cumsum(sizes[order]) - sizes[order]) // clips_per_file
    cuts = np.flatnonzero(np.diff(file_numbers)) + 1
    first_units, names = list[str](), list[str]()
    for places in np.split(order, cuts) if len(order) else ():
        hashes = [video_hashes[stops[place] - sizes[place] : stops[place]] for place in places]
        rows = answered.rows_of(np.concatenate(hashes))
        first_units.append(units[places[0]].unit_id)
        names.append(_write_file(store, answered, rows) if len(rows) else "")
    return AnswerIndex(tuple(first_units), tuple(names))


def _write_file(store: OutputStore, answered: AnsweredClips, rows: np.ndarray) -> str:
    rows = rows[np.argsort(answered.clip_hashes[rows], kind="stable")]
    unit_ids = pa.array(answered.unit_ids, pa.string()).take(pa.array(answered.places[rows]))
    buffer = io.BytesIO()
    pq.write_table(pa.table([answered.clip_hashes[rows], unit_ids], schema=_SCHEMA), buffer, compression="zstd")
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.parquet"
    store.create(f"{ANSWER_INDEX_FOLDER}/{name}", buffer.getvalue())
    return name


def remove_answer_indexes(store: OutputStore) -> None:
    """Removes every index from an output."""
    for name in store.list_files(ANSWER_INDEX_FOLDER):
        store.remove(f"{ANSWER_INDEX_FOLDER}/{name}")


class AnswerIndexReader:
    """Looks clips up in an index that lies in `store`, with a few of its files at hand."""

    def __init__(self, store: OutputStore, index: AnswerIndex) -> None:
        self._store = store
        self._index = index
        self._files: OrderedDict[str, tuple[np.ndarray, pa.ChunkedArray]] = OrderedDict()

    def find(self, unit_id: str, clip_id: str) -> list[str]:
        """Returns units of the earlier run whose parts may have a clip; `unit_id` is the clip's unit in this run."""
        place = bisect.bisect_right(self._index.first_units, unit_id) - 1
        if place < 0 or not self._index.names[place]:
            return []
        hashes, unit_ids = self._open(self._index.names[place])
        wanted = np.uint64(hash_id(clip_id))
        start, stop = (int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))
        return unit_ids.slice(start, stop - start).to_pylist()

    def _open(self, name: str) -> tuple[np.ndarray, pa.ChunkedArray]:
        if name not in self._files:
            self._files[name] = self._read(name)
        self._files.move_to_end(name)
        if len(self._files) > _FILES_AT_HAND:
            self._files.popitem(last=False)
        return self._files[name]

    def _read(self, name: str) -> tuple[np.ndarray, pa.ChunkedArray]:
        try:
            payload = self._store.read(f"{ANSWER_INDEX_FOLDER}/{name}")
        except FileNotFoundError:  # another start of this run has ended, with all that this one would do
            return np.empty(0, np.uint64), pa.chunked_array([], pa.string())
        table = pq.ParquetFile(io.BytesIO(payload)).read()
        return table["clip_hash"].to_numpy(), table["unit_id"]
