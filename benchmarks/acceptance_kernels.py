"""The stage of the acceptance run that compares attention with float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.acceptance_setting import Check, Setting, StageResult, at_most
from framescribe.llava_video.attention.cascade import AttendChunks, ChunkFills, attend_chunks, merge_attention
from framescribe.llava_video.attention.kernels import (
    SDPA_BACKENDS,
    attend_chunks_efficient,
    attend_chunks_flash,
    pin_backend,
)
from framescribe.llava_video.attention.kv_cache import PrefixPool

_KERNELS: tuple[AttendChunks, ...] = (attend_chunks_flash, attend_chunks_efficient, attend_chunks)


def check_kernels(setting: Setting) -> StageResult:
    """Compares every kernel with attention in float64 at the sizes that the engine meets."""
    checks: list[Check] = []
    measured: dict[str, object] = {}
    on_gpu = setting.device.type == "cuda"
    for kernel in _KERNELS if on_gpu else (attend_chunks,):
        try:
            checks += [check for shape in _chunk_shapes(setting) for check in _check_kernel(setting, kernel, *shape)]
        except (RuntimeError, TypeError, AttributeError) as error:
            measured[kernel.__name__] = f"not to be had: {error}"
        checks.append(_check_cascade(setting, kernel))
    backends: list[str] = []
    for backend in SDPA_BACKENDS:
        for head_dim, is_causal in ((72, False), (128, True)):
            try:
                checks.append(_check_backend(setting, backend, head_dim, is_causal))
                backends.append(f"{backend.name} for heads of {head_dim}")
            except RuntimeError as error:
                measured[f"{backend.name} for heads of {head_dim}"] = f"not to be had: {error}"
    return StageResult(checks, measured | {"ways": backends})


def _chunk_shapes(setting: Setting) -> Iterator[tuple[int, int, int, list[int]]]:
    """Yields key heads, queries, tokens of a chunk and fills: prefix chunks, then own pages."""
    heads, groups = (2, 2) if setting.is_small else (4, 7)
    yield heads, groups * 12, 1024, [1, 31, 32, 33, 1023, 1024]
    yield heads, groups, 128, [1, 31, 32, 33, 127, 128]


def _check_kernel(
    setting: Setting, kernel: AttendChunks, heads: int, queries: int, tokens: int, fills: list[int]
) -> list[Check]:
    q, k, v = (
        torch.randn(len(fills), *shape, 128, device=setting.device).bfloat16()
        for shape in ((heads, queries), (tokens, heads), (tokens, heads))
    )
    counted = ChunkFills.count(torch.tensor(fills, device=setting.device), tokens, torch.bfloat16)
    exact, exact_lse = attend_chunks(
        q.double(), k.double(), v.double(), ChunkFills(counted.tokens, counted.bias.double())
    )
    out, lse = kernel(q, k, v, counted)
    plain, _ = attend_chunks(q, k, v, counted)
    name = f"{kernel.__name__} over {tokens} tokens"
    limit = 2 * _error(plain, exact)
    return [
        at_most(f"{name}: error", _error(out, exact), limit),
        at_most(f"{name}: log-sum-exp", float((lse - exact_lse).abs().max()), 1e-3),
    ]


def _check_cascade(setting: Setting, kernel: AttendChunks) -> Check:
    """Whole cascade attention, a prefix in chunks and a row's own keys, against attention at once in bfloat16."""
    q = torch.randn(24, 8, 128, device=setting.device).bfloat16()
    k, v = torch.randn(2, 3000, 2, 128, device=setting.device).bfloat16()
    pool = PrefixPool(3, 1024, 2, 128, [setting.device], torch.bfloat16, kernel)
    prefix = pool.open(2950)
    prefix.write(0, k[:2950], v[:2950])
    fills = ChunkFills.count(torch.full((24,), 50, device=setting.device), 50, torch.bfloat16)
    own = kernel(
        q.unflatten(1, (2, 4)), k[None, 2950:].expand(24, -1, -1, -1), v[None, 2950:].expand(24, -1, -1, -1), fills
    )
    merged = merge_attention(own[0].flatten(1, 2), own[1].flatten(1, 2), *prefix.attend(0, q)).bfloat16()
    at_once, exact = (
        F.scaled_dot_product_attention(
            q.transpose(0, 1)[None].to(dtype),
            *(kv.repeat_interleave(4, dim=1).transpose(0, 1)[None].to(dtype) for kv in (k, v)),
        )[0].transpose(0, 1)
        for dtype in (torch.bfloat16, torch.float64)
    )
    return at_most(f"{kernel.__name__}: cascade against at once", _error(merged, exact) / _error(at_once, exact), 1.5)


def _check_backend(setting: Setting, backend: Any, head_dim: int, is_causal: bool) -> Check:
    q, k, v = torch.randn(3, 1, 2, 729 if head_dim == 72 else 1024, head_dim, device=setting.device).bfloat16()
    with pin_backend(backend):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    scores = q.double() @ k.double().mT * head_dim**-0.5
    if is_causal:
        scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    exact = scores.softmax(-1) @ v.double()
    plain = scores.float().softmax(-1).bfloat16() @ v
    return at_most(f"{backend.name} for heads of {head_dim}: error", _error(out, exact), 2 * _error(plain, exact))


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
