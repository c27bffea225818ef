"""PyTorch's fused attention with log-sum-exps, where the device has it and it proves right."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from llava_video.attention import AttendChunks, ChunkFills, attend_chunks

_log = logging.getLogger(__name__)

# Of outputs around 1; bfloat16 keeps eight bits.
_TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def choose_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> AttendChunks:
    """Returns the first fused kernel that runs on this device and agrees with the plain one on a small example.

    Flash attention wants bfloat16 or float16. Neither operator is part of PyTorch's public API, but both are in all its
    versions from 2.6; the public `varlen_attn` takes `seqused_k` from 2.13 only. The choice depends on the device, the
    dtype and PyTorch only, so that a run that goes on rounds as it began.
    """
    if device.type != "cuda":
        return attend_chunks
    for kernel in (attend_chunks_flash, attend_chunks_efficient):
        try:
            if _agrees_with_plain(kernel, device, dtype, head_dim):
                _log.info("decoding steps attend to prefixes by %s", kernel.__name__)
                return kernel
            _log.warning("%s disagrees with the plain attention here and is not used", kernel.__name__)
        except (RuntimeError, TypeError, AttributeError) as error:
            _log.info("%s is not to be had here: %s", kernel.__name__, error)
    _log.warning("no fused attention on this device, going on with the plain one")
    return attend_chunks


def attend_chunks_flash(queries: Tensor, keys: Tensor, values: Tensor, fills: ChunkFills) -> tuple[Tensor, Tensor]:
    """`AttendChunks` by PyTorch's flash attention (arXiv 2307.08691): chunks are sequences of which a part is used."""
    num_chunks, _, num_queries, _ = queries.shape
    starts = torch.arange(num_chunks + 1, device=queries.device, dtype=torch.int32)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        queries.transpose(1, 2).flatten(0, 1),  # [X * M, K, E]
        keys.flatten(0, 1),  # [X * T, K, E]
        values.flatten(0, 1),
        starts * num_queries,
        starts * keys.shape[1],
        num_queries,
        keys.shape[1],
        dropout_p=0.0,
        is_causal=False,
        return_debug_mask=False,
        seqused_k=fills.tokens,
    )  # [X * M, K, E], [K, X * M]
    return out.unflatten(0, (num_chunks, -1)).transpose(1, 2), lse.unflatten(1, (num_chunks, -1)).transpose(0, 1)


def attend_chunks_efficient(queries: Tensor, keys: Tensor, values: Tensor, fills: ChunkFills) -> tuple[Tensor, Tensor]:
    """`AttendChunks` by memory-efficient attention: scores stay in registers, in float32 (arXiv 2112.05682)."""
    num_queries = queries.shape[2]
    bias = fills.bias.expand(-1, *queries.shape[1:3], -1)
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        queries, keys.transpose(1, 2), values.transpose(1, 2), bias, True
    )
    return out, lse[..., :num_queries]  # the kernel pads them to a multiple of 32


def _agrees_with_plain(attend: AttendChunks, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Compares both on chunks and on pages: full ones, half full ones and ones with a single token."""
    return all(_agrees_on(attend, size, device, dtype, head_dim) for size in ((14, 256), (7, 96)))


def _agrees_on(
    attend: AttendChunks, size: tuple[int, int], device: torch.device, dtype: torch.dtype, head_dim: int
) -> bool:
    num_queries, num_tokens = size
    generator = torch.Generator(device="cpu").manual_seed(0)
    queries, keys, values = (
        torch.randn(3, *shape, head_dim, generator=generator).to(device, dtype)
        for shape in ((2, num_queries), (num_tokens, 2), (num_tokens, 2))
    )
    fills = ChunkFills.count(torch.tensor([num_tokens, num_tokens // 2, 1], device=device), num_tokens, dtype)
    pairs = zip(attend(queries, keys, values, fills), attend_chunks(queries, keys, values, fills), strict=True)
    tolerance = _TOLERANCES[dtype]
    return all(torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance) for a, b in pairs)
