"""The recipes of captions alone: the model card's own prompt, and a long and a short caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from framescribe.recipes.annotation import Caption
from framescribe.recipes.ask import ask_together, ask_with_retries, caption_from
from framescribe.recipes.config import PromptConfig, check_placeholders
from framescribe.recipes.recipe import AskableVideo, PromptCount, Recipe, RecipeResult, check_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCardRecipe(Recipe):
    """One caption of the whole clip."""

    name: ClassVar[str] = "model_card"

    caption: PromptConfig

    def __post_init__(self) -> None:
        check_placeholders("caption", self.caption.prompt, required=())

    async def annotate(self, video: AskableVideo, clip_id: str) -> RecipeResult:  # noqa: ARG002 (as every recipe)
        """Asks for the caption."""
        return RecipeResult((await ask_caption(video, self.caption, self),), ())

    def count_prompts(self, duration_s: float) -> PromptCount:  # noqa: ARG002 (as every recipe)
        """One."""
        return PromptCount(1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionsRecipe(Recipe):
    """Two captions of the whole clip, the long one first; `prompt_id` tells them apart."""

    name: ClassVar[str] = "captions"

    long: PromptConfig
    short: PromptConfig

    def __post_init__(self) -> None:
        check_placeholders("long", self.long.prompt, required=())
        check_placeholders("short", self.short.prompt, required=())
        check_ids((self.long.id, self.short.id))

    async def annotate(self, video: AskableVideo, clip_id: str) -> RecipeResult:  # noqa: ARG002 (as every recipe)
        """Asks for both captions at once."""
        captions = await ask_together(ask_caption(video, prompt, self) for prompt in (self.long, self.short))
        return RecipeResult(tuple(captions), ())

    def count_prompts(self, duration_s: float) -> PromptCount:  # noqa: ARG002 (as every recipe)
        """Two."""
        return PromptCount(2, 2)


async def ask_caption(video: AskableVideo, prompt: PromptConfig, recipe: Recipe) -> Caption:
    """Asks for one caption of the whole clip."""
    reply = await ask_with_retries(video.ask, prompt.prompt, prompt, recipe)
    return caption_from(reply, "clip", 0.0, video.duration_s)
