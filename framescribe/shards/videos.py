"""Fetches single video files: of a folder, or named by a row of a manifest or a Parquet shard.

Folders and globs of single video files: one clip a file, with what tables beside them say about it.
"""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from framescribe.shards.clip_index import IndexedClip
from framescribe.shards.listing import FoundFile
from framescribe.shards.manifests import iterate_table
from framescribe.shards.naming import NamedShard
from framescribe.shards.parquet import iterate_rows, open_parquet
from framescribe.shards.parquet_columns import list_metadata_columns
from framescribe.shards.rows import dump_metadata, looks_like_window, shorten_numbers
from framescribe.storage.access import Store, local_path
from framescribe.storage.addresses import protocol_of
from framescribe.storage.errors import (
    AddressRefused,
    CutShort,
    InputError,
    StoreRefused,
    StoreUnavailable,
    VideoUnreadable,
)
from framescribe.storage.redaction import clean_text, strip_credentials
from schemas.records import Clip, ClipRef, FailedClip, InputKind, Stage, WorkUnit

_log = logging.getLogger(__name__)

_MAX_LOOKED_FOR = 12
_MAX_KEPT_BYTES = 1 << 30


def resolve_uri(video: str, folder: str) -> str:
    """Returns the URI of a video that a shard in `folder` names, relative to that folder or in full.

    Raises:
        VideoUnreadable: a shard in a remote store names a file of this machine, or a web address has no sound host.
    """
    if find_web_host(video) == "":
        raise VideoUnreadable("video not found", f"{strip_credentials(video)!r} has no host that could be asked")
    remote = protocol_of(folder) != "file"
    if protocol_of(video) == "file":
        if remote and video.startswith(("/", "file:", "local:", "~")):
            raise VideoUnreadable("local path in a remote shard", f"{video!r} would be a file of this machine")
        return join_uri(folder, video if remote else video.removeprefix("file://").removeprefix("local://"))
    return video


def find_web_host(uri: str) -> str | None:
    """Returns host and port of a web address, an empty text where they make no sense, and None for any other URI."""
    if protocol_of(uri) not in ("http", "https"):
        return None
    try:
        parts = urlsplit("//" + uri.partition("://")[2])
        return parts.netloc.rpartition("@")[2] if parts.port != 0 else ""
    except ValueError:  # an open bracket, a port that is no number
        return ""


def prepare_fetch(
    fetch: Callable[[str], bytes | Path], video: str, folder: str
) -> tuple[str, Callable[[], bytes | Path]]:
    """Returns where a video named by a shard in `folder` is, without credentials, and the call that fetches it."""
    try:
        uri = resolve_uri(video, folder)
    except VideoUnreadable as error:
        return clean_text(strip_credentials(video)), partial(_refuse, error)
    return clean_text(strip_credentials(uri)), partial(fetch, uri)


class FetchedOnce:
    """Fetches a video once for all rows of a unit that name it, and lets go of it with the last of them.

    What would be more than 1 GiB to keep is fetched again.

    Args:
        fetch: returns the path of a local video, the bytes of any other, or raises `VideoUnreadable`.
        videos: what the rows name, relative to `folder` or in full.
    """

    def __init__(self, fetch: Callable[[str], bytes | Path], videos: Iterable[str], folder: str) -> None:
        self._fetch = fetch
        self._num_left = Counter(_resolve_all(videos, folder))
        self._kept: dict[str, bytes | Path | VideoUnreadable] = {}

    def fetch(self, uri: str) -> bytes | Path:
        """Returns a video as `fetch` does, or raises what it raised."""
        found = self._kept.get(uri)
        if found is None:
            found = self._try(uri)
        self._num_left[uri] -= 1
        if self._num_left[uri] > 0 and self._fits(found):
            self._kept[uri] = found
        else:
            self._kept.pop(uri, None)
        if isinstance(found, VideoUnreadable):
            raise found
        return found

    def _try(self, uri: str) -> bytes | Path | VideoUnreadable:
        try:
            return self._fetch(uri)
        except VideoUnreadable as error:
            return error

    def _fits(self, found: bytes | Path | VideoUnreadable) -> bool:
        kept = [*self._kept.values(), found]
        return sum(len(one) for one in kept if isinstance(one, bytes)) <= _MAX_KEPT_BYTES


def _resolve_all(videos: Iterable[str], folder: str) -> Iterator[str]:
    for video in videos:
        with suppress(VideoUnreadable):
            yield resolve_uri(video, folder)


def folder_of(shard: str) -> str:
    """Returns the folder that a shard's relative videos are in."""
    return shard.split("?", 1)[0].rpartition("/")[0] if "://" in shard else str(Path(shard).parent)


def join_uri(folder: str, relative: str) -> str:
    """Joins a folder's URI and a path relative to it; `..` is resolved but never leaves the store's host or bucket."""
    scheme, separator, rest = folder.rpartition("://")
    if not separator:
        return posixpath.normpath(posixpath.join(folder, relative))
    host, _, path = rest.partition("/")
    joined = posixpath.normpath(posixpath.join("/", path, relative))
    return f"{scheme}://{host}/{joined.lstrip('/')}"


def fetch_video(store: Store, uri: str, planned: str = "") -> bytes | Path:
    """Returns the path of a local video, the bytes of any other.

    Args:
        planned: its version when the work was planned, empty where nobody knows.

    Raises:
        ShardChanged: it has another version now.
        VideoUnreadable: this one file is missing, is empty, too large or cut short, or may not be read or named.
        StoreUnavailable: the store does not answer.
    """
    try:
        location = store.locate(uri)
        size = store.size(location, planned)
        check_size(store, size)
        if location.is_local:
            store.ask(f"open {uri}", lambda: local_path(location).open("rb").close())
            return local_path(location)
        video = store.read_file(location, size, store.config.max_video_bytes + 1)
    except FileNotFoundError as error:
        raise VideoUnreadable("video not found", str(error)) from None
    except StoreRefused as error:
        raise VideoUnreadable("permission denied", str(error)) from None
    except CutShort as error:
        raise VideoUnreadable("video cut short", str(error)) from None
    except AddressRefused as error:
        raise VideoUnreadable("address not allowed", str(error)) from None
    except InputError as error:
        raise VideoUnreadable("bad address", str(error)) from None
    check_size(store, len(video))
    return video


def check_some_found(store: Store, shard: str, uris: Sequence[str]) -> None:
    """Looks for up to twelve of the videos that a shard names, evenly spaced, before anything is paid for.

    Raises:
        InputError: the store of every one of them says that it is not there.
    """
    once = replace(store, config=replace(store.config, max_attempts=1))
    num_looked_for = min(_MAX_LOOKED_FOR, len(uris))
    looked_for = [uris[number * len(uris) // num_looked_for] for number in range(num_looked_for)]
    with ThreadPoolExecutor(_MAX_LOOKED_FOR, thread_name_prefix="look") as pool:
        answers = pool.map(partial(_is_missing, once), looked_for)
    missing = [uri for uri, is_missing in zip(looked_for, answers, strict=True) if is_missing]
    if looked_for and len(missing) == len(looked_for):
        first = clean_text(strip_credentials(missing[0]))
        raise InputError(
            f"{shard}: none of {len(missing)} videos that were looked for is there, the first is {first!r}: relative "
            "paths begin at the folder of the file that names them"
        )
    if missing:
        _log.warning("%s: %d of %d videos that were looked for are not there", shard, len(missing), len(looked_for))


def _is_missing(store: Store, uri: str) -> bool:
    try:
        store.size(store.locate(uri))
    except FileNotFoundError:
        return True
    except (InputError, StoreRefused, StoreUnavailable):
        pass  # reading it will say more
    return False


def read_videos(
    fetches: Iterator[tuple[ClipRef, Callable[[], bytes | Path]]],
) -> Iterator[Clip | FailedClip]:
    """Yields a clip for each reference whose video can be fetched, a failed clip for each other.

    Raises:
        StoreRefused: not one of several videos of the unit may be read: the credentials are wrong, not the videos.
    """
    refused: list[str] = []
    num_clips = 0
    for ref, fetch in fetches:
        num_clips += 1
        try:
            yield Clip(ref, fetch())
        except VideoUnreadable as error:
            refused.extend([error.message] if error.reason == "permission denied" else [])
            yield FailedClip(ref, Stage.READ, error.reason, error.message)
    if num_clips > 1 and len(refused) == num_clips:
        raise StoreRefused(f"none of the {num_clips} videos of a unit may be read; the first: {refused[0]}")


def _refuse(error: VideoUnreadable) -> NoReturn:
    raise error


def check_size(store: Store, size: int | None) -> None:
    """Raises `VideoUnreadable` for a video of no bytes or too many; None, not known, is neither."""
    if size == 0:
        raise VideoUnreadable("empty file", "it has 0 bytes")
    if size is not None and size > store.config.max_video_bytes:
        message = f"{size} bytes, over the limit of {store.config.max_video_bytes} (max_video_bytes)"
        raise VideoUnreadable("video too large", message)


# In the order they are preferred: Hugging Face's VideoFolder, and what people write.
_NAMING_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "video",
    "video_path",
    "video_file",
    "path",
    "file_path",
    "filepath",
)
_ROWS_AT_ONCE = 1024


def index_files(shard: NamedShard) -> Iterator[IndexedClip]:
    """Yields the clips of a folder from its listing; no file is opened."""
    for file, clip_id in zip(shard.files, shard.clip_ids, strict=True):
        yield IndexedClip(clip_id, strip_credentials(file.uri), f"{clip_id} {file.size}", file.size or 0)


def read_files(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit in order; a file that is gone or unreadable is a failed clip."""
    return read_videos(_refer(store, unit))


def _refer(store: Store, unit: WorkUnit) -> Iterator[tuple[ClipRef, Callable[[], bytes | Path]]]:
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
    for raw in iterate_table(store, location, stop=store.size(location)):
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
