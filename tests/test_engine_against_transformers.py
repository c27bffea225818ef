"""The engine's answers equal those of transformers' own `generate`, one question after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.seed_loop import SeedLoop
from llava_video import Engine, EngineConfig, GenerationConfig

CHECKPOINTS = Path(__file__).parent / "golden" / "checkpoints"
QUESTIONS = ("Please describe this video in detail.", "How many?\nA. one\nB. two", "What happens at the end?")


@pytest.fixture(params=["g9", "r27"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    config = EngineConfig(model=str(CHECKPOINTS / request.param), device="cpu", dtype="float32")
    with Engine.load(config) as engine:
        yield engine


def test_questions_about_two_clips_asked_at_once_equal_generate_one_by_one(engine: Engine) -> None:
    size = engine.model.config.tower.image_size
    clips = [np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), dtype=np.uint8) for seed in range(2)]
    videos = [engine.open(clip, [0.0, 1.5], 3.0) for clip in clips]
    futures = [video.ask(question, GenerationConfig(max_new_tokens=24)) for video in videos for question in QUESTIONS]
    ours = [list(future.result().token_ids) for future in futures]
    loop = SeedLoop(engine)
    theirs = [loop.ask(clip, [0.0, 1.5], 3.0, question, 24) for clip in clips for question in QUESTIONS]
    assert ours == theirs
