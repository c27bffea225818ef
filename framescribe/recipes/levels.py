"""The `levels` recipe: the three-level recurrent captions of LLaVA-Video-178K (arXiv 2410.02713, section 3).

Level 1 describes each segment from its frames, knowing what was said before; level 2 sums up the video so far, from
texts alone, every few segments; level 3 describes the whole video from the last summary and the level-1 texts after it.

Where the paper is silent:

- A tail shorter than `min_segment_s` belongs to the segment before it; a video up to `segment_s` long is one segment.
- A video of exactly as many segments as a summary takes has no level-1 text left over: level 3 reads the summary alone.
- A text that came out empty, refused or looped is a row, but no later prompt sees it. A summary that failed folds
  nothing: the summary before it and all level-1 texts since stay in the history until the next one.
- Without a single usable text nothing is asked for the whole video: its row is empty, with `attempt` 0.
- What is put into a prompt is at most `max_history_chars` long: the oldest level-1 texts are left out first.
- Texts are put in on one line each, so that no line of a model's text reads as another entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from framescribe.recipes.annotation import Caption, Status
from framescribe.recipes.answer_text import squeeze
from framescribe.recipes.ask import ask_with_retries, caption_from
from framescribe.recipes.config import PromptConfig, check_placeholders, fill_prompt
from framescribe.recipes.recipe import AskableVideo, PromptCount, Recipe, RecipeResult, check_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelsRecipe(Recipe):
    """Captions of every segment, a summary every `segments_per_summary` segments, and one of the whole video.

    Attributes:
        segment, summary, video: the prompts of the levels; `{history}` in the first, `{descriptions}` in the others.
        max_history_chars: 16,000 are about 4,000 tokens of English: beside 64 frames (some 11,600 tokens) they fit the
            model's 32,768 even where every character is a token.
    """

    name: ClassVar[str] = "levels"

    segment_s: float
    min_segment_s: float
    segments_per_summary: int
    segment: PromptConfig
    summary: PromptConfig
    video: PromptConfig
    max_history_chars: int = 16_000

    def __post_init__(self) -> None:
        if not 0 <= self.min_segment_s < self.segment_s < math.inf:
            raise ValueError(
                "wanted 0 <= min_segment_s < segment_s, "
                f"got min_segment_s {self.min_segment_s} and segment_s {self.segment_s}"
            )
        if self.segments_per_summary < 1 or self.max_history_chars < 1:
            raise ValueError("segments_per_summary and max_history_chars must be at least 1")
        check_placeholders("segment", self.segment.prompt, required=(), optional=("history",))
        check_placeholders("summary", self.summary.prompt, required=("descriptions",))
        check_placeholders("video", self.video.prompt, required=("descriptions",))
        check_ids((self.segment.id, self.summary.id, self.video.id))

    def count_prompts(self, duration_s: float) -> PromptCount:
        """One for each segment, each summary and the whole."""
        num_segments = len(split_segments(duration_s, self.segment_s, self.min_segment_s))
        number = num_segments + num_segments // self.segments_per_summary + 1
        return PromptCount(number, number)

    async def annotate(self, video: AskableVideo, clip_id: str) -> RecipeResult:  # noqa: ARG002 (as every recipe)
        """Goes through the video from segment to segment; each needs the text of the one before."""
        history = _History(self.max_history_chars)
        captions: list[Caption] = []
        bounds = split_segments(video.duration_s, self.segment_s, self.min_segment_s)
        for number, (start_s, end_s) in enumerate(bounds, start=1):
            captions.append(await self._describe_segment(video, start_s, end_s, history))
            history.add(captions[-1])
            if number % self.segments_per_summary == 0 and history.recent:
                captions.append(await self._describe_texts(video, self.summary, "summary", end_s, history))
                history.fold(captions[-1])
        captions.append(await self._describe_video(video, history))
        return RecipeResult(tuple(captions), ())

    async def _describe_segment(self, video: AskableVideo, start_s: float, end_s: float, history: _History) -> Caption:
        prompt = fill_prompt(self.segment.prompt, {"history": history.as_bullets()})
        async with video.segment(start_s, end_s) as segment:
            reply = await ask_with_retries(segment.ask, prompt, self.segment, self)
        return caption_from(reply, "segment", start_s, end_s)

    async def _describe_texts(
        self, video: AskableVideo, config: PromptConfig, level: str, end_s: float, history: _History
    ) -> Caption:
        prompt = fill_prompt(config.prompt, {"descriptions": history.as_numbers()})
        reply = await ask_with_retries(video.ask_text, prompt, config, self)
        return caption_from(reply, level, 0.0, end_s)

    async def _describe_video(self, video: AskableVideo, history: _History) -> Caption:
        if history.texts():
            return await self._describe_texts(video, self.video, "video", video.duration_s, history)
        return Caption("video", 0.0, video.duration_s, "", Status.EMPTY, "", 0, 0, self.video.id, "", attempt=0)


def split_segments(duration_s: float, segment_s: float, min_segment_s: float) -> list[tuple[float, float]]:
    """Cuts a video into (start, end) in seconds: each `segment_s` long, the last up to `min_segment_s` longer."""
    num_segments = max(1, math.ceil(duration_s / segment_s))
    if num_segments > 1 and duration_s - (num_segments - 1) * segment_s < min_segment_s:
        num_segments -= 1
    starts = [number * segment_s for number in range(num_segments)]
    return list(zip(starts, [*starts[1:], duration_s], strict=True))


@dataclass(slots=True)
class _History:
    """The latest summary and the level-1 texts it does not hold yet."""

    max_chars: int
    summary: str = ""
    recent: list[str] = field(default_factory=list)

    def add(self, caption: Caption) -> None:
        """Remembers a level-1 text, unless it is of no use."""
        if _is_usable(caption):
            self.recent.append(squeeze(caption.text))

    def fold(self, caption: Caption) -> None:
        """Lets a summary take the place of all that went before, unless it is of no use."""
        if _is_usable(caption):
            self.summary, self.recent = squeeze(caption.text), []

    def texts(self) -> list[str]:
        """The summary first, then as many of the latest level-1 texts as fit, in order."""
        kept = [self.summary[: self.max_chars]] if self.summary else []
        num_chars_left = self.max_chars - len(self.summary)
        latest: list[str] = []
        for text in reversed(self.recent):
            num_chars_left -= len(text)
            if num_chars_left < 0 and (kept or latest):
                break
            latest.append(text[: self.max_chars])
        return kept + latest[::-1]

    def as_bullets(self) -> str:
        """Returns the history as the next segment's prompt shows it, or nothing."""
        texts = self.texts()
        return "".join(["\nWhat happened before:", *(f"\n- {text}" for text in texts)]) if texts else ""

    def as_numbers(self) -> str:
        """Returns the history as a retelling's prompt lists it."""
        return "\n".join(f"{number}. {text}" for number, text in enumerate(self.texts(), start=1))


def _is_usable(caption: Caption) -> bool:
    return caption.status in (Status.OK, Status.LENGTH)
