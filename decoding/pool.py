"""Decodes clips in child processes, so that no video can hurt, block or exhaust the process that asks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from decoding import requests
from decoding.config import SamplingConfig
from decoding.errors import UndecodableClip
from decoding.seat import Seat
from schemas.records import Clip, FailedClip, SampledClip

_Task = Callable[[Seat], None]


class SamplingFuture(Future[SampledClip | FailedClip]):
    """A clip under way; `decode_s` is the time its decoder took, in seconds, once it is done."""

    decode_s: float = 0.0


class DecoderPool:
    """A fixed number of decoder processes, each with a thread of ours that feeds and watches it."""

    def __init__(self, num_children: int, config: SamplingConfig, child_arguments: Sequence[str] = ()) -> None:
        """Starts the threads; a process starts when its first clip comes.

        Args:
            child_arguments: further command line arguments of the processes (tests put a faulty decoder there).
        """
        if num_children < 1:
            raise ValueError(f"num_children must be at least 1, got {num_children}")
        self._config = config
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._seats = [Seat(config, child_arguments) for _ in range(num_children)]
        self._threads = [
            threading.Thread(target=self._work, args=(seat,), name=f"decoder-{i}", daemon=True)
            for i, seat in enumerate(self._seats)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, clip: Clip) -> SamplingFuture:
        """Samples a clip; whatever is wrong with its video comes back as a FailedClip."""
        future = SamplingFuture()
        self._tasks.put(partial(_sample_into, future, clip, self._config))
        return future

    def probe_duration_s(self, video: bytes | Path) -> float:
        """Returns the seconds from a video's first frame to the end of its last.

        Raises:
            UndecodableClip: that cannot be told.
        """
        future: Future[float] = Future()
        self._tasks.put(partial(_probe_into, future, video, self._config))
        return future.result()

    def close(self) -> None:
        """Kills the processes and waits for the threads; clips still waiting fail with a RuntimeError."""
        for seat in self._seats:
            seat.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, seat: Seat) -> None:
        while (task := self._tasks.get()) is not None:
            task(seat)
        seat.leave()


def _sample_into(future: SamplingFuture, clip: Clip, config: SamplingConfig, seat: Seat) -> None:
    if not future.set_running_or_notify_cancel():
        return
    started_s = time.monotonic()
    try:
        result = requests.sample_clip(seat, clip, config)
    except (RuntimeError, OSError) as error:  # no process, no memory for frames: the machine's fault, not the clip's
        future.set_exception(error)
    else:
        future.decode_s = time.monotonic() - started_s
        future.set_result(result)


def _probe_into(future: Future[float], video: bytes | Path, config: SamplingConfig, seat: Seat) -> None:
    future.set_running_or_notify_cancel()
    try:
        future.set_result(requests.probe_duration_s(seat, video, config))
    except (UndecodableClip, RuntimeError, OSError) as error:
        future.set_exception(error)


_pools: dict[tuple[int, SamplingConfig], DecoderPool] = {}
_pools_lock = threading.Lock()


def get_decoder_pool(num_children: int, config: SamplingConfig) -> DecoderPool:
    """Returns this process's pool for a configuration, made when first asked for and shared by all threads."""
    with _pools_lock:
        pool = _pools.get((num_children, config))
        if pool is None:
            pool = _pools[num_children, config] = DecoderPool(num_children, config)
        return pool
