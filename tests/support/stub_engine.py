"""An engine without a model: answers depend on the frames' digest and the question alone, at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from framescribe.digests import digest_frames
from framescribe.llava_video.engine.generation import Completion, FinishReason, GenerationConfig, Score
from framescribe.llava_video.engine.stats import EngineStats

_WORDS = ("red", "blue", "square", "ring", "moves", "grows", "left", "right", "on", "grey")


def answer_for(clip_id: str, frames_digest: str, question: str) -> Completion:
    """Returns six words drawn from digest and question."""
    draw = hashlib.sha256(f"{frames_digest}\n{question}".encode()).digest()
    token_ids = tuple(number % len(_WORDS) for number in draw[:6])
    text = " ".join(_WORDS[number] for number in token_ids)
    return Completion(text, token_ids, FinishReason.STOP, 100, clip_id, frames_digest)


def score_for(clip_id: str, frames_digest: str, question: str, answers: Sequence[str]) -> Score:
    """Returns a log-probability for each answer, drawn from digest, question and answer."""
    draws = [hashlib.sha256(f"{frames_digest}\n{question}\n{answer}".encode()).digest() for answer in answers]
    return Score(tuple(range(len(draws))), tuple(-draw[0] / 64 for draw in draws), 100, clip_id, frames_digest)


class StubVideo:
    """An open clip of a stub engine."""

    def __init__(self, engine: StubEngine, clip_id: str, frames_digest: str) -> None:
        self.engine, self.clip_id, self.frames_digest = engine, clip_id, frames_digest

    def ask(self, question: str, generation: GenerationConfig | None = None) -> Future[Completion]:
        self.engine.stats.questions += 1
        future: Future[Completion] = Future()
        self.engine.answer(future, answer_for(self.clip_id, self.frames_digest, question))
        return future

    def score(self, question: str, answer: str) -> Future[Score]:
        return self.score_choices(question, (answer,))

    def score_choices(self, question: str, choices: Sequence[str]) -> Future[Score]:
        return self.engine.find_score(self.clip_id, self.frames_digest, question, choices)

    def close(self) -> None:
        """Nothing is held."""


class StubEngine:
    """What the pipeline needs of `llava_video.Engine`."""

    def __init__(self, revision: str) -> None:
        self.stats = EngineStats()
        self.tokenizer = SimpleNamespace(decode=lambda token_ids: " ".join(_WORDS[number] for number in token_ids))
        self.device_name, self.attention_path = "cpu", "none"
        self.checkpoint = SimpleNamespace(name="stub", revision=revision)
        self.model = SimpleNamespace(
            device=SimpleNamespace(type="cpu"), language=SimpleNamespace(dtype="torch.float32")
        )

    def open(
        self,
        frames: np.ndarray,
        timestamps_s: Sequence[float],
        duration_s: float,
        *,
        clip_id: str = "",
        on_encoded: Callable[[], None] | None = None,
    ) -> StubVideo:
        self.stats.encoded_clips += 1
        if on_encoded is not None:
            on_encoded()
        return StubVideo(self, clip_id, digest_frames(frames))

    def score(self, question: str, answer: str) -> Future[Score]:
        return self.score_choices(question, (answer,))

    def score_choices(self, question: str, choices: Sequence[str]) -> Future[Score]:
        return self.find_score("", "", question, choices)

    def find_score(self, clip_id: str, digest: str, question: str, answers: Sequence[str]) -> Future[Score]:
        future: Future[Score] = Future()
        future.set_result(score_for(clip_id, digest, question, answers))
        return future

    def answer(self, future: Future[Completion], completion: Completion) -> None:
        future.set_result(completion)

    def close(self) -> None:
        """Nothing is held."""


class SwappingEngine(StubEngine):
    """Gives the first two real clips asked about each other's answers, as a bug in a batch would."""

    def __init__(self, revision: str) -> None:
        super().__init__(revision)
        self._waiting: list[tuple[Future[Completion], Completion]] = []
        self._swapped = False

    def answer(self, future: Future[Completion], completion: Completion) -> None:
        if self._swapped or completion.clip_id.startswith("canary/"):
            future.set_result(completion)
            return
        self._waiting.append((future, completion))
        if len(self._waiting) == 2:
            self._swapped = True
            (one, ones), (other, others) = self._waiting
            one.set_result(others)
            other.set_result(ones)


class ConfusedEngine(StubEngine):
    """From its 8th question on, past a canary and three clips, it answers about other clips under the right labels."""

    def answer(self, future: Future[Completion], completion: Completion) -> None:
        if self.stats.questions < 8:
            future.set_result(completion)
            return
        others = answer_for("", "another clip", "")
        future.set_result(replace(completion, text=others.text, token_ids=others.token_ids))


class BlindEngine(StubEngine):
    """Answers every video alike."""

    def answer(self, future: Future[Completion], completion: Completion) -> None:
        others = answer_for("", "", "")
        future.set_result(replace(completion, text=others.text, token_ids=others.token_ids))
