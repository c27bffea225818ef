"""What a recipe asks of a clip in the mean: the recipe is run over a video that answers with texts of usual length.

So prompts are counted as they will be asked, follow-ups included, whatever the recipe is. How long answers are, and how
many questions come to nothing, is assumed; an earlier run of the recipe says it better.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any

from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig, Score
from framescribe.recipes.config import PromptConfig
from framescribe.recipes.recipe import Recipe

# Tokens of an answer, by the name of its prompt in the recipe; of others, a fraction of the most that they may have.
# As long as LLaVA-Video-178K's; where it says None, 3.
ANSWER_TOKENS = {"caption": 330, "long": 330, "short": 30, "open_ended": 38, "multiple_choice": 34, "recheck": 10}
_FRACTION_OF_MOST, _NONE_TOKENS = 0.4, 3
USABLE_FRACTION = 0.75  # of the open-ended questions
_NUM_CLIPS = 16
_PLACEHOLDER = re.compile(r"\\\{\w+\\\}")

# As long as usual ones, since later prompts are made of them.
_PAIR = (
    "Question: What does the person with the {0} do at the table after the door was opened?\n"
    "Answer: The person takes the {0} and puts it beside the window."
)
_WRONG = "The person carries the {} out of the room."

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class ExpectedAsks:
    """Prompts of a clip and their tokens in the mean; question tokens are those on top of the clip's prefix.

    Answers that are scored are no prompts, but their tokens are question tokens; nothing is generated for them.

    Attributes:
        longest_tokens: of the longest answer, which decides how long a clip stays open.
    """

    num_prompts: float
    num_question_tokens: float
    num_answer_tokens: float
    longest_tokens: float


def expect_asks(recipe: Recipe, duration_s: float, count_tokens: CountTokens | None = None) -> ExpectedAsks:
    """Returns what the recipe asks of clips of that length.

    Args:
        count_tokens: of a question with what stands around it; None takes a usual tokenizer's.
    """
    asked: list[tuple[int, int]] = []
    count = count_tokens or _guess_tokens
    for number in range(_NUM_CLIPS):
        asyncio.run(recipe.annotate(_Interviewed(recipe, duration_s, str(number), count, asked), str(number)))
    questions, answers = (sum(column) / _NUM_CLIPS for column in zip(*asked, strict=True))
    num_prompts = sum(tokens > 0 for _, tokens in asked) / _NUM_CLIPS
    return ExpectedAsks(num_prompts, questions, answers, max(tokens for _, tokens in asked))


def _guess_tokens(question: str) -> int:
    return 8 + round(len(question) / 4.3)


@dataclass(frozen=True, slots=True)
class _Interviewed:
    """A video that notes the lengths of all it is asked; implements what recipes ask of a video."""

    recipe: Recipe
    duration_s: float
    name: str
    count_tokens: CountTokens
    asked: list[tuple[int, int]]

    async def ask(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers as the prompt wants it."""
        key = _find_prompt(self.recipe, question)
        digest = hashlib.sha256(f"{self.name}\n{question}".encode()).hexdigest()
        num_tokens = ANSWER_TOKENS.get(key, round(_FRACTION_OF_MOST * generation.max_new_tokens))
        text = f"So it is {digest[:8]}."
        if key == "open_ended":
            is_usable = int(digest[:8], 16) < USABLE_FRACTION * 2**32
            text = _PAIR.format(digest[:6]) if is_usable else "None"
            num_tokens = num_tokens if is_usable else _NONE_TOKENS
        elif key == "multiple_choice":
            text = "\n".join(_WRONG.format(digest[start : start + 6]) for start in (0, 6, 12))
        num_tokens = min(num_tokens, generation.max_new_tokens)
        self.asked.append((self.count_tokens(question), num_tokens))
        return Completion(text, (0,) * num_tokens, FinishReason.STOP, self.count_tokens(question))

    async def ask_text(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers as with the video."""
        return await self.ask(question, generation)

    async def score(self, question: str, answer: str) -> Score:
        """Notes a prefill of question and answer."""
        num_tokens = self.count_tokens(question + answer)
        self.asked.append((num_tokens, 0))
        return Score((0,), (-0.5,), num_tokens)

    async def score_text(self, question: str, answer: str) -> Score:
        """Scores as with the video."""
        return await self.score(question, answer)

    async def score_choices(self, question: str, choices: Sequence[str]) -> Score:
        """Notes a prefill of the question."""
        num_tokens = self.count_tokens(question)
        self.asked.append((num_tokens, 0))
        return Score((0,) * len(choices), (-1.5,) * len(choices), num_tokens)

    async def score_choices_text(self, question: str, choices: Sequence[str]) -> Score:
        """Scores as with the video."""
        return await self.score_choices(question, choices)

    @asynccontextmanager
    async def segment(self, start_s: float, end_s: float) -> AsyncIterator[_Interviewed]:
        """Opens a part of it."""
        yield _Interviewed(self.recipe, end_s - start_s, f"{self.name} {start_s}", self.count_tokens, self.asked)


def _find_prompt(recipe: Recipe, question: str) -> str:
    """Returns the name of the prompt in the recipe that a question was made of."""
    configs: dict[str, Any] = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
    for name, config in configs.items():
        if not isinstance(config, PromptConfig):
            continue
        if re.fullmatch(_PLACEHOLDER.sub(".*", re.escape(config.prompt)), question, re.DOTALL):
            return name
    return "recheck"
