"""Which clips an SQL expression over the columns of their rows keeps: `--where "duration_s >= 4 and motion > 0.02"`.

DuckDB evaluates it, with no access to files, to the network or to variables of this process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from framescribe.shards.parquet import iterate_rows, open_parquet
from framescribe.shards.parquet_columns import list_metadata_columns
from framescribe.shards.rows import list_read_columns, parse_row
from framescribe.shards.table_rows import iterate_table
from framescribe.shards.windows import parse_windows
from framescribe.storage.access import Store
from framescribe.storage.errors import InputError
from framescribe.storage.redaction import clean_text, strip_credentials
from pipeline.subset import Subset
from pipeline.units import ListedShard
from schemas.records import InputKind

_ROWS_AT_ONCE = 4096
_WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")  # 007 is a name
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*|(?=\.))(\.\d+)?([eE][+-]?\d+)?")
_MAX_SHOWN_CHARS = 400


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a shard, each with the number of its clips.

    Attributes:
        columns: that are known before rows are read, with their types.
        is_csv: whether all values are texts that may be numbers.
    """

    rows: Iterator[tuple[Mapping[str, object], int]]
    columns: Mapping[str, pa.DataType]
    is_csv: bool = False


def keep_clips(store: Store, shards: Sequence[ListedShard], subset: Subset | None) -> tuple[ListedShard, ...]:
    """Returns the shards, marked with the clips that the expression of a subset keeps, if it has one.

    Raises:
        InputError: DuckDB is not installed, the expression is none, columns that it names are not there, a shard has
            no columns, or no clip is kept.
    """
    if subset is None or subset.where is None:
        return tuple(shards)
    expression = _Expression(subset.where)
    marked = tuple(_keep(store, listed, expression) for listed in shards)
    if not any(listed.num_kept for listed in marked):
        num_listed, num_null = sum(len(one.id_hashes) for one in marked), sum(one.num_null for one in marked)
        raise InputError(
            f"--where {subset.where!r} keeps none of {num_listed:,} clips: {num_listed - num_null:,} false, "
            f"{num_null:,} null"
        )
    return marked


class _Expression:
    """An SQL expression in a database of its own that reads nothing but the table that it is given."""

    def __init__(self, where: str) -> None:
        try:
            import duckdb
        except ModuleNotFoundError:
            raise InputError("--where needs DuckDB: pip install 'framescribe[where]'") from None
        self.text, self._duckdb = where, duckdb
        closed: dict[str, str | bool | int | float | list[str]]
        closed = {"enable_external_access": False, "python_enable_replacements": False, "lock_configuration": True}
        self._database = duckdb.connect(":memory:", config=closed)
        try:
            self._sql = duckdb.SQLExpression(where)
            self._check_same_every_time()
        except duckdb.Error as error:
            raise self._refuse(error) from None

    def names(self, column: str) -> bool:
        """Whether a column may be one of those that are read; it may be one too many."""
        return re.search(rf"(?<!\w){re.escape(column)}(?!\w)", self.text, re.IGNORECASE) is not None

    def evaluate(self, table: pa.Table, name: str, columns: Sequence[str]) -> list[bool | None]:
        """Returns what it says of each row."""
        try:
            rows = self._database.from_arrow(table)
            rows.filter(self._sql)  # refuses what is no condition on a single row, such as an aggregate
            said = rows.select(self._sql.cast(self._duckdb.sqltype("BOOLEAN"))).fetchall()
        except self._duckdb.Error as error:
            raise self._refuse(error, f"{name}: ", columns) from None
        return [value for (value,) in said]

    def _check_same_every_time(self) -> None:
        found = self._database.sql("select function_name from duckdb_functions() where stability <> 'CONSISTENT'")
        changing = "|".join(sorted({re.escape(name) for (name,) in found.fetchall()}))
        called = re.search(rf"\b({changing})\s*\(|\b(current_\w+|localtime\w*)\b", self.text, re.IGNORECASE)
        if called:
            raise InputError(
                f"--where {self.text!r}: {called[0]!r} says another thing at another time, and a run that goes on "
                "would take other clips; --sample N draws some by their ids"
            )

    def _refuse(self, error: Exception, place: str = "", columns: Sequence[str] = ()) -> InputError:
        said = " ".join(str(error).partition("\n")[0].split())
        there = clean_text(", ".join(columns))[:_MAX_SHOWN_CHARS]
        return InputError(f"{place}--where {self.text!r}: {said}{f'; columns there: {there}' if columns else ''}")


def _keep(store: Store, listed: ListedShard, expression: _Expression) -> ListedShard:
    name = strip_credentials(listed.shard.uri)
    table, columns = _read_table(_open_rows(store, listed, expression), expression)
    if not table.num_columns:
        there = clean_text(", ".join(columns))[:_MAX_SHOWN_CHARS] or "none"
        raise InputError(f"{name}: --where {expression.text!r} names none of its columns; columns there: {there}")
    said = expression.evaluate(table, name, columns)
    if len(said) != len(listed.id_hashes):
        raise InputError(f"{name} changed while it was read: start again")
    kept = np.array([value is True for value in said], bool)
    return replace(listed, kept=kept, num_null=sum(value is None for value in said))


def _read_table(rows: _Rows, expression: _Expression) -> tuple[pa.Table, list[str]]:
    """Returns the columns that an expression may name, a row for each clip, and the names of all columns."""
    columns = dict.fromkeys(rows.columns)
    values: dict[str, list[object]] = {column: [] for column in columns if expression.names(column)}
    num_clips = 0
    for row, clips_of_row in rows.rows:
        for column in (column for column in row if column not in columns):
            columns[column] = None
            values |= {column: [None] * num_clips} if expression.names(column) else {}
        for column, cells in values.items():
            cells += [row.get(column)] * clips_of_row
        num_clips += clips_of_row
    if rows.is_csv:
        values = {column: _parse_numbers(cells) for column, cells in values.items()}
    arrays = {column: _make_array(cells, rows.columns.get(column)) for column, cells in values.items()}
    return pa.table(arrays), [*columns]


def _make_array(cells: list[object], kind: pa.DataType | None) -> pa.Array:
    """Returns a column, as texts where its cells differ in type."""
    try:
        return pa.array(cells, kind)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if cell is None else str(cell) for cell in cells])


def _parse_numbers(cells: list[object]) -> list[object]:
    """Returns cells of a CSV column as numbers where all of them are some, None where they are empty."""
    texts = [cell.strip() or None if isinstance(cell, str) else None for cell in cells]
    if all(text is None or _WHOLE_NUMBER.fullmatch(text) for text in texts):
        return [None if text is None else int(text) for text in texts]
    if all(text is None or _NUMBER.fullmatch(text) for text in texts):
        return [None if text is None else float(text) for text in texts]
    return [cell or None for cell in cells]


def _open_rows(store: Store, listed: ListedShard, expression: _Expression) -> _Rows:
    shard = listed.shard
    if shard.kind is InputKind.FILES:
        return _Rows(((json.loads(about), 1) for about in shard.metadata or ("{}",) * len(shard.files)), {})
    if shard.kind is InputKind.PARQUET:
        return _open_parquet_rows(store, listed, expression)
    if shard.kind is InputKind.MANIFEST:
        is_csv = re.search(r"\.[ct]sv(\.\w+)?$", shard.uri, re.IGNORECASE) is not None
        return _Rows(_iterate_manifest(store, listed), {}, is_csv)
    raise InputError(
        f"{strip_credentials(shard.uri)}: --where reads the columns of manifests, Parquet, and tables beside "
        "video files; a tar has none"
    )


def _iterate_manifest(store: Store, listed: ListedShard) -> Iterator[tuple[Mapping[str, object], int]]:
    name = strip_credentials(listed.shard.uri)
    for raw in iterate_table(store, store.locate(listed.shard.uri)):
        if raw.values is not None:
            yield raw.values, len(parse_row(raw.values, f"{name}:{raw.line}", store.config))


def _open_parquet_rows(store: Store, listed: ListedShard, expression: _Expression) -> _Rows:
    location = store.locate(listed.shard.uri)
    with closing(open_parquet(store, location)) as shard:
        whole = {*list_metadata_columns(shard.schema, ())}
        kinds = {field.name: field.type for field in shard.schema if field.name in whole}
        windows = list_read_columns(shard.schema.names, store.config)
    wanted = [*dict.fromkeys([*windows, *filter(expression.names, kinds)])]

    def iterate() -> Iterator[tuple[Mapping[str, object], int]]:
        with closing(open_parquet(store, location)) as shard:
            for number, row in iterate_rows(shard, wanted, 0, shard.num_rows, _ROWS_AT_ONCE) if wanted else ():
                yield row, len(parse_windows(row, f"{shard.name}: row {number}", store.config))

    return _Rows(iterate(), kinds)
