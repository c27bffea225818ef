"""What a recipe makes of the model's answers: captions, QA pairs, and what became of each question."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(str, Enum):
    """What became of one question put to the model."""

    OK = "ok"
    NOT_APPLICABLE = "not_applicable"  # the model answered None: the type does not apply to the clip
    UNPARSABLE = "unparsable"
    DUPLICATE = "duplicate"  # an earlier pair of the clip has the same question
    UNSPECIFIED = "unspecified"  # the answer only says that the video does not show it
    REFUSED = "refused"
    EMPTY = "empty"
    LENGTH = "length"  # cut off by max_new_tokens
    LOOPED = "looped"  # stopped by the loop detector

    __str__ = str.__str__  # its value in an f-string, on every Python


class ScoreStatus(str, Enum):
    """What became of the scores of a pair."""

    OK = "ok"
    TOO_LONG = "too_long"  # prompt and answer do not fit the model's context
    TOO_LARGE = "too_large"  # memory ran out for it
    NOT_FINITE = "not_finite"  # the model's numbers overflowed


@dataclass(frozen=True, slots=True)
class Caption:
    """What the model says happens in a clip, or in a part of it.

    Attributes:
        level: `clip` for a caption of the whole clip in one go; `segment`, `summary`, `video` in `levels`.
        start_s, end_s: seconds from the start of the clip that the caption is about.
        prompt_id: which prompt of the recipe; `prompt` is its text as asked.
        attempt: 1 for the first try, 2 and more for the rungs of the recipe's retry ladder.
    """

    level: str
    start_s: float
    end_s: float
    text: str
    status: Status
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    prompt_id: str
    prompt: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class QAPair:
    """One question about a clip and its answer, or the row that says why there is none.

    Attributes:
        kind: `open_ended` or `multiple_choice`.
        question_type: one of the 16 question types of LLaVA-Video-178K.
        question, answer: empty unless `status` is OK or DUPLICATE (or LENGTH, with what could be parsed).
        options: multiple choice only: the options without letters, in order.
        answer_letter: multiple choice only: `A` to `D`.
        giveaway: multiple choice only: what gives the right option away without the video; None where nothing was seen.
        completion: the model's own words that the pair was parsed from.
        recheck_answer, recheck_score: the answer when asked again from the frames; agreement with `answer`, 0 to 1.
        blind_answer, blind_score: the same without the video: high means that the question needs no video.
        is_consistent: whether `recheck_score` reached the recipe's bar, so that the model agrees with itself, right
            or wrong; None where the recipe did not ask again.
        answer_logprob: how likely the model finds the answer: open-ended, its natural log-probability after the bare
            question; multiple choice, that of the right option among the options, of the mean over four rotations.
        blind_logprob: the same without the video.
        num_answer_tokens: tokens that these stand for; 1 in multiple choice.
        video_gain_per_token: what the video adds: their difference for each token.
        option_probabilities: multiple choice only: of each option, among them, the mean over four rotations.
        is_rotation_consistent: multiple choice only: whether the right option is the likeliest in all four rotations.
        score_status: what became of these scores, which are None unless it is OK; None where the recipe scores nothing.
    """

    kind: str
    question_type: str
    question: str
    answer: str
    status: Status
    completion: str
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    prompt_id: str
    prompt: str
    attempt: int = 1
    options: tuple[str, ...] = ()
    answer_letter: str | None = None
    giveaway: str | None = None
    recheck_answer: str | None = None
    recheck_score: float | None = None
    blind_answer: str | None = None
    blind_score: float | None = None
    is_consistent: bool | None = None
    answer_logprob: float | None = None
    blind_logprob: float | None = None
    num_answer_tokens: int | None = None
    video_gain_per_token: float | None = None
    option_probabilities: tuple[float, ...] | None = None
    is_rotation_consistent: bool | None = None
    score_status: ScoreStatus | None = None
