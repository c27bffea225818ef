"""The path over a GPU, traced with fake tensors on a device that need not exist: nothing is computed.

A fake tensor has a shape, a dtype and a device, and refuses what would fail on a real GPU or keep a step from being
captured: mixed devices, shapes that do not fit, and asking the device for a number in the middle of a step. A captured
step may not touch a tensor on the host either. What the kernels compute, this cannot show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.geometry import write_configuration
from framescribe.llava_video.attention.cascade import AttendChunks, AttendPaged, attend_chunks
from framescribe.llava_video.attention.cuda_graphs import GraphedDecoder
from framescribe.llava_video.attention.kernels import (
    attend_chunks_efficient,
    attend_chunks_flash,
    attend_paged_varlen,
)
from framescribe.llava_video.attention.kv_cache import CHUNK_TOKENS, PrefixPool, SuffixPages
from framescribe.llava_video.attention.static_decode import Chosen, sizes_of, view_numbers
from framescribe.llava_video.engine import runner as model_runner
from framescribe.llava_video.engine.generation import GenerationConfig
from framescribe.llava_video.engine.runner import ModelRunner, row_of
from framescribe.llava_video.engine.tasks import QuestionTask, VideoTask
from framescribe.llava_video.model.checkpoint import Checkpoint
from framescribe.llava_video.model.config import read_model_config
from framescribe.llava_video.model.model import LlavaVideoModel, load_model
from framescribe.llava_video.model.prompts import VideoPrefix
from framescribe.llava_video.model.weights import Place

CUDA = torch.device("cuda", 0)
NUM_FRAMES, NUM_VIDEO_TOKENS = 64, 13_440
KERNELS = [attend_chunks_flash, attend_chunks_efficient, attend_chunks]


@pytest.fixture
def _fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU on which tensors have no content; what only a real one can do, waiting and pinning, does nothing."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(model_runner, "choose_backend", lambda *_: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def model(_fake_gpu: None, tmp_path: Path) -> LlavaVideoModel:
    """LLaVA-Video-7B in bfloat16: its real sizes, but few of its layers, which are all alike."""
    write_configuration("7b", tmp_path)
    config_path = tmp_path / "config.json"
    content = json.loads(config_path.read_text("utf-8"))
    content["num_hidden_layers"], content["vision_config"]["num_hidden_layers"] = 2, 3
    config_path.write_text(json.dumps(content), "utf-8")
    config = read_model_config(Checkpoint(str(tmp_path), tmp_path, ""))

    def read(wanted: Mapping[str, tuple[int, ...]], place: Place) -> dict[str, Tensor]:
        return {name: place(name, torch.empty(shape)) for name, shape in wanted.items()}

    return load_model(read, config, config.language.vocab_size, [CUDA] * 2, torch.bfloat16, "sdpa")


def _make_runner(model: LlavaVideoModel, kernel: AttendChunks | None, paged: AttendPaged | None = None) -> ModelRunner:
    language = model.config.language
    geometry = (language.num_key_value_heads, language.head_dim, model.language.layer_devices, torch.bfloat16)
    pool = None if kernel is None else PrefixPool(40, CHUNK_TOKENS, *geometry, kernel, paged)
    return ModelRunner(model, SuffixPages(40, *geometry), 8, 48, "sdpa", pool)


def _prefill(runner: ModelRunner) -> list[QuestionTask]:
    """Encodes and prefills two clips of 64 frames; returns questions to none, to both, and two to the first."""
    frames, text = np.zeros((NUM_FRAMES, 384, 384, 3), dtype=np.uint8), VideoPrefix(tuple(range(14)), tuple(range(200)))
    videos = [
        VideoTask(order, "", "", frames, np.arange(NUM_FRAMES), text, NUM_VIDEO_TOKENS + 214) for order in range(2)
    ]
    for video, tokens in zip(videos, runner.encode_videos(videos), strict=True):
        assert (tokens.shape, tokens.device) == ((NUM_VIDEO_TOKENS, 3584), CUDA)
        video.prefix = runner.prefill(video, tokens)
    system = VideoTask(-1, "", "", None, np.arange(0), VideoPrefix(tuple(range(14)), ()), 14)
    runner.prefill_text(system)
    return [
        QuestionTask(
            video=video,
            token_ids=list(range(20 + row)),
            generation=GenerationConfig(),
            repetition_penalty=1.05,
            future=Future(),
            row=row,
            pages=tuple(range(4 * row, 4 * row + 4)),
            generated=[5] * (3 + row),
        )
        for row, video in enumerate([system, videos[0], videos[0], videos[1]])
    ]


class _DeviceOnly(TorchDispatchMode):
    """Refuses operations that read or make a tensor on the host, which wait for a copy."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        assert devices == {CUDA}, f"{func} takes {devices}"
        return result


def test_the_engine_s_thread_works_on_the_gpu_of_its_model(
    model: LlavaVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", bound.append)
    _make_runner(model, None).bind_thread()
    assert bound == [CUDA]


@pytest.mark.parametrize("kernel", [*KERNELS, None])
def test_questions_start_without_a_wait_before_their_first_ids(
    model: LlavaVideoModel, kernel: AttendChunks | None
) -> None:
    runner = _make_runner(model, kernel)
    questions = _prefill(runner)
    with pytest.raises(DataDependentOutputException) as wait:
        runner.start(questions)
    ours = [entry for entry in wait.traceback if "llava_video" in str(entry.path)]
    assert ".tolist()" in str(ours[-1].statement)


def _make_step(runner: ModelRunner, num_clips: int) -> Callable[[], Chosen]:
    """Returns a decoding step of questions to clips, and of one to none where there are two clips."""
    questions = _prefill(runner)[2 - num_clips :][: 2 + num_clips]
    assert isinstance(runner.static, GraphedDecoder)
    decoder = runner.static.decoder
    shape = decoder.shape_of([row_of(question) for question in questions])
    buffer = torch.zeros(sum(map(prod, sizes_of(shape))), dtype=torch.long, device=CUDA)
    numbers, penalties = view_numbers(buffer, shape), torch.ones(shape.rows, device=CUDA)
    return lambda: decoder.run(numbers, penalties, shape)


class _Kernels(TorchDispatchMode):
    """Counts what launches kernels: operations that neither look at a tensor in another way nor only take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        schema = func._schema  # type: ignore[attr-defined]  # every operator has one
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
        if not is_view and not schema.name.startswith(("aten::empty", "aten::_unsafe_view", "prim::")):
            self.names.append(schema.name)
        return func(*args, **(kwargs or {}))


def _count_kernels(model: LlavaVideoModel, kernel: AttendChunks, paged: AttendPaged | None, num_layers: int) -> int:
    runner = _make_runner(model, kernel, paged)
    run = _make_step(runner, num_clips=1)
    layers, devices = model.language.model.layers, model.language.layer_devices
    model.language.model.layers, model.language.layer_devices = layers[:num_layers], devices[:num_layers]
    with _Kernels() as counted:
        run()
    model.language.model.layers, model.language.layer_devices = layers, devices
    return len(counted.names)


has_pages = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)
needs_pages = pytest.mark.skipif(not has_pages, reason="varlen_attn has pages from PyTorch 2.13")
PATHS = [(kernel, None) for kernel in KERNELS]


@pytest.mark.parametrize(
    ("kernel", "paged"), [*PATHS, pytest.param(attend_chunks_flash, attend_paged_varlen, marks=needs_pages)]
)
def test_a_decoding_step_can_be_captured(
    model: LlavaVideoModel, kernel: AttendChunks, paged: AttendPaged | None
) -> None:
    run = _make_step(_make_runner(model, kernel, paged), num_clips=2)
    with _DeviceOnly():
        chosen = run().ids
    assert (chosen.shape, chosen.device, chosen.dtype) == ((32,), CUDA, torch.int64)


@pytest.mark.parametrize(("paged", "most"), [(None, 90), pytest.param(attend_paged_varlen, 70, marks=needs_pages)])
def test_a_layer_of_a_decoding_step_launches_few_kernels(
    model: LlavaVideoModel, paged: AttendPaged | None, most: int
) -> None:
    one, two = (_count_kernels(model, attend_chunks_flash, paged, layers) for layers in (1, 2))
    assert two - one <= most
