"""Shows what the demo run wrote beside what the demo clips really show: `python -m demo.show out/demo`."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CLIPS = Path(__file__).parent / "clips"
CARD = Path(__file__).parent / "checkpoint" / "README.md"
_CARD_LINE = re.compile(r"^\| caption \| (\d+) \| (\d+) \|", re.MULTILINE)
MAX_QUESTIONS_SHOWN = 3
TABLES = ("captions", "qa", "clips", "failures")


@dataclass(frozen=True, slots=True)
class ShownClip:
    """One demo clip: what it shows, and what was written about it, consistent and likely QA pairs first and marked."""

    name: str
    truth: str
    caption: str
    qa_pairs: tuple[tuple[str, str], ...]

    @property
    def is_right(self) -> bool:
        """Whether the caption says exactly what the clip shows, leaving aside case and spaces."""
        return _words(self.caption) == _words(self.truth)


def read_shown_clips(output: Path, clips: Path) -> list[ShownClip]:
    """Returns every demo clip of the truth file with its caption, or "" where the run wrote none."""
    captions, qa_rows = _read_rows(output, "captions"), _read_rows(output, "qa")
    return [
        ShownClip(name, truth, _caption_of(name, captions), _qa_pairs_of(name, qa_rows))
        for name, truth in read_truth(clips).items()
    ]


def read_truth(clips: Path) -> dict[str, str]:
    """Returns what each clip shows, by its file name."""
    lines = (clips / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["file"]: row["caption"] for row in map(json.loads, lines)}


def describe(shown: ShownClip) -> str:
    """Returns the lines printed for one clip."""
    questions = [
        f"  Q        {question}\n  A        {answer}" for question, answer in shown.qa_pairs[:MAX_QUESTIONS_SHOWN]
    ]
    return "\n".join([shown.name, f"  shows    {shown.truth}", f"  caption  {shown.caption}", *questions])


def summarise(shown_clips: Sequence[ShownClip], output: Path) -> str:
    """Returns the closing lines: how many captions are right, and where the tables are."""
    num_right = sum(shown.is_right for shown in shown_clips)
    tables = [f"  {output / name}/  {len(_read_rows(output, name))} rows" for name in TABLES]
    return "\n".join([f"{num_right} of {len(shown_clips)} captions say what the clip shows. The tables:", *tables])


def read_promised_fraction(card: Path) -> float:
    """Returns the fraction of captions that the model card says are right, 0 to 1.

    Raises:
        ValueError: the card has no line `| caption | right | asked |`.
    """
    line = _CARD_LINE.search(card.read_text(encoding="utf-8"))
    if line is None:
        raise ValueError(
            f"{card} does not say how many captions are right: wanted a line like `| caption | 96 | 100 |`"
        )
    return int(line[1]) / int(line[2])


def find_faults(shown_clips: Sequence[ShownClip], output: Path, promised_fraction: float) -> list[str]:
    """Returns what is wrong with a demo run, one line each; empty when nothing is."""
    faults = [f"{shown.name} has no caption" for shown in shown_clips if not shown.caption]
    faults += [f"{shown.name} has no QA pair" for shown in shown_clips if not shown.qa_pairs]
    faults += [f"{row['clip_id']} failed: {row['message']}" for row in _read_rows(output, "failures")]
    num_right = sum(shown.is_right for shown in shown_clips)
    num_wanted = fewest_expected(len(shown_clips), promised_fraction)
    if num_right < num_wanted:
        faults.append(
            f"only {num_right} of {len(shown_clips)} captions are right, wanted {num_wanted}: "
            f"the model card promises {promised_fraction:.0%}"
        )
    if not (output / "_SUCCESS").exists():
        faults.append(f"{output / '_SUCCESS'} is missing: the run did not finish")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison; with --check returns 1 and says why when the run is not as good as it must be."""
    parser = argparse.ArgumentParser(prog="python -m demo.show", description=__doc__)
    parser.add_argument("output", type=Path, help="the folder that the demo run wrote")
    parser.add_argument("--check", action="store_true", help="fail unless every clip has a caption and most are right")
    options = parser.parse_args(arguments)
    if not any((options.output / table).is_dir() for table in TABLES):
        parser.error(f"{options.output} holds no tables: wanted the --output of a finished demo run, such as out/demo")
    shown_clips = read_shown_clips(options.output, CLIPS)
    faults = find_faults(shown_clips, options.output, read_promised_fraction(CARD)) if options.check else []
    print("\n".join(map(describe, shown_clips)), "", summarise(shown_clips, options.output), *faults, sep="\n")
    return 1 if faults else 0


def fewest_expected(num_clips: int, fraction: float) -> int:
    """Two standard deviations below the mean: a few clips say little about a fraction."""
    return math.ceil(num_clips * fraction - 2 * math.sqrt(num_clips * fraction * (1 - fraction)))


def _read_rows(output: Path, table: str) -> list[dict[str, object]]:
    folder = output / table
    return pq.read_table(folder).to_pylist() if folder.is_dir() else []


def _caption_of(name: str, rows: list[dict[str, object]]) -> str:
    return next((str(row["text"]) for row in rows if _is_about(row, name)), "")


def _qa_pairs_of(name: str, rows: list[dict[str, object]]) -> tuple[tuple[str, str], ...]:
    usable = [row for row in rows if _is_about(row, name) and row["status"] == "ok"]
    usable.sort(key=lambda row: (row["is_consistent"] is not True, -(_probability_of(row) or 0.0)))
    shown: dict[str, str] = {}
    for row in usable:  # a multiple choice has the question of its open-ended pair
        probability = _probability_of(row)
        remark = "" if probability is None else f"  (probability {probability:.2f})"
        remark = "  (consistent)" if row["is_consistent"] else remark
        shown.setdefault(str(row["question"]), f"{row['answer']}{remark}")
    return tuple(shown.items())


def _probability_of(row: Mapping[str, Any]) -> float | None:  # Any: cells of a table
    """How likely the answer is, for each of its tokens."""
    logprob = row.get("answer_logprob")
    return None if logprob is None else math.exp(logprob / row["num_answer_tokens"])


def _is_about(row: dict[str, object], name: str) -> bool:
    return str(row["source"]).rsplit("/", 1)[-1] == name


def _words(text: str) -> list[str]:
    return text.lower().split()


if __name__ == "__main__":
    sys.exit(main())
