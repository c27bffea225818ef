"""Attention in two merged parts equals attention over everything at once."""

from __future__ import annotations

import pytest
import torch

from framescribe.llava_video.attention import cascade as attention
from framescribe.llava_video.attention.cascade import (
    AttendChunks,
    ChunkFills,
    attend_causally,
    attend_chunks,
    attend_pages,
    attend_prefix,
    attend_suffix,
    attend_with_lse,
    merge_attention,
)
from framescribe.llava_video.attention.kv_cache import PrefixPool

HEADS, KV_HEADS, WIDTH = 6, 2, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _whole(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Plain attention [N, H, E] over keys [K, L, E], written without anything of ours."""
    keys, values = (tensor.repeat_interleave(HEADS // KV_HEADS, dim=0) for tensor in (keys, values))
    scores = torch.einsum("nhe,hle->hnl", queries, keys) / WIDTH**0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("hnl,hle->nhe", weights, values)


def test_prefix_and_suffix_attention_merge_to_attention_over_both() -> None:
    queries = torch.randn(5, HEADS, WIDTH)
    prefix_keys, prefix_values = torch.randn(2, KV_HEADS, 30, WIDTH)
    keys, values = torch.randn(2, 5, KV_HEADS, WIDTH)
    merged = merge_attention(*attend_suffix(queries, keys, values), *attend_prefix(queries, prefix_keys, prefix_values))
    mask = torch.cat([torch.ones(5, 30, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool).tril()], dim=1)
    all_keys = torch.cat([prefix_keys, keys.transpose(0, 1)], dim=1)
    all_values = torch.cat([prefix_values, values.transpose(0, 1)], dim=1)
    assert torch.allclose(merged, _whole(queries, all_keys, all_values, mask), atol=1e-6)


def test_rows_attend_to_the_valid_part_of_their_pages_only() -> None:
    queries = torch.randn(2, HEADS, WIDTH)
    keys, values = torch.randn(2, 2, 16, KV_HEADS, WIDTH)
    lengths = torch.tensor([3, 11])
    out, _ = attend_pages(queries, keys, values, ChunkFills.count(lengths, 16, torch.float32))
    alone = [
        _whole(
            queries[row : row + 1],
            keys[row].transpose(0, 1),
            values[row].transpose(0, 1),
            torch.arange(16)[None] < lengths[row],
        )
        for row in range(2)
    ]
    assert torch.allclose(out, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", None])
def test_causal_attention_is_the_same_in_every_implementation(implementation: str | None) -> None:
    queries = torch.randn(9, HEADS, WIDTH)
    keys, values = torch.randn(2, 9, KV_HEADS, WIDTH)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    expected = _whole(queries, keys.transpose(0, 1), values.transpose(0, 1), mask)
    assert torch.allclose(attend_causally(queries, keys, values, implementation), expected, atol=1e-6)


def test_queries_in_chunks_get_what_they_get_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = torch.randn(3, KV_HEADS, 12, WIDTH)
    last_visible = torch.arange(12)
    at_once = attend_with_lse(queries, keys, values, last_visible)
    monkeypatch.setattr(attention, "MAX_SCORES", 5 * KV_HEADS * 12)
    in_chunks = attend_with_lse(queries, keys, values, last_visible)
    assert torch.allclose(in_chunks[0], at_once[0])
    assert torch.allclose(in_chunks[1], at_once[1])


def test_flash_attention_that_is_not_installed_is_named_with_what_to_do() -> None:
    pytest.importorskip("torch")
    try:
        import flash_attn  # noqa: F401

        pytest.skip("flash-attn is installed here")
    except ImportError:
        pass
    tensors = torch.randn(3, 4, KV_HEADS, WIDTH)
    with pytest.raises(ValueError, match=r"pip install 'framescribe\[flash\]'"):
        attend_causally(*tensors, "flash_attention_2")


def _flash_on_cpu(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, fills: ChunkFills
) -> tuple[torch.Tensor, torch.Tensor]:
    """The one fused kernel with log-sum-exps that PyTorch has for processors, chunk by chunk."""
    pairs = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries[index, None].contiguous(),
            keys[index, None, :used].transpose(1, 2),
            values[index, None, :used].transpose(1, 2),
        )
        for index, used in enumerate(fills.tokens.tolist())
    ]
    outs, lses = zip(*pairs, strict=True)
    return torch.cat(outs), torch.cat(lses)


_HEADS = 8


def _make_head(kind: str, num_keys: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [K, M, E], keys and values [K, L, E] of heads that look everywhere, at the first, or at the last keys.

    A sink takes half of the weight, and its value is small, as in trained models. What no merge can help: a fused
    kernel rounds its outputs, so a head that looks into one chunk only is rounded twice, and errs by a root of two.
    """
    queries, keys, values = (torch.randn(_HEADS, length, width) for length in (14, num_keys, num_keys))
    favourite = queries.mean(dim=1, keepdim=True)
    if kind == "uniform":
        queries *= 0.1
    elif kind == "sink":
        keys[:, :1], values[:, :1] = 12 * favourite, 0.05 * values[:, :1]
    else:
        keys[:, -8:] = 3 * favourite
    return queries.bfloat16(), keys.bfloat16(), values.bfloat16()


@pytest.mark.parametrize("attend", [attend_chunks, _flash_on_cpu])
@pytest.mark.parametrize("kind", ["uniform", "sink", "local"])
def test_merging_costs_bfloat16_hardly_any_precision(kind: str, attend: AttendChunks) -> None:
    num_own, width = 96, 64
    pool = PrefixPool(6, 256, _HEADS, width, [torch.device("cpu")], torch.bfloat16, attend)
    queries, keys, values = _make_head(kind, 6 * 256 + num_own, width)
    prefix = pool.open(6 * 256)
    prefix.write(0, *(kv[:, :-num_own].transpose(0, 1) for kv in (keys, values)))
    row = queries.transpose(0, 1)[:, :, None].flatten(1, 2)  # [M, K, E]: every query is a row of its own
    own_keys, own_values = (kv[:, -num_own:].transpose(0, 1).expand(14, -1, -1, -1) for kv in (keys, values))
    fills = ChunkFills.count(torch.full((14,), num_own), num_own, torch.bfloat16)
    own = attend_pages(row, own_keys, own_values, fills, attend)
    merged = merge_attention(*own, *prefix.attend(0, row)).bfloat16().transpose(0, 1)
    whole = ChunkFills.count(torch.tensor([keys.shape[1]]), keys.shape[1], torch.bfloat16)
    at_once, _ = attend(queries[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None], whole)
    exact = (queries.double() @ keys.double().mT / width**0.5).softmax(-1) @ values.double()
    errors = [float((out.double() - exact).norm() / exact.norm()) for out in (merged, at_once[0])]
    assert errors[0] <= 1.3 * errors[1]


@pytest.mark.parametrize("attend", ["whole", "chunks"])
def test_scores_of_bfloat16_are_float32(attend: str) -> None:
    queries, keys, values = (5 * torch.randn(3, 1, 1, 40, 64)).bfloat16()
    scores = queries.double() @ keys.double().transpose(-1, -2) / 64**0.5
    if attend == "whole":
        _, lse = attend_with_lse(queries, keys, values)
    else:
        fills = ChunkFills.count(torch.tensor([40]), 40, torch.bfloat16)
        _, lse = attend_chunks(queries, keys.transpose(1, 2), values.transpose(1, 2), fills)
    assert scores.std() > 10
    assert (lse.double() - scores.logsumexp(-1)).abs().max() < 1e-4
