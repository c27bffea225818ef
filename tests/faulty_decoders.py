"""Decoders that harm their process, for `--sample-with`; the clip's window says which one acts on it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable

from decoding.config import SamplingConfig
from decoding.sample import sample_video
from decoding.sampled import SampledFrames
from decoding.timeline import Span

SEGFAULT, HANG, SPIN, EAT_MEMORY, RAISE, FLOOD_LOG, HANG_IN_DECORD, TELL_ENVIRONMENT = (1000.0 + i for i in range(8))


def sample_or_fail(
    path: str, span: Span, config: SamplingConfig, announce: Callable[[str], None]
) -> tuple[SampledFrames, str]:
    """Does what `span.start_s` names; any other span is sampled as usual."""
    fault = FAULTS.get(span.start_s or 0.0)
    if fault is not None:
        fault(config, announce)
    sampled, decoder = sample_video(path, Span(), config, announce)
    return sampled, f"{decoder}; {sorted(os.environ)}" if span.start_s == TELL_ENVIRONMENT else decoder


def _segfault(config: SamplingConfig, announce: Callable[[str], None]) -> None:
    ctypes.string_at(0)


def _hang(config: SamplingConfig, announce: Callable[[str], None]) -> None:
    time.sleep(3600)


def _spin(config: SamplingConfig, announce: Callable[[str], None]) -> None:
    # Holds the interpreter lock in native code, as decord does: no signal handler and no other thread ever runs.
    ctypes.PyDLL(None).usleep(100_000_000)


def _eat_memory(config: SamplingConfig, announce: Callable[[str], None]) -> None:
    eaten = []
    while True:
        eaten.append(b"x" * (32 << 20))


def _raise(config: SamplingConfig, announce: Callable[[str], None]) -> None:
    raise ZeroDivisionError("a bug of the decoder")


def _flood_log(config: SamplingConfig, announce: Callable[[str], None]) -> None:
    for _ in range(64):
        try:
            os.write(2, b"decoder noise " * 8192)
        except OSError:
            return


def _hang_in_decord(config: SamplingConfig, announce: Callable[[str], None]) -> None:
    if config.decoder != "pyav":
        announce("decord")
        time.sleep(3600)


FAULTS = {
    SEGFAULT: _segfault,
    HANG: _hang,
    SPIN: _spin,
    EAT_MEMORY: _eat_memory,
    RAISE: _raise,
    FLOOD_LOG: _flood_log,
    HANG_IN_DECORD: _hang_in_decord,
}
