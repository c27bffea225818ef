"""A clip in the engine, in the form that recipes ask."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from framescribe.errors import FrameScribeError
from framescribe.llava_video.engine.generation import Completion, GenerationConfig, Score

if TYPE_CHECKING:  # torch comes with the engine, in the worker
    from framescribe.llava_video.engine.engine import Engine, Video


_Answer = TypeVar("_Answer", Completion, Score)


class WrongVideo(FrameScribeError, RuntimeError):
    """An answer came back for another clip or for other frames than were asked about."""


@dataclass(slots=True)
class EngineVideo:
    """Some frames of one clip, opened in the engine; implements what recipes ask of a video.

    Attributes:
        frames: uint8 [T, S, S, 3]; timestamps_s: [T], from the start of the clip.
        start_s: where this part of the clip begins, 0 for the whole.
        frames_digest: digest that every answer must carry.
    """

    engine: Engine
    clip_id: str
    frames: np.ndarray = field(repr=False)
    timestamps_s: tuple[float, ...]
    duration_s: float
    video: Video
    start_s: float = 0.0

    @classmethod
    def open(
        cls,
        engine: Engine,
        clip_id: str,
        frames: np.ndarray,
        timestamps_s: tuple[float, ...],
        duration_s: float,
        on_encoded: Callable[[], None] | None = None,
    ) -> EngineVideo:
        """Opens frames in the engine; shapes as `Engine.open` has them."""
        video = engine.open(frames, timestamps_s, duration_s, clip_id=clip_id, on_encoded=on_encoded)
        return cls(engine, clip_id, frames, timestamps_s, duration_s, video)

    async def ask(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question from the frames.

        Raises:
            WrongVideo: the answer carries another clip's id or other frames' digest.
        """
        return self._check_identity(await _wait(self.video.ask(question, generation)))

    async def ask_text(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question without the video."""
        return await _wait(self.engine.ask(question, generation))

    async def score(self, question: str, answer: str) -> Score:
        """Finds out how likely an answer is; raises as `ask`."""
        return self._check_identity(await _wait(self.video.score(question, answer)))

    async def score_text(self, question: str, answer: str) -> Score:
        """Finds out how likely an answer is without the video."""
        return await _wait(self.engine.score(question, answer))

    async def score_choices(self, question: str, choices: Sequence[str]) -> Score:
        """Finds out how likely each choice is right after a question; raises as `ask`."""
        return self._check_identity(await _wait(self.video.score_choices(question, choices)))

    async def score_choices_text(self, question: str, choices: Sequence[str]) -> Score:
        """Finds out how likely each choice is without the video."""
        return await _wait(self.engine.score_choices(question, choices))

    def _check_identity(self, answer: _Answer) -> _Answer:
        expected = (self.clip_id, self.video.frames_digest)
        if (answer.clip_id, answer.frames_digest) != expected:
            raise WrongVideo(
                f"asked about clip {self.clip_id!r} (frames {expected[1][:12]}), answered for {answer.clip_id!r} "
                f"(frames {answer.frames_digest[:12]}); the run stops, since no answer can be trusted"
            )
        return answer

    @asynccontextmanager
    async def segment(self, start_s: float, end_s: float) -> AsyncIterator[EngineVideo]:
        """Opens the frames of a part of the clip as a video of its own, whose times count from its start."""
        chosen = choose_segment_frames(self.timestamps_s, start_s, end_s, self.duration_s)
        times = tuple(max(0.0, self.timestamps_s[index] - start_s) for index in range(chosen.start, chosen.stop))
        part = EngineVideo.open(self.engine, self.clip_id, self.frames[chosen], times, end_s - start_s)
        try:
            yield part
        finally:
            part.close()

    def close(self) -> None:
        """Frees the clip's place in the engine."""
        self.video.close()


def choose_segment_frames(timestamps_s: tuple[float, ...], start_s: float, end_s: float, duration_s: float) -> slice:
    """Returns which frames lie in `start_s <= time < end_s`; at least the one nearest to the middle.

    A segment that ends with the video takes its last frames too, whatever rounding says.
    """
    first = bisect_left(timestamps_s, start_s)
    stop = len(timestamps_s) if end_s >= duration_s else bisect_left(timestamps_s, end_s)
    if first < stop:
        return slice(first, stop)
    middle = (start_s + end_s) / 2
    nearest = min(range(len(timestamps_s)), key=lambda index: abs(timestamps_s[index] - middle))
    return slice(nearest, nearest + 1)


async def _wait(future: Future[_Answer]) -> _Answer:
    return await asyncio.wrap_future(future)
