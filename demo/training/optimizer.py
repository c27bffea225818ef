"""Muon for the matrices, Adam for the rest: about half the steps that Adam alone takes here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal, matrices of one shape at a time."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure is ever passed
        """Takes one step over all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[tuple(matrix.shape)].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[nn.Parameter], group: dict[str, float]) -> None:
        pushes = []
        for matrix in matrices:
            held = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            held.lerp_(matrix.grad, 1 - group["momentum"])
            pushes.append(matrix.grad.lerp(held, group["momentum"]))
        updates = orthogonalise(torch.stack(pushes))
        rows, columns = matrices[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - group["lr"] * group["decay"]).sub_(update, alpha=scale)


def orthogonalise(pushes: torch.Tensor) -> torch.Tensor:
    """Brings the singular values of each matrix [N, rows, columns] close to 1 by five Newton-Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    tall = pushes.shape[1] > pushes.shape[2]
    x = pushes.mT if tall else pushes
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


Slow = tuple[list[nn.Parameter], float]


class Optimizers:
    """Both optimizers with one learning-rate factor; `slow` are parameters that Adam moves at a rate of their own."""

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        muon_lr: float,
        adam_lr: float,
        slow: Slow | None = None,
    ):
        groups = [{"params": others, "lr": adam_lr}] + ([{"params": slow[0], "lr": slow[1]}] if slow else [])
        self.both = [Muon(matrices, muon_lr), torch.optim.AdamW(groups, adam_lr, (0.9, 0.98), weight_decay=0.0)]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.both]

    def step(self, factor: float) -> None:
        """Takes one step at this fraction of the full learning rates and clears the gradients."""
        for optimizer, rates in zip(self.both, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        """Returns the state of both optimizers."""
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dict(self, states: list[dict]) -> None:
        """Takes up the state of both optimizers."""
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)


def learning_rate_factor(fraction: float, warm_up: float = 0.02, decay_from: float = 0.4) -> float:
    """Returns the factor at this fraction of the run: up, level, then straight down to 2 %."""
    if fraction < warm_up:
        return fraction / warm_up
    return 1.0 if fraction < decay_from or decay_from >= 1 else max(0.02, (1 - fraction) / (1 - decay_from))
