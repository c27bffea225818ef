"""The pool of chunks that prefixes lie in, and the kernels that attend to chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from framescribe.llava_video.attention.cascade import ChunkFills, attend_chunks, attend_prefix
from framescribe.llava_video.attention.kernels import (
    _agrees_with_plain,
    attend_chunks_flash,
    choose_backend,
    choose_kernel,
    pin_backend,
)
from framescribe.llava_video.attention.kv_cache import PrefixPool

CPU = torch.device("cpu")


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


def test_a_pool_that_nobody_uses_can_take_less_memory(pool: PrefixPool) -> None:
    held = pool.open(8)
    assert not pool.shrink(2)
    held.release()
    assert (pool.shrink(2), pool.shrink(2)) == (True, False)
    assert [len(tensor) for tensor in (*pool.keys, *pool.values)] == [2, 2]
    assert pool.open(16).chunks == (0, 1)


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
    """PyTorch has it for GPUs only; the stand-in follows the documentation of `varlen_attn`, which wraps it."""

    def flash(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        dropout_p: float,
        is_causal: bool,
        return_debug_mask: bool,
        seqused_k: Tensor,
    ) -> tuple[Tensor, ...]:
        assert {number.dtype for number in (cu_seq_q, cu_seq_k, seqused_k)} == {torch.int32}
        assert (cu_seq_q.diff().max(), cu_seq_k.diff().max()) == (max_q, max_k)
        assert (dropout_p, is_causal, return_debug_mask) == (0.0, False, False)
        outs, lses = [], []
        for index, used in enumerate(seqused_k.tolist()):
            queries = query[cu_seq_q[index] : cu_seq_q[index + 1]].transpose(0, 1)
            keys, values = (kv[cu_seq_k[index] :][:used].transpose(0, 1) for kv in (key, value))
            scores = queries @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
            outs.append((scores.softmax(-1) @ values).transpose(0, 1))
            lses.append(scores.logsumexp(-1))
        nothing = torch.empty(0)
        return (
            torch.cat(outs),
            torch.cat(lses, dim=1),
            nothing,
            nothing,
            nothing,
        )  # [queries, heads, width], [heads, queries]

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    assert _agrees_with_plain(attend_chunks_flash, CPU, torch.float32, 64)


def test_the_first_way_of_attention_that_runs_and_is_right_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    original, tried = F.scaled_dot_product_attention, []

    def attend(*arguments: Tensor, is_causal: bool) -> Tensor:
        tried.append(torch.backends.cuda.flash_sdp_enabled())
        if len(tried) == 1:
            raise RuntimeError("cuDNN Frontend error: no execution plan (pretended)")
        out = original(*arguments, is_causal=is_causal)
        return out + 0.1 if len(tried) == 2 else out

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)
    assert choose_backend(CPU, torch.float32, 72, False, backends) is SDPBackend.MATH
    assert tried == [True, True, False, False]


def test_no_way_of_attention_is_pinned_where_none_proves_right() -> None:
    assert choose_backend(CPU, torch.float32, 72, True, [SDPBackend.CUDNN_ATTENTION]) is None
    with pin_backend(None):
        assert torch.backends.cuda.flash_sdp_enabled()
    with pin_backend(SDPBackend.MATH):
        assert not torch.backends.cuda.flash_sdp_enabled()
