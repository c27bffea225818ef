"""Attention in two merged parts equals attention over everything at once."""

from __future__ import annotations

import pytest
import torch

from llava_video import attention
from llava_video.attention import (
    ChunkFills,
    attend_causally,
    attend_pages,
    attend_prefix,
    attend_suffix,
    attend_with_lse,
    merge_attention,
)

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
    monkeypatch.setattr(attention, "_MAX_SCORES", 5 * KV_HEADS * 12)
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
