"""A place at which one decoder process after another works."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from decoding.child_process import ChildFailed, ChildProcess
from decoding.config import SamplingConfig
from decoding.wire import Json

# FFmpeg leaks a little; a fresh process every few hundred clips costs nothing and bounds it.
_CLIPS_A_CHILD = 500
_RESIDENT_BYTES_TO_RETIRE = 1 << 30


class Seat:
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
            RuntimeError: no process can be started, or the seat is closed.
        """
        child = self._occupied()
        try:
            reply = child.ask(request, descriptors, self._config.deadline_s)
        except ChildFailed:
            self._child = None
            self._refuse_if_closed()
            raise
        if child.num_served >= _CLIPS_A_CHILD or child.resident_bytes > _RESIDENT_BYTES_TO_RETIRE:
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
        """Frees the process; called by the seat's own thread, last."""
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
