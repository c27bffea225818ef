"""Reads what the workers counted, and says in one line what limited the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult


def read_counters(result: PipelineResult) -> dict[str, int]:
    """Returns every committed counter of ours, `namespace.name` to total; empty where the runner tells none.

    They count what was executed: a bundle that was replayed counts twice. The truth about clips is in the parts.
    """
    totals: dict[str, int] = {}
    for metric in result.metrics().query().get("counters", []):
        name = f"{metric.key.metric.namespace}.{metric.key.metric.name}"
        if name.startswith(("engine.", "framescribe.")):
            totals[name] = totals.get(name, 0) + int(metric.committed or 0)
    return dict(sorted(totals.items()))


def describe_counters(counters: Mapping[str, int]) -> str | None:
    """Returns the line that tells whether decoding or the model was the limit, or None without counters."""
    seconds = {name: counters.get(f"engine.{name}_milliseconds", 0) / 1000 for name in _ENGINE_TIMES}
    if not any(seconds.values()):
        return None
    steps, tokens = counters.get("engine.decode_steps", 0), counters.get("engine.generated_tokens", 0)
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    fill = f"{tokens / steps:.1f} answers at once" if steps else "no decoding"
    return f"engine: {parts}; {counters.get('engine.encoded_clips', 0)} clips seen, {tokens} tokens written, {fill}"


def describe_reuse(counters: Mapping[str, int]) -> str | None:
    """Returns the line that tells how many answers came from an earlier run, or None without counters."""
    if not counters:
        return None
    reused, asked = (counters.get(f"framescribe.answers_{name}", 0) for name in ("reused", "asked"))
    return f"answers: {reused} taken from the earlier run, {asked} asked"


# `waiting` is the engine's thread without work: for frames to be decoded, or for a recipe to ask.
_ENGINE_TIMES = ("encode", "prefill", "question", "decode", "waiting")
