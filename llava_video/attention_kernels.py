"""PyTorch's fused attention with log-sum-exps, where the device has it and it proves right."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from llava_video.attention import AttendWithBias, attend_with_bias

_log = logging.getLogger(__name__)

# Of outputs around 1; bfloat16 keeps eight bits.
_TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def choose_kernel(device: torch.device, dtype: torch.dtype) -> AttendWithBias:
    """Returns the fused kernel on a GPU if it agrees with the plain one on a small example, else the plain one.

    The kernel's entry is not part of PyTorch's public API: its own test comes before trust.
    """
    if device.type != "cuda":
        return attend_with_bias
    try:
        is_right = _agrees_with_plain(fused_attend_with_bias, device, dtype)
    except (RuntimeError, TypeError, AttributeError) as error:
        _log.warning("no fused attention on this device, going on with the plain one: %s", error)
        return attend_with_bias
    if not is_right:
        _log.warning("PyTorch's fused attention disagrees with the plain one here; going on with the plain one")
    return fused_attend_with_bias if is_right else attend_with_bias


def fused_attend_with_bias(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`AttendWithBias` in one memory-efficient kernel: scores stay in registers, in float32 (arXiv 2112.05682)."""
    num_chunks, num_heads, num_queries, _ = queries.shape
    whole = bias.expand(num_chunks, num_heads, num_queries, -1)
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(queries, keys, values, whole, True)
    return out, lse[..., :num_queries]  # the kernel pads them to a multiple of 32


def _agrees_with_plain(attend: AttendWithBias, device: torch.device, dtype: torch.dtype) -> bool:
    """Compares both on three chunks, one of them half full and one with a single token."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    queries, keys, values = (
        torch.randn(3, 2, length, 128, generator=generator).to(device, dtype) for length in (14, 256, 256)
    )
    bias = torch.zeros(3, 1, 1, 256, device=device, dtype=dtype)
    bias[1, ..., 128:], bias[2, ..., 1:] = float("-inf"), float("-inf")
    pairs = zip(attend(queries, keys, values, bias), attend_with_bias(queries, keys, values, bias), strict=True)
    tolerance = _TOLERANCES[dtype]
    return all(torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance) for a, b in pairs)
