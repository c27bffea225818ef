"""Multiple choice: three wrong answers from the model, letters in balance, asked with and without the video."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from llava_video.generation import FinishReason
from recipes.asking import Reply, ask_together, ask_with_retries
from recipes.config import MultipleChoiceConfig, VerificationConfig
from recipes.open_ended import add_scores, ask_again, row_from
from recipes.parsers import LETTERS, clean_option, parse_letter, parse_wrong_answers
from recipes.prompts import fill_prompt
from recipes.recipe import Recipe
from recipes.video import AskableVideo
from schemas.records import QAPair, Status

_NUM_WRONG = len(LETTERS) - 1


async def ask_options(
    video: AskableVideo, pairs: Sequence[QAPair], clip_id: str, config: MultipleChoiceConfig, recipe: Recipe
) -> list[QAPair]:
    """One multiple-choice row for each open-ended pair, in their order, with four options where the model gave three.

    The letters wait for the wrong answers to all pairs of the clip: only questions that came out take one, and so the
    letters of a clip stay in balance.
    """
    rows = await ask_together([_ask_wrong_answers(video, pair, config, recipe) for pair in pairs])
    letters = iter(spread_letters(clip_id, len(rows)))
    return [_place_answer(row, next(letters)) if row.status is Status.OK else row for row in rows]


async def verify_choices(
    video: AskableVideo,
    rows: Sequence[QAPair],
    config: MultipleChoiceConfig,
    verification: VerificationConfig,
    recipe: Recipe,
) -> list[QAPair]:
    """Asks the questions that came out with the video and blind, the closing lines in turn; a right letter scores 1."""
    closings = spread_closings(rows, config.closings)
    asked = zip(rows, closings, strict=True)
    return await ask_together([_verify_choice(video, row, closing, verification, recipe) for row, closing in asked])


def format_choice(question: str, options: Sequence[str], closing: str) -> str:
    """A question as LLaVA-Video-178K writes it: the question, one lettered option a line, the closing line."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question, *lines, closing])


def spread_letters(clip_id: str, num_questions: int) -> list[str]:
    """The letters of the right answers: A to D again and again, in an order of the clip's own.

    Within a clip each letter is right equally often, or once more than another; over clips the order is as good as
    random, and the same on every machine.
    """
    # Each letter has its own digest of the clip: sorting by them is a shuffle without a random state.
    digests = {one: hashlib.sha256(f"{one}\n{clip_id}".encode("utf-8", "replace")).digest() for one in LETTERS}
    order = sorted(LETTERS, key=digests.__getitem__)
    return [order[number % len(order)] for number in range(num_questions)]


def spread_closings(rows: Sequence[QAPair], closings: Sequence[str]) -> list[str]:
    """The closing line of each row: those that came out take the lines in turn."""
    num_before = 0
    spread = []
    for row in rows:
        spread.append(closings[num_before % len(closings)])
        num_before += row.status is Status.OK
    return spread


async def _ask_wrong_answers(video: AskableVideo, pair: QAPair, config: MultipleChoiceConfig, recipe: Recipe) -> QAPair:
    prompt = fill_prompt(config.prompt.prompt, {"question": pair.question, "answer": pair.answer})
    reply = await ask_with_retries(video.ask, prompt, config.prompt, recipe)
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


async def _verify_choice(
    video: AskableVideo, row: QAPair, closing: str, config: VerificationConfig, recipe: Recipe
) -> QAPair:
    if row.status is not Status.OK:
        return row
    answers = await ask_again(video, format_choice(row.question, row.options, closing), config, recipe)
    seen_score, blind_score = (float(parse_letter(answer, row.options) == row.answer_letter) for answer in answers)
    return add_scores(row, answers, (seen_score, blind_score), config)
