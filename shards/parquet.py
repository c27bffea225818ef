"""Parquet shards: a column of encoded videos or of their URIs, every other scalar column is metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.records import Clip, ClipRef, FailedClip, WorkUnit
from shards.clip_ids import clean_id, window_suffix
from shards.clip_rows import OWN_COLUMNS, parse_clip_id, parse_window
from shards.errors import InputError, VideoUnreadable
from shards.indexed_clip import IndexedClip, check_unit
from shards.parquet_columns import find_video_column, is_scalar
from shards.ranged_file import open_shard
from shards.redaction import strip_credentials
from shards.sidecars import dump_metadata
from shards.store import Location, Store
from shards.videos import prepare_fetch, read_videos

_BLOCK_BYTES = 1 << 20  # columns are read in larger pieces than this; it serves the footer and small pages
_ROWS_AT_ONCE = 8  # decoded videos in memory beside the one that is handed on


def index_parquet(store: Store, shard: Location, shard_id: str) -> Iterator[IndexedClip]:
    """Yields the rows of a Parquet shard from its footer and its `clip_id` and window columns; no video is read.

    Rows of one row group share `byte_start`, the number of its first row, and `byte_stop`, that after its last.

    Raises:
        InputError: the shard is damaged or empty, or has no column of videos.
    """
    name = strip_credentials(shard.uri)
    with closing(_open(store, shard, name)) as parquet:
        column = find_video_column(parquet.schema_arrow, store.config.video_column, name)
        if not parquet.metadata.num_rows:
            raise InputError(f"{name} has no rows")
        content = f"{store.size(shard)} {column}"
        ids_and_sizes = zip(_iterate_ids(parquet, shard_id, name), _row_sizes(parquet, column), strict=True)
        for number, (clip_id, (size, group_start, group_stop)) in enumerate(ids_and_sizes):
            where = f"{name}: row {number}"
            yield IndexedClip(clip_id, where, f"{content} {clip_id}", size, group_start, group_stop)


def read_parquet(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit's rows in order; a row without a video, or whose video is gone, is a failed clip.

    Raises:
        ShardChanged: the shard is not the one that was planned; found before the first clip.
    """
    shard = store.locate(unit.shard)
    name = strip_credentials(unit.shard)
    with closing(_open(store, shard, name)) as parquet:
        column = find_video_column(parquet.schema_arrow, store.config.video_column, name)
        ids = list(_iterate_ids(parquet, unit.shard_id, name, unit.start, unit.stop))
        content = f"{store.size(shard)} {column}"
        check_unit(unit, (f"{content} {clip_id}" for clip_id in ids))
        yield from read_videos(_refer(store, unit, parquet, column, ids))


def _open(store: Store, shard: Location, name: str) -> pq.ParquetFile:
    stream = open_shard(store, shard, block_bytes=_BLOCK_BYTES)
    try:
        return pq.ParquetFile(cast(Any, stream))  # Any: pyarrow takes any readable object
    except (pa.ArrowException, OSError) as error:
        stream.close()
        if isinstance(error, OSError) and error.errno is None and type(error) is not OSError:
            raise
        raise InputError(f"{name} is no Parquet file, or is damaged: {error}; copy it again") from None


def _iterate_ids(
    parquet: pq.ParquetFile, shard_id: str, name: str, start: int = 0, stop: int | None = None
) -> Iterator[str]:
    wanted = [column for column in ("clip_id", "start_s", "end_s") if column in parquet.schema_arrow.names]
    if not wanted:
        stop = parquet.metadata.num_rows if stop is None else min(stop, parquet.metadata.num_rows)
        yield from (_default_id(shard_id, number, None, None) for number in range(start, stop))
        return
    for number, values in _iterate_rows(parquet, wanted, start, stop, rows_at_once=4096):
        where = f"{name}: row {number}"
        window = parse_window(values, where)
        yield parse_clip_id(values, where) or _default_id(shard_id, number, *window)


def _default_id(shard_id: str, number: int, start_s: float | None, end_s: float | None) -> str:
    return clean_id(f"{shard_id}/{number:06d}{window_suffix(start_s, end_s)}")


def _row_sizes(parquet: pq.ParquetFile, column: str) -> Iterator[tuple[int, int, int]]:
    """Yields for each row the mean bytes of a video of its row group, and the group's first and last-but-one row."""
    first = 0
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        size = sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
        for _ in range(group.num_rows):
            yield size // group.num_rows, first, first + group.num_rows
        first += group.num_rows


def _iterate_rows(
    parquet: pq.ParquetFile, columns: list[str], start: int, stop: int | None, rows_at_once: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields number and values of the rows [start, stop); reads only the row groups that hold them."""
    first, groups, group_start = 0, [], None
    stop = parquet.metadata.num_rows if stop is None else stop
    for number in range(parquet.metadata.num_row_groups):
        following = first + parquet.metadata.row_group(number).num_rows
        if first < stop and following > start:
            group_start = first if group_start is None else group_start
            groups.append(number)
        first = following
    row = group_start or 0
    for batch in parquet.iter_batches(batch_size=rows_at_once, row_groups=groups, columns=columns):
        wanted = batch.slice(max(0, start - row), max(0, stop - max(row, start)))
        yield from enumerate(wanted.to_pylist(), start=max(row, start))
        row += batch.num_rows


def _refer(
    store: Store, unit: WorkUnit, parquet: pq.ParquetFile, column: str, ids: list[str]
) -> Iterator[tuple[ClipRef, Callable[[], bytes | Path]]]:
    schema = parquet.schema_arrow
    free = [field.name for field in schema if field.name not in OWN_COLUMNS | {column} and is_scalar(field.type)]
    columns = [column, *free, *(name for name in ("start_s", "end_s") if name in schema.names)]
    folder = unit.shard.split("?", 1)[0].rpartition("/")[0] if "://" in unit.shard else str(Path(unit.shard).parent)
    rows = _iterate_rows(parquet, columns, unit.start, unit.stop, _ROWS_AT_ONCE)
    for clip_id, (number, values) in zip(ids, rows, strict=True):
        source, fetch = _prepare_cell(store, unit, values[column], folder)
        start_s, end_s = parse_window(values, strip_credentials(unit.shard))
        ref = ClipRef(
            clip_id=clip_id,
            unit_id=unit.unit_id,
            source=source,
            member=f"row {number}",
            start_s=start_s,
            end_s=end_s,
            metadata=dump_metadata({name: values[name] for name in free}),
        )
        yield ref, fetch


def _prepare_cell(store: Store, unit: WorkUnit, cell: object, folder: str) -> tuple[str, Callable[[], bytes | Path]]:
    video, uri = _split_video(cell)
    if video is None and uri:
        return prepare_fetch(store, uri, folder)
    return strip_credentials(unit.shard), partial(_take_video, store, video)


def _split_video(value: object) -> tuple[bytes | None, str | None]:
    """Returns the video itself or its URI from a cell: bytes, text, or Hugging Face's {bytes, path}."""
    if isinstance(value, Mapping):
        inner, path = value.get("bytes"), value.get("path")
        return (inner, None) if inner is not None else (None, path)
    return (value, None) if isinstance(value, bytes) else (None, cast("str | None", value))


def _take_video(store: Store, video: bytes | None) -> bytes:
    if video is None:
        raise VideoUnreadable("video not found", "the row holds neither a video nor a URI")
    if not video:
        raise VideoUnreadable("empty file", "the row's video has 0 bytes")
    if len(video) > store.config.max_video_bytes:
        message = f"{len(video)} bytes, over the limit of {store.config.max_video_bytes} (max_video_bytes)"
        raise VideoUnreadable("video too large", message)
    return video
