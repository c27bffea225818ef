"""What a recipe needs of a video: it can be asked, with its frames or without, and cut into segments."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from framescribe.llava_video.engine.generation import Completion, GenerationConfig


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

    def segment(self, start_s: float, end_s: float) -> AbstractAsyncContextManager[AskableVideo]:
        """Opens a part of the video as a video of its own, closed when the context is left.

        Its frames are those with `start_s <= time < end_s`, and the last frames of the video for a segment that ends
        with it; where no frame was sampled inside, the one nearest to the middle of the segment, so that there is
        always one.
        """
        ...
