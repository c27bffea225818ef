"""Bounds the frames that a worker process holds in memory, whatever the number of its bundle threads."""

from __future__ import annotations

import threading


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
