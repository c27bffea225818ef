"""Manifests: JSON Lines, CSV or TSV files whose rows name videos, windows of them, and metadata.

Every row is known with its bytes in the file, so that a worker reads only the rows of its unit.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import cast

from framescribe.shards.kinds import path_of, split_extension
from framescribe.shards.naming import IndexedClip, check_unit
from framescribe.shards.rows import (
    ClipRow,
    column_missing,
    default_clip_id,
    dump_metadata,
    parse_json,
    parse_row,
    video_column_of,
)
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
from framescribe.storage.ranged_file import ByteStream, open_shard
from framescribe.storage.redaction import strip_credentials
from schemas.records import Clip, ClipRef, FailedClip, WorkUnit

_PLAN_BLOCK_BYTES = 8 << 20
_SAMPLE_BLOCKS, _SAMPLE_BLOCK_BYTES = 16, 64 << 10
_MAX_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row before its columns are checked.

    Attributes:
        line: number of its first line in the file (or in the slice that was read), from 1.
        values: column -> value; None where the row cannot be read, and then `problem` says why.
        content: hash of its bytes.
        start, stop: its bytes in the file.
    """

    line: int
    values: dict[str, object] | None
    problem: str
    content: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _CsvHeader:
    """The first record of a CSV file, and the byte and line after it."""

    columns: tuple[str, ...]
    delimiter: str
    stop: int
    line: int


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
    for raw in iterate_table(store, manifest, 0, store.size(manifest), _check_csv_header):
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


def iterate_table(
    store: Store,
    manifest: Location,
    start: int = 0,
    stop: int | None = None,
    check_header: Callable[[_CsvHeader, str, ReadConfig], None] | None = None,
) -> Iterator[RawRow]:
    """Yields the rows between two bytes of a JSON Lines, CSV or TSV file, whatever its columns are.

    Raises:
        InputError: it has no header, `check_header` refuses it, or a line is too long.
    """
    extension = split_extension(path_of(manifest.uri))[1]
    name, max_bytes = strip_credentials(manifest.uri), store.config.max_sidecar_bytes
    with closing(open_shard(store, manifest, stop=stop, start=start, block_bytes=_PLAN_BLOCK_BYTES)) as stream:
        if extension in (".jsonl", ".ndjson"):
            yield from _iterate_json_rows(stream, name, start, stop, max_bytes)
            return
        header = _read_csv_header(stream, name, extension, store.config) if start == 0 else None
    if header is None:
        with closing(open_shard(store, manifest, block_bytes=1 << 16)) as stream:
            header = _read_csv_header(stream, name, extension, store.config)
    if check_header is not None:
        check_header(header, name, store.config)
    with closing(open_shard(store, manifest, stop, max(start, header.stop), _PLAN_BLOCK_BYTES)) as stream:
        yield from _iterate_csv_rows(stream, name, header, max(start, header.stop), stop, max_bytes)


def _sample_uris(store: Store, manifest: Location) -> Iterator[str]:
    """Yields the videos of rows all over a manifest: the whole of a small one, evenly spaced blocks of a larger."""
    folder, size = root_of(manifest.uri, store.config.video_root), store.size(manifest) or 0
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


def _iterate_json_rows(stream: ByteStream, name: str, start: int, stop: int | None, max_bytes: int) -> Iterator[RawRow]:
    """Yields the rows of a JSON Lines file; blank lines are passed over."""
    position = start
    for number, line in enumerate(_iterate_lines(stream, name, start, stop, max_bytes), start=1):
        row_start, position = position, position + len(line)
        if line.strip():
            values, problem = _parse_object(line, max_bytes)
            yield RawRow(number, values, problem, _hash(line), row_start, position)


def _read_csv_header(stream: ByteStream, name: str, extension: str, config: ReadConfig) -> _CsvHeader:
    """Reads the header of a CSV (`,`) or TSV (tab) file from its beginning.

    Raises:
        InputError: it is no header, or a column comes twice.
    """
    delimiter = "\t" if extension == ".tsv" else ","
    lines = _CountedLines(_iterate_lines(stream, name, 0, None, config.max_sidecar_bytes))
    try:
        columns = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise InputError(f"{name}:1: no CSV header ({error})") from None
    except UnicodeDecodeError:
        raise InputError(f"{name}:1: the header is no UTF-8 text") from None
    columns = [column.strip() for column in columns]
    if len(set(columns)) < len(columns):
        raise InputError(f"{name}:1: a column comes twice: {delimiter.join(columns)[:200]!a}")
    return _CsvHeader(tuple(columns), delimiter, lines.num_bytes, lines.num_lines)


def _check_csv_header(header: _CsvHeader, name: str, config: ReadConfig) -> None:
    """Checks that a header is that of a manifest.

    Raises:
        InputError: there is no column of videos, or others look like windows that would not be read.
    """
    if video_column_of(config) not in header.columns:
        raise InputError(f"{name}:1: {column_missing(header.columns, config)}")
    check_window_columns(header.columns, f"{name}:1", config)
    check_chosen_columns(header.columns, f"{name}:1", config, is_header=True)


def _iterate_csv_rows(
    stream: ByteStream, name: str, header: _CsvHeader, start: int, stop: int | None, max_bytes: int
) -> Iterator[RawRow]:
    """Yields the records of a CSV file from byte `start` on; a quoted value may hold line ends."""
    lines = _CountedLines(_iterate_lines(stream, name, start, stop, max_bytes))
    records = csv.reader(lines, delimiter=header.delimiter, strict=True)
    while True:
        row_start, first_line = start + lines.num_bytes, header.line + lines.num_lines + 1
        values, problem = _read_record(records, header)
        content = lines.take_hash()
        if values is None and not problem:
            return
        if values != {}:
            content = f"{header.columns} {content}"  # the same line under other columns says something else
            yield RawRow(first_line, values, problem, content, row_start, start + lines.num_bytes)


class _CountedLines:
    """Decoded lines for `csv.reader`, with the bytes and lines it has taken so far."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.num_lines = 0

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._digest.update(line)
        self.num_bytes += len(line)
        self.num_lines += 1
        return line.decode("utf-8-sig" if self.num_lines == 1 else "utf-8")

    def take_hash(self) -> str:
        """Returns the hash of the lines since the last call."""
        taken = self._digest.hexdigest()
        self._digest = hashlib.sha256()
        return taken


def _read_record(records: Iterator[list[str]], header: _CsvHeader) -> tuple[dict[str, object] | None, str]:
    """Returns the next record; an empty dictionary for a blank line, None with a problem, None at the end."""
    try:
        record = next(records)
    except StopIteration:
        return None, ""
    except csv.Error as error:
        return None, f"no CSV record ({error})"
    except UnicodeDecodeError as error:
        return None, f"no UTF-8 text (byte {error.object[error.start]:#x})"
    if not record:
        return {}, ""
    if len(record) != len(header.columns):
        return None, f"{len(record)} values, wanted {len(header.columns)}: {', '.join(header.columns)[:200]}"
    return dict(zip(header.columns, record, strict=True)), ""


def _parse_object(line: bytes, max_bytes: int) -> tuple[dict[str, object] | None, str]:
    if len(line) > max_bytes:
        return None, f"the line is longer than {max_bytes} bytes"
    try:
        values = parse_json(line.decode("utf-8-sig"))
    except ValueError as error:
        return None, f"no JSON object on this line ({error}): {line[:60].decode('utf-8', 'replace').strip()!a}"
    if not isinstance(values, dict):
        return None, f"wanted a JSON object, got {str(values)[:60]!a}"
    return cast("dict[str, object]", values), ""


def _iterate_lines(stream: ByteStream, name: str, start: int, stop: int | None, max_bytes: int) -> Iterator[bytes]:
    """Yields the lines of [start, stop) with their ends."""
    buffered = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
    left = stop - start if stop is not None else None
    while left is None or left > 0:
        line = buffered.readline(max_bytes + 2)
        if not line:
            return
        if len(line) > max_bytes and not line.endswith(b"\n"):
            raise InputError(f"{name}: a line after byte {start} is longer than {max_bytes} bytes: is it a manifest?")
        left = left - len(line) if left is not None else None
        start += len(line)
        yield line


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
