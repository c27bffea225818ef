"""Says what a start found, and what was counted in a run that has ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pipeline.start import StartPlan

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult


def describe_start(plan: StartPlan) -> Iterator[str]:
    """Yields lines on what a start found in its output and is going to do."""
    if plan.earlier is not None:
        yield (
            f"of {write_count(plan.num_clips, 'clip')}, {plan.num_reusable:,} are in the earlier run: with the same "
            "frames, what is unchanged of their questions is not asked again"
        )
    if plan.changed.unit_ids:
        fate = {"redo": "done again", "keep": "kept as they are"}.get(plan.request.changed_inputs or "", "not allowed")
        yield f"{write_count(len(plan.changed.unit_ids), 'finished unit')} of changed inputs: {fate}"
    if plan.request.config.retry_failed and plan.found.holds_run:
        yield f"to be tried again: {write_count(sum(plan.failed_clips.values()), 'failed clip')}"
    yield f"{describe_units(plan)}, {plan.num_done:,} done before" if plan.num_done else describe_units(plan)
    if plan.replaced:
        again = write_count(sum(unit.stop - unit.start for unit in plan.replaced), "clip")
        yield (
            f"warning: up to {again} of those done before are written again, with the answers that are there, or leave "
            "the tables if their files are gone, since their shards are cut into other units now: files came or went, "
            "or --clips-per-unit is another"
        )
    if plan.outdated:
        yield f"in no table: {write_count(len(plan.outdated), 'part')} of shards that were cut into other units since"


def describe_units(plan: StartPlan) -> str:
    """Returns how many clips there are in how many units."""
    counted = f"{write_count(plan.num_clips, 'clip')} in {write_count(len(plan.units), 'unit')}"
    if plan.limited is not None:
        return f"{counted}: {plan.limited.describe()}"
    subset = plan.request.subset
    if subset is None:
        return counted
    asked = f"{subset.num_clips:,} were asked for" if subset.num_clips else "--where leaves none out"
    return f"{counted}: all there are, {asked}"


def describe_windows(split_s: float, num_windows: int, num_units: int) -> str:
    """Returns how many windows clips are cut into, as far as finished units tell: the others are not decoded yet."""
    if not num_units:
        return f"windows of {split_s:g} s: how many there are is known once the clips are decoded"
    units = write_count(num_units, "finished unit")
    return f"windows of {split_s:g} s: {num_windows:,} in {units}; the others are known once they are decoded"


def read_counters(result: PipelineResult) -> dict[str, int]:
    """Returns every counter of ours, `namespace.name` to total; empty where the runner tells none, or none yet.

    They count what was executed: a bundle that was replayed counts twice. The truth about clips is in the parts.
    """
    totals: dict[str, int] = {}
    for metric in result.metrics().query().get("counters", []):
        name = f"{metric.key.metric.namespace}.{metric.key.metric.name}"
        if name.startswith(("engine.", "framescribe.")):
            totals[name] = totals.get(name, 0) + int(metric.committed or metric.attempted or 0)
    return dict(sorted(totals.items()))


def describe_counters(counters: Mapping[str, int]) -> str | None:
    """Returns the line that tells where the engine's time went, or None without counters."""
    seconds = {name: counters.get(f"engine.{name}_milliseconds", 0) / 1000 for name in _ENGINE_TIMES}
    if not any(seconds.values()):
        return None
    steps, tokens = counters.get("engine.decode_steps", 0), counters.get("engine.generated_tokens", 0)
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    fill = f"{tokens / steps:.1f} answers at once" if steps else "no decoding"
    return f"engine: {parts}; {counters.get('engine.encoded_clips', 0)} clips seen, {tokens} tokens written, {fill}"


def describe_waits(counters: Mapping[str, int]) -> str | None:
    """Returns the line that tells how long decoding and the store took, or None without counters."""
    names = {"decode": "decoding", "decoders_idle": "decoders idle", "read": "reading", "commit": "committing"}
    seconds = {text: counters.get(f"framescribe.{name}_milliseconds", 0) / 1000 for name, text in names.items()}
    if not any(seconds.values()):
        return None
    return f"around it: {', '.join(f'{text} {value:.0f} s' for text, value in seconds.items())}"


def describe_reuse(counters: Mapping[str, int]) -> str | None:
    """Returns the line that tells how many answers came from an earlier run, or None without counters."""
    if not counters:
        return None
    reused, asked = (counters.get(f"framescribe.answers_{name}", 0) for name in ("reused", "asked"))
    clips = write_count(counters.get("framescribe.clips_with_earlier_answers", 0), "clip")
    return f"answers: {reused:,} taken from an earlier run, for {clips}; {asked:,} asked"


# `waiting` is the engine's thread without work: for frames to be decoded, or for a recipe to ask.
_ENGINE_TIMES = ("encode", "prefill", "question", "decode", "waiting")


def write_count(number: int, noun: str) -> str:
    """Returns `1 clip`, `0 clips` or `2,000 clips`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def write_size(size_bytes: int) -> str:
    """Returns a size in the unit of the flags: `0.3 GiB`, or a smaller one below a tenth of it."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 0.1 * 2**power:
            return f"{size_bytes / 2**power:.1f} {unit}"
    return write_count(size_bytes, "byte")
