"""The engines of this worker process: one for each way to load a model, shared by all bundle threads.

A plain dictionary with a lock, never emptied by `teardown`: Beam tears idle DoFns down after 60 s, and a 7B model would
be loaded again for every pause. (`docs/decisions.md` compares Beam's own `Shared` and `MultiProcessShared`.)

One operating-system lock a GPU: two models on one GPU are an error at once, not out of memory later.

Bounds the frames that a worker process holds in memory, whatever the number of its bundle threads.

Counts the failed clips of a worker process, and stops it when there are too many.

Brings the engine's counters into Beam's metrics.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import fasteners
from apache_beam.metrics import Metrics

from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.stats import EngineStats
from schemas.records import ClipAnnotation, FailedClip
from schemas.run_columns import WorkerRecord, find_versions
from transforms.canary import Canary
from transforms.unit_outcomes import check_failed_fraction

if TYPE_CHECKING:
    from framescribe.llava_video.engine.engine import Engine

_log = logging.getLogger(__name__)

_lock = threading.Lock()
# Unlike a bundle thread, the interpreter waits for this one before it ends: torch aborts a process that ends under it.
_loader = ThreadPoolExecutor(1, thread_name_prefix="load-engine")
_running: dict[str, Future[RunningEngine]] = {}
_slots: dict[str, Slot] = {}  # claimed GPUs, until the process ends
_Result = TypeVar("_Result")


class RunningEngine:
    """An engine, the event loop on which recipes wait for its answers, and the canary among its clips."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # On a GPU even float32 may change with the batch, where TensorFloat-32 is on.
        is_exact = engine.model.device.type == "cpu" and str(engine.model.language.dtype) == "torch.float32"
        self.canary = Canary(engine, is_exact)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="recipes", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Starts a recipe; thousands may wait at a time."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def get_engine(config: EngineConfig) -> RunningEngine:
    """Returns this process's engine for a configuration, loading it the first time.

    Keyed by how the model is loaded alone: another pipeline in this process with other prompts shares it. All that
    wait for a load that fails get its exception; who comes later tries again.
    """
    key = repr(config)
    with _lock:
        if key not in _running or _has_failed(_running[key]):
            _running[key] = _loader.submit(_load, config)
        running = _running[key]
    return running.result()


def use_engine(config: EngineConfig, engine: Engine) -> None:
    """Makes this process use an engine that is there already: a notebook's own, or the stub of a test or benchmark."""
    running: Future[RunningEngine] = Future()
    running.set_result(RunningEngine(engine))
    with _lock:
        _running[repr(config)] = running


def is_loaded(config: EngineConfig) -> bool:
    """Whether this process has an engine for a configuration already."""
    load = _running.get(repr(config))
    return load is not None and load.done() and not _has_failed(load)


def loaded_engines() -> list[Engine]:
    """Returns the engines of this process, for progress and statistics."""
    return [load.result().engine for load in list(_running.values()) if load.done() and not _has_failed(load)]


@atexit.register
def close_engines() -> None:
    """Ends the engines' threads, in the middle of their answers: torch aborts a process that ends under it."""
    for engine in loaded_engines():
        engine.close()


def computed_dtype() -> str | None:
    """Returns the dtype that this process's engines compute in, such as `bfloat16`; None before any is loaded."""
    names = {str(engine.model.language.dtype).removeprefix("torch.") for engine in loaded_engines()}
    return ", ".join(sorted(names)) or None


def describe_worker() -> WorkerRecord:
    """Returns what the parts that this process writes say about their writer."""
    engines = loaded_engines()
    return WorkerRecord(
        versions=find_versions(),
        device=", ".join(sorted({engine.device_name for engine in engines})),
        attention=", ".join(sorted({engine.attention_path for engine in engines})),
    )


def _load(config: EngineConfig) -> RunningEngine:
    # Here and not above: torch takes seconds to import, and planning needs none of it.
    from framescribe.llava_video.engine.engine import Engine

    started = time.monotonic()
    device, slots = _claim_device(config)
    with ExitStack() as on_error:
        for slot in slots.values():
            on_error.callback(slot.lock.release)  # a load that fails claims nothing
        engine = Engine.load(replace(config, device=device))
        on_error.pop_all()
    _slots.update(slots)
    _log.info("loaded %s in %.0f s on %s", config.model, time.monotonic() - started, engine.model.device)
    return RunningEngine(engine)


def _has_failed(load: Future[RunningEngine]) -> bool:
    return load.done() and load.exception() is not None


def _claim_device(config: EngineConfig) -> tuple[str, dict[str, Slot]]:
    """Returns the device to load on, and the claimed GPUs by their names."""
    from framescribe.llava_video.engine.memory import find_device, name_gpus

    device = find_device(config.device)
    if device.type != "cuda":
        return config.device, {}
    names = name_gpus()
    if config.device_map == "auto":
        return "cuda:0", {name: _claim_one([name]) for name in names}
    wanted = names if device.index is None else [names[device.index]]
    slot = _claim_one(wanted)
    return f"cuda:{names.index(slot.name)}", {slot.name: slot}


def _claim_one(names: list[str]) -> Slot:
    return claim_slot([name for name in names if name not in _slots])


class SlotTaken(RuntimeError):
    """Every GPU of this machine is in use."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A claimed GPU. The kernel frees it when the process ends, however it ends."""

    name: str
    lock: fasteners.InterProcessLock


def claim_slot(gpu_names: Sequence[str], folder: Path | None = None) -> Slot:
    """Claims the first GPU that no other process has; within a process the caller keeps count.

    Args:
        gpu_names: a name for each GPU that may be claimed, the same in every process of the machine, such as its UUID.
        folder: where the lock files lie; None for the machine's temporary folder.

    Raises:
        SlotTaken: none is free; says which runner option starts fewer processes.
    """
    for name in gpu_names:
        file_name = f".framescribe-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
        lock = fasteners.InterProcessLock(str((folder or Path(tempfile.gettempdir())) / file_name))
        if lock.acquire(blocking=False):
            return Slot(name, lock)
    raise SlotTaken(
        "FrameScribe uses every GPU that this process may take already. Start one worker process "
        "a GPU: on Flink --sdk_worker_parallelism=1 and one TaskManager a GPU, on Dataflow "
        "--experiments=no_use_multiple_sdk_containers, locally a single run"
    )


class FrameBudget:
    """Bytes that frames between decoding and encoding may take together.

    Acquired by the bundle thread before a clip is decoded; released by whoever ends the frames' life: `AnnotateClips`
    once the engine has taken them, `SampleFrames` where there come fewer or none.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes must be positive, got {limit_bytes}")
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._room = threading.Condition()

    @property
    def held_bytes(self) -> int:
        """Bytes that are acquired now."""
        with self._room:
            return self._held_bytes

    def try_acquire(self, num_bytes: int) -> bool:
        """Acquires `num_bytes` if they fit; one clip larger than the whole budget is let in when it is alone."""
        with self._room:
            if not self._fits(num_bytes):
                return False
            self._held_bytes += num_bytes
            return True

    def wait_for_room(self, num_bytes: int) -> None:
        """Waits until `num_bytes` would fit. A thread that waits must hold nothing that only it can release."""
        with self._room:
            self._room.wait_for(lambda: self._fits(num_bytes))

    def release(self, num_bytes: int) -> None:
        """Gives bytes back; called from any thread."""
        with self._room:
            assert 0 <= num_bytes <= self._held_bytes, f"{num_bytes} of {self._held_bytes} bytes released"
            self._held_bytes -= num_bytes
            self._room.notify_all()

    def _fits(self, num_bytes: int) -> bool:
        return self._held_bytes == 0 or self._held_bytes + num_bytes <= self._limit_bytes


_budgets: dict[int, FrameBudget] = {}
_budgets_lock = threading.Lock()


def get_frame_budget(limit_bytes: int) -> FrameBudget:
    """Returns this process's budget of a size, made when first asked for and shared by all its bundle threads."""
    with _budgets_lock:
        return _budgets.setdefault(limit_bytes, FrameBudget(limit_bytes))


_clip_budgets: dict[int, FrameBudget] = {}


def get_clip_budget(num_clips: int) -> FrameBudget:
    """Returns this process's budget of clips that may be in the engine at once, counted by ones, for all threads."""
    with _budgets_lock:
        return _clip_budgets.setdefault(num_clips, FrameBudget(num_clips))


class FailureTally:
    """Clips and failures of a run in this process, by reason; shared by its bundle threads."""

    def __init__(self) -> None:
        self._num_clips = 0
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def admit(self, outcomes: Iterable[ClipAnnotation | FailedClip], max_failed_fraction: float) -> None:
        """Counts the clips of a unit that is about to be committed.

        Raises:
            TooManyFailedClipsError: with them, more failed than allowed; the unit is not counted and must not be
                committed.
        """
        outcomes = list(outcomes)
        with self._lock:
            reasons = self._reasons + Counter(_reason(one) for one in outcomes if isinstance(one, FailedClip))
            num_clips = self._num_clips + len(outcomes)
            check_failed_fraction(reasons.total(), num_clips, max_failed_fraction, reasons=reasons)
            self._reasons, self._num_clips = reasons, num_clips


_tallies: dict[str, FailureTally] = {}
_tallies_lock = threading.Lock()


def get_failure_tally(run_key: str) -> FailureTally:
    """Returns this process's tally of a run, made when first asked for."""
    with _tallies_lock:
        return _tallies.setdefault(run_key, FailureTally())


def _reason(failed: FailedClip) -> str:
    return f"{failed.reason} ({failed.stage.value})"


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
