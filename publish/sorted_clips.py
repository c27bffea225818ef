"""Puts the clips of all parts in the order of their ids, with a bounded part of them in memory."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from schemas.tables import PUBLISHED_SCHEMA

# Clips that are dealt out at a time: handling a few rows costs as much as handling hundreds.
_CLIPS_AT_A_TIME = 5_000


def sort_clips(parts: Iterable[pa.Table], slice_starts: Sequence[str], scratch: Path) -> Iterator[pa.Table]:
    """Yields the rows of all parts sorted by clip id, slice by slice.

    The parts are read once and dealt out to one file a slice in `scratch`; then each slice is sorted by
    itself. It takes as much local disk as the rows, and as much memory as one slice.
    """
    paths = [scratch / f"slice-{number:05d}.arrow" for number in range(len(slice_starts))]
    _deal_out(parts, slice_starts, paths)
    for path in paths:
        with pa.ipc.open_stream(path) as reader:
            rows = reader.read_all()
        path.unlink()
        yield _sort(rows)


def _deal_out(parts: Iterable[pa.Table], slice_starts: Sequence[str], paths: Sequence[Path]) -> None:
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
