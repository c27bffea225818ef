"""Two clips of known content that are asked among the real ones: when their answers change, the run stops.

Engine and recipe check by id and digest that an answer is for the clip that was asked about. The canary looks from the
outside: whatever happens between pixels and words, one square must not be answered as two.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from framescribe.errors import FrameScribeError
from framescribe.llava_video.engine.generation import GenerationConfig
from framescribe.recipes.engine_video import EngineVideo

if TYPE_CHECKING:
    from framescribe.llava_video.engine.engine import Engine

CANARY_PROMPTS = (
    "Please describe this video in detail.",
    "How many squares does this video show? Answer with one word.",
)
MAX_NEW_TOKENS = 24  # enough for the descriptions to part; a canary costs as much as a small fraction of one clip
CANARY_TIMES_S = (0.0, 0.5, 1.0, 1.5)
CANARY_DURATION_S = 2.0
_COUNT_WORDS = {1: {"1", "one", "single"}, 2: {"2", "two", "both"}}

TokenIds = tuple[int, ...]


class CanaryFailed(FrameScribeError, RuntimeError):
    """The model's answers about clips of known content are not what they were, or do not depend on the content."""


@dataclass(frozen=True, slots=True)
class CanaryClip:
    """A still clip with so many squares; `frames` are uint8 [4, 96, 96, 3]."""

    num_squares: int
    frames: np.ndarray = field(repr=False)

    @property
    def clip_id(self) -> str:
        """Name that the answers must carry."""
        return f"canary/{self.num_squares}"


@dataclass(frozen=True, slots=True)
class CanaryAnswer:
    """What was answered to the prompts: the description's token ids, and whether the number of squares was right."""

    token_ids: tuple[TokenIds, ...]
    is_count_right: bool


class Canary:
    """Asks both clips at the first clip of a process and at every so many after it. Lives on the recipes' event loop.

    Args:
        engine: whose answers are watched.
        is_exact: answers must be the same to the last token. Otherwise, as in bfloat16, where the other questions in
            the batch change the last bits, each must share more tokens with its own first answer than with the
            other clip's: words drift, what is seen does not.
    """

    def __init__(self, engine: Engine, is_exact: bool) -> None:
        self._engine = engine
        self._is_exact = is_exact
        self._num_clips = 0
        self._first: tuple[CanaryAnswer, ...] | None = None
        self._last_check: asyncio.Future[None] | None = None

    async def pass_clip(self, every: int) -> None:
        """Waits until a clip may be asked: the last check has passed, and one was made where it was due.

        Args:
            every: clips from one check to the next; 0 never checks.

        Raises:
            CanaryFailed: a check failed, now or earlier: from then on no clip passes.
        """
        if every == 0:
            return
        is_due = self._num_clips % every == 0
        self._num_clips += 1
        if is_due and not self._has_failed():
            self._last_check = asyncio.ensure_future(self._check())
        if self._last_check is not None:
            await asyncio.shield(self._last_check)  # all wait for one check; a clip that is cancelled leaves it alone

    def _has_failed(self) -> bool:
        last = self._last_check
        return last is not None and last.done() and (last.cancelled() or last.exception() is not None)

    async def _check(self) -> None:
        answers = tuple(await asyncio.gather(*(self._ask(clip) for clip in CANARY_CLIPS)))
        if self._first is None:
            check_answers_differ(answers)
            self._first = answers
        check_same_answers(self._first, answers, self._is_exact)

    async def _ask(self, clip: CanaryClip) -> CanaryAnswer:
        video = EngineVideo.open(self._engine, clip.clip_id, clip.frames, CANARY_TIMES_S, CANARY_DURATION_S)
        generation = GenerationConfig(MAX_NEW_TOKENS)
        try:
            answers = await asyncio.gather(*(video.ask(prompt, generation) for prompt in CANARY_PROMPTS))
        finally:
            video.close()
        words = set(re.findall(r"\w+", answers[1].text.lower()))
        return CanaryAnswer(tuple(answer.token_ids for answer in answers), bool(words & _COUNT_WORDS[clip.num_squares]))


def check_answers_differ(answers: tuple[CanaryAnswer, ...]) -> None:
    """Raises `CanaryFailed` when two clips of different content were answered alike."""
    if answers[0].token_ids == answers[1].token_ids:
        raise CanaryFailed(
            "the model gives the same answers to a video of one red square and to one of two blue ones: it does not "
            "see its videos, so nothing it says can be trusted. Check the checkpoint's vision weights and the device; "
            "--canary-every 0 runs without this check"
        )


def check_same_answers(first: tuple[CanaryAnswer, ...], now: tuple[CanaryAnswer, ...], is_exact: bool) -> None:
    """Raises `CanaryFailed` when a clip is not answered as it was at the start.

    Args:
        first, now: the answers about each of `CANARY_CLIPS`, at the start of the process and now.
        is_exact: see `Canary`.
    """
    for number, clip in enumerate(CANARY_CLIPS):
        same = is_like(now[number], first[number], first[1 - number], is_exact)
        if not same or (first[number].is_count_right and not now[number].is_count_right):
            raise CanaryFailed(
                f"the canary clip of {clip.num_squares} square(s), always the same, is not answered as at the start of "
                "this process: answers are mixed up or the device computes wrongly. The run stops; finished units are "
                "kept, those since the last good check (--canary-every) deserve a look"
            )


def is_like(now: CanaryAnswer, own: CanaryAnswer, other: CanaryAnswer, is_exact: bool) -> bool:
    """Returns whether an answer is about the clip of the answer `own`, not of `other`; see `Canary`."""
    if now.token_ids == own.token_ids:
        return True
    return not is_exact and count_shared(now, own) > count_shared(now, other)


def count_shared(one: CanaryAnswer, other: CanaryAnswer) -> int:
    """Returns how many tokens two answers have in common, wherever they stand."""
    pairs = zip(one.token_ids, other.token_ids, strict=True)
    return sum((Counter(mine) & Counter(theirs)).total() for mine, theirs in pairs)


def draw_canary(num_squares: int, colour: tuple[int, int, int]) -> CanaryClip:
    """Draws so many big squares side by side on grey."""
    frame = np.full((96, 96, 3), 128, np.uint8)
    width = 96 // num_squares
    for number in range(num_squares):
        left = number * width + width // 6
        frame[32:64, left : left + 2 * width // 3] = colour
    return CanaryClip(num_squares, np.repeat(frame[None], len(CANARY_TIMES_S), axis=0))


CANARY_CLIPS = (draw_canary(1, (215, 35, 35)), draw_canary(2, (35, 70, 225)))
