"""All clips of all parts in the order of their ids, without their captions and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from framescribe.storage.journal import DamagedRunError
from framescribe.storage.output import OutputStore
from framescribe.storage.parts import read_parts

# Rows of all tables together, of some 2 kB each in memory: 100 MB a slice. Each slice is one open file while
# the parts are dealt out, so beyond 12 million rows there are no more slices but larger ones.
MIN_SLICE_ROWS = 50_000
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
    store: OutputStore, unit_ids: Sequence[str], fingerprint: str, min_slice_rows: int = MIN_SLICE_ROWS
) -> ClipIndex:
    """Reads the clip ids and counts of all parts: about 100 bytes of memory a clip.

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
