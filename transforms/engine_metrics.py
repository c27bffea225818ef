"""Brings the engine's counters into Beam's metrics."""

from __future__ import annotations

import threading
from dataclasses import fields
from typing import TYPE_CHECKING

from apache_beam.metrics import Metrics

from framescribe.llava_video.engine.stats import EngineStats

if TYPE_CHECKING:  # torch comes with the engine, in the worker
    from framescribe.llava_video.engine.engine import Engine

NAMESPACE = "engine"
# Totals only: a level such as `kv_prefix_bytes` goes up and down.
_TOTALS = tuple(field.name for field in fields(EngineStats) if not field.name.startswith("kv_"))
_reported: dict[tuple[int, str], float] = {}
_metrics_lock = threading.Lock()


class EngineMetrics:
    """Counts what the engine did since any bundle of this process last counted; seconds as milliseconds.

    The engine's own thread cannot count for Beam: metrics from foreign threads are lost.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counters = {name: Metrics.counter(NAMESPACE, _metric_name(name)) for name in _TOTALS}

    def count(self) -> None:
        """Adds what is new; called on the bundle thread."""
        with _metrics_lock:
            for name, counter in self._counters.items():
                total, key = getattr(self._engine.stats, name), (id(self._engine), name)
                scale = 1000 if name.endswith("_s") else 1
                new = round((total - _reported.get(key, 0)) * scale)
                _reported[key] = _reported.get(key, 0) + new / scale
                counter.inc(new)


def _metric_name(name: str) -> str:
    return name.removesuffix("_s") + "_milliseconds" if name.endswith("_s") else name
