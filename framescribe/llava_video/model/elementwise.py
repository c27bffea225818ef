"""The work between the matrix products of a language layer: norms, rotary positions, SwiGLU and residual sums.

Run operation by operation these are some twenty-five kernels per layer that only move memory. `torch.compile` makes a
few of them, which round where the plain ones do (`emulate_precision_casts`). Numbers of tokens are dynamic: one
compilation serves all lengths.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_log = logging.getLogger(__name__)


def normalise(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Qwen2's RMSNorm of hidden states [N, D]."""
    exact = hidden.float()
    exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
    return weight * exact.to(hidden.dtype)


def add_and_normalise(hidden: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Adds what a block computed to the hidden states [N, D]; returns the sum and its norm."""
    hidden = hidden + update
    return hidden, normalise(hidden, weight, eps)


def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turns queries [N, H, E] and keys [N, K, E] by their positions' cosines and sines [N, 1, E]."""
    return _rotate_one(queries, cos, sin), _rotate_one(keys, cos, sin)


def _rotate_one(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """SwiGLU of two projections [N, I]."""
    return F.silu(gates) * ups


_FUNCTIONS: tuple[Callable[..., Any], ...] = (normalise, add_and_normalise, rotate, gate)


class Elementwise:
    """These functions, plain or compiled."""

    def __init__(self) -> None:
        self.use_plain()

    def use_plain(self) -> None:
        """Runs each operation alone from now on."""
        self.is_compiled = False
        self.normalise, self.add_and_normalise, self.rotate, self.gate = _FUNCTIONS

    def use_compiled(self, backend: str) -> None:
        """Runs each function compiled, as `compile_or_plain` says."""
        self.is_compiled = True
        self.normalise, self.add_and_normalise, self.rotate, self.gate = (
            compile_or_plain(function, backend) for function in _FUNCTIONS
        )


def compile_or_plain(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """Compiles a function for tensors of any length.

    Where the first call cannot be compiled it raises, as a `RuntimeError`; where a later one cannot, for a size that
    came up in the middle of a run, the function is run plainly from then on.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second; PyTorch has no public name for it

    # Rounds to bfloat16 between operations as the plain ones do, instead of once at the end.
    options: dict[str, Any] = {"emulate_precision_casts": True} if backend == "inductor" else {}
    compiled = torch.compile(function, dynamic=True, backend=backend, options=options or None)
    has_run = has_failed = False

    def run(*arguments: Any, **named: Any) -> Any:
        nonlocal has_run, has_failed
        if has_failed:
            return function(*arguments, **named)
        try:
            result = compiled(*arguments, **named)
        except TorchDynamoException as error:
            if not has_run:
                raise
            has_failed = True
            reason = str(error).strip().partition("\n")[0]
            _log.warning("%s is not compiled for a new size and runs plainly: %s", function.__qualname__, reason)
            return function(*arguments, **named)
        has_run = True
        return result

    return run
