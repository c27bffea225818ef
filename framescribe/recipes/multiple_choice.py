"""Multiple choice: three wrong answers from the model, letters in balance, asked with and without the video."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from framescribe.llava_video.engine.generation import FinishReason
from framescribe.recipes.annotation import QAPair, Status
from framescribe.recipes.answers import LETTERS, clean_option, parse_letter, parse_wrong_answers
from framescribe.recipes.ask import Reply, ask_with_retries
from framescribe.recipes.config import MultipleChoiceConfig, RecheckConfig, fill_prompt
from framescribe.recipes.open_ended import add_scores, ask_again, row_from
from framescribe.recipes.recipe import AskableVideo, Recipe

_NUM_WRONG = len(LETTERS) - 1


async def ask_choice(
    video: AskableVideo,
    pair: QAPair,
    clip_id: str,
    turn: Turn,
    config: MultipleChoiceConfig,
    recheck: RecheckConfig,
    recipe: Recipe,
) -> QAPair:
    """The multiple-choice row of an open-ended pair, asked with the video and blind where the model gave three options.

    Letters and closing lines go to the questions of a clip that came out, in turn, so that they stay in balance. So a
    row waits for the wrong answers to the pairs before it, and for nothing else. A right letter scores 1.
    """
    row = await _ask_wrong_answers(video, pair, config, recipe)
    number = await turn.take(row.status is Status.OK)
    if row.status is not Status.OK:
        return row
    placed = _place_answer(row, spread_letters(clip_id, number + 1)[number])
    closing = config.closings[number % len(config.closings)]
    answers = await ask_again(video, format_choice(placed.question, placed.options, closing), recheck, recipe)
    recheck_score, blind_score = (
        float(parse_letter(answer, placed.options) == placed.answer_letter) for answer in answers
    )
    return add_scores(placed, answers, (recheck_score, blind_score), recheck)


class Turn:
    """The place of one question among those of its clip that came out, known once all before it have ended."""

    def __init__(self, before: asyncio.Future[int], after: asyncio.Future[int]) -> None:
        self._before, self._after = before, after

    @classmethod
    def spread(cls, number: int) -> list[Turn]:
        """Makes the turns of so many questions, in order."""
        numbers: list[asyncio.Future[int]] = [asyncio.get_running_loop().create_future() for _ in range(number + 1)]
        numbers[0].set_result(0)
        return [cls(*pair) for pair in pairwise(numbers)]

    async def take(self, came_out: bool) -> int:
        """Waits for the questions before, returns how many came out, and says whether this one did; called once."""
        number = await self._before
        self._after.set_result(number + came_out)
        return number


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
