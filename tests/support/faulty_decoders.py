"""Decoders that harm their process, for `--sample-with`; the clip's window says which one acts on it."""

from __future__ import annotations

import ctypes
import os
import time

from framescribe.decoding.config import SamplingConfig, TimeWindow
from framescribe.decoding.sample import sample_video
from framescribe.decoding.sampling import SampledFrames

SEGFAULT, HANG, SPIN, EAT_MEMORY, RAISE, FLOOD_LOG, TELL_ENVIRONMENT = (1000.0 + i for i in range(7))


def sample_or_fail(path: str, window: TimeWindow, config: SamplingConfig) -> tuple[SampledFrames, str]:
    """Does what `window.start_s` names; any other window is sampled as usual."""
    fault = FAULTS.get(window.start_s or 0.0)
    if fault is not None:
        fault()
    sampled, decoder = sample_video(path, TimeWindow(), config)
    return sampled, f"{decoder}; {sorted(os.environ)}" if window.start_s == TELL_ENVIRONMENT else decoder


def _segfault() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    time.sleep(3600)


def _spin() -> None:
    # Holds the interpreter lock in native code, as decord does: no signal handler and no other thread ever runs.
    ctypes.PyDLL(None).usleep(100_000_000)


def _eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(b"x" * (32 << 20))


def _raise() -> None:
    raise ZeroDivisionError("a bug of the decoder")


def _flood_log() -> None:
    for _ in range(64):
        try:
            os.write(2, b"decoder noise " * 8192)
        except OSError:
            return


FAULTS = {
    SEGFAULT: _segfault,
    HANG: _hang,
    SPIN: _spin,
    EAT_MEMORY: _eat_memory,
    RAISE: _raise,
    FLOOD_LOG: _flood_log,
}
