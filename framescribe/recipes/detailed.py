"""The `detailed` recipe: a caption, open-ended and multiple-choice questions, and each of them verified.

One question per type as in LLaVA-Video-178K (arXiv 2410.02713, section 3), but asked of the frames, not of a caption,
and asked again afterwards: with the video (does the model stand by it?) and without (does it need the video?).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from framescribe.recipes.annotation import QAPair, Status
from framescribe.recipes.ask import ask_together, ask_with_retries, caption_from
from framescribe.recipes.config import (
    MultipleChoiceConfig,
    OpenEndedConfig,
    PromptConfig,
    QuestionType,
    RecheckConfig,
    check_placeholders,
)
from framescribe.recipes.multiple_choice import Turn, ask_choice
from framescribe.recipes.open_ended import ask_open_ended, recheck_open_ended
from framescribe.recipes.recipe import AskableVideo, Recipe, RecipeResult, check_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailedRecipe(Recipe):
    """One caption, one open-ended row a question type, and one multiple-choice row for each pair that came out."""

    name: ClassVar[str] = "detailed"

    caption: PromptConfig
    open_ended: OpenEndedConfig
    multiple_choice: MultipleChoiceConfig
    recheck: RecheckConfig

    def __post_init__(self) -> None:
        check_placeholders("caption", self.caption.prompt, required=())
        prompts = (self.caption, self.open_ended, self.multiple_choice, self.recheck)
        check_ids(prompt.id for prompt in prompts)

    async def annotate(self, video: AskableVideo, clip_id: str) -> RecipeResult:
        """Asks for the caption and all question types at once, and what follows from each as soon as it is answered."""
        # Two chains that never wait for each other: the caption is the longest text of all.
        described, questioned = await ask_together([self._describe(video), self._question(video, clip_id)])
        return RecipeResult(described.captions, questioned.qa_pairs)

    async def _describe(self, video: AskableVideo) -> RecipeResult:
        reply = await ask_with_retries(video.ask, self.caption.prompt, self.caption, self)
        return RecipeResult((caption_from(reply, "clip", 0.0, video.duration_s),), ())

    async def _question(self, video: AskableVideo, clip_id: str) -> RecipeResult:
        types = self.open_ended.types
        chains = [
            self._ask_type(video, clip_id, one, turn) for one, turn in zip(types, Turn.spread(len(types)), strict=True)
        ]
        asked = await ask_together(chains)
        choices = [choice for _, choice in asked if choice is not None]
        return RecipeResult((), (*(row for row, _ in asked), *choices))

    async def _ask_type(
        self, video: AskableVideo, clip_id: str, kind: QuestionType, turn: Turn
    ) -> tuple[QAPair, QAPair | None]:
        """Asks for a question of one type and all that follows from it, whatever the other types have come to."""
        row = await ask_open_ended(video, kind, self.open_ended, self)
        if row.status is not Status.OK:
            await turn.take(came_out=False)
            return row, None
        verified, choice = await ask_together(
            [
                recheck_open_ended(video, row, self.recheck, self),
                ask_choice(video, row, clip_id, turn, self.multiple_choice, self.recheck, self),
            ]
        )
        return verified, choice
