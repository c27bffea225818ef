"""PyTorch's fused attention with log-sum-exps, where the device has it and it proves right."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from framescribe.llava_video.attention.cascade import (
    AttendChunks,
    AttendPaged,
    ChunkFills,
    attend_chunks,
    attend_paged,
)

_log = logging.getLogger(__name__)

# Of outputs around 1; bfloat16 keeps eight bits.
_TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}

SDPA_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""Ways of `scaled_dot_product_attention`, best first. Not cuDNN's, which PyTorch takes first on some GPUs: it plans
anew for every length, for tens of milliseconds, and where it finds no plan its error looks like a lost device's."""


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


def choose_paged(device: torch.device, dtype: torch.dtype, head_dim: int) -> AttendPaged | None:
    """Returns PyTorch's attention to pages, where this PyTorch (2.13 and later) and this GPU have it; else None."""
    if device.type != "cuda":
        return None
    try:
        if _agrees_with_gathered(attend_paged_varlen, device, dtype, head_dim):
            return attend_paged_varlen
        _log.warning("varlen_attn disagrees with the plain attention to pages here and is not used")
    except (ImportError, RuntimeError, TypeError, AttributeError) as error:
        _log.info("varlen_attn with pages is not to be had here: %s", error)
    return None


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    is_causal: bool,
    backends: Sequence[SDPBackend] = SDPA_BACKENDS,
) -> SDPBackend | None:
    """Returns the first way of `scaled_dot_product_attention` that runs here and agrees with the plain one.

    Returns:
        None where none does, or on a processor: PyTorch's own choice.
    """
    if device.type != "cuda" and backends is SDPA_BACKENDS:
        return None
    for backend in backends:
        try:
            if _agrees_with_eager(backend, device, dtype, head_dim, is_causal):
                _log.info("attention with heads of %d runs by %s", head_dim, backend.name)
                return backend
            _log.warning("%s disagrees with the plain attention for heads of %d", backend.name, head_dim)
        except RuntimeError as error:
            _log.info("%s is not to be had for heads of %d: %s", backend.name, head_dim, error)
    return None


def pin_backend(backend: SDPBackend | None) -> AbstractContextManager[None]:
    """Keeps `scaled_dot_product_attention` to one way within a block; None leaves PyTorch its choice."""
    return nullcontext() if backend is None else sdpa_kernel([backend])


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


def attend_paged_varlen(
    queries: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """`AttendPaged` by PyTorch's public `varlen_attn`: one kernel reads pages where they lie, for all queries."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # with pages from PyTorch 2.13 only

    num_sequences, num_heads, num_queries, _ = queries.shape
    most_keys = tables.shape[1] * keys.shape[1]
    starts = torch.arange(num_sequences + 1, device=queries.device, dtype=torch.int32)
    out, lse = varlen_attn(
        queries.transpose(1, 2).flatten(0, 1),  # [C * M, K, E]
        keys,
        values,
        starts * num_queries,
        starts * most_keys,
        num_queries,
        most_keys,
        return_aux=AuxRequest(lse=True),
        seqused_k=lengths,
        block_table=tables.int(),
    )
    if lse.shape[0] != num_heads:  # PyTorch's page says [C * M, K], its kernel gives [K, C * M]
        lse = lse.transpose(0, 1)
    out = out.unflatten(0, (num_sequences, -1)).transpose(1, 2)
    return out, lse.unflatten(1, (num_sequences, -1)).transpose(0, 1)


def _agrees_with_gathered(attend: AttendPaged, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Compares on sequences that share a pool: of one token, of part of a page, of pages out of order."""
    generator, tolerance = torch.Generator(device="cpu").manual_seed(0), _TOLERANCES[dtype]
    queries, keys, values = (
        torch.randn(*shape, head_dim, generator=generator).to(device, dtype)
        for shape in ((3, 2, 14), (5, 256, 2), (5, 256, 2))
    )
    tables = torch.tensor([[4, 0], [1, 0], [3, 2]], device=device)
    lengths = torch.tensor([1, 200, 300], device=device, dtype=torch.int32)
    pairs = zip(
        attend(queries, keys, values, tables, lengths),
        attend_paged(queries, keys, values, tables, lengths),
        strict=True,
    )
    return all(torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance) for a, b in pairs)


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


def _agrees_with_eager(
    backend: SDPBackend, device: torch.device, dtype: torch.dtype, head_dim: int, is_causal: bool
) -> bool:
    """Compares on lengths that do and do not fill the blocks that kernels work in."""
    generator, tolerance = torch.Generator(device="cpu").manual_seed(0), _TOLERANCES[dtype]
    for length in (200, 256):
        queries, keys, values = (
            torch.randn(1, 2, length, head_dim, generator=generator).to(device, dtype) for _ in range(3)
        )
        with sdpa_kernel([backend]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch says why each other way is not used
            out = F.scaled_dot_product_attention(queries, keys, values, is_causal=is_causal)
        scores = queries.float() @ keys.float().transpose(-1, -2) * head_dim**-0.5
        if is_causal:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        expected = scores.softmax(dim=-1) @ values.float()
        if not torch.allclose(out.float(), expected, atol=tolerance, rtol=tolerance):
            return False
    return True
