"""Asks one question, with the recipe's retry ladder, and says how the completion ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TypeVar

from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig
from framescribe.llava_video.engine.loops import has_repeated_sentence
from framescribe.recipes.annotation import Caption, Status
from framescribe.recipes.answer_text import is_refusal
from framescribe.recipes.config import PromptConfig
from framescribe.recipes.recipe import Recipe

Ask = Callable[[str, GenerationConfig], Awaitable[Completion]]
"""`video.ask` or `video.ask_text`."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Reply:
    """The completion that was kept, and how it came about.

    Attributes:
        status: how the completion ended as a text: OK, EMPTY, LENGTH, LOOPED or REFUSED.
        prompt: the words as asked.
        attempt: 1 for the first try; the rungs of the retry ladder follow.
    """

    completion: Completion
    status: Status
    prompt_id: str
    prompt: str
    attempt: int

    @property
    def text(self) -> str:
        """What the model wrote."""
        return self.completion.text


async def ask_with_retries(ask: Ask, prompt: str, config: PromptConfig, recipe: Recipe) -> Reply:
    """Asks `prompt` with the limits of `config`, again for each rung while the completion ends as `recipe.retry_on`.

    The last completion is kept: where no rung helped, its status says so.
    """
    penalties = (None, *(rung.repetition_penalty for rung in recipe.retries))
    for attempt, penalty in enumerate(penalties, start=1):
        generation = GenerationConfig(config.max_new_tokens, penalty, recipe.stop_loops)
        completion = await ask(prompt, generation)
        reply = Reply(completion, read_status(completion, recipe.stop_loops), config.id, prompt, attempt)
        if reply.status not in recipe.retry_on:
            break
    return reply


def read_status(completion: Completion, stop_loops: bool) -> Status:
    """How a completion ended, before anything is read from it.

    Repeated sentences that the token detector let pass, because a running number or another sentence stands between
    them, count as a loop as well where loops are to be stopped.
    """
    if completion.finish_reason is FinishReason.LOOPED:
        return Status.LOOPED
    if not completion.text.strip():
        return Status.EMPTY
    if stop_loops and has_repeated_sentence(completion.text):
        return Status.LOOPED
    if is_refusal(completion.text):
        return Status.REFUSED
    return Status.LENGTH if completion.finish_reason is FinishReason.LENGTH else Status.OK


def caption_from(reply: Reply, level: str, start_s: float, end_s: float) -> Caption:
    """The caption row for a reply that is a caption as it stands."""
    return Caption(
        level=level,
        start_s=start_s,
        end_s=end_s,
        text=reply.text,
        status=reply.status,
        finish_reason=reply.completion.finish_reason.value,
        num_prompt_tokens=reply.completion.num_prompt_tokens,
        num_completion_tokens=len(reply.completion.token_ids),
        prompt_id=reply.prompt_id,
        prompt=reply.prompt,
        attempt=reply.attempt,
    )


async def ask_together(questions: Iterable[Coroutine[None, None, _T]]) -> list[_T]:
    """Runs independent questions at the same time, so that the engine can batch them; results in the order given.

    When one raises, the others are cancelled before the exception leaves: none goes on asking in the background.
    """
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()  # does nothing to one that is done
