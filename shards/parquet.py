"""Parquet shards: a column of encoded videos or of their URIs, every other scalar column is metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import cast

import pyarrow as pa

from schemas.records import Clip, ClipRef, FailedClip, WorkUnit
from shards.clip_ids import clean_id, window_suffix
from shards.clip_rows import OWN_COLUMNS, parse_clip_id, parse_window
from shards.errors import InputError, VideoUnreadable
from shards.indexed_clip import IndexedClip, check_unit
from shards.parquet_columns import find_video_column, is_scalar
from shards.parquet_rows import ParquetShard, iterate_rows, list_row_groups, open_parquet, pair_rows
from shards.sidecars import dump_metadata
from shards.store import Location, Store
from shards.videos import check_size, folder_of, prepare_fetch, read_videos, resolve_uri
from shards.web_hosts import WebHosts
from storage.redaction import strip_credentials

_VIDEOS_AT_ONCE = 8  # decoded from their pages in memory, beside the one that is handed on
_IDS_AT_ONCE = 4096


def index_parquet(store: Store, location: Location, shard_id: str) -> Iterator[IndexedClip]:
    """Yields the rows of a Parquet shard from its footer and its `clip_id` and window columns; no video is read.

    Rows of one row group share `byte_start`, the number of its first row, and `byte_stop`, that after its last.

    Raises:
        InputError: the shard is damaged or empty, or has no column of videos.
    """
    with closing(open_parquet(store, location)) as shard:
        column = find_video_column(shard.schema, store.config.video_column, shard.name)
        groups = list_row_groups(shard)
        if not shard.num_rows:
            raise InputError(f"{shard.name} has no rows")
        content = f"{store.size(location)} {column}"
        group_of_row = (group for group in groups for _ in range(group.stop - group.start))
        ids = _iterate_ids(shard, shard_id, 0, shard.num_rows)
        for number, (clip_id, group) in enumerate(pair_rows(ids, group_of_row, shard.name)):
            where = f"{shard.name}: row {number}"
            yield IndexedClip(clip_id, where, f"{content} {clip_id}", group.row_bytes, group.start, group.stop)


def read_parquet(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit's rows in order; a row without a video, or whose video is gone, is a failed clip.

    Raises:
        ShardChanged: the shard is not the one that was planned; found before the first clip.
    """
    location = store.locate(unit.shard)
    hosts = WebHosts(store, partial(_sample_uris, store, location))
    with closing(open_parquet(store, location)) as shard:
        column = find_video_column(shard.schema, store.config.video_column, shard.name)
        ids = list(_iterate_ids(shard, unit.shard_id, unit.start, min(unit.stop, shard.num_rows)))
        content = f"{store.size(location)} {column}"
        check_unit(unit, (f"{content} {clip_id}" for clip_id in ids))
        yield from read_videos(_refer(store, hosts, unit, shard, column, ids))


def _iterate_ids(shard: ParquetShard, shard_id: str, start: int, stop: int) -> Iterator[str]:
    wanted = [column for column in ("clip_id", "start_s", "end_s") if column in shard.schema.names]
    if not wanted:
        yield from (_default_id(shard_id, number, None, None) for number in range(start, stop))
        return
    for number, values in iterate_rows(shard, wanted, start, stop, _IDS_AT_ONCE):
        where = f"{shard.name}: row {number}"
        window = parse_window(values, where)
        yield parse_clip_id(values, where) or _default_id(shard_id, number, *window)


def _default_id(shard_id: str, number: int, start_s: float | None, end_s: float | None) -> str:
    return clean_id(f"{shard_id}/{number:06d}{window_suffix(start_s, end_s)}")


def _sample_uris(store: Store, location: Location) -> Iterator[str]:
    """Yields the URIs of all rows: without videos, a shard is small."""
    with closing(open_parquet(store, location)) as shard:
        column = find_video_column(shard.schema, store.config.video_column, shard.name)
        is_media = pa.types.is_struct(shard.schema.field(column).type)
        paths = [f"{column}.path" if is_media else column]
        for _, values in iterate_rows(shard, paths, 0, shard.num_rows, _IDS_AT_ONCE):
            with suppress(VideoUnreadable):
                yield resolve_uri(_split_cell(values[column])[1] or "", folder_of(location.uri))


def _refer(
    store: Store, hosts: WebHosts, unit: WorkUnit, shard: ParquetShard, column: str, ids: list[str]
) -> Iterator[tuple[ClipRef, Callable[[], bytes | Path]]]:
    free = [field.name for field in shard.schema if field.name not in OWN_COLUMNS | {column} and is_scalar(field.type)]
    columns = [column, *free, *(name for name in ("start_s", "end_s") if name in shard.schema.names)]
    rows = iterate_rows(shard, columns, unit.start, unit.stop, _VIDEOS_AT_ONCE)
    for clip_id, (number, values) in pair_rows(ids, rows, shard.name):
        source, fetch = _prepare_cell(store, hosts, unit, values[column])
        start_s, end_s = parse_window(values, f"{shard.name}: row {number}")
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


def _prepare_cell(
    store: Store, hosts: WebHosts, unit: WorkUnit, cell: object
) -> tuple[str, Callable[[], bytes | Path]]:
    video, uri = _split_cell(cell)
    if video is None and uri:
        return prepare_fetch(hosts.fetch, uri, folder_of(unit.shard))
    return strip_credentials(unit.shard), partial(_take_video, store, video)


def _split_cell(cell: object) -> tuple[bytes | None, str | None]:
    """Returns the video itself or its URI from a cell: bytes, text, or Hugging Face's {bytes, path}."""
    if isinstance(cell, Mapping):
        inner, path = cell.get("bytes"), cell.get("path")
        return (inner, None) if inner is not None else (None, path)
    return (cell, None) if isinstance(cell, bytes) else (None, cast("str | None", cell))


def _take_video(store: Store, video: bytes | None) -> bytes:
    if video is None:
        raise VideoUnreadable("video not found", "the row holds neither a video nor a URI")
    check_size(store, len(video))
    return video
