"""Puts the clips of all parts in the order of their ids, with a bounded part of them in memory."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.tables import PART_SCHEMA


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
        yield rows.combine_chunks().sort_by("clip_id")


def _deal_out(parts: Iterable[pa.Table], slice_starts: Sequence[str], paths: Sequence[Path]) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as open_files:
        writers = [open_files.enter_context(pa.ipc.new_stream(path, PART_SCHEMA, options=options)) for path in paths]
        for part in parts:
            numbers = np.array([bisect.bisect_right(slice_starts, clip) - 1 for clip in part["clip_id"].to_pylist()])
            for number in np.unique(numbers):
                writers[number].write_table(part.filter(pa.array(numbers == number)).replace_schema_metadata(None))
