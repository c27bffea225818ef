"""Which rows of the tables are exported, into which split, and in which words: decided without touching a video."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from framescribe.publish.decisions import Decision, Verdict, row_digest
from framescribe.publish.export_config import CAPTION, MIN_PROBABILITY, MULTIPLE_CHOICE, Selection
from framescribe.publish.export_questions import LETTERS, Question, Row, are_sound, read_question
from framescribe.recipes.answer_text import is_unspecified

SPLITS = ("train", "validation", "test")
# Captions of the whole clip; `segment` and `summary` describe a part of it, or what came so far.
_WHOLE_CLIP_LEVELS = frozenset({"clip", "video"})


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption to export, with the request that it answers."""

    request: str
    text: str


@dataclass(frozen=True, slots=True)
class ChosenClip:
    """A clip with the rows that are exported of it, at least one.

    Attributes:
        key: name for files: lower-case letters, digits, `-` and `_`; unique, and the same on every machine.
        video: path of its video in the export, with `/`, or None where videos are not exported.
    """

    clip_id: str
    key: str
    split: str
    duration_s: float
    captions: tuple[Caption, ...]
    questions: tuple[Question, ...]
    video: str | None = None

    @property
    def num_rows(self) -> int:
        """Rows of `captions` and `qa` that it holds."""
        return len(self.captions) + len(self.questions)


@dataclass(slots=True)
class ExportCounts:
    """What became of every row of `captions` and `qa`. Not frozen: it grows clip by clip.

    Attributes:
        num_rows: rows of both tables.
        exported: kind to rows.
        left_out: reason to rows.
        clips: split to clips.
        videos: how their videos were made, to clips.
    """

    num_rows: int = 0
    exported: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    clips: Counter[str] = field(default_factory=Counter)
    videos: Counter[str] = field(default_factory=Counter)

    @property
    def num_exported(self) -> int:
        """Rows that are in the export."""
        return self.exported.total()

    def to_json(self) -> Mapping[str, object]:
        """Returns everything that is counted, as a JSON object."""
        grown = {name: dict(getattr(self, name)) for name in ("exported", "left_out", "clips", "videos")}
        return {"num_rows": self.num_rows, "num_exported": self.num_exported, **grown}

    def add(self, clip: ChosenClip) -> None:
        """Counts the rows of a clip that is written."""
        self.clips[clip.split] += 1
        self.exported.update({CAPTION: len(clip.captions)} if clip.captions else {})
        self.exported.update(question.kind for question in clip.questions)


class RowChooser:
    """Chooses rows of clips, in the order of the tables; counts those that it leaves out.

    Args:
        decisions: what people decided about rows, by clip id and row, such as `qa 3`.
    """

    def __init__(
        self, selection: Selection, counts: ExportCounts, decisions: Mapping[tuple[str, str], Decision]
    ) -> None:
        self._selection = selection
        self._counts = counts
        self._decisions = decisions

    def choose(self, clip: Row, captions: Iterable[Row], pairs: Iterable[Row], split: str) -> ChosenClip | None:
        """Returns a clip with the rows that pass, or None where there is none; options stay in the table's order."""
        clip_id = str(clip["clip_id"])
        texts = [text for row in captions if (text := self._choose_caption(row)) is not None]
        requests = _draw_requests(len(texts), f"{self._selection.seed} request {clip_id}")
        chosen = ChosenClip(
            clip_id=clip_id,
            key=file_key(clip_id),
            split=split,
            duration_s=float(clip["duration_s"]),
            captions=tuple(Caption(request, text) for request, text in zip(requests, texts, strict=True)),
            questions=tuple(one for row in pairs if (one := self._choose_question(row)) is not None),
        )
        return chosen if chosen.num_rows else None

    def _choose_caption(self, row: Row) -> str | None:
        decision, reason = self._decide(row, f"caption {row['caption_index']}", str(row["text"]), CAPTION)
        text = str(row["text"]) if decision is None or decision.text is None else decision.text
        if reason is None and row["level"] not in _WHOLE_CLIP_LEVELS:
            reason = "caption of a part of the clip"
        return text if self._passes(reason or _fault_of_text(text)) else None

    def _choose_question(self, row: Row) -> Question | None:
        decision, reason = self._decide(row, f"qa {row['qa_index']}", str(row["answer"]), str(row["kind"]))
        question = read_question(row, decision)
        if reason is None:
            reason = self._fault_of_type(question) or _fault_of_question(question)
        if reason is None and decision is None:  # a person who looked at it knows better than a score
            reason = self._fault_of_scores(question)
        return question if self._passes(reason) else None

    def _passes(self, reason: str | None) -> bool:
        self._counts.num_rows += 1
        if reason is not None:
            self._counts.left_out[reason] += 1
        return reason is None

    def _decide(self, row: Row, name: str, text: str, kind: str) -> tuple[Decision | None, str | None]:
        """Returns what a person decided, if this very text was shown, and the first reason to leave the row out."""
        decision = self._decisions.get((str(row["clip_id"]), name))
        if decision is not None and decision.digest != row_digest(str(row.get("question", "")), text):
            decision = None
        if kind not in self._selection.kinds:
            return decision, f"kind {kind}"
        if decision is not None and decision.verdict is Verdict.REJECT:
            return decision, "rejected by a person"
        is_fixed = decision is not None and decision.verdict is Verdict.FIX
        if row["status"] not in self._selection.statuses and not is_fixed:
            return decision, f"status {row['status']}"
        return decision, None

    def _fault_of_type(self, question: Question) -> str | None:
        types = self._selection.question_types
        return None if types is None or question.question_type in types else "type not asked for"

    def _fault_of_scores(self, question: Question) -> str | None:
        chosen = self._selection
        if chosen.only_consistent and False in (question.is_consistent, question.is_rotation_consistent):
            return "not consistent"
        if question.score is None and (chosen.only_consistent or chosen.min_score is not None):
            return "no score"
        # By default only probabilities have a bar: what asking again is good for is said by `is_consistent`.
        lowest = question.probability if chosen.min_score is None else question.score
        if lowest is not None and lowest < (MIN_PROBABILITY if chosen.min_score is None else chosen.min_score):
            return "score too low"
        # Where the recipe did not ask without the video, nothing speaks against the question.
        bar, blind = chosen.max_blind_score, question.blind
        if bar is not None and blind is not None and blind >= bar:
            return "answered without the video"
        return "giveaway" if chosen.drop_giveaways and question.giveaway is not None else None


def _fault_of_question(question: Question) -> str | None:
    if question.kind == MULTIPLE_CHOICE and not are_sound(question.options, question.answer_letter):
        return "options that cannot be used"
    return _fault_of_text(question.question) or _fault_of_text(question.answer)


def _fault_of_text(text: str) -> str | None:
    if not text.strip():
        return "empty text"
    return "says that the video does not specify it" if is_unspecified(text) else None


class LetterBalance:
    """Puts right options at places so that each letter is right equally often, to within one a split.

    Options that speak of one another's place, such as "both A and B", stay where they are.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._num_placed: Counter[tuple[str, int]] = Counter()

    def place(self, clip: ChosenClip) -> ChosenClip:
        """Returns the clip with the options of its questions in their final order."""
        return replace(clip, questions=tuple(self._place(question, clip.split) for question in clip.questions))

    def _place(self, question: Question, split: str) -> Question:
        num_options = len(question.options)
        if question.answer_letter is None or any(_SPEAKS_OF_PLACES.search(option) for option in question.options):
            return question
        block, turn = divmod(self._num_placed[split, num_options], num_options)
        self._num_placed[split, num_options] += 1
        order = random.Random(f"{self._seed} letters {split} {num_options} {block}").sample(
            range(num_options), num_options
        )
        others = [one for place, one in enumerate(question.options) if LETTERS[place] != question.answer_letter]
        right = question.options[LETTERS.index(question.answer_letter)]
        options = (*others[: order[turn]], right, *others[order[turn] :])
        return replace(question, options=options, answer_letter=LETTERS[order[turn]])


_SPEAKS_OF_PLACES = re.compile(
    r"\b(?:above|below)\b|\b[A-F]\s*(?:and|or|&|,)\s*[A-F]\b|\b(?:both|neither|option)\s+[A-F]\b"
)


def assign_splits(clips: Iterable[Row], selection: Selection) -> dict[str, str]:
    """Returns clip id to split: the clips of one video are in one, wherever they are exported and with what filters.

    The choice hangs on a hash of the least clip id of the video, its window left out: no path of a machine is in it.

    Args:
        clips: `clip_id`, `source`, `member`, `start_s` and `end_s` of every clip of the run, failed ones not needed.
    """
    videos: dict[tuple[str, str], list[str]] = {}
    for row in clips:
        videos.setdefault(_video_of(row), []).append(str(row["clip_id"]))
    splits: dict[str, str] = {}
    for clip_ids in videos.values():
        split = _draw_split(min(_WINDOW.sub("", clip_id) for clip_id in clip_ids), selection)
        splits.update(dict.fromkeys(clip_ids, split))
    return splits


_WINDOW = re.compile(r"@[0-9.]+-[0-9.]*$")
_SHARDS = re.compile(r"\.(?:tar|tgz|tbz2|tar\.\w+|parquet)$", re.IGNORECASE)


def _video_of(row: Row) -> tuple[str, str]:
    """Rows of a manifest that name one file are clips of one video; members of a shard are videos of their own."""
    source = str(row["source"])
    return source, str(row["member"]) if is_shard(source) else ""


def is_shard(source: str) -> bool:
    """Whether the source of a clip is a shard whose members are videos of their own."""
    return _SHARDS.search(source.partition("?")[0]) is not None


def _draw_split(name: str, selection: Selection) -> str:
    drawn = _digest(f"{selection.seed} split {name}") / 2**64
    if drawn < selection.test_fraction:
        return "test"
    return "validation" if drawn < selection.test_fraction + selection.validation_fraction else "train"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def file_key(clip_id: str) -> str:
    """Returns a name for the files of a clip, made of lower-case letters, digits, `-` and `_`: no dot, no slash."""
    # In lower case, since LLaVA-NeXT takes a path with `shareVideoGPTV` in it for a folder of frames.
    slug = re.sub(r"[^a-z0-9_]+", "-", clip_id.lower()).strip("-")[-80:].strip("-")
    return f"{slug or 'clip'}-{_digest(clip_id):016x}"


def draw(choices: Sequence[str], reason: str) -> str:
    """Returns one of the choices, always the same for the same reason."""
    return choices[_digest(reason) % len(choices)]


def _draw_requests(number: int, reason: str) -> Iterator[str]:
    return (draw(CAPTION_REQUESTS, f"{reason} {place}") for place in range(number))


CAPTION_REQUESTS = (
    "Please describe this video in detail.",
    "What happens in this video? Give a detailed description.",
    "Describe what is shown in the video, from its beginning to its end.",
    "Write a detailed caption for this video.",
    "Explain in detail what can be seen in the video.",
    "Give a thorough account of the scene, the subjects and their actions in this video.",
    "Describe the video: who or what is in it, what they do, and what the background looks like.",
    "Please tell me in detail what this video shows.",
    "Provide a complete description of the events in this video.",
    "How would you describe this video to someone who cannot see it?",
)
