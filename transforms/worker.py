"""What lives as long as a worker process, in one object: `WORKER`, the only state of this package's modules.

Bundle threads come and go, and Beam tears idle steps down after 60 s; a model that was loaded for them stays. So steps
keep nothing heavy of their own: they ask the worker. (`docs/decisions.md` compares Beam's own `Shared` and
`MultiProcessShared`.)
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakValueDictionary

import fasteners

from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.pool import DecoderPool
from framescribe.errors import FrameScribeError
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.stats import EngineStats
from schemas.run_columns import WorkerRecord, find_versions
from transforms.canary import Canary
from transforms.counts import Counts, FailureTally, UnitTimes

if TYPE_CHECKING:
    from framescribe.llava_video.engine.engine import Engine
    from transforms.keep_answers import AnswerKeeper

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
# Totals only: a level such as `kv_prefix_bytes` goes up and down.
ENGINE_TOTALS = tuple(field.name for field in fields(EngineStats) if not field.name.startswith("kv_"))


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How much of its machine a worker process takes.

    Attributes:
        num_decoder_processes: decoder processes per worker; None takes one per core.
        frame_memory_bytes: frames that a worker holds between decoding and encoding.
        prefetch_clips: clips that a worker has in the model at once, and each of its threads in decoding at the most.
        canary_every: clips of a worker from one canary (`transforms.canary`) to the next; 0 asks none.
    """

    num_decoder_processes: int | None = None
    frame_memory_bytes: int = 4 << 30
    prefetch_clips: int = 48
    canary_every: int = 500

    def __post_init__(self) -> None:
        for name in ("num_decoder_processes", "frame_memory_bytes", "prefetch_clips"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.canary_every < 0:
            raise ValueError(f"canary_every must be at least 0, got {self.canary_every}")


class Worker:
    """Engines, decoder processes and counts of one process, shared by all its bundle threads.

    Everything is made when first asked for, and kept until the process ends. A worker travels with the steps that hold
    it as a reference: within its process to itself, in any other process to that one's own `WORKER`.
    """

    _of_this_process: ClassVar[WeakValueDictionary[str, Worker]] = WeakValueDictionary()

    def __init__(self, load: Callable[[EngineConfig], Engine] | None = None) -> None:
        """Starts with nothing; `load` makes an engine, None for `load_engine`."""
        self._load = load or load_engine
        self._lock = threading.RLock()  # a signal may come while the main thread holds it
        # Unlike a bundle thread, the interpreter waits for this one before it ends: torch aborts a process that ends
        # under it.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load-engine")
        self._engines: dict[str, Future[RunningEngine]] = {}
        self._claims: dict[str, GpuClaim] = {}  # by the GPU's name, until the process ends
        self._pools: dict[tuple[SamplingConfig, int], DecoderPool] = {}
        self._frame_budgets: dict[int, Budget] = {}
        self._clip_budgets: dict[int, Budget] = {}
        self._tallies: dict[str, FailureTally] = {}
        self.counts = Counts()
        self.unit_times = UnitTimes()
        self._keeper: AnswerKeeper | None = None
        # Held while a part is written and counted: who takes it knows exactly what is committed.
        self.committing = threading.RLock()
        self._key = uuid.uuid4().hex
        self._of_this_process[self._key] = self

    def __reduce__(self) -> tuple[Callable[[str], Worker], tuple[str]]:
        return _find_worker, (self._key,)

    def get_engine(self, config: EngineConfig) -> RunningEngine:
        """Returns the engine for a configuration, loading it the first time.

        Keyed by how the model is loaded alone: another pipeline in this process with other prompts shares it. All that
        wait for a load that fails get its exception; who comes later tries again.

        Raises:
            GpuTaken: other processes use every GPU that it may be loaded on.
            whatever stops a load.
        """
        key = repr(config)
        with self._lock:
            if key not in self._engines or _has_failed(self._engines[key]):
                self._engines[key] = self._loader.submit(self._load_and_claim, config)
            running = self._engines[key]
        return running.result()

    def use_engine(self, config: EngineConfig, engine: Engine) -> None:
        """Takes an engine that is there already: a notebook's own, or the stub of a test or benchmark."""
        running: Future[RunningEngine] = Future()
        running.set_result(RunningEngine(engine))
        with self._lock:
            self._engines[repr(config)] = running

    def has_engine(self, config: EngineConfig) -> bool:
        """Whether the engine for a configuration is loaded already."""
        load = self._engines.get(repr(config))
        return load is not None and load.done() and not _has_failed(load)

    @property
    def keeper(self) -> AnswerKeeper:
        """What keeps the answers about units under way."""
        from transforms.keep_answers import AnswerKeeper  # here: the command line knows the settings without pyarrow

        with self._lock:
            self._keeper = self._keeper or AnswerKeeper()
            return self._keeper

    def read_counters(self) -> dict[str, int]:
        """Returns what this process has counted so far, by the names of Beam's counters; engines up to this moment."""
        totals = self.counts.read()
        for engine in self.engines:
            for name in ENGINE_TOTALS:
                metric = f"engine.{name_metric(name)}"
                totals[metric] = totals.get(metric, 0) + scale_total(name, getattr(engine.stats, name))
        return totals

    @property
    def engines(self) -> list[Engine]:
        """The engines that are loaded, for progress and statistics."""
        loads = list(self._engines.values())
        return [load.result().engine for load in loads if load.done() and not _has_failed(load)]

    @property
    def dtype(self) -> str | None:
        """What the loaded engines compute in, such as `bfloat16`; None before any is loaded."""
        return ", ".join(sorted({name_dtype(engine) for engine in self.engines})) or None

    def describe(self) -> WorkerRecord:
        """Returns what the parts that this process writes say about their writer."""
        return WorkerRecord(
            versions=find_versions(),
            device=", ".join(sorted({engine.device_name for engine in self.engines})),
            attention=", ".join(sorted({engine.attention_path for engine in self.engines})),
        )

    def get_decoder_pool(self, config: SamplingConfig, num_processes: int | None = None) -> DecoderPool:
        """Returns the decoder processes for a configuration; None takes one per core."""
        key = (config, num_processes or count_cores())
        with self._lock:
            if key not in self._pools:
                self._pools[key] = DecoderPool(key[1], config)
            return self._pools[key]

    def get_frame_budget(self, limit_bytes: int) -> Budget:
        """Returns the budget of bytes that frames may take between decoding and encoding."""
        with self._lock:
            return self._frame_budgets.setdefault(limit_bytes, Budget(limit_bytes))

    def get_clip_budget(self, num_clips: int) -> Budget:
        """Returns the budget of clips that may be in the model at once."""
        with self._lock:
            return self._clip_budgets.setdefault(num_clips, Budget(num_clips))

    def get_failure_tally(self, run_key: str) -> FailureTally:
        """Returns the tally of a run."""
        with self._lock:
            return self._tallies.setdefault(run_key, FailureTally())

    def close_engines(self) -> None:
        """Ends the engines' threads, in the middle of their answers."""
        for engine in self.engines:
            engine.close()

    def close(self) -> None:
        """Ends the engines' threads and the decoder processes, and leaves the GPUs to others."""
        self.close_engines()
        for pool in self._pools.values():
            pool.close()
        while self._claims:
            self._claims.popitem()[1].lock.release()

    def _load_and_claim(self, config: EngineConfig) -> RunningEngine:
        started_s = time.monotonic()
        device, claims = self._claim_device(config)
        with ExitStack() as on_error:
            for claim in claims.values():
                on_error.callback(claim.lock.release)  # a load that fails claims nothing
            engine = self._load(replace(config, device=device))
            on_error.pop_all()
        self._claims.update(claims)
        _log.info("loaded %s in %.0f s on %s", config.model, time.monotonic() - started_s, engine.model.device)
        return RunningEngine(engine)

    def _claim_device(self, config: EngineConfig) -> tuple[str, dict[str, GpuClaim]]:
        """Returns the device to load on, and the claimed GPUs by their names."""
        from framescribe.llava_video.engine.memory import find_device, name_gpus

        device = find_device(config.device)
        if device.type != "cuda":
            return config.device, {}
        names = name_gpus()
        if config.device_map == "auto":
            return "cuda:0", {name: self._claim_one([name]) for name in names}
        claim = self._claim_one(names if device.index is None else [names[device.index]])
        return f"cuda:{names.index(claim.name)}", {claim.name: claim}

    def _claim_one(self, names: list[str]) -> GpuClaim:
        return claim_gpu([name for name in names if name not in self._claims])


def _find_worker(key: str) -> Worker:
    return Worker._of_this_process.get(key, WORKER)


def _has_failed(load: Future[RunningEngine]) -> bool:
    return load.done() and load.exception() is not None


def load_engine(config: EngineConfig) -> Engine:
    """Loads a model, as `Engine.load` does."""
    # Here and not above: torch takes seconds to import, and planning needs none of it.
    from framescribe.llava_video.engine.engine import Engine

    return Engine.load(config)


def name_dtype(engine: Engine) -> str:
    """Returns what an engine computes in, such as `bfloat16`."""
    return str(engine.model.language.dtype).removeprefix("torch.")


def count_cores() -> int:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class RunningEngine:
    """An engine, the event loop on which recipes wait for its answers, and the canary among its clips."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # On a GPU even float32 may change with the batch, where TensorFloat-32 is on.
        self.canary = Canary(engine, engine.model.device.type == "cpu" and name_dtype(engine) == "float32")
        self._reported = dict.fromkeys(ENGINE_TOTALS, 0)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="recipes", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Starts a recipe; thousands may wait at a time."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def take_totals(self) -> dict[str, int]:
        """Returns what the engine did since any bundle last asked, by `ENGINE_TOTALS`; seconds as milliseconds."""
        with self._lock:
            return {name: self._take_total(name) for name in ENGINE_TOTALS}

    def _take_total(self, name: str) -> int:
        new = scale_total(name, getattr(self.engine.stats, name)) - self._reported[name]
        self._reported[name] += new
        return new


def name_metric(name: str) -> str:
    """Returns what Beam's counter of a total is called: seconds are counted in milliseconds."""
    return name.removesuffix("_s") + "_milliseconds" if name.endswith("_s") else name


def scale_total(name: str, total: float) -> int:
    """Returns a total as its counter has it."""
    return round(total * (1000 if name.endswith("_s") else 1))


class GpuTaken(FrameScribeError, RuntimeError):
    """Every GPU of this machine is in use."""


@dataclass(frozen=True, slots=True)
class GpuClaim:
    """A claimed GPU. The kernel frees it when the process ends, however it ends."""

    name: str
    lock: fasteners.InterProcessLock


def claim_gpu(gpu_names: Sequence[str], folder: Path | None = None) -> GpuClaim:
    """Claims the first GPU that no other process has, by an operating-system lock; a process keeps count of its own.

    Two models on one GPU are an error at once, and not out of memory later.

    Args:
        gpu_names: a name for each GPU that may be claimed, the same in every process of the machine, such as its UUID.
        folder: where the lock files lie; None for the machine's temporary folder.

    Raises:
        GpuTaken: none is free; says which runner option starts fewer processes.
    """
    for name in gpu_names:
        file_name = f".framescribe-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
        lock = fasteners.InterProcessLock(str((folder or Path(tempfile.gettempdir())) / file_name))
        if lock.acquire(blocking=False):
            return GpuClaim(name, lock)
    raise GpuTaken(
        "FrameScribe uses every GPU that this process may take already. Start one worker process "
        "per GPU: on Flink --sdk_worker_parallelism=1 and one TaskManager per GPU, on Dataflow "
        "--experiments=no_use_multiple_sdk_containers, locally a single run"
    )


class Budget:
    """An amount that all bundle threads of a process share: bytes of frames, or clips in the model.

    Acquired by a bundle thread before the work; released by whoever ends it, on any thread. What frames take between
    decoding and encoding is released by `AnnotateClips` once the engine has taken them, by `SampleFrames` where there
    come fewer or none.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit must be positive, got {limit}")
        self._limit = limit
        self._held = 0
        self._room = threading.Condition()

    @property
    def held(self) -> int:
        """How much is acquired now."""
        with self._room:
            return self._held

    def try_acquire(self, amount: int) -> bool:
        """Acquires `amount` if it fits; one that is larger than the whole budget is let in when it is alone."""
        with self._room:
            if not self._fits(amount):
                return False
            self._held += amount
            return True

    def wait_for_room(self, amount: int) -> None:
        """Waits until `amount` would fit. A thread that waits must hold nothing that only it can release."""
        with self._room:
            self._room.wait_for(lambda: self._fits(amount))

    def release(self, amount: int) -> None:
        """Gives an amount back."""
        with self._room:
            assert 0 <= amount <= self._held, f"{amount} of {self._held} released"
            self._held -= amount
            self._room.notify_all()

    def _fits(self, amount: int) -> bool:
        return self._held == 0 or self._held + amount <= self._limit


WORKER = Worker()
# torch aborts a process that ends under an engine's thread; decoder processes end with their parent by themselves.
atexit.register(WORKER.close_engines)
