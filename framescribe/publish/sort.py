"""Puts the clips of all parts in the order of their ids, with one slice of their rows in memory at a time."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from framescribe.storage.journal import DamagedRunError
from framescribe.storage.output import OutputStore
from framescribe.storage.parts import read_parts
from schemas.tables import PUBLISHED_SCHEMA

# Clips that are dealt out at a time: handling a few rows costs as much as handling hundreds.
_CLIPS_AT_A_TIME = 5_000
# Rows of all tables together, of some 2 kB each in memory: 100 MB per slice. Each slice is one open file while
# the parts are dealt out, so beyond 12 million rows there are no more slices but larger ones.
_MIN_SLICE_ROWS = 50_000
_MAX_SLICES = 256
_COLUMNS = ("clip_id", "status", "num_captions", "num_qa_pairs")


class DoubledClipError(DamagedRunError):
    """A clip has rows in two parts."""


@dataclass(frozen=True, slots=True)
class ClipIndex:
    """How many rows each table gets, and where the clips in order are cut into slices that fit in memory.

    Attributes:
        num_rows: table name to rows.
        slice_starts: id of the first clip of each slice, increasing.
    """

    num_rows: dict[str, int]
    slice_starts: tuple[str, ...]


def index_clips(
    store: OutputStore, unit_ids: Sequence[str], fingerprint: str, min_slice_rows: int = _MIN_SLICE_ROWS
) -> ClipIndex:
    """Reads the clip ids and counts of all parts: about 100 bytes of memory per clip.

    Raises:
        DoubledClipError: naming the clip and both parts.
    """
    clips = pa.concat_tables(_read_clips(store, unit_ids, fingerprint)).combine_chunks().sort_by("clip_id")
    _check_no_clip_twice(clips, unit_ids)
    num_captions, num_qa_pairs = (clips[name].to_numpy() for name in ("num_captions", "num_qa_pairs"))
    num_annotated = pc.sum(pc.equal(clips["status"], "annotated"), min_count=0).as_py()
    return ClipIndex(
        num_rows={
            "captions": int(num_captions.sum()),
            "qa": int(num_qa_pairs.sum()),
            "clips": num_annotated,
            "failures": clips.num_rows - num_annotated,
        },
        slice_starts=_cut_slices(clips["clip_id"], 1 + num_captions + num_qa_pairs, min_slice_rows),
    )


def sort_clips(parts: Iterable[pa.Table], slice_starts: Sequence[str], scratch: Path) -> Iterator[pa.Table]:
    """Yields the rows of all parts sorted by clip id, slice by slice.

    The parts are read once and dealt out to one file per slice in `scratch`; then each slice is sorted by
    itself. It takes as much local disk as the rows, and as much memory as one slice.
    """
    paths = [scratch / f"slice-{number:05d}.arrow" for number in range(len(slice_starts))]
    _distribute(parts, slice_starts, paths)
    for path in paths:
        with pa.ipc.open_stream(path) as reader:
            rows = reader.read_all()
        path.unlink()
        yield _sort(rows)


def _distribute(parts: Iterable[pa.Table], slice_starts: Sequence[str], paths: Sequence[Path]) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as open_files:
        writers = [
            open_files.enter_context(pa.ipc.new_stream(path, PUBLISHED_SCHEMA, options=options)) for path in paths
        ]
        for clips in _gather(parts):
            ids = clips["clip_id"].to_pylist()
            bounds = [*(bisect.bisect_left(ids, start) for start in slice_starts), len(ids)]
            for writer, (start, stop) in zip(writers, pairwise(bounds), strict=True):
                if start < stop:
                    writer.write_table(clips.slice(start, stop - start))


def _gather(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the rows of several parts at a time, sorted by clip id."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part.replace_schema_metadata(None))
        if sum(gathered.num_rows for gathered in waiting) >= _CLIPS_AT_A_TIME:
            yield _sort(pa.concat_tables(waiting))
            waiting = []
    if waiting:
        yield _sort(pa.concat_tables(waiting))


def _sort(clips: pa.Table) -> pa.Table:
    return clips.combine_chunks().sort_by("clip_id").combine_chunks()


def _read_clips(store: OutputStore, unit_ids: Sequence[str], fingerprint: str) -> Iterator[pa.Table]:
    schema = pa.schema([("clip_id", pa.string()), ("status", pa.string()), *((n, pa.int32()) for n in _COLUMNS[2:])])
    yield schema.append(pa.field("unit", pa.int32())).empty_table()
    for number, part in enumerate(read_parts(store, unit_ids, fingerprint, list(_COLUMNS))):
        plain = part.select(_COLUMNS).cast(schema)
        yield plain.append_column("unit", pa.repeat(pa.scalar(number, pa.int32()), plain.num_rows))


def _check_no_clip_twice(clips: pa.Table, unit_ids: Sequence[str]) -> None:
    ids = clips["clip_id"]
    equal = pc.index(pc.equal(ids.slice(1), ids.slice(0, max(0, len(ids) - 1))), True).as_py()
    if equal >= 0:
        first, second = (unit_ids[clips["unit"][row].as_py()] for row in (equal, equal + 1))
        raise DoubledClipError(
            f"clip {ids[equal].as_py()!r} is in the parts of two units, {first!r} and {second!r}: units were cut "
            "differently in two starts. Remove one of the parts from _framescribe/parts, or start with --overwrite"
        )


def _cut_slices(clip_ids: pa.ChunkedArray, num_rows: np.ndarray, min_slice_rows: int) -> tuple[str, ...]:
    if not len(clip_ids):
        return ()
    slice_rows = max(min_slice_rows, int(num_rows.sum()) // _MAX_SLICES + 1)
    number = (np.cumsum(num_rows) - num_rows) // slice_rows  # of the slice that each clip lies in
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return tuple(clip_ids.take(pa.array(starts)).to_pylist())
