"""What people decided about rows: on the page of `review`, which saves a file, or in the sample of `report`."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from framescribe.errors import FrameScribeError

DECISIONS_KIND = "framescribe-decisions"
# Of the sample that `report` writes; people fill in the last two.
SHEET_COLUMNS = (
    *("clip_id", "row", "kind", "question_type", "confirmed", "question", "options", "shown", "digest"),
    *("verdict", "text"),
)
_MAX_BYTES = 1 << 30


class Verdict(str, Enum):
    """What is to become of a row."""

    ACCEPT = "accept"
    REJECT = "reject"
    FIX = "fix"


class DecisionsError(FrameScribeError, ValueError):
    """The file of decisions is none, or is damaged."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about one row.

    Attributes:
        digest: of the text that was shown, see `row_digest`: a row that says something else by now is undecided.
        text: of a fix, what stands in place of the caption or the answer; else None.
    """

    verdict: Verdict
    digest: str
    text: str | None = None


def row_digest(question: str, text: str) -> str:
    """Returns a short digest of a row's texts: the question, empty for a caption, and the answer or the caption."""
    return hashlib.sha256(f"{question}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_decisions(path: Path) -> dict[tuple[str, str], Decision]:
    """Returns clip id and row, such as `caption 0` or `qa 3`, to the decision about it.

    A `.csv` or `.jsonl` file is a sample of `report`, of which rows without a verdict are passed over; any other file
    is one that the page of `review` saved.

    Raises:
        DecisionsError: the file is neither.
        FileNotFoundError: there is none.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise DecisionsError(f"{path} has over {_MAX_BYTES} bytes: no page of `review` saved that")
    try:
        return dict(_read_decision(one) for one in _read_rows(path))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DecisionsError(
            f"{path} is no file of decisions ({type(error).__name__}: {error}): wanted what the page of `review` "
            "saves, or a sample of `report` whose column `verdict` says accept, reject or fix"
        ) from None


def guard_cell(cell: str) -> str:
    """Returns a cell of a CSV file that no spreadsheet takes for a formula or a number; `read_decisions` undoes it."""
    return f"'{cell}" if re.match(r"[-=+@'\t\r\d.]", cell) else cell


def _read_rows(path: Path) -> Iterable[Mapping[str, object]]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            cells = [{name: cell.removeprefix("'") for name, cell in row.items()} for row in csv.DictReader(file)]
        return [_from_sheet(row) for row in cells if row["verdict"].strip()]
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        return [_from_sheet(row) for row in rows if row["verdict"]]
    content = json.loads(text)
    if content["kind"] != DECISIONS_KIND:
        raise ValueError(f"kind {content['kind']!r}")
    return content["decisions"]


def _from_sheet(row: Mapping[str, str]) -> Mapping[str, object]:
    return {**row, "verdict": row["verdict"].strip().lower(), "text": row["text"] or None}


def _read_decision(row: Mapping[str, object]) -> tuple[tuple[str, str], Decision]:
    text = row.get("text")
    verdict = Verdict(row["verdict"])
    if (verdict is Verdict.FIX) != (isinstance(text, str) and bool(text.strip())):
        raise ValueError(f"a fix, and nothing else, has a text: {row['clip_id']!r}, {row['row']!r}")
    return (str(row["clip_id"]), str(row["row"])), Decision(
        verdict, str(row["digest"]), text if isinstance(text, str) else None
    )
