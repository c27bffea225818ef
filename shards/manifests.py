"""Manifests: JSON Lines, CSV or TSV files whose rows name videos, windows of them, and metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from schemas.records import Clip, ClipRef, FailedClip, WorkUnit
from shards.clip_rows import ClipRow, default_clip_id, parse_row, video_column_of
from shards.config import ReadConfig
from shards.errors import AddressRefused, InputError, StoreRefused, StoreUnavailable, VideoUnreadable
from shards.indexed_clip import IndexedClip, check_unit
from shards.kinds import path_of, split_extension
from shards.manifest_lines import (
    CsvHeader,
    RawRow,
    check_csv_header,
    iterate_csv_rows,
    iterate_json_rows,
    read_csv_header,
)
from shards.ranged_file import open_shard
from shards.sidecars import dump_metadata
from shards.store import Location, Store
from shards.videos import FetchedOnce, check_some_found, folder_of, prepare_fetch, read_videos, resolve_uri
from shards.web_hosts import WebHosts
from storage.addresses import protocol_of
from storage.redaction import strip_credentials

_PLAN_BLOCK_BYTES = 8 << 20
_SAMPLE_BLOCKS, _SAMPLE_BLOCK_BYTES = 16, 64 << 10
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
    for raw in iterate_table(store, manifest, 0, store.size(manifest), check_csv_header):
        try:
            clip = _index_row(raw, shard_id, name, store.config)
            _check_protocol(store.for_rows(manifest.uri), raw, protocols, name)
        except InputError as error:
            problems.append(str(error))
        else:
            num_clips += 1
            yield clip
        if len(problems) == _MAX_SHOWN_PROBLEMS:
            break
    if problems:
        raise InputError("\n".join(problems))
    if not num_clips:
        raise InputError(f'{name} has no rows: wanted one a line, such as {{"video": "clips/000.mp4"}}')
    check_some_found(store.for_rows(manifest.uri), name, [*_sample_uris(store, manifest)])


def read_manifest(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit's rows in order; a video that is gone or unreadable is a failed clip.

    Raises:
        ShardChanged: the manifest's lines are not those that were planned; found before the first clip.
    """
    manifest = store.locate(unit.shard)
    rows = list(iterate_table(store, manifest, unit.byte_start, unit.byte_stop, check_csv_header))
    name = strip_credentials(unit.shard)
    check_unit(unit, (store.config.columns_key + raw.content for raw in rows))
    parsed = [parse_row(raw.values, name, store.config) for raw in rows if raw.values is not None]
    hosts = WebHosts(store.for_rows(manifest.uri), partial(_sample_uris, store, manifest))
    videos = FetchedOnce(hosts.fetch, (row.video or "" for row in parsed), folder_of(manifest.uri))
    return read_videos(_refer(videos, unit, enumerate(parsed, start=unit.start + 1)))


def _sample_uris(store: Store, manifest: Location) -> Iterator[str]:
    """Yields the videos of rows all over a manifest: the whole of a small one, evenly spaced blocks of a larger."""
    folder, size = folder_of(manifest.uri), store.size(manifest) or 0
    for start in range(0, size, max(_SAMPLE_BLOCK_BYTES, size // _SAMPLE_BLOCKS)):
        for raw in iterate_table(store, manifest, start, min(size, start + _SAMPLE_BLOCK_BYTES)):
            with suppress(InputError, VideoUnreadable):  # a block starts and ends in the middle of a row
                yield resolve_uri(parse_row(raw.values or {}, "", store.config).video or "", folder)


def iterate_table(
    store: Store,
    manifest: Location,
    start: int = 0,
    stop: int | None = None,
    check_header: Callable[[CsvHeader, str, ReadConfig], None] | None = None,
) -> Iterator[RawRow]:
    """Yields the rows between two bytes of a JSON Lines, CSV or TSV file, whatever its columns are.

    Raises:
        InputError: it has no header, `check_header` refuses it, or a line is too long.
    """
    extension = split_extension(path_of(manifest.uri))[1]
    name, max_bytes = strip_credentials(manifest.uri), store.config.max_sidecar_bytes
    with closing(open_shard(store, manifest, stop=stop, start=start, block_bytes=_PLAN_BLOCK_BYTES)) as stream:
        if extension in (".jsonl", ".ndjson"):
            yield from iterate_json_rows(stream, name, start, stop, max_bytes)
            return
        header = read_csv_header(stream, name, extension, store.config) if start == 0 else None
    if header is None:
        with closing(open_shard(store, manifest, block_bytes=1 << 16)) as stream:
            header = read_csv_header(stream, name, extension, store.config)
    if check_header is not None:
        check_header(header, name, store.config)
    with closing(open_shard(store, manifest, stop, max(start, header.stop), _PLAN_BLOCK_BYTES)) as stream:
        yield from iterate_csv_rows(stream, name, header, max(start, header.stop), stop, max_bytes)


def _index_row(raw: RawRow, shard_id: str, name: str, config: ReadConfig) -> IndexedClip:
    where = f"{name}:{raw.line}"
    if raw.values is None:
        raise InputError(f"{where}: {raw.problem}")
    row = parse_row(raw.values, where, config)
    clip_id = row.clip_id or default_clip_id(shard_id, row)
    return IndexedClip(clip_id, where, config.columns_key + raw.content, 0, raw.start, raw.stop)


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
    videos: FetchedOnce, unit: WorkUnit, rows: Iterator[tuple[int, ClipRow]]
) -> Iterator[tuple[ClipRef, Callable[[], bytes | Path]]]:
    folder = folder_of(unit.shard)
    for number, row in rows:
        assert row.video is not None
        source, fetch = prepare_fetch(videos.fetch, row.video, folder)
        ref = ClipRef(
            clip_id=row.clip_id or default_clip_id(unit.shard_id, row),
            unit_id=unit.unit_id,
            source=source,
            member=f"row {number}",
            start_s=row.start_s,
            end_s=row.end_s,
            metadata=dump_metadata(row.metadata),
        )
        yield ref, fetch
