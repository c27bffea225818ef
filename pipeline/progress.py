"""Shows how far a run is: counts committed parts, which is true on every runner and after every restart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from schemas.records import WorkUnit
from storage.output_store import OutputStore
from storage.run_journal import list_done_units
from transforms.engine_registry import loaded_engines

_SECONDS_BETWEEN_LOOKS = 2.0


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
    """A bar over the clips of a run, moved by a thread that lists the committed parts."""

    def __init__(self, store: OutputStore, units: Sequence[WorkUnit]) -> None:
        self._store = store
        self._num_clips = {unit.unit_id: unit.stop - unit.start for unit in units}
        self._ended = threading.Event()

    def watch(self, is_running: Callable[[], bool]) -> None:
        """Shows the bar until `is_running` says no."""
        total = sum(self._num_clips.values())
        with tqdm(total=total, unit="clip", desc="annotating", dynamic_ncols=True, smoothing=0.1) as bar:
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
        if activity.clips_encoded:
            bar.set_postfix_str(
                f"model saw {activity.clips_encoded}, wrote {activity.tokens_generated} tokens", refresh=False
            )
        bar.refresh()
