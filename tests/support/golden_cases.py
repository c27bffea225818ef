"""Finds the golden cases: those of ../shared/golden, with all intermediate results, or the committed ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

COMMITTED = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden"


@dataclass(frozen=True)
class GoldenCase:
    """One run of the reference: its inputs, intermediate results and answers."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "arrays.npz") as arrays:
            return dict(arrays)

    @property
    def checkpoint(self) -> str:
        return str(self.folder.parent / "checkpoints" / self.meta["checkpoint"])

    @property
    def timestamps_s(self) -> list[float]:
        return [float(time.removesuffix("s")) for time in self.meta["frame_time"].split(",")]

    def __str__(self) -> str:
        return self.folder.name


def find_cases() -> list[GoldenCase]:
    """Returns every case."""
    root = SHARED if SHARED.is_dir() else COMMITTED
    return [GoldenCase(meta.parent) for meta in sorted(root.glob("*/meta.json"))]
