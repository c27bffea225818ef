"""The engine's answers equal those of transformers' own `generate`, one question after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.model_card_loop import ModelCardLoop
from framescribe.llava_video import Engine, EngineConfig, GenerationConfig

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
    loop = ModelCardLoop(engine)
    theirs = [loop.ask(clip, [0.0, 1.5], 3.0, question, 24) for clip in clips for question in QUESTIONS]
    assert ours == theirs


@pytest.mark.parametrize("has_fixed_shapes", [False, True])
def test_a_given_answer_is_as_likely_as_transformers_finds_it(has_fixed_shapes: bool) -> None:
    config = EngineConfig(
        model=str(CHECKPOINTS / "g9"), device="cpu", dtype="float32", static_decode=has_fixed_shapes, max_rows=4
    )
    given = [5, 300, 7, 11, 250, 9]
    with Engine.load(config) as engine:
        size = engine.model.config.tower.image_size
        clip = np.random.default_rng(3).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        with engine.open(clip, [0.0, 1.5], 3.0) as video:
            other = video.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=8))  # in the same steps
            done = video.force(QUESTIONS[1], given).result()
            assert other.result().scores == ()
        loop = ModelCardLoop(engine)
        prompt = loop.embed(clip, [0.0, 1.5], 3.0, QUESTIONS[1])
        module = engine.model.language.module
        answer = module.model.embed_tokens(torch.tensor(given[:-1]))
        logits = module(inputs_embeds=torch.cat([prompt, answer])[None], logits_to_keep=len(given)).logits[0]
    expected = logits.log_softmax(-1)
    assert done.token_ids == tuple(given)
    assert [score.logprob for score in done.scores] == pytest.approx(
        expected.gather(1, torch.tensor(given)[:, None])[:, 0].tolist(), abs=1e-4
    )
    assert [score.likeliest_id for score in done.scores] == expected.argmax(-1).tolist()
