"""The recipes `detailed` and `full`: a caption, open-ended questions of several types, and multiple choices of them.

The types are those of LLaVA-Video-178K (arXiv 2410.02713, section 3), but asked of the frames, not of a caption, and
looked at again afterwards: answers are scored, with the video and without (is it likely, and does it need the video?),
or asked for again (does the model agree with itself?).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from framescribe.recipes.annotation import Caption, QAPair, Status
from framescribe.recipes.answer_text import normalise_answer
from framescribe.recipes.ask import ask_together
from framescribe.recipes.captions import ask_caption
from framescribe.recipes.config import (
    MultipleChoiceConfig,
    OpenEndedConfig,
    PromptConfig,
    QuestionType,
    RecheckConfig,
    ScoreConfig,
    check_placeholders,
)
from framescribe.recipes.multiple_choice import ask_choice
from framescribe.recipes.open_ended import ask_open_ended, recheck_open_ended, score_open_ended
from framescribe.recipes.recipe import AskableVideo, PromptCount, Recipe, RecipeResult, check_ids, shuffle_by_clip

_NUM_LOOKS = 2  # with the video and blind
_NUM_ROTATIONS = 4  # of the options
_Asked = tuple[QAPair, QAPair | None]  # the open-ended row of a type, and its multiple-choice row


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRecipe(Recipe):
    """One caption, one open-ended row per question type, and one multiple-choice row for each pair that came out.

    Attributes:
        recheck: how each pair is asked again; None: it is not.
        score: how each pair is scored; None: it is not.
    """

    name: ClassVar[str] = "full"

    caption: PromptConfig
    open_ended: OpenEndedConfig
    multiple_choice: MultipleChoiceConfig
    recheck: RecheckConfig | None = None
    score: ScoreConfig | None = None

    def __post_init__(self) -> None:
        check_placeholders("caption", self.caption.prompt, required=())
        prompts = (self.caption, self.open_ended, self.multiple_choice, self.recheck, self.score)
        check_ids(prompt.id for prompt in prompts if prompt is not None)

    def count_prompts(self, duration_s: float) -> PromptCount:  # noqa: ARG002 (as every recipe)
        """From the answer None to every type, to a pair and a multiple choice of each."""
        num_types = len(self.open_ended.types)
        return self._count(num_types, num_types)

    def _count(self, num_pairs: int, num_choices: int) -> PromptCount:
        """From no pair at all to so many, and multiple choices of some."""
        num_again = 0 if self.recheck is None else _NUM_LOOKS
        num_scores = 0 if self.score is None else _NUM_LOOKS * (num_pairs + num_choices * _NUM_ROTATIONS)
        most = 1 + num_pairs * (1 + num_again) + num_choices * (1 + num_again)
        return PromptCount(1 + num_pairs, most, num_scores)

    async def annotate(self, video: AskableVideo, clip_id: str) -> RecipeResult:
        """Asks for the caption and the questions at once, and what follows from each answer."""
        # Two chains that never wait for each other: the caption is the longest text of all.
        described, questioned = await ask_together([self._describe(video), self._question(video, clip_id)])
        return RecipeResult(described.captions, questioned.qa_pairs)

    async def _describe(self, video: AskableVideo) -> RecipeResult:
        captions: tuple[Caption, ...] = (await ask_caption(video, self.caption, self),)
        return RecipeResult(captions, ())

    async def _question(self, video: AskableVideo, clip_id: str) -> RecipeResult:
        """Asks all types; what follows from one does not wait for the others."""
        types = enumerate(self.open_ended.types)
        return _make_result(await ask_together(self._ask_type(video, clip_id, kind, place) for place, kind in types))

    async def _ask_type(self, video: AskableVideo, clip_id: str, kind: QuestionType, place: int) -> _Asked:
        row = await ask_open_ended(video, kind, self.open_ended, self)
        return await self._follow_up(video, clip_id, row, place, has_choice=True)

    async def _follow_up(
        self, video: AskableVideo, clip_id: str, row: QAPair, place: int, *, has_choice: bool
    ) -> _Asked:
        """Asks all that follows from a pair; nothing where there is none."""
        if row.status is not Status.OK:
            return row, None
        questions = [self._look_again(video, row)]
        if has_choice:
            choice, has_score = self.multiple_choice, self.score is not None
            questions.append(ask_choice(video, row, clip_id, place, choice, self.recheck, self, has_score=has_score))
        looked_at, *choices = await ask_together(questions)
        return looked_at, choices[0] if choices else None

    async def _look_again(self, video: AskableVideo, row: QAPair) -> QAPair:
        if self.score is not None:
            row = await score_open_ended(video, row, self.score)
        return row if self.recheck is None else await recheck_open_ended(video, row, self.recheck, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailedRecipe(FullRecipe):
    """One caption, open-ended rows of some types, drawn for each clip, and multiple choices of a few of their pairs.

    Which types and how many choices depends on the clip id alone, so that a data set has all types evenly.

    Attributes:
        open_ended_per_clip: how many of the types each clip is asked about.
        multiple_choice_per_clip: on average: 1.1 is one choice, and two for every tenth clip. The first pairs that came
            out get them; fewer where fewer came out.
    """

    name: ClassVar[str] = "detailed"

    open_ended_per_clip: int
    multiple_choice_per_clip: float

    def __post_init__(self) -> None:
        FullRecipe.__post_init__(self)  # not super(): the slotted class is another one than the class body's
        num_types = len(self.open_ended.types)
        if not 1 <= self.open_ended_per_clip <= num_types:
            raise ValueError(
                f"open_ended_per_clip must lie between 1 and the {num_types} types, got {self.open_ended_per_clip}"
            )
        if not 0 <= self.multiple_choice_per_clip <= self.open_ended_per_clip:
            raise ValueError(
                f"multiple_choice_per_clip must lie between 0 and open_ended_per_clip, {self.open_ended_per_clip}: "
                f"got {self.multiple_choice_per_clip}"
            )

    def draw_types(self, clip_id: str) -> tuple[QuestionType, ...]:
        """Returns the types that a clip is asked about, in the order of its rows."""
        types = {kind.name: kind for kind in self.open_ended.types}
        return tuple(types[name] for name in shuffle_by_clip(types, clip_id)[: self.open_ended_per_clip])

    def draw_num_choices(self, clip_id: str) -> int:
        """Returns how many pairs of a clip become multiple choices at most."""
        digest = hashlib.sha256(f"multiple_choice\n{clip_id}".encode("utf-8", "replace")).digest()
        return math.floor(self.multiple_choice_per_clip + int.from_bytes(digest[:4], "big") / 2**32)

    def count_prompts(self, duration_s: float) -> PromptCount:  # noqa: ARG002 (as every recipe)
        """From the answer None to every question, to a pair of each and the larger number of multiple choices."""
        return self._count(self.open_ended_per_clip, math.ceil(self.multiple_choice_per_clip))

    async def _question(self, video: AskableVideo, clip_id: str) -> RecipeResult:
        """Asks the drawn types, then what follows: which pairs become choices depends on all of them."""
        rows = mark_duplicates(
            await ask_together(ask_open_ended(video, kind, self.open_ended, self) for kind in self.draw_types(clip_id))
        )
        came_out = [place for place, row in enumerate(rows) if row.status is Status.OK]
        chosen = came_out[: self.draw_num_choices(clip_id)]
        asked = await ask_together(
            self._follow_up(video, clip_id, row, place, has_choice=place in chosen) for place, row in enumerate(rows)
        )
        return _make_result(asked)


def mark_duplicates(rows: Sequence[QAPair]) -> list[QAPair]:
    """Gives the status DUPLICATE to each whole pair whose question an earlier one asks in the same words.

    The words are compared as SQuAD does: without case, punctuation and articles. The question stays in its row; scores
    do not, since the pair is not to be counted.
    """
    seen: set[str] = set()
    marked = []
    for row in rows:
        question = normalise_answer(row.question)
        is_duplicate = row.status is Status.OK and question in seen
        marked.append(_without_scores(row) if is_duplicate else row)
        if row.status is Status.OK:
            seen.add(question)
    return marked


def _without_scores(row: QAPair) -> QAPair:
    return replace(
        row,
        status=Status.DUPLICATE,
        recheck_answer=None,
        recheck_score=None,
        blind_answer=None,
        blind_score=None,
        is_consistent=None,
        answer_logprob=None,
        blind_logprob=None,
        num_answer_tokens=None,
        video_gain_per_token=None,
        score_status=None,
    )


def _make_result(asked: Sequence[_Asked]) -> RecipeResult:
    """All open-ended rows, then the multiple choices of those that are no duplicates."""
    rows = mark_duplicates([row for row, _ in asked])
    choices = [choice for row, (_, choice) in zip(rows, asked, strict=True) if choice and row.status is Status.OK]
    return RecipeResult((), (*rows, *choices))
