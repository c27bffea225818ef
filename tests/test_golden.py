"""The model's pixels, intermediate results and greedy answers equal the reference's."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from framescribe.llava_video import Engine, EngineConfig, FinishReason, GenerationConfig
from framescribe.llava_video.model.checkpoint import Checkpoint, find_checkpoint
from framescribe.llava_video.model.config import read_model_config
from framescribe.llava_video.model.model import LlavaVideoModel, load_model
from framescribe.llava_video.model.prompts import PromptTokenizer
from framescribe.llava_video.model.vision import normalise_pixels, pool_patches, resize_frames
from framescribe.llava_video.model.weights import read_weights
from tests.support.golden_cases import COMMITTED, SHARED, GoldenCase, find_cases

TOLERANCE = 1e-5
CASES = find_cases()
ANSWERS = [(case, turn, "sdpa") for case in CASES for turn in range(len(case.meta["turns"]))] + [
    (CASES[-1], 0, "eager")
]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return request.param


@pytest.fixture
def model(case: GoldenCase) -> LlavaVideoModel:
    checkpoint = find_checkpoint(case.checkpoint)
    config = read_model_config(checkpoint, case.meta["config_overrides"])
    devices = [torch.device("cpu")] * config.language.num_hidden_layers
    return load_model(
        partial(read_weights, checkpoint), config, PromptTokenizer(checkpoint).num_ids, devices, torch.float32, "sdpa"
    )


@pytest.fixture
def pixels(case: GoldenCase, model: LlavaVideoModel) -> torch.Tensor:
    resized = resize_frames(case.arrays["frames"], model.config.tower.image_size)
    return normalise_pixels(torch.from_numpy(resized), torch.float32)


@pytest.fixture
def engine(case: GoldenCase) -> Iterator[Engine]:
    with Engine.load(_config(case, "sdpa")) as engine:
        yield engine


def test_resized_frames_equal_the_reference_to_the_bit(case: GoldenCase, model: LlavaVideoModel) -> None:
    expected = _wanted(case, "pixels_u8")
    resized = resize_frames(case.arrays["frames"], model.config.tower.image_size)
    assert np.array_equal(resized.transpose(0, 3, 1, 2), expected)


def test_pixel_values_equal_the_reference_to_the_bit(case: GoldenCase, pixels: torch.Tensor) -> None:
    expected = _wanted(case, "pixel_values")
    assert np.array_equal(pixels[: len(expected)].numpy(), expected)


def test_tower_features_equal_the_reference(case: GoldenCase, model: LlavaVideoModel, pixels: torch.Tensor) -> None:
    expected = _wanted(case, "vision_tower")
    assert _difference(model.run_vision_tower(pixels)[: len(expected)], expected) < TOLERANCE


def test_projected_patches_equal_the_reference(case: GoldenCase, model: LlavaVideoModel, pixels: torch.Tensor) -> None:
    expected = _wanted(case, "projected")
    assert _difference(model.project(model.run_vision_tower(pixels))[: len(expected)], expected) < TOLERANCE


def test_pooled_patches_equal_the_reference(case: GoldenCase, model: LlavaVideoModel, pixels: torch.Tensor) -> None:
    expected = _wanted(case, "pooled")
    pooled = pool_patches(model.project(model.run_vision_tower(pixels)), model.config)
    assert _difference(pooled, expected) < TOLERANCE


def test_video_tokens_equal_the_reference(case: GoldenCase, model: LlavaVideoModel) -> None:
    expected = _wanted(case, "video_tokens")
    assert _difference(_encode(model, case), expected) < TOLERANCE


def test_input_embeddings_equal_the_reference(case: GoldenCase, model: LlavaVideoModel) -> None:
    expected = _wanted(case, "inputs_embeds")
    tokenizer = PromptTokenizer(find_checkpoint(case.checkpoint))
    prefix = tokenizer.video_prefix(case.timestamps_s, case.meta["video_time"])
    question = tokenizer.video_question(case.meta["turns"][0]["question"])
    before, after = (
        model.language.embed(torch.tensor(ids)) for ids in (prefix.before_video, [*prefix.after_video, *question])
    )
    assert _difference(torch.cat([before, _encode(model, case), after]), expected) < TOLERANCE


def test_prompt_ids_equal_the_reference(case: GoldenCase) -> None:
    tokenizer = PromptTokenizer(find_checkpoint(case.checkpoint))
    prefix = tokenizer.video_prefix(case.timestamps_s, case.meta["video_time"])
    built = [
        [*prefix.before_video, -200, *prefix.after_video, *tokenizer.video_question(turn["question"])]
        for turn in case.meta["turns"]
    ]
    assert built == [turn["input_ids"] for turn in case.meta["turns"]]


@pytest.mark.parametrize(("case", "turn", "attention"), ANSWERS, ids=str)
def test_greedy_answers_equal_the_reference(case: GoldenCase, turn: int, attention: str) -> None:
    wanted = case.meta["turns"][turn]
    with Engine.load(_config(case, attention)) as engine:
        video = engine.open(case.arrays["frames"], case.timestamps_s, case.meta["video_time"])
        done = video.ask(wanted["question"], GenerationConfig(max_new_tokens=wanted["max_new_tokens"])).result()
    assert list(done.token_ids) == wanted["generated_ids"]
    assert done.num_prompt_tokens == wanted["seq_len"]
    assert done.text == wanted["text"].strip()


def test_answers_without_the_repetition_penalty_equal_the_reference(case: GoldenCase, engine: Engine) -> None:
    wanted = case.meta["turns"][0]
    if wanted["generated_ids_no_repetition_penalty"] is None:
        pytest.skip("this checkpoint has no repetition penalty")
    video = engine.open(case.arrays["frames"], case.timestamps_s, case.meta["video_time"])
    generation = GenerationConfig(max_new_tokens=wanted["max_new_tokens"], repetition_penalty=1.0)
    assert (
        list(video.ask(wanted["question"], generation).result().token_ids)
        == (wanted["generated_ids_no_repetition_penalty"])
    )


def test_all_questions_of_a_clip_asked_at_once_get_the_answers_they_get_alone(case: GoldenCase, engine: Engine) -> None:
    video = engine.open(case.arrays["frames"], case.timestamps_s, case.meta["video_time"])
    turns = case.meta["turns"]
    futures = [video.ask(t["question"], GenerationConfig(max_new_tokens=t["max_new_tokens"])) for t in turns]
    assert [list(future.result().token_ids) for future in futures] == [turn["generated_ids"] for turn in turns]
    assert {future.result().finish_reason for future in futures} == {FinishReason.LENGTH}
    assert engine.stats.encoded_clips == 1


def test_the_committed_cases_are_the_shared_ones() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/golden is not here")
    committed = {meta.parent.name: json.loads(meta.read_text()) for meta in COMMITTED.glob("*/meta.json")}
    shared = {name: json.loads((SHARED / name / "meta.json").read_text()) for name in committed}
    assert {name: meta["turns"] for name, meta in committed.items()} == {n: meta["turns"] for n, meta in shared.items()}


@pytest.mark.parametrize("layout", ["seed_style", "demo_style", "training"])
def test_prompt_layouts_have_the_ids_of_the_whole_qwen2_tokenizer(layout: str, tmp_path: Path) -> None:
    with tarfile.open(COMMITTED / "tokenizer_qwen2_full.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    golden = json.loads((COMMITTED / "tokens_golden.json").read_text(encoding="utf-8"))
    assert _build_layout(tmp_path / "tokenizer_qwen2_full", layout) == _golden_layout(golden, layout)


def _build_layout(folder: Path, layout: str) -> list[int]:
    ours = {"seed_style": "model_card", "demo_style": "demo"}.get(layout, layout)
    tokenizer = PromptTokenizer(Checkpoint("qwen2", folder, ""), ours)
    prefix = tokenizer.video_prefix([0.0, 4.16, 8.32, 12.44], 12.48)
    question = {"training": "Please provide a detailed description of the video."}.get(
        layout, "Please describe this video in detail."
    )
    return [*prefix.before_video, -200, *prefix.after_video, *tokenizer.video_question(question)]


def _golden_layout(golden: dict, layout: str) -> list[int]:
    if layout != "training":
        return golden["prompts"][layout]["input_ids"]
    ids = golden["training"][0]["input_ids"]
    assistant = 77091
    return ids[: ids.index(assistant) + 2]  # up to the newline after "assistant": what follows is the answer


def _config(case: GoldenCase, attention: str) -> EngineConfig:
    config = EngineConfig(model=case.checkpoint, device="cpu", dtype="float32", attn_implementation=attention)
    return replace(config, config_overrides=case.meta["config_overrides"])


def _encode(model: LlavaVideoModel, case: GoldenCase) -> torch.Tensor:
    resized = resize_frames(case.arrays["frames"], model.config.tower.image_size)
    return model.arrange_video_tokens(model.encode_frames(list(resized)), np.arange(len(resized)))


def _wanted(case: GoldenCase, name: str) -> np.ndarray:
    if name not in case.arrays:
        pytest.skip(f"{name} of this case is not committed")
    return case.arrays[name]


def _difference(ours: torch.Tensor, expected: np.ndarray) -> float:
    assert tuple(ours.shape) == expected.shape
    return float((ours - torch.from_numpy(expected)).abs().max())
