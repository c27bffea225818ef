"""Decodes videos in child processes, so that no video can hurt, block or exhaust the process that asks.

A pool has a fixed number of slots, each with a thread of ours. The thread starts a decoder process when there is work,
hands it one video at a time, and replaces it when it dies, is killed at a limit, or grows old.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from framescribe.decoding.child_process import ChildFailed, ChildProcess, Json, allocate, lend_bytes, map_frames
from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip, VideoHeader
from framescribe.decoding.sampling import ClipFrames, Sampling

# FFmpeg leaks a little; a fresh process every few hundred clips costs nothing and bounds it.
CLIPS_PER_CHILD = 500
_RESIDENT_BYTES_TO_RETIRE = 1 << 30
_WHOLE_VIDEO = TimeWindow()
_Answer = TypeVar("_Answer")


class DecoderFuture(Future[_Answer | UndecodableClip]):
    """A request under way; what is wrong with a video is its result, what is wrong with the machine is raised.

    Attributes:
        decode_s: seconds that the decoder took, once the request is done; starting its process is not counted.
    """

    decode_s: float = 0.0


class DecoderPool:
    """A fixed number of decoder processes, each with a thread of ours that feeds and watches it."""

    def __init__(self, num_processes: int, config: SamplingConfig, child_arguments: Sequence[str] = ()) -> None:
        """Starts the threads; a process starts when its first video comes.

        Args:
            child_arguments: further command line arguments of the processes (tests put a faulty decoder there).
        """
        if num_processes < 1:
            raise ValueError(f"num_processes must be at least 1, got {num_processes}")
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._slots = [DecoderSlot(config, child_arguments) for _ in range(num_processes)]
        self._idle_s, self._idle_lock = 0.0, threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"decoder-{i}", daemon=True)
            for i, slot in enumerate(self._slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, video: bytes | Path, window: TimeWindow = _WHOLE_VIDEO) -> DecoderFuture[ClipFrames]:
        """Samples a window of a video, given as its bytes or as the path of a local file.

        The result is the `UndecodableClip` that says why there are no frames, where the video cannot be decoded or
        harms its decoder. RuntimeError and OSError are raised: no process, no memory, a closed pool.
        """
        return self._submit(partial(_sample, video=video, window=window))

    def probe_duration_s(self, video: bytes | Path) -> float:
        """Returns the seconds from a video's first frame to the end of its last.

        Raises:
            UndecodableClip: that cannot be told.
        """
        return _or_raise(self._submit(partial(_probe, video=video)))

    def read_header(self, video: bytes | Path) -> VideoHeader:
        """Returns what a video's headers say.

        Raises:
            UndecodableClip: it cannot be opened, or holds no video that may be decoded.
        """
        return _or_raise(self._submit(partial(_read_header, video=video)))

    def take_idle_ms(self) -> int:
        """Returns the milliseconds that processes waited for a video, since this was last asked; summed over them."""
        with self._idle_lock:
            taken_ms = int(self._idle_s * 1000)
            self._idle_s -= taken_ms / 1000
            return taken_ms

    def close(self) -> None:
        """Kills the processes and waits for the threads; requests still waiting fail with a RuntimeError."""
        for slot in self._slots:
            slot.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _submit(self, request: Callable[[DecoderSlot], _Answer]) -> DecoderFuture[_Answer]:
        future: DecoderFuture[_Answer] = DecoderFuture()
        self._tasks.put(partial(_answer_into, future, request))
        return future

    def _work(self, slot: DecoderSlot) -> None:
        while (task := self._next_task()) is not None:
            task(slot)
        slot.leave()

    def _next_task(self) -> _Task | None:
        started_s = time.monotonic()
        task = self._tasks.get()
        with self._idle_lock:
            self._idle_s += time.monotonic() - started_s
        return task


def _or_raise(future: DecoderFuture[_Answer]) -> _Answer:
    answer = future.result()
    if isinstance(answer, UndecodableClip):
        raise answer
    return answer


def _answer_into(future: DecoderFuture[_Answer], request: Callable[[DecoderSlot], _Answer], slot: DecoderSlot) -> None:
    if not future.set_running_or_notify_cancel():
        return
    answer: _Answer | UndecodableClip
    try:
        slot.start()
        started_s = time.monotonic()
        answer = request(slot)
    except (ChildFailed, UndecodableClip) as error:
        # A new one, without a traceback, whose frames would hold the video.
        answer = UndecodableClip(error.reason, error.message)
    except (RuntimeError, OSError) as error:  # no process, no memory for frames: the machine's fault, not the clip's
        future.set_exception(error)
        return
    future.decode_s = time.monotonic() - started_s
    future.set_result(answer)


def _sample(slot: DecoderSlot, video: bytes | Path, window: TimeWindow) -> ClipFrames:
    with ExitStack() as stack:
        frames_memory = allocate(slot.config.frames_bytes)
        stack.callback(os.close, frames_memory)
        path, descriptors = stack.enter_context(_lend(video))
        request: dict[str, Json] = {"task": "sample", "path": path, "start_s": window.start_s, "end_s": window.end_s}
        sampling = _read_sampling(slot.ask(request, [frames_memory, *descriptors]))
        shape = (len(sampling.frame_indices), slot.config.image_size, slot.config.image_size, 3)
        return ClipFrames(sampling, map_frames(frames_memory, shape))


def _probe(slot: DecoderSlot, video: bytes | Path) -> float:
    with _lend(video) as (path, descriptors):
        return float(slot.ask({"task": "probe", "path": path}, descriptors)["duration_s"])


def _read_header(slot: DecoderSlot, video: bytes | Path) -> VideoHeader:
    with _lend(video) as (path, descriptors):
        reply = slot.ask({"task": "header", "path": path}, descriptors)
    return VideoHeader(**{one.name: reply[one.name] for one in fields(VideoHeader)})


@contextmanager
def _lend(video: bytes | Path) -> Iterator[tuple[str | None, list[int]]]:
    """Yields the path of a video file, or None and the descriptor of memory that holds the video."""
    if isinstance(video, Path):
        yield _check_file(video), []
    else:
        with lend_bytes(video) as lent:
            yield lent


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
    except (KeyError, TypeError) as error:
        raise ChildFailed("decoder crashed", f"its reply makes no sense: {reply!r:.200}") from error


class DecoderSlot:
    """Keeps one decoder process at work: starts it when needed, replaces it when it fails or grows old."""

    def __init__(self, config: SamplingConfig, child_arguments: Sequence[str]) -> None:
        self.config = config
        self._child_arguments = child_arguments
        self._child: ChildProcess | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self, request: Mapping[str, Json], descriptors: Sequence[int]) -> dict[str, Any]:  # Any: JSON
        """Returns a decoder process's reply to one request about a video.

        Raises:
            UndecodableClip: the reply is that the video cannot be decoded.
            ChildFailed: the process died over it, or was killed at a limit.
            RuntimeError: no process can be started, or the slot is closed.
        """
        child = self._running_child()
        try:
            reply = child.ask({**request, "config": asdict(self.config)}, descriptors, self.config.deadline_s)
        except ChildFailed:
            self._child = None
            self._refuse_if_closed()
            raise
        if child.num_served >= CLIPS_PER_CHILD or child.resident_bytes > _RESIDENT_BYTES_TO_RETIRE:
            self._child = None
            child.kill()
        if "reason" in reply:
            raise UndecodableClip(str(reply["reason"]), str(reply["message"]))
        return reply

    def start(self) -> None:
        """Starts the process where none runs; raises as `ask` does."""
        self._running_child()

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

    def _running_child(self) -> ChildProcess:
        with self._lock:
            self._refuse_if_closed()
            if self._child is None:
                self._child = ChildProcess(self.config.memory_limit_bytes, self._child_arguments)
            return self._child

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("the decoder pool is closed")


_Task = Callable[[DecoderSlot], None]
