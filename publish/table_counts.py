"""What the tables hold, counted while they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

_SAMPLE_CLIPS = 3
_COUNTED = (("captions", "status"), ("qa", "status"), ("qa", "kind"), ("failures", "reason"))


@dataclass(slots=True)
class TableCounts:
    """Counts and a sample of the tables. Not frozen: it grows with every slice.

    Attributes:
        rows: table name to rows.
        values: `table.column` to value to rows.
        origin: the first row of `clips` or `failures`: its run columns are those of every row.
        num_verified: QA pairs that the second look confirmed.
        samples: rows of `captions` and `qa` of the first clips with a good caption, as dicts.
    """

    rows: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[str]] = field(default_factory=lambda: {f"{t}.{c}": Counter() for t, c in _COUNTED})
    origin: dict[str, object] = field(default_factory=dict)
    num_verified: int = 0
    samples: dict[str, list[dict[str, object]]] = field(default_factory=lambda: {"captions": [], "qa": []})

    def add(self, tables: Mapping[str, pa.Table]) -> None:
        """Counts the next rows of every table."""
        for name, rows in tables.items():
            self.rows[name] += rows.num_rows
        for table, column in _COUNTED:
            self.values[f"{table}.{column}"].update(_count_values(tables[table][column]))
        self.num_verified += pc.sum(tables["qa"]["verified"], min_count=0).as_py()
        self.origin = self.origin or _first_row(tables["clips"]) or _first_row(tables["failures"])
        if not self.samples["captions"]:
            self.samples = _take_samples(tables["captions"], tables["qa"])


def _first_row(table: pa.Table) -> dict[str, object]:
    return next(iter(table.slice(0, 1).to_pylist()), {})


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(entry["values"]): entry["counts"] for entry in column.value_counts().to_pylist()}


def _take_samples(captions: pa.Table, qa: pa.Table) -> dict[str, list[dict[str, object]]]:
    good = captions.filter(pc.and_(pc.equal(captions["status"], "ok"), pc.equal(captions["caption_index"], 0)))
    shown = good.slice(0, _SAMPLE_CLIPS)
    of_shown = qa.filter(pc.and_(pc.is_in(qa["clip_id"], shown["clip_id"]), pc.equal(qa["status"], "ok")))
    return {"captions": shown.to_pylist(), "qa": of_shown.to_pylist()}
