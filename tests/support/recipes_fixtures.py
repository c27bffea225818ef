"""A video that answers from a script, and recipes small enough to follow by eye."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig, Score
from framescribe.recipes.recipe import AskableVideo

Answer = str | Completion


@dataclass(frozen=True)
class Asked:
    """One question as a recipe put it: `window` is the part of the video it was about, None for text alone."""

    question: str
    generation: GenerationConfig
    window: tuple[float, float] | None


@dataclass
class FakeVideo:
    """Answers by the question's words: the first key of `script` that the question contains, blind ones from `blind`.

    Scores are found by the answer, or by the lines of the options as asked; what is in neither is as likely as not.
    A callable in the script gets the question. `asked` is shared with the segments; `most_at_once` counts the
    questions that waited for their answers together.
    """

    script: Mapping[str, Answer | Callable[[str], Answer]]
    blind: Mapping[str, Answer | Callable[[str], Answer]] = field(default_factory=dict)
    scores: Mapping[tuple[str, ...], Sequence[float] | Exception] = field(default_factory=dict)
    blind_scores: Mapping[tuple[str, ...], Sequence[float] | Exception] = field(default_factory=dict)
    duration_s: float = 12.0
    start_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    open_segments: list[tuple[float, float]] = field(default_factory=list)
    scored: list[tuple[str, tuple[str, ...], bool]] = field(default_factory=list)
    num_waiting: int = 0
    most_at_once: int = 0

    async def ask(self, question: str, generation: GenerationConfig) -> Completion:
        self.asked.append(Asked(question, generation, (self.start_s, self.start_s + self.duration_s)))
        return await self._answer(question, self.script)

    async def ask_text(self, question: str, generation: GenerationConfig) -> Completion:
        self.asked.append(Asked(question, generation, None))
        return await self._answer(question, self.blind)

    @asynccontextmanager
    async def segment(self, start_s: float, end_s: float) -> AsyncIterator[AskableVideo]:
        self.open_segments.append((start_s, end_s))
        yield FakeVideo(self.script, self.blind, duration_s=end_s - start_s, start_s=start_s, asked=self.asked)
        self.open_segments.remove((start_s, end_s))

    async def score(self, question: str, answer: str) -> Score:
        return await self._score(question, (answer,), self.scores, self.duration_s)

    async def score_text(self, question: str, answer: str) -> Score:
        return await self._score(question, (answer,), self.blind_scores, None)

    async def score_choices(self, question: str, choices: Sequence[str]) -> Score:
        return await self._score(question, _options_of(question), self.scores, self.duration_s)

    async def score_choices_text(self, question: str, choices: Sequence[str]) -> Score:
        return await self._score(question, _options_of(question), self.blind_scores, None)

    async def _score(
        self,
        question: str,
        answers: tuple[str, ...],
        scores: Mapping[tuple[str, ...], Sequence[float] | Exception],
        duration_s: float | None,
    ) -> Score:
        self.scored.append((question, answers, duration_s is not None))
        await asyncio.sleep(0)
        found = scores.get(answers, [-1.0] * len(answers))
        if isinstance(found, Exception):
            raise found
        return Score(tuple(range(len(found))), tuple(found), 7)

    async def _answer(self, question: str, script: Mapping[str, Answer | Callable[[str], Answer]]) -> Completion:
        self.num_waiting += 1
        self.most_at_once = max(self.most_at_once, self.num_waiting)
        await asyncio.sleep(0)
        self.num_waiting -= 1
        answer = next((answer for words, answer in script.items() if words in question), "I do not know.")
        answer = answer(question) if callable(answer) else answer
        return answer if isinstance(answer, Completion) else completed(answer)


def _options_of(question: str) -> tuple[str, ...]:
    return tuple(line[3:] for line in question.splitlines() if line[1:3] == ". ")


def completed(text: str, finish_reason: FinishReason = FinishReason.STOP) -> Completion:
    """A completion of one token a word."""
    return Completion(text, tuple(range(len(text.split()))), finish_reason, num_prompt_tokens=7)


FULL_YAML = """\
recipe: full
caption: {id: cap, prompt: Describe this., max_new_tokens: 50}
open_ended:
  id: open
  prompt: "Ask {type}: {definition}"
  max_new_tokens: 40
  types:
    Count: how many.
    Speed: how fast.
    Colour: which colour.
multiple_choice:
  id: choice
  prompt: "Wrong for {question} not {answer}"
  max_new_tokens: 30
  closings: [Only the letter., Letter and option.]
recheck:
  id: check
  prompt: "{question} Be brief."
  max_new_tokens: 20
  min_recheck_score: 0.5
stop_loops: true
retries: [{repetition_penalty: 1.15}]
"""

LEVELS_YAML = """\
recipe: levels
segment_s: 10.0
min_segment_s: 3.0
segments_per_summary: 3
segment: {id: one, prompt: "Segment.{history} What happens?", max_new_tokens: 50}
summary: {id: two, prompt: "{descriptions} So far?", max_new_tokens: 60}
video: {id: three, prompt: "{descriptions} All in all?", max_new_tokens: 70}
stop_loops: true
retries: []
"""
