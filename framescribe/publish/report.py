"""What a publish found and wrote, and what its tables hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from framescribe.publish.export_config import MIN_PROBABILITY
from schemas.records import WITHDRAWN, LimitedTo

_SAMPLE_CLIPS = 3
_COUNTED = (
    ("captions", "status"),
    ("qa", "status"),
    ("qa", "kind"),
    ("qa", "answer_letter"),
    ("qa", "giveaway"),
    ("qa", "score_status"),
    ("qa", "is_rotation_consistent"),
    ("failures", "reason"),
)


@dataclass(frozen=True, slots=True)
class PublishReport:
    """How far a run is, and what its tables hold.

    Attributes:
        fingerprint: of the run's settings.
        num_units_planned, num_units_done: work units, and those among them with a part.
        num_parts_outdated: parts that are in no table, because their shard was cut into other units since.
        missing_units: ids of planned units without a part, sorted.
        num_rows: table name to rows.
        num_consistent: QA pairs whose answer was the same, or close to it, when asked again.
        failure_reasons: reason to failed clips.
        limited: to what part of their inputs the starts were limited; empty where they took all.
    """

    fingerprint: str
    num_units_planned: int
    num_units_done: int
    num_parts_outdated: int
    missing_units: tuple[str, ...]
    num_rows: Mapping[str, int]
    num_consistent: int
    failure_reasons: Mapping[str, int] = field(default_factory=dict)
    limited: tuple[LimitedTo, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is in the tables."""
        return not self.missing_units

    @property
    def num_annotated(self) -> int:
        """Clips with captions or QA pairs."""
        return self.num_rows["clips"]

    @property
    def num_failed(self) -> int:
        """Clips that could not be annotated."""
        return self.num_rows["failures"]

    @property
    def num_withdrawn(self) -> int:
        """Those of the failed clips that were withdrawn."""
        return self.failure_reasons.get(WITHDRAWN, 0)

    @property
    def num_clips(self) -> int:
        """Clips with a row in `clips` or `failures`."""
        return self.num_annotated + self.num_failed


@dataclass(slots=True)
class TableCounts:
    """Counts and a sample of the tables. Not frozen: it grows with every slice.

    Attributes:
        rows: table name to rows.
        values: `table.column` to value to rows.
        origin: the first row of `clips` or `failures`: its run columns are those of every row.
        num_consistent: QA pairs whose answer was the same, or close to it, when asked again.
        num_asked_again: QA pairs that were asked again.
        num_likely: QA pairs whose answer is as likely as the default filter of exports wants it.
        num_yes, num_no: open-ended pairs whose answer opens with yes, or with no.
        samples: rows of `captions` and `qa` of the first clips with a good caption, as dicts.
    """

    rows: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[str]] = field(default_factory=lambda: {f"{t}.{c}": Counter() for t, c in _COUNTED})
    origin: dict[str, object] = field(default_factory=dict)
    num_consistent: int = 0
    num_asked_again: int = 0
    num_likely: int = 0
    num_yes: int = 0
    num_no: int = 0
    samples: dict[str, list[dict[str, object]]] = field(default_factory=lambda: {"captions": [], "qa": []})

    def add(self, tables: Mapping[str, pa.Table]) -> None:
        """Counts the next rows of every table."""
        for name, rows in tables.items():
            self.rows[name] += rows.num_rows
        for table, column in _COUNTED:
            self.values[f"{table}.{column}"].update(_count_values(tables[table][column]))
        self.num_consistent += pc.sum(tables["qa"]["is_consistent"], min_count=0).as_py()
        self.num_asked_again += pc.count(tables["qa"]["is_consistent"]).as_py()
        self.num_likely += _count_likely(tables["qa"])
        self.num_yes += _count_openings(tables["qa"], "yes")
        self.num_no += _count_openings(tables["qa"], "no")
        self.origin = self.origin or _first_row(tables["clips"]) or _first_row(tables["failures"])
        if not self.samples["captions"]:
            self.samples = _take_samples(tables["captions"], tables["qa"])


def _first_row(table: pa.Table) -> dict[str, object]:
    return next(iter(table.slice(0, 1).to_pylist()), {})


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(entry["values"]): entry["counts"] for entry in column.value_counts().to_pylist()}


def _count_likely(qa: pa.Table) -> int:
    probabilities = pc.exp(pc.divide(qa["answer_logprob"], pc.cast(qa["num_answer_tokens"], pa.float64())))
    return int(pc.sum(pc.greater_equal(probabilities, MIN_PROBABILITY), min_count=0).as_py())


def _count_openings(qa: pa.Table, word: str) -> int:
    is_pair = pc.and_(pc.equal(qa["kind"], "open_ended"), pc.equal(qa["status"], "ok"))
    opens = pc.match_substring_regex(qa["answer"], rf"^\W*{word}\b", ignore_case=True)
    return int(pc.sum(pc.and_(is_pair, opens), min_count=0).as_py())


def _take_samples(captions: pa.Table, qa: pa.Table) -> dict[str, list[dict[str, object]]]:
    good = captions.filter(pc.and_(pc.equal(captions["status"], "ok"), pc.equal(captions["caption_index"], 0)))
    shown = good.slice(0, _SAMPLE_CLIPS)
    of_shown = qa.filter(pc.and_(pc.is_in(qa["clip_id"], shown["clip_id"]), pc.equal(qa["status"], "ok")))
    return {"captions": shown.to_pylist(), "qa": of_shown.to_pylist()}
