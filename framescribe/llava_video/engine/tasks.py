"""The videos that the engine has to prefill, the questions that it has to answer, and when an answer ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import numpy as np

from framescribe.llava_video.attention.kv_cache import PAGE_TOKENS, Prefix
from framescribe.llava_video.engine.generation import FinishReason, GenerationConfig, TokenScore
from framescribe.llava_video.engine.loops import is_looping
from framescribe.llava_video.errors import CheckpointError
from framescribe.llava_video.model.checkpoint import Checkpoint
from framescribe.llava_video.model.prompts import VideoPrefix


@dataclass(slots=True, eq=False)
class VideoTask:
    """One open video, or the system prefix that questions without a video share.

    Attributes:
        order: position in the queue; older videos go first.
        clip_id, frames_digest: identity, copied into every completion and checked by the caller.
        frames: resized unique frames uint8 [U, S, S, 3] until they are encoded, then None.
        frame_order: [T] index of each frame among the unique ones.
        num_tokens: tokens of the prefix, video tokens included.
        prefix: keys and values once prefilled.
        needs_all: memory ran out for it beside others; it is prefilled when nothing else holds any.
        on_encoded: called once, when the frames are no longer needed.
    """

    order: int
    clip_id: str
    frames_digest: str
    frames: np.ndarray | None
    frame_order: np.ndarray
    text: VideoPrefix
    num_tokens: int
    on_encoded: Callable[[], None] | None = None
    prefix: Prefix | None = field(default=None, repr=False)
    waiting: list[QuestionTask] = field(default_factory=list)
    num_running: int = 0
    is_closed: bool = False
    needs_all: bool = False

    def release_frames(self) -> None:
        """Lets go of the frames and says so, once."""
        self.frames = None
        callback, self.on_encoded = self.on_encoded, None
        if callback is not None:
            callback()


@dataclass(slots=True, eq=False)
class QuestionTask:
    """One question to one video, and the tokens answered so far; or an answer to be scored.

    Attributes:
        token_ids: the question's ids, which follow the video's prefix; of an answer to be scored all but the last, too.
        repetition_penalty: resolved against the checkpoint's own.
        row: which row of the running batch it has, and its pages of keys and values; unset while it waits.
        generated: the answer so far.
        needs_all: memory ran out for it alone; it is tried once more.
        forced: the ids to answer with, to find out how likely they are; empty: the likeliest.
        scores: of the forced ids so far.
        wanted: the ids whose log-probabilities are wanted after each of the last tokens. Where there are any, nothing
            is generated: the question ends with its start, and keeps no keys and values.
        logprobs: of all wanted ids, one after the other.
    """

    video: VideoTask
    token_ids: list[int]
    generation: GenerationConfig
    repetition_penalty: float
    future: Future[Any]  # a Completion, or a Score
    row: int = -1
    pages: tuple[int, ...] = ()
    generated: list[int] = field(default_factory=list)
    needs_all: bool = False
    forced: tuple[int, ...] = ()
    scores: list[TokenScore] = field(default_factory=list)
    wanted: tuple[tuple[int, ...], ...] = ()
    logprobs: list[float] = field(default_factory=list)

    @property
    def next_forced(self) -> int:
        """The id to go on with, or -1."""
        return self.forced[len(self.generated)] if len(self.generated) < len(self.forced) else -1

    @property
    def max_tokens(self) -> int:
        """Suffix tokens whose keys and values are kept: those that question and answer can come to."""
        return 0 if self.wanted else len(self.token_ids) + self.generation.max_new_tokens

    @property
    def num_suffix_tokens(self) -> int:
        """Tokens of the question and of its answer so far."""
        return len(self.token_ids) + len(self.generated)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the whole prompt, without an answer to be scored."""
        return self.video.num_tokens + len(self.token_ids) - max(len(self.wanted) - 1, 0)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The parts of `generation_config.json` that greedy decoding obeys."""

    eos_token_ids: frozenset[int]
    repetition_penalty: float


@dataclass(frozen=True, slots=True)
class StopRule:
    """Decides after each token whether an answer is complete."""

    eos_token_ids: frozenset[int]

    def finish_reason(self, question: QuestionTask) -> FinishReason | None:
        """Returns why the answer ends with its last token, or None if it goes on."""
        if question.generated[-1] in self.eos_token_ids:
            return FinishReason.STOP
        if len(question.generated) >= question.generation.max_new_tokens:
            return FinishReason.LENGTH
        if question.generation.stop_loops and is_looping(question.generated):
            return FinishReason.LOOPED
        return None


def read_generation_defaults(checkpoint: Checkpoint) -> GenerationDefaults:
    """Reads the ids that end an answer and the repetition penalty.

    Raises:
        CheckpointError: no end-of-sequence id is given.
    """
    content = checkpoint.read_json("generation_config.json")
    eos = content.get("eos_token_id", checkpoint.read_json("config.json").get("eos_token_id"))
    if eos is None:
        raise CheckpointError(f"{checkpoint.name}: neither generation_config.json nor config.json has eos_token_id")
    ids = eos if isinstance(eos, list) else [eos]
    return GenerationDefaults(frozenset(map(int, ids)), float(content.get("repetition_penalty", 1.0)))


def token_ranges_by_video(
    questions: Sequence[QuestionTask], lengths: Sequence[int]
) -> list[tuple[VideoTask, int, int]]:
    """Returns for each run of questions of one video the packed tokens `start` to `stop` they have."""
    ranges, start = [], 0
    for _, run in groupby(zip(questions, lengths, strict=True), key=lambda pair: id(pair[0].video)):
        pairs = list(run)
        stop = start + sum(length for _, length in pairs)
        ranges.append((pairs[0][0].video, start, stop))
        start = stop
    return ranges


def group_by_length(lengths: Sequence[int]) -> list[tuple[list[list[int]], list[int], list[int]]]:
    """Groups packed sequences of like length, so that one long question is not what all are padded to.

    Returns:
        For each group `_pad`'s places [R][L] and cells, and the packed tokens that it consists of, in the same order.
    """
    starts = [0, *accumulate(lengths)]
    groups = []
    for _, run in groupby(sorted(range(len(lengths)), key=lengths.__getitem__), lambda i: lengths[i].bit_length()):
        members = list(run)
        places, cells = _pad([starts[i] for i in members], [lengths[i] for i in members])
        groups.append((places, cells, [starts[i] + offset for i in members for offset in range(lengths[i])]))
    return groups


def _pad(starts: Sequence[int], lengths: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Lays packed sequences side by side, padded at their ends, where causal attention never looks.

    Returns:
        For each of R sequences the packed tokens at its L places [R][L], and for each token its place in R * L.
    """
    longest = max(lengths)
    grid = [[start + min(i, length - 1) for i in range(longest)] for start, length in zip(starts, lengths, strict=True)]
    return grid, [row * longest + i for row, length in enumerate(lengths) for i in range(length)]


def group_by_pages(
    questions: Sequence[QuestionTask], written: Sequence[int]
) -> list[tuple[list[int], list[tuple[int, ...]], list[int]]]:
    """Groups rows of like length, so that short answers are not padded to the longest.

    Returns:
        For each group: rows [R], page tables [R, B] and valid lengths [R].
    """

    def bucket(index: int) -> int:
        return (written[index] // PAGE_TOKENS).bit_length()

    groups = []
    for _, run in groupby(sorted(range(len(questions)), key=bucket), key=bucket):
        rows = list(run)
        width = max(written[index] for index in rows) // PAGE_TOKENS + 1
        tables = [(questions[index].pages + (0,) * width)[:width] for index in rows]
        lengths = [written[index] + 1 for index in rows]
        groups.append((rows, tables, lengths))
    return groups
