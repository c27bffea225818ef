"""Splits manifests into rows with their byte ranges, so that a worker reads only its own."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from shards.clip_rows import check_chosen_columns, check_window_columns, column_missing, video_column_of
from shards.config import ReadConfig
from shards.errors import InputError
from shards.ranged_file import ByteStream
from shards.sidecars import parse_json


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


def iterate_json_rows(stream: ByteStream, name: str, start: int, stop: int | None, max_bytes: int) -> Iterator[RawRow]:
    """Yields the rows of a JSON Lines file; blank lines are passed over."""
    position = start
    for number, line in enumerate(_iterate_lines(stream, name, start, stop, max_bytes), start=1):
        row_start, position = position, position + len(line)
        if line.strip():
            values, problem = _parse_object(line, max_bytes)
            yield RawRow(number, values, problem, _hash(line), row_start, position)


def read_csv_header(stream: ByteStream, name: str, extension: str, config: ReadConfig) -> CsvHeader:
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


def check_csv_header(header: CsvHeader, name: str, config: ReadConfig) -> None:
    """Checks that a header is that of a manifest.

    Raises:
        InputError: there is no column of videos, or others look like windows that would not be read.
    """
    if video_column_of(config) not in header.columns:
        raise InputError(f"{name}:1: {column_missing(header.columns, config)}")
    check_window_columns(header.columns, f"{name}:1", config)
    check_chosen_columns(header.columns, f"{name}:1", config, enough=2)


def iterate_csv_rows(
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
