"""Shows how far a run is: counts committed parts, which is true on every runner and after every restart."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from schemas.records import WorkUnit
from storage.output_store import OutputStore
from storage.run_journal import list_done_units
from transforms.engine_registry import loaded_engines

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True, slots=True)
class EngineActivity:
    """What the engines of this process have done so far."""

    clips_encoded: int
    tokens_generated: int


def engine_activity() -> EngineActivity:
    """Reads the engines of this process; zeros where the workers are other processes."""
    stats = [engine.stats for engine in loaded_engines()]
    return EngineActivity(sum(s.encoded_clips for s in stats), sum(s.generated_tokens for s in stats))


class ProgressBar:
    """A bar over the clips of a run, moved by a thread that lists the committed parts; in a log file, plain lines."""

    def __init__(self, store: OutputStore, units: Sequence[WorkUnit]) -> None:
        self._store = store
        self._num_clips = {unit.unit_id: unit.stop - unit.start for unit in units}
        self._ended = threading.Event()
        self._printed_s, self._printed_clips = 0.0, -1

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
        activity = engine_activity()
        engine = ""
        if activity.clips_encoded:
            engine = f"model saw {activity.clips_encoded}, wrote {activity.tokens_generated} tokens"
        if bar.disable:
            self._print_line(bar.n, engine)
            return
        bar.set_postfix_str(engine, refresh=False)
        bar.refresh()

    def _print_line(self, num_clips: int, engine: str) -> None:
        """Prints a line where the number moved, and every minute that it stands still."""
        if num_clips == self._printed_clips and time.monotonic() - self._printed_s < _SECONDS_BETWEEN_LINES:
            return
        self._printed_s, self._printed_clips = time.monotonic(), num_clips
        total = sum(self._num_clips.values())
        print(", ".join(filter(None, (f"annotated {num_clips} of {total} clips", engine))), file=sys.stderr, flush=True)
