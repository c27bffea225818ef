"""An engine without a model whose answers the recipes can read: they depend on frames and question alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace

from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig, Score
from framescribe.llava_video.errors import ClipTooLarge
from tests.support.stub_engine import StubEngine, StubVideo


class TalkingVideo(StubVideo):
    """An open clip of a talking engine."""

    def ask(self, question: str, generation: GenerationConfig | None = None) -> Future[Completion]:
        return self.engine.talk(self.clip_id, self.frames_digest, question, generation or GenerationConfig())


class TalkingEngine(StubEngine):
    """Answers the recipes of `recipes_fixtures`, a byte a token; what is first asked about speed comes back empty.

    Args:
        too_large: ends of the ids of clips that there is no room for.
    """

    def __init__(self, revision: str, *too_large: str) -> None:
        super().__init__(revision)
        self.asked: list[tuple[str, str]] = []  # clip id, empty for a question without a video, and question
        self.tokenizer = SimpleNamespace(decode=lambda token_ids: bytes(token_ids).decode())
        self._too_large = too_large

    def open(self, *args, **kwargs) -> TalkingVideo:
        opened = super().open(*args, **kwargs)
        return TalkingVideo(self, opened.clip_id, opened.frames_digest)

    def ask(self, question: str, generation: GenerationConfig) -> Future[Completion]:
        return self.talk("", "", question, generation)

    def find_score(self, clip_id: str, digest: str, question: str, answers: Sequence[str]) -> Future[Score]:
        self.asked.append((clip_id, f"score {question} {', '.join(answers)}"))
        return super().find_score(clip_id, digest, question, answers)

    def talk(self, clip_id: str, digest: str, question: str, generation: GenerationConfig) -> Future[Completion]:
        self.asked.append((clip_id, question))
        future: Future[Completion] = Future()
        if clip_id.endswith(self._too_large):
            future.set_exception(ClipTooLarge("no room for the clip"))
            return future
        text = write_answer(digest, question, generation)
        future.set_result(Completion(text, tuple(text.encode()), FinishReason.STOP, len(question), clip_id, digest))
        return future


def write_answer(digest: str, question: str, generation: GenerationConfig) -> str:
    """Returns a pair, wrong answers, the answer that a question asks back for, or a word of its own."""
    word = hashlib.sha256(f"{digest}\n{question}".encode()).hexdigest()[:6]
    asked_back = re.match(r"What is (\w+)\?", question)
    if "Speed" in question and generation.repetition_penalty is None:
        return ""
    if question.startswith("Ask"):
        return f"Question: What is {word}?\nAnswer: {word}"
    if question.startswith("Wrong"):
        return f"no {word}\nnot {word}\nnever {word}"
    return asked_back[1] if asked_back and digest else f"so {word}"
