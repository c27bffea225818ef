"""What a recipe is (settings, and a flow of questions over one video), and what it needs of that video."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

from framescribe.llava_video.engine.generation import Completion, GenerationConfig, Score
from framescribe.recipes.annotation import Caption, QAPair, Status
from framescribe.recipes.config import STRICT, RetryConfig

Retryable = Literal[Status.LOOPED, Status.EMPTY, Status.LENGTH, Status.REFUSED]


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """All that a recipe has to say about one clip, failed questions included, in the recipe's own order."""

    captions: tuple[Caption, ...]
    qa_pairs: tuple[QAPair, ...]


@dataclass(frozen=True, slots=True)
class PromptCount:
    """Least and most prompts per clip, without retries: the number depends on the answers.

    Attributes:
        most_scores: answers that are scored at the most, besides: one prefill each, and nothing is generated.
    """

    fewest: int
    most: int
    most_scores: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(ABC):
    """A recipe, ready to annotate: picklable, without state.

    `dataclasses.replace(recipe, stop_loops=False)` gives the same recipe without the loop detector.

    Attributes:
        stop_loops: end a completion that repeats itself, with the status `looped`.
        retries: the retry ladder: one more try each, in order, for a completion that ended as one of `retry_on`.
        retry_on: any of `looped`, `empty`, `length`, `refused`.
    """

    name: ClassVar[str]
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    stop_loops: bool
    retries: tuple[RetryConfig, ...]
    retry_on: tuple[Retryable, ...] = (Status.LOOPED, Status.EMPTY)

    @abstractmethod
    async def annotate(self, video: AskableVideo, clip_id: str) -> RecipeResult:
        """Asks the recipe's questions about one clip; the same answers give the same result, in any order of arrival.

        Raises:
            whatever asking raises; questions still open are cancelled first.
        """

    @abstractmethod
    def count_prompts(self, duration_s: float) -> PromptCount:
        """Returns the number of prompts for a clip of `duration_s` seconds."""

    # Any: plain JSON, as deep as the recipe's own settings.
    def to_dict(self) -> dict[str, Any]:
        """Everything that changes what is asked or kept, as plain JSON values: for fingerprints and run.json."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"recipe": self.name, **settings}


def describe_prompts(recipe: Recipe, duration_s: float) -> str:
    """Returns a line for people: `detailed: 7 to 9 prompts per clip, up to 28 scores`."""
    count = recipe.count_prompts(duration_s)
    number = str(count.most) if count.fewest == count.most else f"{count.fewest} to {count.most}"
    scores = f", up to {count.most_scores} scores" if count.most_scores else ""
    return f"{recipe.name}: {number} {'prompt' if count.most == 1 else 'prompts'} per clip{scores}"


def shuffle_by_clip(names: Iterable[str], clip_id: str) -> list[str]:
    """Returns the names in an order of the clip's own: as good as random over clips, the same on every machine."""
    # Each name has its own digest of the clip: sorting by them is a shuffle without a random state.
    return sorted(names, key=lambda name: hashlib.sha256(f"{name}\n{clip_id}".encode("utf-8", "replace")).digest())


def check_ids(prompt_ids: Iterable[str]) -> None:
    """Makes sure that the rows of two prompts can be told apart.

    Raises:
        ValueError: two prompts of a recipe have the same id.
    """
    ids = list(prompt_ids)
    doubled = sorted({one for one in ids if ids.count(one) > 1})
    if doubled:
        raise ValueError(f"prompt ids must differ within a recipe, got {', '.join(doubled)} twice")


class AskableVideo(Protocol):
    """A video that is encoded once and asked many questions, any number of them at the same time."""

    @property
    def duration_s(self) -> float:
        """Seconds the video lasts; times of segments count from its start."""
        ...

    async def ask(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question from the frames of the video."""
        ...

    async def ask_text(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question without the video: a text-only prompt with the same system message."""
        ...

    async def score(self, question: str, answer: str) -> Score:
        """Finds out how likely an answer is; raises `PromptTooLong` or `ClipTooLarge` where it cannot."""
        ...

    async def score_text(self, question: str, answer: str) -> Score:
        """Finds out how likely an answer is without the video."""
        ...

    async def score_choices(self, question: str, choices: Sequence[str]) -> Score:
        """Finds out how likely each choice, such as a letter, is to come right after a question."""
        ...

    async def score_choices_text(self, question: str, choices: Sequence[str]) -> Score:
        """Finds out how likely each choice is without the video."""
        ...

    def segment(self, start_s: float, end_s: float) -> AbstractAsyncContextManager[AskableVideo]:
        """Opens a part of the video as a video of its own, closed when the context is left.

        Its frames are those with `start_s <= time < end_s`, and the last frames of the video for a segment that ends
        with it; where no frame was sampled inside, the one nearest to the middle of the segment, so that there is
        always one.
        """
        ...
