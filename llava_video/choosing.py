"""Greedy choice of the next id of every row, after the repetition penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SeenIds:
    """Which ids each row of the batch has generated, bool [rows + 1, V]; the last row is spare."""

    def __init__(self, max_rows: int, num_ids: int, device: torch.device) -> None:
        self.spare_row = max_rows
        self._seen = torch.zeros(max_rows + 1, num_ids, dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)

    def forget(self, rows: Sequence[int]) -> None:
        """Clears rows that begin a new answer."""
        self._seen[list(rows)] = False

    def choose(self, logits: Tensor, rows: Tensor, penalties: Tensor | None) -> Tensor:
        """Picks the likeliest id of each row and remembers it.

        Args:
            logits: float32 [R, V].
            rows: int64 [R].
            penalties: float32 [R], repetition penalties over generated ids (arXiv 1909.05858); None: none.

        Returns:
            int64 [R].
        """
        if penalties is not None:
            factors = penalties[:, None]
            penalised = torch.where(logits < 0, logits * factors, logits / factors)
            logits = torch.where(self._seen[rows], penalised, logits)
        chosen = logits.argmax(dim=-1)
        self._seen.index_put_((rows, chosen), self._true)
        return chosen
