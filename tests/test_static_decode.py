"""Decoding in fixed shapes from a pool of chunks gives the answers of the plain steps; run here without CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from golden_cases import COMMITTED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.attention.varlen import AuxRequest

from llava_video import Engine, EngineConfig, GenerationConfig, memory
from llava_video.attention import ChunkFills, attend_chunks, attend_prefix
from llava_video.attention_kernels import _agrees_with_plain, attend_chunks_flash, choose_kernel
from llava_video.prefix_pool import PrefixPool
from llava_video.static_decode import round_up

CPU = torch.device("cpu")
CONFIG = EngineConfig(model=str(COMMITTED / "checkpoints" / "g9"), device="cpu", dtype="float32", static_decode=False)
STATIC = EngineConfig(
    model=CONFIG.model, device="cpu", dtype="float32", static_decode=True, kv_budget_bytes=24 << 20, max_rows=12
)
QUESTIONS = ("What is this?", "Count the colours.\nAnswer with a number.", "Why?")
Request = tuple[int, int, str, int]


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    """A static engine, with chunks so small that every clip has several, and a plain one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CHUNK_TOKENS", 32)
        static = Engine.load(STATIC)
    with static, Engine.load(CONFIG) as plain:
        yield static, plain


def _ask(engine: Engine, requests: list[Request], num_each: int) -> list[tuple[int, ...]]:
    """Asks every request's question `num_each` times, all at once, half of them without their video as well."""
    rng = np.random.default_rng(7)
    futures, videos = [], []
    for seed, num_frames, question, length in requests:
        frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 126, 126, 3), dtype=np.uint8)
        video = engine.open(frames, [index / 2 for index in range(num_frames)], num_frames / 2)
        videos.append(video)
        generations = [
            GenerationConfig(max_new_tokens=length + extra, repetition_penalty=float(rng.choice([1.0, 1.3])))
            for extra in range(num_each)
        ]
        futures += [video.ask(question, generation) for generation in generations]
        futures.append(engine.ask(question, generations[0]))
    answers = [future.result(60).token_ids for future in futures]
    for video in videos:
        video.close()
    return answers


@settings(max_examples=10, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 4), st.sampled_from(QUESTIONS), st.integers(1, 40)),
        min_size=1,
        max_size=4,
    ),
    num_each=st.integers(1, 4),
)
def test_any_mix_gets_the_answers_of_the_plain_steps(
    engines: tuple[Engine, Engine], requests: list[Request], num_each: int
) -> None:
    static, plain = engines
    assert _ask(static, requests, num_each) == _ask(plain, requests, num_each)


def test_chunks_are_free_again_once_all_videos_are_closed(engines: tuple[Engine, Engine]) -> None:
    static, _ = engines
    held = []
    for _ in range(2):
        _ask(static, [(1, 3, QUESTIONS[0], 4), (2, 2, QUESTIONS[1], 4)], 2)
        static.ask("Hello?", GenerationConfig(max_new_tokens=1)).result(60)  # the thread has read the closings by now
        held.append(static.stats.kv_prefix_bytes)
    text_only = PrefixPool(4, 32, *_geometry(static), attend_chunks).open(len(static.tokenizer.text_prefix()))
    assert held == [text_only.size_bytes] * 2


def _geometry(engine: Engine) -> tuple[int, int, list[torch.device], torch.dtype]:
    language = engine.model.config.language
    devices = [CPU] * language.num_hidden_layers
    return language.num_key_value_heads, language.head_dim, devices, torch.float32


@pytest.fixture
def pool() -> PrefixPool:
    return PrefixPool(6, 8, 2, 4, [CPU], torch.float32, attend_chunks)


def test_attention_over_chunks_equals_attention_over_the_whole_prefix(pool: PrefixPool) -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(5, 6, 4), torch.randn(19, 2, 4), torch.randn(19, 2, 4)
    prefix = pool.open(19)
    prefix.write(0, keys, values)
    expected = attend_prefix(queries, keys.transpose(0, 1), values.transpose(0, 1))
    found = prefix.attend(0, queries)
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert torch.allclose(found[1], expected[1], atol=1e-6)


def test_chunks_are_given_back_once_and_the_lowest_are_given_out_first(pool: PrefixPool) -> None:
    first, second = pool.open(17), pool.open(8)
    first.release()
    first.release()
    third = pool.open(9)
    assert (first.chunks, second.chunks, third.chunks) == ((0, 1, 2), (3,), (0, 1))


def test_more_chunks_than_there_are_is_an_error_with_its_numbers(pool: PrefixPool) -> None:
    pool.open(40)
    with pytest.raises(MemoryError, match="9 tokens wants 2 chunks, 1 are free"):
        pool.open(9)


@pytest.mark.parametrize(
    ("number", "least", "expected"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (5, 1, 6), (7, 1, 8), (9, 1, 12), (3, 4, 4)]
)
def test_sizes_are_rounded_up_by_a_third_at_most(number: int, least: int, expected: int) -> None:
    assert round_up(number, least) == expected


def test_a_processor_takes_the_plain_kernel() -> None:
    assert choose_kernel(CPU, torch.float32, 128) is attend_chunks


def test_a_kernel_that_weighs_masked_keys_is_found_out() -> None:
    def forgets_the_fills(
        queries: Tensor, keys: Tensor, values: Tensor, fills: ChunkFills
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_chunks(queries, keys, values, ChunkFills(fills.tokens, torch.zeros_like(fills.bias)))

    assert _agrees_with_plain(attend_chunks, CPU, torch.float32, 128)
    assert not _agrees_with_plain(forgets_the_fills, CPU, torch.float32, 128)


def test_flash_attention_is_given_and_gives_back_what_its_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has it for GPUs only; the stand-in is written after the documentation of `varlen_attn` in 2.13."""

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: AuxRequest,
        seqused_k: Tensor,
    ) -> tuple[Tensor, Tensor]:
        assert {number.dtype for number in (cu_seq_q, cu_seq_k, seqused_k)} == {torch.int32}
        assert (cu_seq_q.diff().max(), cu_seq_k.diff().max(), return_aux.lse) == (max_q, max_k, True)
        outs, lses = [], []
        for index, used in enumerate(seqused_k.tolist()):
            queries = query[cu_seq_q[index] : cu_seq_q[index + 1]].transpose(0, 1)
            keys, values = (kv[cu_seq_k[index] :][:used].transpose(0, 1) for kv in (key, value))
            scores = queries @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
            outs.append((scores.softmax(-1) @ values).transpose(0, 1))
            lses.append(scores.logsumexp(-1))
        return torch.cat(outs), torch.cat(lses, dim=1)  # [queries, heads, width], [heads, queries]

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    assert _agrees_with_plain(attend_chunks_flash, CPU, torch.float32, 64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the capture succeeds")
def test_a_step_that_cannot_be_captured_runs_all_the_same(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    static, plain = engines
    requests = [(1, 2, QUESTIONS[2], 30)]
    monkeypatch.setattr(static._thread._runner._static, "_num_captures_left", 5)
    assert _ask(static, requests, 2) == _ask(plain, requests, 2)
    assert caplog.text.count("no CUDA graphs, decoding goes on without") == 1
