"""Counters that say what an engine has done and where its time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Running totals since the engine was loaded; times are seconds of the engine's thread.

    Attributes:
        encoded_clips, encoded_frames: clips and unique frames that passed the vision tower.
        prefilled_tokens: prefix tokens run through the language model, once per clip.
        question_tokens: question tokens run on top of a prefix, with those of answers that are scored.
        scores: how many of the questions were answers to be scored, for which nothing is generated.
        generated_tokens, decode_steps: their quotient is the mean number of rows in the batch.
        kv_prefix_bytes: keys and values of prefixes now held; kv_prefix_peak_bytes: the most at once.
        waiting_s: the thread had nothing to do; starved of frames or questions.
        interpreter_wait_s: the thread's own Python, apart from the model's steps, waited for other Python threads.
        memory_waits: steps in which a clip waited for others to free memory.
        oom_recoveries: out-of-memory errors that were undone.
    """

    encoded_clips: int = 0
    encoded_frames: int = 0
    prefilled_prefixes: int = 0
    prefilled_tokens: int = 0
    questions: int = 0
    scores: int = 0
    question_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    kv_prefix_bytes: int = 0
    kv_prefix_peak_bytes: int = 0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    question_s: float = 0.0
    decode_s: float = 0.0
    waiting_s: float = 0.0
    interpreter_wait_s: float = 0.0
    memory_waits: int = 0
    oom_recoveries: int = 0

    @property
    def busy_s(self) -> float:
        """Seconds in which the device was given work: encoding, prefilling, starting and decoding."""
        return self.encode_s + self.prefill_s + self.question_s + self.decode_s

    def hold_prefix(self, size_bytes: int) -> None:
        """Counts a prefix's bytes, negative when it is freed."""
        self.kv_prefix_bytes += size_bytes
        self.kv_prefix_peak_bytes = max(self.kv_prefix_peak_bytes, self.kv_prefix_bytes)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the total of that name, such as `encode_s`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    @contextmanager
    def kept_waiting(self) -> Iterator[None]:
        """Adds to `interpreter_wait_s` what a block that only computes took beyond the thread's own processor time."""
        started, started_cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            waited = time.perf_counter() - started - (time.thread_time() - started_cpu)
            self.interpreter_wait_s += max(0.0, waited)
