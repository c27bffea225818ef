"""Manifests: JSON, JSON Lines, CSV or TSV files, and lists, whose rows name videos, windows of them, and metadata.

Every row is known with its bytes in the file, so that a worker reads only the rows of its unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

from framescribe.shards.naming import IndexedClip, check_unit
from framescribe.shards.rows import (
    ClipRow,
    column_missing,
    default_clip_id,
    dump_metadata,
    parse_row,
    video_column_of,
)
from framescribe.shards.table_rows import CsvHeader, RawRow, is_stream, iterate_table
from framescribe.shards.videos import (
    FetchedOnce,
    FetchedVideo,
    check_some_found,
    prepare_fetch,
    read_videos,
    resolve_uri,
    root_of,
)
from framescribe.shards.web_hosts import WebHosts
from framescribe.shards.windows import check_chosen_columns, check_window_columns
from framescribe.storage.access import Location, Store
from framescribe.storage.addresses import protocol_of
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import AddressRefused, InputError, StoreRefused, StoreUnavailable, VideoUnreadable
from framescribe.storage.redaction import strip_credentials
from schemas.records import Clip, ClipRef, FailedClip, WorkUnit

_SAMPLE_BLOCKS, _SAMPLE_BLOCK_BYTES = 16, 64 << 10
_SAMPLED_ROWS = 1024
_MAX_SHOWN_PROBLEMS = 20


def index_manifest(store: Store, manifest: Location, shard_id: str) -> Iterator[IndexedClip]:
    """Checks every row of a manifest and yields their clips; a few of their videos are looked for.

    Raises:
        InputError: with up to 20 rows that cannot be understood, each as `file:line`; or there is no row at all, or of
            the videos that were looked for none.
    """
    name = strip_credentials(manifest.uri)
    problems: list[str] = []
    num_clips = 0
    protocols = {"file"}
    size = store.size(manifest)
    for raw in iterate_table(store, manifest, 0, None if is_stream(manifest) else size, _check_csv_header):
        try:
            clips = _index_row(raw, shard_id, name, store.config)
            _check_protocol(store.for_rows(manifest.uri), raw, protocols, name)
        except InputError as error:
            problems.append(str(error))
        else:
            num_clips += len(clips)
            yield from clips
        if len(problems) == _MAX_SHOWN_PROBLEMS:
            break
    if problems:
        raise InputError("\n".join(problems))
    if not num_clips:
        raise InputError(f'{name} has no rows: wanted one per line, such as {{"video": "clips/000.mp4"}}')
    check_some_found(store.for_rows(manifest.uri), name, [*_sample_uris(store, manifest)])


def read_manifest(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit's rows in order; a video that is gone or unreadable is a failed clip.

    Raises:
        ShardChanged: the manifest's lines are not those that were planned; found before the first clip.
    """
    manifest = store.locate(unit.shard)
    rows = list(iterate_table(store, manifest, unit.byte_start, unit.byte_stop, _check_csv_header))
    name = strip_credentials(unit.shard)
    clips = [(raw.content, _try_row(raw, name, store.config)) for raw in rows]
    key = store.config.columns_key
    check_unit(unit, (key + content for content, rows_of_one in clips for _ in range(len(rows_of_one) or 1)))
    parsed = [row for _, rows_of_one in clips for row in rows_of_one]
    hosts = WebHosts(store.for_rows(manifest.uri), partial(_sample_uris, store, manifest))
    folder = root_of(manifest.uri, store.config.video_root)
    videos = FetchedOnce(hosts.fetch, (row.video or "" for row in parsed), folder)
    has_lists = store.config.column_of("windows") is not None
    return read_videos(_refer(videos, unit, folder, "clip" if has_lists else "row", enumerate(parsed, unit.start + 1)))


def _sample_uris(store: Store, manifest: Location) -> Iterator[str]:
    """Yields the videos of rows all over a manifest: the whole of a small one, evenly spaced blocks of a larger.

    Of a compressed one, and of a JSON list, whose entries have no ends to look for, they are the first.
    """
    folder, size = root_of(manifest.uri, store.config.video_root), store.size(manifest) or 0
    if is_stream(manifest):
        for raw in islice(iterate_table(store, manifest), _SAMPLED_ROWS):
            with suppress(InputError, VideoUnreadable):
                yield resolve_uri(parse_row(raw.values or {}, "", store.config)[0].video or "", folder)
        return
    for start in range(0, size, max(_SAMPLE_BLOCK_BYTES, size // _SAMPLE_BLOCKS)):
        for raw in iterate_table(store, manifest, start, min(size, start + _SAMPLE_BLOCK_BYTES)):
            with suppress(InputError, VideoUnreadable):  # a block starts and ends in the middle of a row
                yield resolve_uri(parse_row(raw.values or {}, "", store.config)[0].video or "", folder)


def _try_row(raw: RawRow, name: str, config: ReadConfig) -> list[ClipRow]:
    """Returns the clips of a row, none of one that says nothing: it is not the one that was planned."""
    try:
        return parse_row(raw.values, name, config) if raw.values is not None else []
    except InputError:
        return []


def _index_row(raw: RawRow, shard_id: str, name: str, config: ReadConfig) -> list[IndexedClip]:
    where = f"{name}:{raw.line}"
    if raw.values is None:
        raise InputError(f"{where}: {raw.problem}")
    content = config.columns_key + raw.content
    return [
        IndexedClip(row.clip_id or default_clip_id(shard_id, row), where, content, 0, raw.start, raw.stop)
        for row in parse_row(raw.values, where, config)
    ]


def _check_protocol(store: Store, raw: RawRow, known: set[str], name: str) -> None:
    """Finds a store whose client is missing, or whose options do not fit, while nothing has been paid for yet."""
    video = str((raw.values or {}).get(video_column_of(store.config)))
    protocol = protocol_of(video)
    if protocol in known:
        return
    try:
        store.locate(video)
    except (AddressRefused, StoreUnavailable, StoreRefused):
        return  # its row fails, or its host is judged, when it is read
    except InputError as error:
        raise InputError(f"{name}:{raw.line}: {error}") from None
    known.add(protocol)


def _refer(
    videos: FetchedOnce, unit: WorkUnit, folder: str, word: str, rows: Iterator[tuple[int, ClipRow]]
) -> Iterator[tuple[ClipRef, Callable[[], FetchedVideo]]]:
    for number, row in rows:
        assert row.video is not None
        source, fetch = prepare_fetch(videos.fetch, row.video, folder)
        ref = ClipRef(
            clip_id=row.clip_id or default_clip_id(unit.shard_id, row),
            unit_id=unit.unit_id,
            source=source,
            member=f"{word} {number}",
            start_s=row.start_s,
            end_s=row.end_s,
            metadata=dump_metadata(row.metadata),
        )
        yield ref, fetch


def _check_csv_header(header: CsvHeader, name: str, config: ReadConfig) -> None:
    """Checks that a header is that of a manifest.

    Raises:
        InputError: there is no column of videos, or others look like windows that would not be read.
    """
    if video_column_of(config) not in header.columns:
        raise InputError(f"{name}:1: {column_missing(header.columns, config)}")
    check_window_columns(header.columns, f"{name}:1", config)
    check_chosen_columns(header.columns, f"{name}:1", config, is_header=True)
