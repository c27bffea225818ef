"""The engines of this worker process: one for each way to load a model, shared by all bundle threads.

A plain dictionary with a lock, never emptied by `teardown`: Beam tears idle DoFns down after 60 s, and a 7B model would
be loaded again for every pause. (`docs/decisions.md` compares Beam's own `Shared` and `MultiProcessShared`.)
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from framescribe.llava_video.engine.config import EngineConfig
from schemas.run_columns import WorkerRecord, find_versions
from transforms.canary import Canary
from transforms.gpu_slots import Slot, claim_slot

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
