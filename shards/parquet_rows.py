"""Reads rows of Parquet files, and says which file it was when one is damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import InputError, StoreRefused, StoreUnavailable
from shards.ranged_file import open_shard
from shards.store import Location, Store
from storage.redaction import strip_credentials

_Left = TypeVar("_Left")
_Right = TypeVar("_Right")
_BLOCK_BYTES = 1 << 20  # columns are read in larger pieces than this; it serves the footer and small pages


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows [start, stop) that are stored together; `row_bytes` is their mean size, nearly all of it video."""

    start: int
    stop: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class ParquetShard:
    """An open Parquet file with its name for messages."""

    name: str
    file: pq.ParquetFile
    schema: pa.Schema
    num_rows: int

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def open_parquet(store: Store, shard: Location) -> ParquetShard:
    """Opens a shard and reads its footer.

    Raises:
        InputError: it is damaged, or no Parquet file at all.
    """
    name = strip_credentials(shard.uri)
    stream = open_shard(store, shard, block_bytes=_BLOCK_BYTES)
    with _damage_named(name):
        file = pq.ParquetFile(cast(Any, stream))  # Any: pyarrow takes any readable object
        return ParquetShard(name, file, file.schema_arrow, file.metadata.num_rows)


def list_row_groups(shard: ParquetShard) -> list[RowGroup]:
    """Returns the row groups in order.

    Raises:
        InputError: the footer contradicts itself.
    """
    groups: list[RowGroup] = []
    with _damage_named(shard.name):
        for number in range(shard.file.metadata.num_row_groups):
            group = shard.file.metadata.row_group(number)
            start = groups[-1].stop if groups else 0
            # Not the video column's own size: pyarrow 25 aborts the process over a column chunk it cannot make out.
            row_bytes = max(0, group.total_byte_size) // max(1, group.num_rows)
            groups.append(RowGroup(start, start + group.num_rows, row_bytes))
    if any(group.stop < group.start for group in groups) or (groups[-1].stop if groups else 0) != shard.num_rows:
        raise _contradiction(shard.name)
    return groups


def iterate_rows(
    shard: ParquetShard, columns: list[str], start: int, stop: int, rows_at_once: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:  # Any: whatever the columns hold
    """Yields number and values of the rows [start, stop); reads only the row groups that hold them.

    Raises:
        InputError: the data is damaged.
    """
    groups = list_row_groups(shard)
    wanted = [number for number, group in enumerate(groups) if group.start < stop and group.stop > start]
    row = groups[wanted[0]].start if wanted else 0
    with _damage_named(shard.name):
        batches = shard.file.iter_batches(batch_size=rows_at_once, row_groups=wanted, columns=columns)
    while True:
        with _damage_named(shard.name):
            batch = next(batches, None)
            if batch is None:
                return
            values = batch.slice(max(0, start - row), max(0, stop - max(row, start))).to_pylist()
        yield from enumerate(values, start=max(row, start))
        row += batch.num_rows


def pair_rows(left: Iterable[_Left], right: Iterable[_Right], name: str) -> Iterator[tuple[_Left, _Right]]:
    """Yields what belongs to the same rows of a shard.

    Raises:
        InputError: one side ends before the other.
    """
    for one, other in zip_longest(left, right):
        if one is None or other is None:
            raise _contradiction(name)
        yield one, other


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Turns what pyarrow says of damaged files into an InputError; what a store says goes through."""
    try:
        yield
    except (StoreUnavailable, StoreRefused, FileNotFoundError):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"{name} is no Parquet file, or is damaged: {error}; copy it again") from None


def _contradiction(name: str) -> InputError:
    return InputError(f"{name} does not hold as many rows as its footer says: it is damaged; copy it again")
