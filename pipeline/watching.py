"""Shows how far a run is while it goes on: two lines on a terminal, plain lines in a log file, numbers for Prometheus.

What is done is told by the parts, which is true on every runner and after every restart, and by what is counted: in
this process at any moment, elsewhere by the runner, where it tells its counters before the end.
"""

from __future__ import annotations

import copy
import heapq
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from framescribe.storage.journal import list_done_units
from framescribe.storage.output import OutputStore
from framescribe.storage.redaction import strip_credentials
from framescribe.storage.retries import StoreError
from pipeline.progress import read_counters, write_count
from pipeline.run_state import RunHistory, RunState, RunSummary, UnitTime, describe_clips, describe_pace, find_limit
from pipeline.runners import COUNTERS_THREAD
from schemas.records import WorkUnit
from transforms.worker import WORKER, Worker

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

_SECONDS_BETWEEN_REFRESHES = 0.5
# A listing costs a request for each thousand parts: twice per second at first would be most of a short run's requests.
_FIRST_LOOK_PAUSE_S, _LONGEST_LOOK_PAUSE_S, _SHARE_OF_ELAPSED = 2.0, 60.0, 0.02
# Between plain lines: doubled each time, so that a short run says something and a long run's log stays short.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0
# A commit that is under way when Ctrl-C comes is waited for so long.
_SECONDS_TO_COMMIT = 2.0
_NUM_SLOWEST = 5


def pause_between_looks_s(elapsed_s: float) -> float:
    """Returns the seconds between two listings of the parts: 2 at first, a fiftieth of the run's time, 60 at most."""
    return min(_LONGEST_LOOK_PAUSE_S, max(_FIRST_LOOK_PAUSE_S, _SHARE_OF_ELAPSED * elapsed_s))


class RunReader:
    """Tells where a run stands, without claiming more than is done.

    Args:
        units: what this start is to do.
        num_before: clips that earlier starts finished.
        committed_before: ids of `units` that have a part already, and are done again.
        worker: whose counts are this run's; None where other processes do the work.
    """

    def __init__(
        self,
        store: OutputStore,
        units: Sequence[WorkUnit],
        num_before: int = 0,
        committed_before: Collection[str] = (),
        worker: Worker | None = WORKER,
    ) -> None:
        self._store, self._num_before, self._worker = store, num_before, worker
        self._units = {unit.unit_id: unit for unit in units}
        self._committed_before = {*committed_before}
        self._counted_before = worker.read_counters() if worker is not None else {}
        self._job_counters: dict[str, int] = {}
        self._num_listed = 0
        self.started_s = time.monotonic()

    @property
    def is_loading(self) -> bool:
        """Whether this process does the work and has no model yet."""
        return self._worker is not None and not self._worker.engines

    def look(self) -> None:
        """Lists the committed parts; where the store refuses, what was seen last stays."""
        try:
            done = {*list_done_units(self._store)} - self._committed_before
        except StoreError:
            return  # the workers meet it too, and decide
        self._num_listed = sum(self._units[unit_id].num_clips for unit_id in done & self._units.keys())

    def take_job_counters(self, counters: dict[str, int]) -> None:
        """Takes what the runner of a job elsewhere has counted."""
        self._job_counters = counters

    def read(self) -> RunState:
        """Returns the state of this moment; asks nobody."""
        counters = self._job_counters
        if self._worker is not None:
            now = self._worker.read_counters()
            counters = {name: total - self._counted_before.get(name, 0) for name, total in now.items()}
        ours = {name.removeprefix("framescribe."): total for name, total in counters.items()}
        committed = ours.get("clips_annotated", 0) + ours.get("clips_failed", 0)
        num_planned = (
            self._num_before
            + sum(unit.num_clips for unit in self._units.values())
            + ours.get("windows_beyond_first", 0)
        )
        # Of a job elsewhere only what is committed counts: clips of a bundle that is lost arrive twice.
        arrived = ours.get("clips_arrived", 0) if self._worker is not None else committed
        failed = "clips_arrived_failed" if self._worker is not None else "clips_failed"
        num_kept = self._num_before + max(self._num_listed, committed)
        return RunState(
            at_s=time.monotonic() - self.started_s,
            num_planned=num_planned,
            num_done=min(num_planned, max(num_kept, self._num_before + arrived)),
            num_kept=min(num_planned, num_kept),
            num_failed=ours.get(failed, 0),
            counters=counters,
        )

    def find_slowest(self) -> tuple[UnitTime, ...] | None:
        """Returns the slowest units of this start, the slowest first; None where other processes do the work."""
        if self._worker is None:
            return None
        times = self._worker.unit_times.read(self.started_s)
        slowest = heapq.nlargest(_NUM_SLOWEST, times.keys() & self._units.keys(), key=lambda unit_id: times[unit_id])
        return tuple(_time_unit(self._units[unit_id], times[unit_id]) for unit_id in slowest)

    def stop_commits(self) -> bool:
        """Lets a commit that is under way end and keeps others from beginning; returns whether none can any more.

        The process is to end now: nothing lets commits begin again.
        """
        return self._worker is not None and self._worker.committing.acquire(timeout=_SECONDS_TO_COMMIT)

    def keep_answers(self) -> tuple[int, bool]:
        """Has the answers about unfinished units written; returns how many are, and whether that is all of them."""
        if self._worker is None:
            return 0, True
        is_done = self._worker.keeper.flush(_SECONDS_TO_COMMIT)
        return self._worker.keeper.num_answers, is_done


def _time_unit(unit: WorkUnit, seconds: float) -> UnitTime:
    return UnitTime(unit.unit_id, strip_credentials(unit.shard), unit.start, unit.stop, seconds)


class Screen(Protocol):
    """Where progress is shown."""

    def show(self, history: RunHistory, pace: str) -> None:
        """Shows the newest state; called twice per second."""


class PlainLines:
    """Lines for a log file: one at once, and then fewer and fewer, down to one per minute."""

    def __init__(self) -> None:
        self._next_line_s, self._pause_s = 0.0, _FIRST_PAUSE_S

    def show(self, history: RunHistory, pace: str) -> None:
        """Prints a line where one is due."""
        state = history.last
        if state.at_s < self._next_line_s:
            return
        self._next_line_s = state.at_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        print(f"{describe_clips(state)}; {pace}; {state.num_kept:,} kept", file=sys.stderr, flush=True)


class LiveLines:
    """A bar and two lines at the bottom of a terminal, below whatever else is said meanwhile."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._stream = sys.stderr
        console = Console(file=self._stream)
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)

    def __enter__(self) -> LiveLines:
        self._live.start()
        self._live.console.show_cursor(True)  # a process that is killed leaves the terminal as it was
        self._handlers = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is self._stream
        ]
        for handler in self._handlers:
            handler.setStream(sys.stderr)  # by now rich's, which writes above the lines
        return self

    def __exit__(self, *_error: object) -> None:
        for handler in self._handlers:
            handler.setStream(self._stream)
        self._live.stop()

    def show(self, history: RunHistory, pace: str) -> None:
        """Draws the lines anew."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        state = history.last
        percent = f"{100 * state.num_done / max(1, state.num_planned):.0f} %"
        first = Table.grid(padding=(0, 1))
        first.add_row(
            ProgressBar(max(1, state.num_planned), state.num_done, width=20), percent, Text(describe_clips(state))
        )
        lines = (Text(f"{pace}; Ctrl-C keeps {state.num_kept:,}", no_wrap=True, overflow="ellipsis"),)
        self._live.update(Group(first, *lines), refresh=True)


def choose_screen() -> AbstractContextManager[Screen]:
    """Returns lines that are redrawn where standard error is a terminal that can, plain ones elsewhere."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        return LiveLines()
    return nullcontext(PlainLines())


class Progress:
    """Watches a run from a thread.

    Args:
        output: the run's folder, for people.
        publish: takes the newest numbers each time they are shown.
    """

    def __init__(self, reader: RunReader, output: str, publish: Callable[[RunHistory], None] | None = None) -> None:
        self._reader, self._output, self._publish = reader, output, publish
        self._history = RunHistory()
        self._ended = threading.Event()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the progress as long as the block lasts."""
        with choose_screen() as screen:
            running = threading.Event()
            running.set()
            thread = threading.Thread(target=self.watch, args=(running.is_set, screen), name="progress", daemon=True)
            thread.start()
            try:
                yield
            finally:
                running.clear()
                self.end()
                thread.join()

    def watch(self, is_running: Callable[[], bool], screen: Screen) -> None:
        """Shows the states of the run until `is_running` says no."""
        next_look_s = 0.0
        while is_running():
            at_s = time.monotonic() - self._reader.started_s
            if at_s >= next_look_s:
                self._reader.look()
                next_look_s = at_s + pause_between_looks_s(at_s)
            self._history.add(self._reader.read())
            self._show(screen)
            self._ended.wait(_SECONDS_BETWEEN_REFRESHES)
        self._reader.look()
        self._history.add(self._reader.read())

    def end(self) -> None:
        """Wakes the watching thread."""
        self._ended.set()

    def watch_job(self, job: PipelineResult) -> None:
        """Reads the counters of a job that runs elsewhere, from a thread, for as long as this process lasts."""
        threading.Thread(target=self._read_counters, args=(job,), name=COUNTERS_THREAD, daemon=True).start()

    def describe_interruption(self) -> str:
        """Returns the last line of a run that is interrupted now; nothing is committed by this process after it."""
        is_exact = self._reader.stop_commits()
        num_answers, are_all = self._reader.keep_answers()
        at_least, state = "" if is_exact and are_all else "at least ", self._reader.read()
        answers = f" and {write_count(num_answers, 'answer')} about others" if num_answers else ""
        return (
            f"stopped; kept under {self._output}: {at_least}{state.num_kept:,} of "
            f"{write_count(state.num_planned, 'clip')}{answers}. The same command goes on from there, "
            f"`publish --output {self._output}` builds tables of what is finished"
        )

    def summarize(self) -> RunSummary:
        """Returns how the start went, once it has ended."""
        last, first = self._reader.read(), self._history.first
        return RunSummary(
            seconds=last.at_s,
            num_clips=last.num_kept - first.num_kept,
            num_before=first.num_kept,
            num_failed=last.num_failed,
            limit=find_limit(last.counters),
            slowest_units=self._reader.find_slowest(),
        )

    def _show(self, screen: Screen) -> None:
        is_loading = self._reader.is_loading and not self._history.is_working
        screen.show(self._history, "loading the model" if is_loading else describe_pace(self._history))
        if self._publish is not None:
            self._publish(self._history)

    def _read_counters(self, job: PipelineResult) -> None:
        while not self._ended.is_set():
            # A copy, because a result of Beam's keeps the first answer for ever.
            self._reader.take_job_counters(read_counters(copy.copy(job)))
            self._ended.wait(pause_between_looks_s(time.monotonic() - self._reader.started_s))
