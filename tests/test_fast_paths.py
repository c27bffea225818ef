"""Fast paths give the tokens of the plain one, prove that on the loaded weights, and are left out where they do not."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from framescribe.llava_video import Engine, GenerationConfig
from framescribe.llava_video.attention.cascade import ChunkFills, attend_chunks, attend_paged
from framescribe.llava_video.engine import memory, runner
from framescribe.llava_video.engine.runner import FastPath
from framescribe.llava_video.model import elementwise
from tests.support.engine_fixtures import CONFIG, QUESTIONS, make_frames, make_times, remember_answer

COMPILED = replace(CONFIG, compile=True)
STATIC = replace(CONFIG, static_decode=True, kv_budget_bytes=24 << 20, max_rows=12)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor wants a C++ compiler")


def _ask(engine: Engine) -> list[tuple[int, ...]]:
    """Asks all questions at once about one clip of three frames; answers of eight tokens."""
    with engine.open(make_frames(0), make_times(3), 1.5) as video:
        futures = [video.ask(question, GenerationConfig(max_new_tokens=8)) for question in QUESTIONS]
        return [future.result(120).token_ids for future in futures]


def _ask_plainly() -> list[tuple[int, ...]]:
    return [remember_answer((0, 3, question, 8)) for question in QUESTIONS]


def _paths(engine: Engine) -> set[FastPath]:
    return engine.thread.runner.fast_paths


@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.timeout(1200), needs_compiler])],
)
def test_compiled_layers_and_tower_give_the_tokens_of_the_plain_ones(backend: str, monkeypatch) -> None:
    monkeypatch.setattr(runner, "COMPILE_BACKEND", backend)
    with Engine.load(COMPILED) as engine:
        assert _paths(engine) == {FastPath.LAYERS, FastPath.TOWER}
        assert engine.attention_path == "sdpa; decoding: paged; compiled layers; compiled tower"
        assert _ask(engine) == _ask_plainly()


def test_nothing_is_compiled_on_a_processor_unless_it_was_asked_for() -> None:
    gpu, other = torch.device("cuda", 0), torch.device("cuda", 1)
    devices = ([torch.device("cpu")], [gpu, gpu], [gpu, other])
    assert [memory.is_compiled(CONFIG, some) for some in devices] == [False, True, False]
    assert [memory.is_compiled(replace(CONFIG, compile=False), some) for some in devices] == [False] * 3


def _is_plain_and_says_so(engine: Engine, caplog: pytest.LogCaptureFixture, paths: set[FastPath]) -> bool:
    said = [f"not {path.value}, which disagreed or failed" in engine.attention_path for path in paths]
    logged = [f"{path.value}: not used, the plain path is" in caplog.text for path in paths]
    return _paths(engine) == set() and all(said) and all(logged)


def test_where_nothing_can_be_compiled_the_plain_path_is_used(monkeypatch, caplog) -> None:
    monkeypatch.setattr(runner, "COMPILE_BACKEND", "no_such_backend")
    with Engine.load(COMPILED) as engine:
        assert _is_plain_and_says_so(engine, caplog, {FastPath.LAYERS, FastPath.TOWER})
        assert _ask(engine) == _ask_plainly()


def test_compiled_code_that_disagrees_is_not_used(monkeypatch, caplog) -> None:
    def compile_wrongly(function: Any, _: str) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            done = function(*arguments, **named)
            return tuple(one * 1.5 for one in done) if isinstance(done, tuple) else done * 1.5

        return run

    monkeypatch.setattr(elementwise, "compile_or_plain", compile_wrongly)
    monkeypatch.setattr("framescribe.llava_video.model.model.compile_or_plain", compile_wrongly)
    with Engine.load(COMPILED) as engine:
        assert _is_plain_and_says_so(engine, caplog, {FastPath.LAYERS, FastPath.TOWER})
        assert _ask(engine) == _ask_plainly()


def test_a_size_that_cannot_be_compiled_in_a_run_is_computed_plainly_from_then_on(caplog) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        if len(graphs) > 1:
            raise NotImplementedError("this compiler knows one dtype (pretended)")
        return graph.forward

    torch._dynamo.reset()
    gate = elementwise.compile_or_plain(elementwise.gate, backend)  # type: ignore[arg-type]  # torch takes functions too
    for some in (torch.randn(2, 4, 8), torch.randn(2, 4, 8).double(), torch.randn(2, 4, 8).double()):
        assert torch.equal(gate(*some), elementwise.gate(*some))
    assert caplog.text.count("is not compiled for a new size and runs plainly") == 1


def _attend_wrongly(queries: Tensor, keys: Tensor, values: Tensor, fills: ChunkFills) -> tuple[Tensor, Tensor]:
    """Mixes up what the width of a head means."""
    out, lse = attend_chunks(queries, keys, values, fills)
    return out.flip(-1), lse


def _attend_alike(queries: Tensor, keys: Tensor, values: Tensor, fills: ChunkFills) -> tuple[Tensor, Tensor]:
    return attend_chunks(queries, keys, values, fills)


@pytest.mark.parametrize(("kernel", "is_right"), [(_attend_alike, True), (_attend_wrongly, False)])
def test_a_kernel_is_used_where_it_agrees_on_the_loaded_weights(kernel, is_right, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(memory, "choose_kernel", lambda *_: kernel)
    with Engine.load(STATIC) as engine:
        assert (kernel.__name__ in engine.attention_path) == is_right
        assert ("fused attention: agrees with the plain path" in caplog.text) == is_right
        assert is_right or _is_plain_and_says_so(engine, caplog, {FastPath.ATTENTION})
        assert _ask(engine) == _ask_plainly()


def _attend_wrong_pages(
    queries: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Reads the pages of other sequences."""
    return attend_paged(queries, keys, values, (tables + 1) % len(keys), lengths)


@pytest.mark.parametrize(("kernel", "is_right"), [(attend_paged, True), (_attend_wrong_pages, False)])
def test_prefixes_are_attended_to_as_pages_where_that_agrees(kernel, is_right, monkeypatch, caplog) -> None:
    monkeypatch.setattr(memory, "choose_paged", lambda *_: kernel)
    monkeypatch.setattr(memory, "CHUNK_TOKENS", 32)  # every clip has several
    with Engine.load(STATIC) as engine:
        assert is_right == (_paths(engine) == {FastPath.PAGES})
        assert is_right or _is_plain_and_says_so(engine, caplog, {FastPath.PAGES})
        assert _ask(engine) == _ask_plainly()


@pytest.mark.parametrize("tables", [[[4, 0], [1, 0], [3, 2]], [[0, 1], [2, 3], [4, 4]]])
def test_attention_to_pages_is_attention_to_the_sequences_they_hold(tables: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    queries = torch.from_numpy(rng.normal(size=(3, 2, 7, 8)))
    keys, values = torch.from_numpy(rng.normal(size=(2, 5, 16, 2, 8)))
    lengths = [1, 15, 29]
    out, lse = attend_paged(queries, keys, values, torch.tensor(tables), torch.tensor(lengths, dtype=torch.int32))
    for number, (pages, length) in enumerate(zip(tables, lengths, strict=True)):
        held, weighed = (torch.cat([pool[page] for page in pages])[:length].transpose(0, 1) for pool in (keys, values))
        scores = queries[number] @ held.mT * 8**-0.5
        assert torch.allclose(out[number], scores.softmax(-1) @ weighed, atol=1e-6)
        assert torch.allclose(lse[number].double(), scores.logsumexp(-1), atol=1e-6)


def test_nothing_is_held_after_the_proof() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "choose_kernel", lambda *_: _attend_alike)
        engine = Engine.load(STATIC)
    with engine:
        pool = engine.thread.runner.pool
        assert pool.num_free_chunks == pool.num_chunks
        assert engine.stats.questions == 0


@pytest.mark.parametrize("budget", [1, 300_000])
def test_an_engine_with_hardly_any_memory_loads(budget: int, monkeypatch) -> None:
    monkeypatch.setattr(memory, "choose_kernel", lambda *_: _attend_alike)
    with Engine.load(replace(STATIC, kv_budget_bytes=budget, max_rows=1)) as engine:
        assert engine.attention_path.startswith("sdpa; decoding: ")


def test_the_elementwise_work_is_that_of_transformers() -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    norm, hidden = Qwen2RMSNorm(64, eps=1e-6).bfloat16(), torch.randn(5, 64).bfloat16()
    norm.weight.data = torch.from_numpy(np.random.default_rng(0).normal(size=64)).bfloat16()
    assert torch.equal(elementwise.normalise(hidden, norm.weight, 1e-6), norm(hidden))
