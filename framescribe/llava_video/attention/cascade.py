"""Attention in two parts that share no copy of the prefix, merged by log-sum-exp (cascade attention).

Softmax attention over the keys of a clip's prefix and of a row's own suffix together equals the two attentions apart,
weighed by the exponentials of their log-sum-exps. So the prefix is read once for all rows of a clip, in one matrix
product, and never copied. Grouped-query heads fold into the query dimension. Scores are float32 whatever the dtype, as
they are in the flash attention that the reference runs on a GPU. So are merges: rounding a weight to bfloat16, and the
sum after every merge, would double the error of attention done at once.

Letters: N tokens, R rows, S suffix tokens, P prefix tokens, H query heads, K key-value heads, G = H / K, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from framescribe.llava_video.errors import CheckpointError

# Bounds the float32 score matrix of one product to 256 MB.
MAX_SCORES = 1 << 26


@dataclass(frozen=True, slots=True)
class ChunkFills:
    """How many of their T tokens X chunks hold, in the two forms that kernels want.

    Attributes:
        tokens: int32 [X], at least 1 each.
        bias: [X, 1, 1, T], added to the scores: 0 where there is a token, else minus infinity.
    """

    tokens: Tensor
    bias: Tensor

    @classmethod
    def count(cls, tokens: Tensor, chunk_tokens: int, dtype: torch.dtype) -> ChunkFills:
        """Makes both from the numbers of tokens [X]."""
        positions = torch.arange(chunk_tokens, device=tokens.device)
        bias = torch.zeros(len(tokens), chunk_tokens, device=tokens.device, dtype=dtype)
        bias.masked_fill_(positions >= tokens[:, None], float("-inf"))
        return cls(tokens.int(), bias[:, None, None])

    def to(self, device: torch.device) -> ChunkFills:
        """Returns them on another device, or themselves."""
        return ChunkFills(self.tokens.to(device), self.bias.to(device))


# Attention to chunks, each alone: queries [X, K, M, E], keys and values [X, T, K, E]; returns outputs [X, K, M, E] and
# log-sum-exps float32 [X, K, M].
AttendChunks = Callable[[Tensor, Tensor, Tensor, ChunkFills], tuple[Tensor, Tensor]]

# Attention to sequences in pages: queries [C, K, M, E], pages of keys and values [X, T, K, E], tables [C, J] of the
# pages that each sequence consists of, and its tokens int32 [C], at least 1; returns as `AttendChunks`, for C.
AttendPaged = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fold_groups(queries: Tensor, num_key_value_heads: int) -> Tensor:
    """Folds query heads that share keys into the tokens: [..., N, H, E] to [..., K, N * G, E]."""
    return queries.unflatten(-2, (num_key_value_heads, -1)).transpose(-4, -3).flatten(-3, -2)


def unfold_groups(out: Tensor, lse: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Undoes `fold_groups` for outputs [..., K, N * G, E] and log-sum-exps [..., K, N * G]."""
    out, lse = (
        folded.unflatten(-2, (num_tokens, -1)).transpose(-4, -3).flatten(-3, -2) for folded in (out, lse[..., None])
    )
    return out, lse[..., 0]


def attend_with_lse(
    queries: Tensor, keys: Tensor, values: Tensor, last_visible: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attends and also returns the log-sum-exp of the scores, which `merge_attention` weighs by.

    Args:
        queries: [..., M, E]; keys, values: [..., L, E].
        last_visible: [..., M] int, the index of the last key that each query may see; None: all.

    Returns:
        outputs [..., M, E] in the queries' dtype and log-sum-exps float32 [..., M].
    """
    scores_per_query = queries[..., 0, 0].numel() * keys.shape[-2]
    chunk = max(1, MAX_SCORES // max(1, scores_per_query))
    if queries.shape[-2] <= chunk:
        return _attend_chunk(queries, keys, values, last_visible)
    parts = [
        _attend_chunk(
            queries[..., i : i + chunk, :],
            keys,
            values,
            None if last_visible is None else last_visible[..., i : i + chunk],
        )
        for i in range(0, queries.shape[-2], chunk)
    ]
    return torch.cat([out for out, _ in parts], dim=-2), torch.cat([lse for _, lse in parts], dim=-1)


def _attend_chunk(queries: Tensor, keys: Tensor, values: Tensor, last_visible: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = (queries.float() @ keys.float().transpose(-1, -2)).mul_(queries.shape[-1] ** -0.5)  # [..., M, L]
    if last_visible is not None:
        positions = torch.arange(keys.shape[-2], device=keys.device)
        scores.masked_fill_(positions > last_visible[..., None], float("-inf"))
    weights = scores.softmax(dim=-1)
    # The largest weight is exp(largest score - lse): read back, it saves a second pass of exponentials.
    lse = scores.amax(dim=-1) - weights.amax(dim=-1).log()
    return weights.to(values.dtype) @ values, lse


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
    """Joins attention over two disjoint sets of keys: outputs [..., E] with log-sum-exps [...]; returns float32."""
    lead = (lse_a - lse_b)[..., None]
    return out_a.float() * torch.sigmoid(lead) + out_b.float() * torch.sigmoid(-lead)


def attend_chunks(queries: Tensor, keys: Tensor, values: Tensor, fills: ChunkFills) -> tuple[Tensor, Tensor]:
    """Plain `AttendChunks`, for any device."""
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # [X, K, T, E]
    scores = queries.float() @ keys.float().transpose(-1, -2) * queries.shape[-1] ** -0.5 + fills.bias  # [X, K, M, T]
    lse = scores.logsumexp(dim=-1)
    return scores.sub_(lse[..., None]).exp_().to(values.dtype) @ values, lse


def attend_paged(
    queries: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Plain `AttendPaged`, for any device: gathers the pages of each sequence."""
    held_keys, held_values = (pages[tables].flatten(1, 2) for pages in (keys, values))  # [C, J * T, K, E]
    return attend_chunks(queries, held_keys, held_values, ChunkFills.count(lengths, held_keys.shape[1], queries.dtype))


def merge_chunks(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Joins attention over J disjoint sets of keys: outputs [C, J, ..., E] with log-sum-exps [C, J, ...].

    Returns:
        outputs [C, ..., E] and log-sum-exps [C, ...], both float32.
    """
    total = lses.logsumexp(dim=1)
    weights = (lses - total[:, None]).exp()
    return (outs.float() * weights[..., None]).sum(dim=1), total


def attend_causally(queries: Tensor, keys: Tensor, values: Tensor, implementation: str | None) -> Tensor:
    """Attends within one whole sequence: queries [L, H, E], keys and values [L, K, E]; returns [L, H, E]."""
    if implementation == "flash_attention_2":
        return _flash_attend(queries, keys, values)
    num_kv_heads = keys.shape[1]
    if implementation == "eager":
        out, _ = attend_suffix(queries, keys, values)
        return out
    groups = queries.shape[1] // num_kv_heads
    keys, values = (tensor.repeat_interleave(groups, dim=1).transpose(0, 1)[None] for tensor in (keys, values))
    out = F.scaled_dot_product_attention(queries.transpose(0, 1)[None], keys, values, is_causal=True)
    return out[0].transpose(0, 1)


def attend_suffix(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention of new tokens among themselves: queries [..., L, H, E], keys and values [..., L, K, E].

    Returns:
        outputs [..., L, H, E] and log-sum-exps [..., L, H].
    """
    length, num_heads, num_kv_heads = queries.shape[-3], queries.shape[-2], keys.shape[-2]
    last_visible = torch.arange(length, device=queries.device).repeat_interleave(num_heads // num_kv_heads)
    folded = fold_groups(queries, num_kv_heads)
    out, lse = attend_with_lse(folded, keys.transpose(-3, -2), values.transpose(-3, -2), last_visible)
    return unfold_groups(out, lse, length)


def attend_prefix(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of queries [N, H, E] of one clip's rows to its prefix, keys and values [K, P, E]."""
    num_tokens, num_kv_heads = len(queries), len(keys)
    out, lse = attend_with_lse(fold_groups(queries, num_kv_heads), keys, values)
    return unfold_groups(out, lse, num_tokens)


def attend_pages(
    queries: Tensor, keys: Tensor, values: Tensor, fills: ChunkFills, attend: AttendChunks = attend_chunks
) -> tuple[Tensor, Tensor]:
    """Attention of one query a row [R, H, E] to its suffix: pages are to a row what chunks are to a clip.

    Args:
        keys, values: [R, S, K, E].
        fills: how many of its S suffix tokens each row has.

    Returns:
        outputs [R, H, E] and log-sum-exps [R, H].
    """
    out, lse = attend(queries.unflatten(1, (keys.shape[2], -1)), keys, values, fills)  # [R, K, G, E], [R, K, G]
    return out.flatten(1, 2), lse.flatten(1, 2)


def _flash_attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        raise CheckpointError(
            "attn_implementation is 'flash_attention_2', but flash-attn is not installed: "
            "pip install 'framescribe[flash]', or use 'sdpa'"
        ) from None
    return flash_attn_func(queries[None], keys[None], values[None], causal=True)[0]
