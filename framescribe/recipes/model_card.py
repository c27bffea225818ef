"""The `model_card` recipe: the model card's own prompt and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from framescribe.recipes.ask import ask_with_retries, caption_from
from framescribe.recipes.config import PromptConfig, check_placeholders
from framescribe.recipes.recipe import AskableVideo, Recipe, RecipeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCardRecipe(Recipe):
    """One caption of the whole clip."""

    name: ClassVar[str] = "model_card"

    caption: PromptConfig

    def __post_init__(self) -> None:
        check_placeholders("caption", self.caption.prompt, required=())

    async def annotate(self, video: AskableVideo, clip_id: str) -> RecipeResult:  # noqa: ARG002 (as every recipe)
        """Asks for the caption."""
        reply = await ask_with_retries(video.ask, self.caption.prompt, self.caption, self)
        return RecipeResult((caption_from(reply, "clip", 0.0, video.duration_s),), ())
