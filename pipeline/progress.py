"""Shows how far a run is: counts committed parts, which is true on every runner and after every restart."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from pipeline.wording import write_count
from schemas.records import WorkUnit
from storage.output_store import OutputStore
from storage.run_journal import list_done_units
from transforms.engine_registry import loaded_engines

_SECONDS_BETWEEN_LOOKS = 2.0
# Between plain lines while nothing is committed: doubled each time, so that a long run's log stays short.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0


def describe_engines() -> str:
    """Returns what this process's engines have done so far; nothing is loaded where the workers are other processes."""
    stats = [engine.stats for engine in loaded_engines()]
    if not stats:
        return ""
    clips, tokens = sum(one.encoded_clips for one in stats), sum(one.generated_tokens for one in stats)
    return f"model saw {write_count(clips, 'clip')}, wrote {write_count(tokens, 'token')}"


class ProgressBar:
    """A bar over the clips of a run, moved by a thread that lists the committed parts; in a log file, plain lines.

    Args:
        before_engine: what to say while this process has no engine.
    """

    def __init__(self, store: OutputStore, units: Sequence[WorkUnit], before_engine: str = "") -> None:
        self._store = store
        self._before_engine = before_engine
        self._num_clips = {unit.unit_id: unit.stop - unit.start for unit in units}
        self._ended = threading.Event()
        self._printed_clips, self._next_line_s, self._pause_s = -1, 0.0, _FIRST_PAUSE_S

    def watch(self, is_running: Callable[[], bool]) -> None:
        """Shows the bar until `is_running` says no."""
        total = sum(self._num_clips.values())
        with tqdm(total=total, unit="clip", desc="annotating", dynamic_ncols=True, smoothing=0.1, disable=None) as bar:
            while is_running():
                self._show(bar)
                self._ended.wait(_SECONDS_BETWEEN_LOOKS if bar.n else _SECONDS_BETWEEN_LOOKS / 4)
            self._show(bar)

    def end(self) -> None:
        """Wakes the watching thread."""
        self._ended.set()

    def _show(self, bar: tqdm) -> None:
        done = list_done_units(self._store)
        bar.n = sum(self._num_clips.get(unit_id, 0) for unit_id in done)
        engine = describe_engines() or self._before_engine
        if bar.disable:
            self._print_line(bar.n, engine)
            return
        bar.set_postfix_str(engine, refresh=False)
        bar.refresh()

    def _print_line(self, num_clips: int, engine: str) -> None:
        """Prints a line where the number moved, and now and then while it stands still."""
        now_s = time.monotonic()
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
