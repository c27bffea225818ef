"""Remembers what a clip was answered, so that a question it was asked before need not be asked again.

An answer depends on the model, the frames with their times, the words of the question and the limits of generation. So
what a changed recipe asks anew follows from the questions themselves: an unchanged prompt with unchanged texts filled
in is the very same question, and a prompt that changed, or that a changed answer is filled into, is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass

from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig
from schemas.records import KeptCompletion
from transforms.engine_video import EngineVideo

_DIGEST_BYTES = 16
_Seen = tuple[str, tuple[float, ...], float]


class ClipMemory:
    """The completions of one clip: those of an earlier run by their questions' digests, and those of this run.

    Lives on the recipes' event loop while its clip is annotated. A question that a recipe asks twice is kept once.
    """

    def __init__(self, known: Mapping[bytes, KeptCompletion]) -> None:
        self._known = known
        self._kept: dict[bytes, KeptCompletion] = {}
        self.num_asked = 0
        self.num_reused = 0

    @property
    def completions(self) -> tuple[KeptCompletion, ...]:
        """All completions of this run, in an order that does not depend on which came first."""
        return tuple(self._kept[digest] for digest in sorted(self._kept))

    def recall(self, digest: bytes) -> KeptCompletion | None:
        """Returns what the earlier run has for a question, to be used in place of asking."""
        known = self._known.get(digest)
        if known is None:
            self.num_asked += 1
            return None
        self.num_reused += 1
        self._kept[digest] = known
        return known

    def keep(self, digest: bytes, completion: Completion) -> None:
        """Keeps an answer for later runs."""
        reason = completion.finish_reason.value
        self._kept[digest] = KeptCompletion(digest, completion.token_ids, reason, completion.num_prompt_tokens)


@dataclass(frozen=True, slots=True)
class RememberingVideo:
    """An open clip that is asked only what its memory does not hold; implements what recipes ask of a video."""

    video: EngineVideo
    memory: ClipMemory

    @property
    def duration_s(self) -> float:
        """Seconds the video lasts."""
        return self.video.duration_s

    async def ask(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question from the frames, as `EngineVideo.ask` does."""
        seen = (self.video.video.frames_digest, self.video.timestamps_s, self.video.duration_s)
        return await self._answer(seen, question, generation, self.video.ask)

    async def ask_text(self, question: str, generation: GenerationConfig) -> Completion:
        """Answers a question without the video."""
        return await self._answer(None, question, generation, self.video.ask_text)

    @asynccontextmanager
    async def segment(self, start_s: float, end_s: float) -> AsyncIterator[RememberingVideo]:
        """Opens a part of the clip, with the memory of the whole."""
        async with self.video.segment(start_s, end_s) as part:
            yield RememberingVideo(part, self.memory)

    async def _answer(
        self,
        seen: _Seen | None,
        question: str,
        generation: GenerationConfig,
        ask: Callable[[str, GenerationConfig], Awaitable[Completion]],
    ) -> Completion:
        digest = digest_question(seen, question, generation)
        known = self.memory.recall(digest)
        if known is not None:
            return self._restore(known, seen)
        completion = await ask(question, generation)
        self.memory.keep(digest, completion)
        return completion

    def _restore(self, known: KeptCompletion, seen: _Seen | None) -> Completion:
        return Completion(
            text=self.video.engine.tokenizer.decode(known.token_ids),
            token_ids=known.token_ids,
            finish_reason=FinishReason(known.finish_reason),
            num_prompt_tokens=known.num_prompt_tokens,
            clip_id=self.video.clip_id if seen else "",
            frames_digest=self.video.video.frames_digest if seen else "",
        )


def digest_question(seen: _Seen | None, question: str, generation: GenerationConfig) -> bytes:
    """Returns 16 bytes that stand for a question and all that its answer depends on beside the model.

    Args:
        seen: digest of the frames, their times and the duration that the prompt states; None without a video.
    """
    asked = json.dumps([seen, question, astuple(generation)])
    return hashlib.blake2b(asked.encode(), digest_size=_DIGEST_BYTES).digest()
