"""QA pairs as they are exported, with what a second look at each has found."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from framescribe.publish.decisions import Decision

Row = Mapping[str, Any]  # Any: cells of a table
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Columns of the table `qa` that say what a second look at a pair found.
SECOND_LOOK = (
    *("recheck_score", "blind_score", "is_consistent", "answer_logprob", "blind_logprob", "num_answer_tokens"),
    *("video_gain_per_token", "is_rotation_consistent", "score_status", "giveaway"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A QA pair to export.

    Attributes:
        options: of multiple choice, in the order in which they are shown; else empty.
        answer_letter: the letter of the right one; else None.
        recheck_score, blind_score, is_consistent, answer_logprob, blind_logprob, num_answer_tokens,
            video_gain_per_token, is_rotation_consistent, score_status, giveaway: as in the table `qa`.
    """

    kind: str
    question_type: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    answer_letter: str | None = None
    recheck_score: float | None = None
    blind_score: float | None = None
    is_consistent: bool | None = None
    answer_logprob: float | None = None
    blind_logprob: float | None = None
    num_answer_tokens: int | None = None
    video_gain_per_token: float | None = None
    is_rotation_consistent: bool | None = None
    score_status: str | None = None
    giveaway: str | None = None

    @property
    def probability(self) -> float | None:
        """How likely the answer is, the geometric mean over its tokens; of multiple choice that of the right option."""
        return self._for_each_token(self.answer_logprob)

    @property
    def score(self) -> float | None:
        """What speaks for the pair, 0 to 1: `probability`, or `recheck_score` where it was only asked again."""
        return self.recheck_score if self.probability is None else self.probability

    @property
    def blind(self) -> float | None:
        """The same without the video: high means that the question needs none."""
        probability = self._for_each_token(self.blind_logprob)
        return self.blind_score if probability is None else probability

    def _for_each_token(self, logprob: float | None) -> float | None:
        return None if logprob is None or not self.num_answer_tokens else math.exp(logprob / self.num_answer_tokens)


def read_question(row: Row, decision: Decision | None = None) -> Question:
    """Returns a row of `qa` as it is exported, with the text that a person gave it."""
    answer = str(row["answer"]) if decision is None or decision.text is None else decision.text
    options, letter = tuple(row["options"] or ()), row["answer_letter"]
    if answer != row["answer"] and are_sound(options, letter):
        place = LETTERS.index(letter)
        options = (*options[:place], answer, *options[place + 1 :])
    return Question(
        kind=str(row["kind"]),
        question_type=str(row["question_type"]),
        question=str(row["question"]),
        answer=answer,
        options=options,
        answer_letter=letter,
        **{name: row[name] for name in SECOND_LOOK},
    )


def are_sound(options: Sequence[str], letter: str | None) -> bool:
    """Whether options can be shown, and the letter names one of them."""
    is_named = letter is not None and len(letter) == 1 and letter in LETTERS[: len(options)]
    return is_named and len(options) > 1 and all(option.strip() for option in options)


# Marks that trainers and chat templates replace by pictures, or read as the end of a turn.
_MARK = re.compile(r"<(?=(?:\||/?(?:image|video|audio|img|vid|im_|vi_|s>|bos>|eos>|pad>|unk>)))", re.IGNORECASE)


def neutralise(text: str) -> str:
    """Returns the text without marks that would become pictures or structure of a prompt: `< image>` for `<image>`."""
    return _MARK.sub("< ", text).strip()


def neutralise_question(question: Question) -> Question:
    """Returns the question with all of its texts neutralised."""
    return replace(
        question,
        question=neutralise(question.question),
        answer=neutralise(question.answer),
        options=tuple(map(neutralise, question.options)),
    )
