"""What people decided about rows on the page of `review`: read from the file that it saves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from framescribe.errors import FrameScribeError

DECISIONS_KIND = "framescribe-decisions"
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

    Raises:
        DecisionsError: the file is not what the page of `review` saves.
        FileNotFoundError: there is none.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise DecisionsError(f"{path} has over {_MAX_BYTES} bytes: no page of `review` saved that")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["kind"] != DECISIONS_KIND:
            raise ValueError(f"kind {content['kind']!r}")
        return dict(_read_decision(one) for one in content["decisions"])
    except (ValueError, KeyError, TypeError) as error:
        raise DecisionsError(
            f"{path} is no file of decisions ({type(error).__name__}: {error}): wanted what the page of `review` saves"
        ) from None


def _read_decision(row: Mapping[str, object]) -> tuple[tuple[str, str], Decision]:
    text = row.get("text")
    verdict = Verdict(row["verdict"])
    if (verdict is Verdict.FIX) != (isinstance(text, str) and bool(text.strip())):
        raise ValueError(f"a fix, and nothing else, has a text: {row['clip_id']!r}, {row['row']!r}")
    return (str(row["clip_id"]), str(row["row"])), Decision(
        verdict, str(row["digest"]), text if isinstance(text, str) else None
    )
