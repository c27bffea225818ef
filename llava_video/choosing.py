"""Greedy choice of the next id of every row, after the repetition penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Chosen(NamedTuple):
    """What each of R rows goes on with.

    Attributes:
        ids: int64 [R].
        scores: float32 [R, 3], where ids were forced: the log-probability of the id, the likeliest id, and its
            log-probability, all before the repetition penalty; else None.
    """

    ids: Tensor
    scores: Tensor | None


class SeenIds:
    """Which ids each row of the batch has generated, bool [rows + 1, V]; the last row is spare."""

    def __init__(self, max_rows: int, num_ids: int, device: torch.device) -> None:
        self.spare_row = max_rows
        self._seen = torch.zeros(max_rows + 1, num_ids, dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)

    def forget(self, rows: Sequence[int]) -> None:
        """Clears rows that begin a new answer."""
        self._seen[list(rows)] = False

    def choose(self, logits: Tensor, rows: Tensor, penalties: Tensor | None, forced: Tensor | None = None) -> Chosen:
        """Picks the likeliest id of each row, or the forced one, and remembers it.

        Args:
            logits: float32 [R, V].
            rows: int64 [R].
            penalties: float32 [R], repetition penalties over generated ids (arXiv 1909.05858); None: none.
            forced: int64 [R], -1 where a row is free to choose; None: all are, and nothing is scored.
        """
        free = logits
        if penalties is not None:
            factors = penalties[:, None]
            penalised = torch.where(logits < 0, logits * factors, logits / factors)
            logits = torch.where(self._seen[rows], penalised, logits)
        chosen, scores = logits.argmax(dim=-1), None
        if forced is not None:
            chosen = torch.where(forced < 0, chosen, forced)
            scores = _score(free, chosen)
        self._seen.index_put_((rows, chosen), self._true)
        return Chosen(chosen, scores)


def _score(logits: Tensor, chosen: Tensor) -> Tensor:
    logprobs = logits.log_softmax(dim=-1)
    best, likeliest = logprobs.max(dim=-1)
    return torch.stack([logprobs.gather(1, chosen[:, None])[:, 0], likeliest.float(), best], dim=1)
