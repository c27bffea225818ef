"""What the published tables are worth: counted clip by clip, judged by what people decided, sampled for people."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framescribe.publish.decisions import SHEET_COLUMNS, Decision, Verdict, guard_cell, row_digest
from framescribe.publish.export_config import BLIND_SCORE, CAPTION, MIN_PROBABILITY, MULTIPLE_CHOICE, OPEN_ENDED
from framescribe.publish.export_questions import Question, Row, are_sound, read_question
from framescribe.publish.export_rows import is_shard
from framescribe.recipes.answer_text import normalise_answer, squeeze

NUM_BINS = 10
_MAX_ANSWERS = 100_000  # different ones per type that are counted: what comes often came before that
_MAX_TEXTS = 20_000  # captions that are compared with each other
_SIMILAR = 0.8  # Jaccard of three-word runs from which two captions count as near-duplicates
_Z = 1.959964  # of 95 %


@dataclass(slots=True)
class TypeCounts:
    """Counts of one type of question. Not frozen: it grows row by row.

    Attributes:
        statuses: of all rows; what follows is of those whose status is `ok`.
        confirmed: `yes`, `no` or `not asked`: whether a second look confirmed the pair.
        scores, blind: pairs by `Question.score` and `Question.blind`, in `NUM_BINS` equal bins from 0 to 1.
        num_blind: pairs that are answered as well without the video.
        letters, answers: right letters, and short answers; `answers` stops to take new ones at some number.
        num_giveaways: multiple choices whose right option may be told by its form.
        guessing, longest: right letters that guessing gets, and picking the longest option; equally long ones share.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    confirmed: Counter[str] = field(default_factory=Counter)
    scores: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    blind: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    num_blind: int = 0
    letters: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    num_giveaways: int = 0
    guessing: float = 0.0
    longest: float = 0.0

    @property
    def num_ok(self) -> int:
        """Pairs with the status `ok`."""
        return self.statuses["ok"]

    def add(self, question: Question, status: str) -> None:
        """Counts a row."""
        self.statuses[status] += 1
        if status != "ok":
            return
        self.confirmed[describe_confirmation(question)] += 1
        self._add_score(self.scores, question.score)
        self._add_score(self.blind, question.blind)
        self.num_blind += question.blind is not None and question.blind >= BLIND_SCORE
        self.num_giveaways += question.giveaway is not None
        if question.kind != MULTIPLE_CHOICE:
            answer = normalise_answer(question.answer)
            if len(self.answers) < _MAX_ANSWERS or answer in self.answers:
                self.answers[answer] += 1
        elif question.answer_letter is not None and are_sound(question.options, question.answer_letter):
            self.letters[question.answer_letter] += 1
            self.guessing += 1 / len(question.options)
            lengths = [len(option) for option in question.options]
            is_longest = lengths[ord(question.answer_letter) - ord("A")] == max(lengths)
            self.longest += is_longest / lengths.count(max(lengths))

    @staticmethod
    def _add_score(bins: list[int], score: float | None) -> None:
        if score is not None:
            bins[min(NUM_BINS - 1, int(score * NUM_BINS))] += 1


@dataclass(slots=True)
class Quality:
    """Everything that the report says. Not frozen: it grows clip by clip.

    Attributes:
        types: kind and question type to counts.
        caption_statuses, caption_words: level to statuses, and to words of good captions.
        sources: place of the source to clips, captions, good pairs and failed clips.
        repeated_questions: good pairs whose question an earlier pair of their clip has.
        repeated_captions: good captions that an earlier clip has word for word.
        near_duplicates: None where datasketch is not installed.
        judged: group to what people decided about its rows; the first group is `all`.
        num_outdated: decisions about a text that is not there any more, or about a row that is no good.
    """

    types: dict[tuple[str, str], TypeCounts] = field(default_factory=lambda: defaultdict(TypeCounts))
    caption_statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    caption_words: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failure_reasons: Counter[str] = field(default_factory=Counter)
    num_clips: int = 0
    repeated_questions: int = 0
    repeated_captions: int = 0
    near_duplicates: NearDuplicates | None = None
    judged: dict[str, Precision] = field(default_factory=dict)
    num_outdated: int = 0

    @property
    def statuses(self) -> Counter[str]:
        """Status to rows, captions and questions together."""
        return sum((*self.caption_statuses.values(), *(one.statuses for one in self.types.values())), Counter())


@dataclass(frozen=True, slots=True)
class Precision:
    """How many of the rows that people judged they found right."""

    num_right: int
    num_judged: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 % (Wilson 1927); it holds where the rows were drawn by chance."""
        n, p = self.num_judged, self.num_right / self.num_judged
        centre, spread = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        # Rounding must not leave 0 and 1 outside of what was seen.
        low, high = (centre - spread) / (1 + _Z**2 / n), (centre + spread) / (1 + _Z**2 / n)
        return min(p, max(0.0, low)), max(p, min(1.0, high))


def describe_confirmation(question: Question) -> str:
    """Returns `yes`, `no` or `not asked`: whether the second look confirmed a pair, as exports have it."""
    seen = (question.is_consistent, question.is_rotation_consistent)
    if False in seen:
        return "no"
    return "yes" if True in seen else "not asked"


@dataclass(frozen=True, slots=True)
class _JudgedRow:
    """A good row, with what groups it."""

    clip_id: str
    row: str
    question: str
    shown: str
    options: tuple[str, ...]
    kind: str
    question_type: str
    confirmed: str
    is_likely: bool | None

    @property
    def digest(self) -> str:
        return row_digest(self.question, self.shown)

    @property
    def stratum(self) -> tuple[str, str, str]:
        return self.kind, self.question_type, self.confirmed

    @property
    def groups(self) -> Iterator[str]:
        """Names of the groups whose precision it counts for."""
        yield "all"
        yield f"kind: {self.kind}"
        if self.kind != CAPTION:
            yield f"questions, confirmed by a second look: {self.confirmed}"
        if self.is_likely is not None:
            yield f"questions, probability {MIN_PROBABILITY:g} or more: {'yes' if self.is_likely else 'no'}"


class QualityCounter:
    """Counts clips, compares decisions with rows, and draws the sample.

    Args:
        sample_fraction: of the good rows of each type, kind and confirmation; None draws none.
        num_captions: in the whole table, so that an even part of them can be compared.
    """

    def __init__(
        self, decisions: Mapping[tuple[str, str], Decision], sample_fraction: float | None, num_captions: int
    ) -> None:
        self.quality = Quality(near_duplicates=NearDuplicates.start(num_captions))
        self._waiting = dict(decisions)
        self._verdicts: defaultdict[str, Counter[bool]] = defaultdict(Counter)
        self._captions: set[int] = set()
        self._sample = _Sample(sample_fraction)

    def add(self, clip: Row, captions: Sequence[Row], pairs: Sequence[Row]) -> None:
        """Counts a clip with its rows."""
        self.quality.num_clips += 1
        place = self.quality.sources[place_of(clip)]
        place.update({"clips": 1, "captions": sum(row["status"] == "ok" for row in captions)})
        for row in captions:
            self._add_caption(row)
        asked: set[tuple[str, str]] = set()  # a multiple choice may ask what an open-ended pair asks
        for row in pairs:
            question = read_question(row)
            self.quality.types[question.kind, question.question_type].add(question, str(row["status"]))
            if row["status"] == "ok":
                place["pairs"] += 1
                words = question.kind, normalise_answer(question.question)
                self.quality.repeated_questions += words in asked
                asked.add(words)
                self._judge(_describe_pair(row, question))

    def add_failure(self, row: Row) -> None:
        """Counts a clip that failed."""
        self.quality.failure_reasons[str(row["reason"])] += 1
        self.quality.sources[place_of(row)]["failed"] += 1

    def close(self) -> tuple[Quality, list[Mapping[str, str]]]:
        """Returns the counts, and the rows of the sample, sorted by clip id and row."""
        self.quality.num_outdated = len(self._waiting)
        self.quality.judged = {
            name: Precision(seen[True], seen.total()) for name, seen in sorted(self._verdicts.items())
        }
        return self.quality, self._sample.rows()

    def _add_caption(self, row: Row) -> None:
        level, text = str(row["level"]), str(row["text"])
        self.quality.caption_statuses[level][str(row["status"])] += 1
        if row["status"] != "ok":
            return
        self.quality.caption_words[level][len(text.split())] += 1
        words = squeeze(text).lower()
        key = _hash(words)
        self.quality.repeated_captions += key in self._captions
        self._captions.add(key)
        if self.quality.near_duplicates is not None:
            self.quality.near_duplicates.add(str(row["clip_id"]), int(row["caption_index"]), words)
        name = f"caption {row['caption_index']}"
        self._judge(_JudgedRow(str(row["clip_id"]), name, "", text, (), CAPTION, level, "not asked", None))

    def _judge(self, row: _JudgedRow) -> None:
        self._sample.add(row)
        decision = self._waiting.get((row.clip_id, row.row))
        if decision is not None and decision.digest == row.digest:
            del self._waiting[row.clip_id, row.row]
            for group in row.groups:
                self._verdicts[group][decision.verdict is Verdict.ACCEPT] += 1


def _describe_pair(row: Row, question: Question) -> _JudgedRow:
    probability = question.probability
    return _JudgedRow(
        clip_id=str(row["clip_id"]),
        row=f"qa {row['qa_index']}",
        question=question.question,
        shown=question.answer,
        options=question.options,
        kind=question.kind,
        question_type=question.question_type,
        confirmed=describe_confirmation(question),
        is_likely=None if probability is None else probability >= MIN_PROBABILITY,
    )


class _Sample:
    """Draws the same fraction of every stratum by a hash of the rows, and at least one row of each."""

    def __init__(self, fraction: float | None) -> None:
        self._fraction = fraction
        self._drawn: list[_JudgedRow] = []
        self._least: dict[tuple[str, str, str], tuple[int, _JudgedRow]] = {}

    def add(self, row: _JudgedRow) -> None:
        if self._fraction is None:
            return
        place = _hash(f"sample {row.clip_id} {row.row}")
        if place < self._fraction * 2**64:
            self._drawn.append(row)
        if row.stratum not in self._least or place < self._least[row.stratum][0]:
            self._least[row.stratum] = place, row

    def rows(self) -> list[Mapping[str, str]]:
        there = {row.stratum for row in self._drawn}
        chosen = [*self._drawn, *(row for _, row in self._least.values() if row.stratum not in there)]
        return [_to_sheet(row) for row in sorted(chosen, key=lambda row: (row.clip_id, row.row))]


def _to_sheet(row: _JudgedRow) -> Mapping[str, str]:
    named = [f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(row.options)]
    cells = (row.clip_id, row.row, row.kind, row.question_type, row.confirmed, row.question, "\n".join(named))
    return dict(zip(SHEET_COLUMNS, (*cells, row.shown, row.digest, "", ""), strict=True))


def write_sample(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Writes a sample as CSV for people, or as JSON Lines: `verdict` and `text` are to be filled in."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, SHEET_COLUMNS)
        writer.writeheader()
        writer.writerows({name: guard_cell(cell) for name, cell in row.items()} for row in rows)


class NearDuplicates:
    """Finds captions that share most of their words with one of another clip, by MinHash (datasketch).

    Attributes:
        num_compared: captions; where there are many, an even part of them, drawn by a hash.
        num_found: among them, those with an earlier near-duplicate.
        examples: some of the pairs: texts.
    """

    def __init__(self, fraction: float, make_hash: Any, index: Any) -> None:  # Any: datasketch has no types
        self.fraction = fraction
        self.num_compared = self.num_found = 0
        self.examples: list[tuple[str, str]] = []
        self._make_hash, self._index = make_hash, index
        self._texts: list[tuple[str, str]] = []

    @classmethod
    def start(cls, num_captions: int) -> NearDuplicates | None:
        """Returns a comparison of this many captions, or None where datasketch is not installed."""
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            return None
        return cls(min(1.0, _MAX_TEXTS / max(1, num_captions)), MinHash, MinHashLSH(threshold=_SIMILAR))

    def add(self, clip_id: str, index: int, text: str) -> None:
        """Compares a caption with those before it."""
        if _hash(f"compare {clip_id} {index}") >= self.fraction * 2**64:
            return
        words = re.findall(r"\w+", text)
        runs = {" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))}
        signature = self._make_hash()
        signature.update_batch([run.encode("utf-8", "surrogatepass") for run in runs])
        others = sorted(other for other in self._index.query(signature) if self._texts[other][0] != clip_id)
        self.num_compared += 1
        self.num_found += bool(others)
        if others and len(self.examples) < 5 and self._texts[others[0]][1] != text:
            self.examples.append((self._texts[others[0]][1], text))
        self._index.insert(len(self._texts), signature)
        self._texts.append((clip_id, text))


def place_of(clip: Row) -> str:
    """Returns where a clip comes from, without account, key or query: its shard, or the folder of its file."""
    _, mark, rest = str(clip["source"]).partition("?")[0].rpartition("://")
    host, _, path = rest.partition("/") if mark else ("", "", rest)
    parts = [part for part in path.split("/") if part]
    kept = parts[-2:] if is_shard(path) else parts[:-1][-2:]
    return "/".join(([host.rpartition("@")[2]] if mark and len(kept) < 2 else []) + kept) or "."


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def baselines(kind: str, counts: TypeCounts) -> dict[str, float]:
    """Returns what answers of these pairs are got right by without looking, as fractions; empty without any."""
    total = counts.letters.total() if kind == MULTIPLE_CHOICE else counts.answers.total()
    if not total:
        return {}
    found: dict[str, float] = {}
    if kind == MULTIPLE_CHOICE:
        found["guessing"] = counts.guessing / total
        found["the longest option"] = counts.longest / total
        found["the most frequent letter"] = max(counts.letters.values()) / total
    elif kind == OPEN_ENDED:
        opening = {word: sum(n for a, n in counts.answers.items() if a.split()[:1] == [word]) for word in ("yes", "no")}
        if sum(opening.values()) * 2 >= total:
            found["always yes"], found["always no"] = opening["yes"] / total, opening["no"] / total
        found["the most frequent answer"] = max(counts.answers.values()) / total
    if num_asked := sum(counts.blind):
        found["without the video"] = counts.num_blind / num_asked
    return found
