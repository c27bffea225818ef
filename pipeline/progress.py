"""Says how far a run is, and what limited it once it has ended.

Progress is counted in committed parts, which is true on every runner and after every restart. What limited a run is
read from the workers' counters.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

from framescribe.storage.journal import list_done_units
from framescribe.storage.output import OutputStore
from framescribe.storage.retries import StoreError
from pipeline.start import StartPlan
from schemas.records import WorkUnit
from transforms.worker import WORKER, Worker

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

_SECONDS_BETWEEN_REFRESHES = 0.5
# A listing costs a request for each thousand parts: twice per second at first would be most of a short run's requests.
_FIRST_LOOK_PAUSE_S, _LONGEST_LOOK_PAUSE_S, _SHARE_OF_ELAPSED = 2.0, 60.0, 0.02
# Between plain lines while nothing is committed: doubled each time, so that a long run's log stays short.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0


def describe_engines(worker: Worker = WORKER) -> str:
    """Returns what this process's engines have done so far; nothing is loaded where the workers are other processes."""
    stats = [engine.stats for engine in worker.engines]
    if not stats:
        return ""
    clips, tokens = sum(one.encoded_clips for one in stats), sum(one.generated_tokens for one in stats)
    return f"model saw {write_count(clips, 'clip')}, wrote {write_count(tokens, 'token')}"


def pause_between_looks_s(elapsed_s: float) -> float:
    """Returns the seconds between two listings of the parts: 2 at first, a fiftieth of the run's time, 60 at most."""
    return min(_LONGEST_LOOK_PAUSE_S, max(_FIRST_LOOK_PAUSE_S, _SHARE_OF_ELAPSED * elapsed_s))


@contextmanager
def show_progress(store: OutputStore, units: Sequence[WorkUnit], before_engine: str = "") -> Iterator[None]:
    """Shows the progress of a run from a thread, as long as the block lasts."""
    progress = ProgressBar(store, units, before_engine)
    is_running = threading.Event()
    is_running.set()
    thread = threading.Thread(target=progress.watch, args=(is_running.is_set,), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_running.clear()
        progress.end()
        thread.join()


class ProgressBar:
    """A bar over the clips of a run, moved by listing the committed parts; in a log file, plain lines.

    Args:
        before_engine: what to say while this process has no engine.
        worker: whose engines the bar speaks of.
    """

    def __init__(
        self, store: OutputStore, units: Sequence[WorkUnit], before_engine: str = "", worker: Worker = WORKER
    ) -> None:
        self._store = store
        self._before_engine = before_engine
        self._worker = worker
        self._num_clips = {unit.unit_id: unit.stop - unit.start for unit in units}
        self._ended = threading.Event()
        self._printed_clips, self._next_line_s, self._pause_s = -1, 0.0, _FIRST_PAUSE_S

    def watch(self, is_running: Callable[[], bool]) -> None:
        """Shows the bar until `is_running` says no."""
        total = sum(self._num_clips.values())
        started_s = next_look_s = time.monotonic()
        with tqdm(total=total, unit="clip", desc="annotating", dynamic_ncols=True, smoothing=0.1, disable=None) as bar:
            while is_running():
                now_s = time.monotonic()
                if now_s >= next_look_s:
                    self._look(bar)
                    next_look_s = now_s + pause_between_looks_s(now_s - started_s)
                self._show(bar, now_s)
                self._ended.wait(_SECONDS_BETWEEN_REFRESHES)
            self._look(bar)
            self._show(bar, time.monotonic())

    def end(self) -> None:
        """Wakes the watching thread."""
        self._ended.set()

    def _look(self, bar: tqdm) -> None:
        try:
            done = list_done_units(self._store)
        except StoreError:
            return  # the workers meet it too, and decide
        bar.n = sum(self._num_clips.get(unit_id, 0) for unit_id in done)

    def _show(self, bar: tqdm, now_s: float) -> None:
        engine = describe_engines(self._worker) or self._before_engine
        if bar.disable:
            self._print_line(bar.n, engine, now_s)
            return
        bar.set_postfix_str(engine, refresh=False)
        bar.refresh()

    def _print_line(self, num_clips: int, engine: str, now_s: float) -> None:
        """Prints a line where the number moved, and now and then while it stands still."""
        if num_clips == self._printed_clips and now_s < self._next_line_s:
            return
        self._printed_clips, self._next_line_s = num_clips, now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        total = sum(self._num_clips.values())
        print(
            ", ".join(filter(None, (f"annotated {num_clips:,} of {write_count(total, 'clip')}", engine))),
            file=sys.stderr,
            flush=True,
        )


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
    return f"{write_count(plan.num_clips, 'clip')} in {write_count(len(plan.units), 'unit')}"


def describe_windows(split_s: float, num_windows: int, num_units: int) -> str:
    """Returns how many windows clips are cut into, as far as finished units tell: the others are not decoded yet."""
    if not num_units:
        return f"windows of {split_s:g} s: how many there are is known once the clips are decoded"
    units = write_count(num_units, "finished unit")
    return f"windows of {split_s:g} s: {num_windows:,} in {units}; the others are known once they are decoded"


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
