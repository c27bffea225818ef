"""Folders and globs of single video files: one clip per file, with what tables beside them say about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from framescribe.shards.listing import FoundFile
from framescribe.shards.naming import IndexedClip, NamedShard
from framescribe.shards.parquet import iterate_rows, open_parquet
from framescribe.shards.parquet_columns import list_metadata_columns
from framescribe.shards.rows import dump_metadata, shorten_numbers
from framescribe.shards.table_rows import iterate_table
from framescribe.shards.videos import FetchedVideo, fetch_video, folder_of, join_uri, read_videos
from framescribe.shards.windows import looks_like_window
from framescribe.storage.access import Store
from framescribe.storage.errors import (
    InputError,
)
from framescribe.storage.redaction import clean_text, strip_credentials
from schemas.records import Clip, ClipRef, FailedClip, InputKind, WorkUnit

_log = logging.getLogger(__name__)

# In the order they are preferred: Hugging Face's VideoFolder, and what people write.
_NAMING_COLUMNS = (
    *("file_name", "filename", "file", "video", "video_path", "video_file", "path", "file_path", "filepath"),
)
_ROWS_AT_ONCE = 1024


def index_files(shard: NamedShard) -> Iterator[IndexedClip]:
    """Yields the clips of a folder from its listing; no file is opened."""
    for file, clip_id in zip(shard.files, shard.clip_ids, strict=True):
        yield IndexedClip(clip_id, strip_credentials(file.uri), f"{clip_id} {file.size}", file.size or 0)


def read_files(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit in order; a file that is gone or unreadable is a failed clip."""
    return read_videos(_refer(store, unit))


def _refer(store: Store, unit: WorkUnit) -> Iterator[tuple[ClipRef, Callable[[], FetchedVideo]]]:
    metadata = unit.metadata or ("{}",) * len(unit.files)
    versions = unit.versions or ("",) * len(unit.files)
    for clip_id, uri, about, planned in zip(unit.clip_ids, unit.files, metadata, versions, strict=True):
        ref = ClipRef(clip_id, unit.unit_id, strip_credentials(uri), metadata=about)
        yield ref, partial(fetch_video, store, uri, planned)


@dataclass(frozen=True, slots=True)
class JoinedTables:
    """What tables beside videos say about them.

    Attributes:
        metadata: URI of a video to column to value.
        used: URIs of the tables that it is from.
        unused: URI of every other table to the reason why nothing of it is taken, empty where it names no video.
    """

    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    used: Set[str] = frozenset()
    unused: Mapping[str, str] = field(default_factory=dict)


def join_tables(store: Store, tables: Sequence[FoundFile], videos: Iterable[FoundFile]) -> JoinedTables:
    """Reads tables that lie in the folders of videos, and joins those whose rows name the videos.

    A table joins where one of its columns holds paths of the videos, relative to its own folder, each at most once.
    What looks like windows in it is logged: the videos are annotated whole.

    Raises:
        StoreUnavailable, StoreRefused: a table cannot be had.
    """
    uris = {file.uri for file in videos}
    metadata: dict[str, dict[str, object]] = {}
    unused: dict[str, str] = {}
    for table in tables:
        try:
            rows = _match_rows(store, table, uris) if uris else {}
        except (InputError, FileNotFoundError) as error:
            unused[table.uri] = str(error)
            continue
        if not rows:
            unused[table.uri] = ""
        for uri, about in rows.items():
            metadata.setdefault(uri, {}).update(about)
        _warn_of_windows(table, rows.values())
    return JoinedTables(metadata, {table.uri for table in tables} - unused.keys(), unused)


def add_metadata(shard: NamedShard, joined: JoinedTables) -> tuple[str, ...]:
    """Returns the metadata of each file of a shard as JSON; nothing at all where no table says anything."""
    if not any(file.uri in joined.metadata for file in shard.files):
        return ()
    return tuple(dump_metadata(joined.metadata.get(file.uri, {})) for file in shard.files)


def _match_rows(store: Store, table: FoundFile, uris: set[str]) -> dict[str, dict[str, object]]:
    """Returns URI of a video to its row, by the first column that names any; InputError says that one has several."""
    folder = folder_of(table.uri)
    there = _list_columns(store, table)
    for column in (name for name in _NAMING_COLUMNS if name in there):
        if not any(_join(folder, values.get(column)) in uris for values in _iterate_values(store, table, [column])):
            continue
        matched: dict[str, dict[str, object]] = {}
        for values in _iterate_values(store, table):
            uri = _join(folder, values.get(column))
            if uri in matched:
                raise InputError(
                    f"several of its rows name {clean_text(str(values[column]))!r}: --input must name the table itself "
                    "for each row to be a clip"
                )
            if uri is not None and uri in uris:
                matched[uri] = {name: shorten_numbers(value) for name, value in values.items() if name != column}
        return matched
    return {}


def _list_columns(store: Store, table: FoundFile) -> list[str]:
    """Returns the columns of a table; of JSON Lines, the keys of the first row."""
    if table.kind is InputKind.PARQUET:
        with closing(open_parquet(store, store.locate(table.uri))) as shard:
            return [str(name) for name in shard.schema.names]
    return [*next(_iterate_values(store, table), {})]


def _join(folder: str, named: object) -> str | None:
    named = named.get("path") if isinstance(named, Mapping) else named
    if not isinstance(named, str) or not named.strip() or "\0" in named:
        return None
    return join_uri(folder, named.strip()) if "://" not in named else named.strip()


def _iterate_values(store: Store, table: FoundFile, columns: list[str] | None = None) -> Iterator[Mapping[str, object]]:
    """Yields the rows of a table; of Parquet some columns alone."""
    location = store.locate(table.uri)
    if table.kind is InputKind.PARQUET:
        with closing(open_parquet(store, location)) as shard:
            without = () if columns is None else {*shard.schema.names} - {*columns}
            columns = list_metadata_columns(shard.schema, without)
            for _, values in iterate_rows(shard, columns, 0, shard.num_rows, _ROWS_AT_ONCE):
                yield values
        return
    for raw in iterate_table(store, location):
        if raw.values is None:
            raise InputError(f"line {raw.line}: {raw.problem}")
        yield raw.values


def _warn_of_windows(table: FoundFile, rows: Iterable[Mapping[str, object]]) -> None:
    names = {name for row in rows for name, value in row.items() if value not in (None, "") and _is_window(name)}
    if names:
        _log.warning(
            "%s: %s would be a window of the video in a manifest, but is only metadata here, and the videos are "
            "annotated whole: give the table as --input for its rows to be clips",
            strip_credentials(table.uri),
            ", ".join(map(ascii, sorted(names))),
        )


def _is_window(name: str) -> bool:
    return name in ("start_s", "end_s") or looks_like_window(name)
