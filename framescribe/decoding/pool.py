"""Decodes clips in child processes, so that no video can hurt, block or exhaust the process that asks.

Puts a clip to a decoder process and makes a record of what comes back, whatever it is.

A place at which one decoder process after another works.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from framescribe.decoding import child_process as shared_memory
from framescribe.decoding.child_process import ChildFailed, ChildProcess, Json
from framescribe.decoding.config import SamplingConfig, UndecodableClip
from framescribe.decoding.sampling import Sampling
from schemas.records import Clip, FailedClip, SampledClip, Stage


def sample_clip(slot: DecoderSlot, clip: Clip, config: SamplingConfig) -> SampledClip | FailedClip:
    """Samples one clip; a video that cannot be decoded, or harms its decoder, becomes a FailedClip."""
    try:
        return _sample(slot, clip, config)
    except (ChildFailed, UndecodableClip) as error:
        return FailedClip(clip.ref, Stage.DECODE, error.reason, error.message)


def probe_duration_s(slot: DecoderSlot, video: bytes | Path, config: SamplingConfig) -> float:
    """Returns the seconds from a video's first frame to the end of its last.

    Raises:
        UndecodableClip: that cannot be told.
    """
    try:
        with _lend(video) as (path, descriptors):
            return float(_ask(slot, {"task": "probe", "path": path}, descriptors, config)["duration_s"])
    except ChildFailed as error:
        raise UndecodableClip(error.reason, error.message) from error


def _sample(slot: DecoderSlot, clip: Clip, config: SamplingConfig) -> SampledClip:
    with ExitStack() as stack:
        frames_memory = shared_memory.allocate(config.frames_bytes)
        stack.callback(os.close, frames_memory)
        path, descriptors = stack.enter_context(_lend(clip.video))
        request: dict[str, Json] = {"task": "sample", "path": path}
        request |= {"start_s": clip.ref.start_s, "end_s": clip.ref.end_s}
        reply = _ask(slot, request, [frames_memory, *descriptors], config)
        sampling = _read_sampling(reply)
        shape = (len(sampling.frame_indices), config.image_size, config.image_size, 3)
        return SampledClip(clip.ref, sampling, shared_memory.map_frames(frames_memory, shape))


def _ask(
    slot: DecoderSlot, request: dict[str, Json], descriptors: list[int], config: SamplingConfig
) -> dict[str, Any]:  # Any: JSON
    reply = slot.ask(request | {"config": dataclasses.asdict(config)}, descriptors)
    if "reason" in reply:
        raise UndecodableClip(str(reply["reason"]), str(reply["message"]))
    return reply


@contextmanager
def _lend(video: bytes | Path) -> Iterator[tuple[str | None, list[int]]]:
    """Yields the path of a video file, or None and the descriptor of memory that holds the video."""
    if isinstance(video, Path):
        yield _check_file(video), []
        return
    if not shared_memory.HAS_MEMORY_FILES:
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(video)
            file.flush()
            yield file.name, []
        return
    descriptor = shared_memory.store(video)
    try:
        yield None, [descriptor]
    finally:
        os.close(descriptor)


def _check_file(path: Path) -> str:
    """Pipes and devices never end, and opening one may block: only regular files are read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UndecodableClip("file cannot be read", f"{path.name}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise UndecodableClip("not a regular file", f"{path.name} is a pipe, a device or a folder")
    return str(path.resolve())


def _read_sampling(reply: Mapping[str, Any]) -> Sampling:  # Any: JSON from `framescribe.decoding.child`
    try:
        return _to_sampling(reply)
    except (KeyError, TypeError) as error:
        raise ChildFailed("decoder crashed", f"its reply makes no sense: {reply!r:.200}") from error


def _to_sampling(reply: Mapping[str, Any]) -> Sampling:  # Any: as above
    return Sampling(
        frame_indices=tuple(reply["frame_indices"]),
        timestamps_s=tuple(reply["timestamps_s"]),
        duration_s=reply["duration_s"],
        frames_digest=reply["frames_digest"],
        decoder=reply["decoder"],
        width_px=reply["width_px"],
        height_px=reply["height_px"],
        decoded_fraction=reply["decoded_fraction"],
    )


# FFmpeg leaks a little; a fresh process every few hundred clips costs nothing and bounds it.
_CLIPS_PER_CHILD = 500
_RESIDENT_BYTES_TO_RETIRE = 1 << 30


class DecoderSlot:
    """Keeps one decoder process at work: starts it when needed, replaces it when it fails or grows old."""

    def __init__(self, config: SamplingConfig, child_arguments: Sequence[str]) -> None:
        self._config = config
        self._child_arguments = child_arguments
        self._child: ChildProcess | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self, request: Mapping[str, Json], descriptors: Sequence[int]) -> dict[str, Json]:
        """Returns a decoder process's reply to one request.

        Raises:
            ChildFailed: the process died over it, or was killed at a limit.
            RuntimeError: no process can be started, or the slot is closed.
        """
        child = self._occupied()
        try:
            reply = child.ask(request, descriptors, self._config.deadline_s)
        except ChildFailed:
            self._child = None
            self._refuse_if_closed()
            raise
        if child.num_served >= _CLIPS_PER_CHILD or child.resident_bytes > _RESIDENT_BYTES_TO_RETIRE:
            self._child = None
            child.kill()
        return reply

    def close(self) -> None:
        """Kills the process, also from another thread in the middle of a request."""
        with self._lock:
            self._is_closed = True
            if self._child is not None:
                self._child.signal_kill()

    def leave(self) -> None:
        """Frees the process; called by the slot's own thread, last."""
        if self._child is not None:
            self._child.kill()

    def _occupied(self) -> ChildProcess:
        with self._lock:
            self._refuse_if_closed()
            if self._child is None:
                self._child = ChildProcess(self._config.memory_limit_bytes, self._child_arguments)
            return self._child

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("the decoder pool is closed")


_Task = Callable[[DecoderSlot], None]


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
        self._slots = [DecoderSlot(config, child_arguments) for _ in range(num_children)]
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"decoder-{i}", daemon=True)
            for i, slot in enumerate(self._slots)
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
        for slot in self._slots:
            slot.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, slot: DecoderSlot) -> None:
        while (task := self._tasks.get()) is not None:
            task(slot)
        slot.leave()


def _sample_into(future: SamplingFuture, clip: Clip, config: SamplingConfig, slot: DecoderSlot) -> None:
    if not future.set_running_or_notify_cancel():
        return
    started_s = time.monotonic()
    try:
        result = sample_clip(slot, clip, config)
    except (RuntimeError, OSError) as error:  # no process, no memory for frames: the machine's fault, not the clip's
        future.set_exception(error)
    else:
        future.decode_s = time.monotonic() - started_s
        future.set_result(result)


def _probe_into(future: Future[float], video: bytes | Path, config: SamplingConfig, slot: DecoderSlot) -> None:
    future.set_running_or_notify_cancel()
    try:
        future.set_result(probe_duration_s(slot, video, config))
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
