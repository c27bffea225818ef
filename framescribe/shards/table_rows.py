"""The rows of JSON, JSON Lines, CSV and TSV files and of lists, compressed or not, each with its bytes in the file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import cast

from framescribe.shards.kinds import compression_of, path_of, split_extension
from framescribe.shards.rows import parse_json, video_column_of
from framescribe.shards.tar_stream import DecompressedStream
from framescribe.storage.access import Location, Store
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError
from framescribe.storage.ranged_file import ByteStream, open_shard
from framescribe.storage.redaction import strip_credentials

_PLAN_BLOCK_BYTES = 8 << 20
_ParseLine = Callable[[bytes], tuple[dict[str, object] | None, str]]
_DECODER = json.JSONDecoder()
_LIST_START = re.compile(r"(\xef\xbb\xbf)?[ \t\r\n]*\[?")
_BETWEEN_ENTRIES = re.compile(r"[ \t\r\n,]*")


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
class CsvHeader:
    """The first record of a CSV file, and the byte and line after it."""

    columns: tuple[str, ...]
    delimiter: str
    stop: int
    line: int


def iterate_table(
    store: Store,
    manifest: Location,
    start: int = 0,
    stop: int | None = None,
    check_header: Callable[[CsvHeader, str, ReadConfig], None] | None = None,
) -> Iterator[RawRow]:
    """Yields the rows between two bytes of a manifest, decompressed, whatever its columns are.

    Raises:
        InputError: it has no header, `check_header` refuses it, or a line is too long.
    """
    extension = _extension_of(manifest)
    name, max_bytes = strip_credentials(manifest.uri), store.config.max_sidecar_bytes
    with closing(_open(store, manifest, start, stop)) as stream:
        if extension in (".jsonl", ".ndjson"):
            yield from _iterate_line_rows(stream, name, start, stop, max_bytes, partial(_parse_object, max_bytes))
            return
        if extension == ".txt":
            parse = partial(_parse_address, video_column_of(store.config))
            yield from _iterate_line_rows(stream, name, start, stop, max_bytes, parse)
            return
        if extension == ".json":
            yield from _iterate_list_rows(stream, name, start, stop, max_bytes)
            return
        header = _read_csv_header(stream, name, extension, store.config) if start == 0 else None
    if header is None:
        with closing(_open(store, manifest, 0, None, 1 << 16)) as stream:
            header = _read_csv_header(stream, name, extension, store.config)
    if check_header is not None:
        check_header(header, name, store.config)
    with closing(_open(store, manifest, max(start, header.stop), stop)) as stream:
        yield from _iterate_csv_rows(stream, name, header, max(start, header.stop), stop, max_bytes)


def _extension_of(manifest: Location) -> str:
    """Returns the suffix without that of its compression."""
    extension = split_extension(path_of(manifest.uri))[1]
    return extension.rpartition(".")[0] if compression_of(manifest.uri) else extension


def _open(
    store: Store, manifest: Location, start: int, stop: int | None, block_bytes: int = _PLAN_BLOCK_BYTES
) -> ByteStream:
    """Opens a manifest at a byte of its content; a compressed one is read up to there."""
    compression = compression_of(manifest.uri)
    if compression is None:
        return open_shard(store, manifest, stop, start, block_bytes)
    compressed, size = open_shard(store, manifest, block_bytes=block_bytes), store.size(manifest)
    stream = DecompressedStream(compressed, compression, size or 1 << 30, strip_credentials(manifest.uri))
    stream.seek(start)
    return stream


def _iterate_line_rows(
    stream: ByteStream, name: str, start: int, stop: int | None, max_bytes: int, parse: _ParseLine
) -> Iterator[RawRow]:
    """Yields the rows of a file with one per line; blank lines are passed over."""
    position = start
    for number, line in enumerate(_iterate_lines(stream, name, start, stop, max_bytes), start=1):
        row_start, position = position, position + len(line)
        if line.strip():
            values, problem = parse(line)
            yield RawRow(number, values, problem, _hash(line), row_start, position)


def _iterate_list_rows(stream: ByteStream, name: str, start: int, stop: int | None, max_bytes: int) -> Iterator[RawRow]:
    """Yields the entries of a JSON list, or of JSON objects one behind the other; never more than a few MiB at once.

    Raises:
        InputError: an entry is no JSON or too long, or the list is not closed.
    """
    scanner = _ListScanner(stream, name, start, stop, max_bytes)
    if start == 0:
        scanner.open_list()
    while (entry := scanner.take_entry()) is not None:
        line, row_start, content = entry
        values, problem = _parse_object(max_bytes, content)
        yield RawRow(line, values, problem, _hash(content), row_start, row_start + len(content))


class _ListScanner:
    """Finds the entries of a JSON list by their bytes.

    Bytes are looked at as Latin-1, one character each: all that ends an entry is ASCII, whatever its texts are.
    """

    def __init__(self, stream: ByteStream, name: str, start: int, stop: int | None, max_bytes: int) -> None:
        self._stream, self._name, self._max_bytes = stream, name, max_bytes
        self._left = stop - start if stop is not None else None
        self._text, self._at = "", 0
        self._start, self._line = start, 1  # byte of the text's first character, line of the next
        self._is_open = False

    def open_list(self) -> None:
        """Passes the bracket that begins the list."""
        self._fill()
        matched = _LIST_START.match(self._text)
        assert matched is not None
        self._is_open = matched.group().endswith("[")
        self._go_to(matched.end())

    def take_entry(self) -> tuple[int, int, bytes] | None:
        """Returns line, first byte and bytes of the next entry, None at the end."""
        self._fill()
        self._skip_separators()
        first = self._text[self._at : self._at + 1]
        if not first or (first == "]" and self._is_open):
            if not first and self._is_open and self._left is None:
                raise InputError(f"{self._name} ends in the middle of its list: it is truncated; copy it again")
            return None
        try:
            stop = _DECODER.raw_decode(self._text, self._at)[1]
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self._name}:{self._line}: no JSON of up to {self._max_bytes} bytes ({error}): wanted a list of "
                'objects, such as [{"video": "clips/000.mp4"}]'
            ) from None
        entry = self._line, self._start + self._at, self._text[self._at : stop].encode("latin-1")
        self._go_to(stop)
        return entry

    def _skip_separators(self) -> None:
        while (matched := _BETWEEN_ENTRIES.match(self._text, self._at)) and matched.end() > self._at:
            self._go_to(matched.end())
            self._fill()

    def _go_to(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at

    def _fill(self) -> None:
        """Reads on, so that the next entry is there as a whole if it is not too long."""
        if len(self._text) - self._at > self._max_bytes + 1:
            return
        wanted = self._max_bytes + _PLAN_BLOCK_BYTES
        data = self._stream.read(wanted if self._left is None else min(wanted, self._left))
        self._left = None if self._left is None else self._left - len(data)
        self._start += self._at
        self._text, self._at = self._text[self._at :] + data.decode("latin-1"), 0


def _read_csv_header(stream: ByteStream, name: str, extension: str, config: ReadConfig) -> CsvHeader:
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
    return CsvHeader(tuple(columns), delimiter, lines.num_bytes, lines.num_lines)


def _iterate_csv_rows(
    stream: ByteStream, name: str, header: CsvHeader, start: int, stop: int | None, max_bytes: int
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


def _read_record(records: Iterator[list[str]], header: CsvHeader) -> tuple[dict[str, object] | None, str]:
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


def _parse_address(column: str, line: bytes) -> tuple[dict[str, object] | None, str]:
    try:
        return {column: line.decode("utf-8-sig").strip()}, ""
    except UnicodeDecodeError as error:
        return None, f"no UTF-8 text (byte {error.object[error.start]:#x})"


def _parse_object(max_bytes: int, line: bytes) -> tuple[dict[str, object] | None, str]:
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


def is_stream(manifest: Location) -> bool:
    """Whether a manifest is read from its beginning only: it has no line ends, or not in the file itself."""
    return compression_of(manifest.uri) is not None or _extension_of(manifest) == ".json"
