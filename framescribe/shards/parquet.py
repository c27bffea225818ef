"""Parquet shards: a column of encoded videos or of their URIs; every other column without bytes is metadata."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from framescribe.shards.naming import IndexedClip, check_unit, clean_id, window_suffix
from framescribe.shards.parquet_columns import (
    addresses_not_read,
    find_video_column,
    is_media,
    is_text,
    list_metadata_columns,
    list_path_columns,
)
from framescribe.shards.rows import dump_metadata, list_read_columns, own_columns_of, parse_clip_id, shorten_numbers
from framescribe.shards.videos import (
    FetchedOnce,
    FetchedVideo,
    check_size,
    check_some_found,
    prepare_fetch,
    read_videos,
    resolve_uri,
    root_of,
)
from framescribe.shards.web_hosts import WebHosts
from framescribe.shards.windows import Window, check_chosen_columns, check_window_columns, parse_windows
from framescribe.storage.access import Location, Store
from framescribe.storage.errors import InputError, NoVideos, StoreRefused, StoreUnavailable, VideoUnreadable
from framescribe.storage.ranged_file import open_shard
from framescribe.storage.redaction import strip_credentials
from schemas.records import Clip, ClipRef, FailedClip, WorkUnit

_VIDEOS_AT_ONCE = 8  # decoded from their pages in memory, beside the one that is handed on
_IDS_AT_ONCE = 4096
_LOOKED_AT = 4096
# Rows of addresses are small; of larger ones not even the first is read to see whether they hold bytes.
_SMALL_ROW_BYTES, _LOOKED_INTO = 64 << 10, 16
_Left = TypeVar("_Left")
_Right = TypeVar("_Right")
_BLOCK_BYTES = 1 << 20  # columns are read in larger pieces than this; it serves the footer and small pages


@dataclass(frozen=True, slots=True)
class _RowGroup:
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


def index_parquet(store: Store, location: Location, shard_id: str, named: bool = True) -> Iterator[IndexedClip]:
    """Yields the rows of a Parquet shard from its footer and its `clip_id` and window columns; no video is read.

    Where it names videos, a few of them are looked for. Rows of one row group share `byte_start`, the number of its
    first row, and `byte_stop`, that after its last.

    Args:
        named: whether an input names the file; else, addresses of videos in it are not read.

    Raises:
        NoVideos: the shard has no column of videos.
        InputError: it is damaged or empty, columns of it cannot be what they seem to be, or of the videos that it names
            none that was looked for is there.
    """
    with closing(open_parquet(store, location)) as shard:
        column = find_video_column(shard.schema, store.config.video_column, shard.name, only_bytes=not named)
        names_videos = _names_videos(shard, column, groups := _list_row_groups(shard))
        if names_videos and not named:
            raise NoVideos(addresses_not_read(shard.name, column))
        check_window_columns(shard.schema.names, shard.name, store.config)
        check_chosen_columns(shard.schema.names, shard.name, store.config, is_header=True)
        if not shard.num_rows:
            raise InputError(f"{shard.name} has no rows")
        content = _content_of(store, location, column)
        group_of_row = (group for group in groups for _ in range(group.stop - group.start))
        rows = _iterate_clips(store, shard, shard_id, 0, shard.num_rows)
        for number, (clips, group) in enumerate(_pair_rows(rows, group_of_row, shard.name)):
            where = f"{shard.name}: row {number}"
            for clip_id, _ in clips:
                yield IndexedClip(clip_id, where, f"{content} {clip_id}", group.row_bytes, group.start, group.stop)
        if names_videos:
            check_some_found(store.for_rows(location.uri), shard.name, [*_sample_uris(store, location, _LOOKED_AT)])


def read_parquet(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit's rows in order; a row without a video, or whose video is gone, is a failed clip.

    Raises:
        ShardChanged: the shard is not the one that was planned; found before the first clip.
    """
    location = store.locate(unit.shard)
    hosts = WebHosts(store.for_rows(location.uri), partial(_sample_uris, store, location))
    with closing(open_parquet(store, location)) as shard:
        column = find_video_column(shard.schema, store.config.video_column, shard.name)
        rows = _find_rows(store, shard, unit)
        content = _content_of(store, location, column, *unit.versions)
        check_unit(unit, (f"{content} {clip_id}" for clips in rows.clips for clip_id, _ in clips))
        folder = root_of(location.uri, store.config.video_root)
        videos = FetchedOnce(hosts.fetch, _list_videos(shard, column, rows), folder)
        yield from read_videos(_refer(store, videos, unit, shard, column, rows))


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


def iterate_rows(
    shard: ParquetShard, columns: list[str], start: int, stop: int, rows_at_once: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:  # Any: whatever the columns hold
    """Yields number and values of the rows [start, stop); reads only the row groups that hold them.

    Raises:
        InputError: the data is damaged.
    """
    groups = _list_row_groups(shard)
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


@dataclass(frozen=True, slots=True)
class _UnitRows:
    """The rows of a unit, from row `start` on: id and window of each clip in each of them."""

    start: int
    clips: list[list[tuple[str, Window]]]

    @property
    def stop(self) -> int:
        return self.start + len(self.clips)


def _find_rows(store: Store, shard: ParquetShard, unit: WorkUnit) -> _UnitRows:
    """Returns the rows of a unit: clips are rows, but where a cell holds several windows they are counted."""
    if store.config.column_of("windows") is None:
        return _UnitRows(
            unit.start, [*_iterate_clips(store, shard, unit.shard_id, unit.start, min(unit.stop, shard.num_rows))]
        )
    found: list[list[tuple[str, Window]]] = []
    first, position = 0, 0
    for number, clips in enumerate(_iterate_clips(store, shard, unit.shard_id, 0, shard.num_rows)):
        taken = clips[max(0, unit.start - position) : max(0, unit.stop - position)]
        position += len(clips)
        if taken:
            first = first if found else number
            found.append(taken)
        if position >= unit.stop:
            break
    return _UnitRows(first, found)


def _list_videos(shard: ParquetShard, column: str, rows: _UnitRows) -> list[str]:
    """Returns what the clips of a unit name, where the shard holds names alone."""
    if not is_text(shard.schema.field(column).type):
        return []
    cells = (values[column] for _, values in iterate_rows(shard, [column], rows.start, rows.stop, _IDS_AT_ONCE))
    named = zip(cells, rows.clips, strict=False)
    return [str(cell) for cell, clips in named if cell is not None for _ in clips]


def _names_videos(shard: ParquetShard, column: str, groups: Sequence[_RowGroup]) -> bool:
    """Returns whether a column holds addresses: texts, or Hugging Face's structs without bytes in the first rows."""
    kind = shard.schema.field(column).type
    if is_text(kind) or not is_media(kind) or not groups or groups[0].row_bytes > _SMALL_ROW_BYTES:
        return is_text(kind)
    rows = iterate_rows(shard, [f"{column}.bytes"], 0, min(_LOOKED_INTO, groups[0].stop), _LOOKED_INTO)
    return all(_split_cell(values[column])[0] is None for _, values in rows)


def _content_of(store: Store, location: Location, column: str, planned: str = "") -> str:
    chosen = "" if store.config.window_columns is None else f"{store.config.window_columns} "
    return f"{chosen}{store.config.places_key}{store.describe(location, planned)[0]} {column}"


def _iterate_clips(
    store: Store, shard: ParquetShard, shard_id: str, start: int, stop: int
) -> Iterator[list[tuple[str, Window]]]:
    """Yields ids and windows of the clips of each row, of most one."""
    wanted = list_read_columns(shard.schema.names, store.config)
    if not wanted:
        for number in range(start, stop):
            yield [(_default_id(shard_id, number, None, None), (None, None))]
        return
    for number, values in iterate_rows(shard, wanted, start, stop, _IDS_AT_ONCE):
        where = f"{shard.name}: row {number}"
        yield [
            (parse_clip_id(values, where, store.config, window) or _default_id(shard_id, number, *window), window)
            for window in parse_windows(values, where, store.config)
        ]


def _default_id(shard_id: str, number: int, start_s: float | None, end_s: float | None) -> str:
    return clean_id(f"{shard_id}/{number:06d}{window_suffix(start_s, end_s)}")


def _sample_uris(store: Store, location: Location, max_rows: int | None = None) -> Iterator[str]:
    """Yields the URIs of the first rows, or of all: without videos, a shard is small."""
    with closing(open_parquet(store, location)) as shard:
        column = find_video_column(shard.schema, store.config.video_column, shard.name)
        paths = list_path_columns(shard.schema, column)
        stop = shard.num_rows if max_rows is None else min(max_rows, shard.num_rows)
        for _, values in iterate_rows(shard, paths, 0, stop, _IDS_AT_ONCE):
            with suppress(VideoUnreadable):
                folder = root_of(location.uri, store.config.video_root)
                yield resolve_uri(_split_cell(values[column])[1] or "", folder)


def _refer(
    store: Store, videos: FetchedOnce, unit: WorkUnit, shard: ParquetShard, column: str, unit_rows: _UnitRows
) -> Iterator[tuple[ClipRef, Callable[[], FetchedVideo]]]:
    own = own_columns_of(store.config) | {column}
    columns = [column, *list_metadata_columns(shard.schema, own)]
    rows = iterate_rows(shard, [*dict.fromkeys(columns)], unit_rows.start, unit_rows.stop, _VIDEOS_AT_ONCE)
    for clips, (number, values) in _pair_rows(unit_rows.clips, rows, shard.name):
        metadata = _dump_row(values, column, own)
        for clip_id, (start_s, end_s) in clips:
            source, fetch = _prepare_cell(store, videos, unit, values[column])
            yield ClipRef(clip_id, unit.unit_id, source, f"row {number}", start_s, end_s, metadata), fetch


def _dump_row(values: Mapping[str, object], column: str, own: Collection[str]) -> str:
    """Returns the metadata of a row: its free columns, and the name that Hugging Face keeps beside a video's bytes."""
    cell = values[column]
    path = cell.get("path") if isinstance(cell, Mapping) and cell.get("bytes") is not None else None
    named = {column: {"path": path}} if path else {}
    return dump_metadata(
        {**named, **{name: shorten_numbers(value) for name, value in values.items() if name not in own}}
    )


def _prepare_cell(
    store: Store, videos: FetchedOnce, unit: WorkUnit, cell: object
) -> tuple[str, Callable[[], FetchedVideo]]:
    video, uri = _split_cell(cell)
    if video is None and uri:
        return prepare_fetch(videos.fetch, uri, root_of(unit.shard, store.config.video_root))
    return strip_credentials(unit.shard), partial(_take_video, store, video)


def _split_cell(cell: object) -> tuple[bytes | None, str | None]:
    """Returns the video itself or its URI from a cell: bytes, text, or Hugging Face's {bytes, path}."""
    if isinstance(cell, Mapping):
        inner, path = cell.get("bytes"), cell.get("path")
        return (inner, None) if inner is not None else (None, path)
    return (cell, None) if isinstance(cell, bytes) else (None, cast("str | None", cell))


def _take_video(store: Store, video: bytes | None) -> FetchedVideo:
    if video is None:
        raise VideoUnreadable("video not found", "the row holds neither a video nor a URI")
    check_size(store, len(video))
    return FetchedVideo(video)


def _list_row_groups(shard: ParquetShard) -> list[_RowGroup]:
    """Returns the row groups in order.

    Raises:
        InputError: the footer contradicts itself.
    """
    groups: list[_RowGroup] = []
    with _damage_named(shard.name):
        for number in range(shard.file.metadata.num_row_groups):
            group = shard.file.metadata.row_group(number)
            start = groups[-1].stop if groups else 0
            # Not the video column's own size: pyarrow 25 aborts the process over a column chunk it cannot make out.
            row_bytes = max(0, group.total_byte_size) // max(1, group.num_rows)
            groups.append(_RowGroup(start, start + group.num_rows, row_bytes))
    if any(group.stop < group.start for group in groups) or (groups[-1].stop if groups else 0) != shard.num_rows:
        raise _contradiction(shard.name)
    return groups


def _pair_rows(left: Iterable[_Left], right: Iterable[_Right], name: str) -> Iterator[tuple[_Left, _Right]]:
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
