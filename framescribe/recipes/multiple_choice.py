"""Multiple choice: three wrong answers from the model, letters in balance, scored or asked again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

from framescribe.llava_video.engine.generation import FinishReason
from framescribe.recipes.annotation import QAPair, ScoreStatus, Status
from framescribe.recipes.answer_text import has_number
from framescribe.recipes.answers import LETTERS, clean_option, parse_letter, parse_wrong_answers
from framescribe.recipes.ask import Reply, ask_with_retries
from framescribe.recipes.config import MultipleChoiceConfig, RecheckConfig, fill_prompt
from framescribe.recipes.open_ended import add_logprobs, add_scores, ask_again, row_from, score_together
from framescribe.recipes.recipe import AskableVideo, Recipe, shuffle_by_clip

_NUM_WRONG = len(LETTERS) - 1


async def ask_choice(
    video: AskableVideo,
    pair: QAPair,
    clip_id: str,
    place: int,
    config: MultipleChoiceConfig,
    recheck: RecheckConfig | None,
    recipe: Recipe,
    *,
    has_score: bool,
) -> QAPair:
    """The multiple-choice row of an open-ended pair, asked again, scored or both where the model gave three options.

    The letter and the closing line depend on the clip and on `place`, the pair's number within it: both stay in
    balance.
    """
    row = await _ask_wrong_answers(video, pair, config, recipe)
    if row.status is not Status.OK:
        return row
    placed = _place_answer(row, draw_letter(clip_id, place))
    closing = draw_closing(config.closings, clip_id, place)
    placed = replace(
        placed, giveaway=find_giveaway(placed.answer, [one for one in placed.options if one != placed.answer])
    )
    if has_score:
        placed = await score_choice(video, placed, closing)
    return placed if recheck is None else await _recheck_choice(video, placed, closing, recheck, recipe)


async def _recheck_choice(
    video: AskableVideo, row: QAPair, closing: str, config: RecheckConfig, recipe: Recipe
) -> QAPair:
    """Asks with the video and without; a right letter scores 1."""
    answers = await ask_again(video, format_choice(row.question, row.options, closing), config, recipe)
    recheck_score, blind_score = (float(parse_letter(answer, row.options) == row.answer_letter) for answer in answers)
    return add_scores(row, answers, (recheck_score, blind_score), config)


async def score_choice(video: AskableVideo, row: QAPair, closing: str) -> QAPair:
    """Adds how likely each option is, by the next token after the question, with its options in four rotations."""
    rotations = range(len(row.options))
    prompts = [format_choice(row.question, (*row.options[n:], *row.options[:n]), closing) for n in rotations]
    letters = LETTERS[: len(row.options)]
    scores = await score_together(
        ask(prompt, letters) for ask in (video.score_choices, video.score_choices_text) for prompt in prompts
    )
    if isinstance(scores, ScoreStatus):
        return replace(row, score_status=scores)
    turned = [
        _turn_back(_normalise(score.logprobs), n) for score, n in zip(scores, (*rotations, *rotations), strict=True)
    ]
    seen, blind = turned[: len(rotations)], turned[len(rotations) :]
    right = letters.index(row.answer_letter or "")
    seen_mean, blind_mean = _mean(seen), _mean(blind)
    return replace(
        add_logprobs(row, seen_mean[right], blind_mean[right], 1),
        option_probabilities=tuple(map(math.exp, seen_mean)),
        is_rotation_consistent=all(options[right] == max(options) for options in seen),
    )


def _turn_back(logprobs: Sequence[float], rotation: int) -> list[float]:
    """The log-probabilities of letters, in the order that the options have before they were rotated."""
    return [logprobs[(place - rotation) % len(logprobs)] for place in range(len(logprobs))]


def _normalise(logprobs: Sequence[float]) -> list[float]:
    total = _add(logprobs)
    return [logprob - total for logprob in logprobs]


def _mean(rotations: Sequence[Sequence[float]]) -> list[float]:
    """The log of the mean probability of each option."""
    return [_add(option) - math.log(len(rotations)) for option in zip(*rotations, strict=True)]


def _add(logprobs: Sequence[float]) -> float:
    """The log of a sum of probabilities."""
    most = max(logprobs)
    return most + math.log(math.fsum(math.exp(logprob - most) for logprob in logprobs))


def format_choice(question: str, options: Sequence[str], closing: str) -> str:
    """A question as LLaVA-Video-178K writes it: the question, one lettered option a line, the closing line."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, *lines, closing])


def draw_letter(clip_id: str, place: int) -> str:
    """The letter of the right answer to a clip's question number `place`, counted from 0.

    Within a clip A to D follow each other again and again, in an order of the clip's own; over clips that order is as
    good as random, and the same on every machine.
    """
    order = shuffle_by_clip(LETTERS, clip_id)
    return order[place % len(order)]


def draw_closing(closings: Sequence[str], clip_id: str, place: int) -> str:
    """The line that closes question number `place`: in turn within a clip, beginning with one of the clip's own."""
    digest = hashlib.sha256(f"closing\n{clip_id}".encode("utf-8", "replace")).digest()
    return closings[(digest[0] + place) % len(closings)]


def find_giveaway(right: str, wrong: Sequence[str]) -> str | None:
    """What tells the right option from the wrong ones without looking at the video.

    Returns:
        `longest` for a right option of at least 1.5 times the characters of the longest wrong one, and ten more;
        `number` where it is the only one with a number, or the only one without; None for neither.
    """
    longest_wrong = max(len(one) for one in wrong)
    if len(right) >= max(1.5 * longest_wrong, longest_wrong + 10):
        return "longest"
    have_number = {has_number(one) for one in wrong}
    return "number" if have_number == {not has_number(right)} else None


async def _ask_wrong_answers(video: AskableVideo, pair: QAPair, config: MultipleChoiceConfig, recipe: Recipe) -> QAPair:
    prompt = fill_prompt(config.prompt, {"question": pair.question, "answer": pair.answer})
    reply = await ask_with_retries(video.ask, prompt, config, recipe)
    right = clean_option(pair.answer)
    wrong = parse_wrong_answers(_drop_cut_line(reply), right)
    status = _read_status(reply, len(wrong))
    row = row_from(reply, "multiple_choice", pair.question_type, status)
    if status is not Status.OK:
        return row
    return replace(row, question=pair.question, answer=right, options=(right, *wrong))


def _drop_cut_line(reply: Reply) -> str:
    if reply.completion.finish_reason is FinishReason.STOP:
        return reply.text
    return reply.text.rpartition("\n")[0]


def _read_status(reply: Reply, num_wrong: int) -> Status:
    if reply.status in (Status.LOOPED, Status.EMPTY, Status.REFUSED):
        return reply.status
    if num_wrong == _NUM_WRONG:
        return Status.OK
    return Status.LENGTH if reply.status is Status.LENGTH else Status.UNPARSABLE


def _place_answer(row: QAPair, letter: str) -> QAPair:
    """The row with its right option, so far the first, under `letter`; the wrong ones keep their order."""
    right, *wrong = row.options
    place = LETTERS.index(letter)
    return replace(row, options=(*wrong[:place], right, *wrong[place:]), answer_letter=letter)
