"""A small engine, made clips, and the answers that each question gets when it is asked alone."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from framescribe.llava_video import Engine, EngineConfig, GenerationConfig
from tests.support.golden_cases import COMMITTED

_CHECKPOINT = COMMITTED / "checkpoints" / "g9"
CONFIG = EngineConfig(model=str(_CHECKPOINT), device="cpu", dtype="float32")
TOKENIZER = Tokenizer.from_file(str(_CHECKPOINT / "tokenizer.json"))
SHORT = GenerationConfig(max_new_tokens=6)
QUESTIONS = (
    "What is this?",
    "Count the colours.\nAnswer with a number.",
    "Why?",
    "Describe the video in detail, please.",
)


def make_frames(seed: int, num_frames: int = 3) -> np.ndarray:
    """Noise, uint8 [T, 126, 126, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 126, 126, 3), dtype=np.uint8)


def make_times(num_frames: int) -> list[float]:
    """Two frames per second."""
    return [index / 2 for index in range(num_frames)]


def _ask_alone(seed: int, num_frames: int, question: str, generation: GenerationConfig) -> tuple[int, ...]:
    with Engine.load(CONFIG) as alone:
        video = alone.open(make_frames(seed, num_frames), make_times(num_frames), num_frames / 2)
        return video.ask(question, generation).result().token_ids


_answers: dict[tuple[int, int, str, int], tuple[int, ...]] = {}


def remember_answer(request: tuple[int, int, str, int]) -> tuple[int, ...]:
    """The answer of a fresh engine that is asked nothing else."""
    if request not in _answers:
        seed, num_frames, question, length = request
        _answers[request] = _ask_alone(seed, num_frames, question, GenerationConfig(max_new_tokens=length))
    return _answers[request]
