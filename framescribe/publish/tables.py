"""Turns the rows of parts into those of the flat tables, and writes each table as evenly sized Parquet files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.tables import TABLES

# About 100 MB compressed for captions: few enough files for a million clips, small enough to shuffle by file.
ROWS_A_FILE = 250_000
_ROWS_A_GROUP = 10_000


class TableFiles:
    """Takes the rows of a table bit by bit and writes `NAME-00000-of-00003.parquet` and so on to a folder.

    How the rows are cut depends on their number alone, never on the bits they come in. A table
    without rows is one file without rows, so that every reader finds its columns.

    Args:
        num_rows: of the whole table; `close` raises if others came.
    """

    def __init__(
        self, folder: Path, name: str, schema: pa.Schema, num_rows: int, rows_a_file: int = ROWS_A_FILE
    ) -> None:
        num_files = max(1, -(-num_rows // rows_a_file))
        self.paths = [folder / f"{name}-{number:05d}-of-{num_files:05d}.parquet" for number in range(num_files)]
        self._schema = schema
        self._waiting = schema.empty_table()
        self._rows_left = [num_rows * (n + 1) // num_files - num_rows * n // num_files for n in range(num_files)]
        self._num_closed = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Takes the next rows."""
        self._waiting = pa.concat_tables((self._waiting, rows.replace_schema_metadata(self._schema.metadata)))
        while self._num_closed < len(self.paths) and self._waiting.num_rows >= self._group_size():
            self._write_group(self._group_size())

    def close(self) -> None:
        """Finishes the last file, which is the only one of a table without rows."""
        self.write(self._schema.empty_table())
        if self._waiting.num_rows or self._num_closed != len(self.paths):
            raise AssertionError(f"{self.paths[0].name}: the rows do not add up: {self._rows_left} left")

    def _group_size(self) -> int:
        return min(_ROWS_A_GROUP, self._rows_left[self._num_closed])

    def _write_group(self, num_rows: int) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.paths[self._num_closed], self._schema, compression="zstd")
        if num_rows:
            self._writer.write_table(self._waiting.slice(0, num_rows).combine_chunks(), row_group_size=_ROWS_A_GROUP)
        self._waiting = self._waiting.slice(num_rows)
        self._rows_left[self._num_closed] -= num_rows
        if self._rows_left[self._num_closed] == 0:
            self._writer.close()
            self._writer = None
            self._num_closed += 1


def is_table_file(table: str, file_name: str) -> bool:
    """Returns whether `TableFiles` writes files of this name for this table."""
    return re.fullmatch(rf"{re.escape(table)}-\d{{5,}}-of-\d{{5,}}\.parquet", file_name) is not None


def flatten_clips(clips: pa.Table) -> dict[str, pa.Table]:
    """Returns table name to rows, in the order of `clips`, which has the columns of a part."""
    is_failed = pc.equal(clips["status"], "failed")
    annotated, failed = clips.filter(pc.invert(is_failed)), clips.filter(is_failed)
    return {
        "captions": _explode(annotated, "captions", "caption_index", TABLES["captions"]),
        "qa": _explode(annotated, "qa_pairs", "qa_index", TABLES["qa"]),
        "clips": annotated.select(TABLES["clips"].names).cast(TABLES["clips"]),
        "failures": failed.select(TABLES["failures"].names).cast(TABLES["failures"]),
    }


def _explode(clips: pa.Table, nested: str, index_name: str, schema: pa.Schema) -> pa.Table:
    lists = pa.concat_arrays(clips[nested].chunks) if clips.num_rows else pa.array([], clips.schema.field(nested).type)
    parents, answers = pc.list_parent_indices(lists), pc.list_flatten(lists)
    answer_names = {field.name for field in answers.type}
    columns = {
        index_name: _places(lists, parents),
        **{name: pc.struct_field(answers, name) for name in schema.names if name in answer_names},
    }
    of_clip = {name: clips[name].take(parents) for name in schema.names if name not in columns}
    return pa.table({name: {**of_clip, **columns}[name] for name in schema.names}).cast(schema)


def _places(lists: pa.ListArray, parents: pa.Array) -> np.ndarray:
    """Returns the place of each element within its own list, int32."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    starts = np.cumsum(lengths) - lengths
    return (np.arange(len(parents)) - starts[parents.to_numpy()]).astype(np.int32)
