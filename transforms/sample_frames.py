"""Samples the frames of clips, in decoder processes, ahead of the model."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.pool import DecoderPool, SamplingFuture, get_decoder_pool
from schemas.records import Clip, FailedClip, SampledClip, UnitEnd
from transforms.lookahead import LookAheadDoFn
from transforms.worker import FrameBudget, get_frame_budget

_NAMESPACE = "framescribe"


class SampleFrames(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """Clip -> SampledClip | FailedClip; FailedClip and UnitEnd pass through."""

    def __init__(
        self,
        config: SamplingConfig,
        num_children: int | None = None,
        frame_memory_bytes: int = 4 << 30,
        prefetch_clips: int = 48,
    ) -> None:
        """Composes the step.

        Args:
            num_children: decoder processes a worker process; None for one a core.
            frame_memory_bytes: frames that a worker process holds between decoding and encoding.
            prefetch_clips: clips that a bundle thread has under way here.
        """
        super().__init__()
        self._fn = SampleFramesFn(config, num_children, frame_memory_bytes, prefetch_clips)

    def expand(self, clips: beam.PCollection) -> beam.PCollection:
        """Puts the step behind `clips`."""
        return clips | "Decode and sample" >> beam.ParDo(self._fn).with_output_types(SampledClip | FailedClip | UnitEnd)


class SampleFramesFn(LookAheadDoFn):
    """Hands clips to this process's decoder pool within this process's frame budget."""

    def __init__(
        self, config: SamplingConfig, num_children: int | None, frame_memory_bytes: int, prefetch_clips: int
    ) -> None:
        super().__init__(prefetch_clips)
        self._config = config
        self._num_children = num_children
        self._frame_memory_bytes = frame_memory_bytes
        self._sampled = Metrics.counter(_NAMESPACE, "clips_sampled")
        self._failed = Metrics.counter(_NAMESPACE, "clips_failed_to_decode")
        self._decode_ms = Metrics.counter(_NAMESPACE, "decode_milliseconds")
        self._waited_ms = Metrics.counter(_NAMESPACE, "waited_for_frame_memory_milliseconds")

    def setup(self) -> None:
        """Finds or starts this process's decoder pool."""
        super().setup()
        self._pool: DecoderPool = get_decoder_pool(self._num_children or num_cores(), self._config)
        self._budget: FrameBudget = get_frame_budget(self._frame_memory_bytes)

    def handles(self, element: Any) -> bool:
        """Whether it is a clip that is still to be sampled."""
        return isinstance(element, Clip)

    def submit(self, element: Clip) -> SamplingFuture | None:
        """Hands a clip to the pool, or returns None while its frames would exceed the budget."""
        if not self._budget.try_acquire(self._config.frames_bytes):
            return None
        future = self._pool.submit(element)
        future.add_done_callback(partial(_release_unused, self._budget, self._config.frames_bytes))
        return future

    def wait_for_room(self, element: Clip) -> None:  # noqa: ARG002  # every clip takes the same room
        """Blocks until the budget has room for one clip."""
        started_s = time.monotonic()
        self._budget.wait_for_room(self._config.frames_bytes)
        self._waited_ms.inc(round((time.monotonic() - started_s) * 1000))

    def collect(self, future: Future[SampledClip | FailedClip]) -> SampledClip | FailedClip:
        """Returns the sampled or failed clip and counts it."""
        result = future.result()
        (self._sampled if isinstance(result, SampledClip) else self._failed).inc()
        if isinstance(future, SamplingFuture):
            self._decode_ms.inc(round(future.decode_s * 1000))
        return result

    def discard(self, result: SampledClip | FailedClip) -> None:
        """Gives a clip's frames back to the budget."""
        if isinstance(result, SampledClip):
            self._budget.release(result.frames.nbytes)


def _release_unused(budget: FrameBudget, acquired_bytes: int, future: Future[SampledClip | FailedClip]) -> None:
    """Leaves held what the clip's frames really take: less than asked for, or nothing if it failed."""
    result = None if future.cancelled() or future.exception() else future.result()
    budget.release(acquired_bytes - (result.frames.nbytes if isinstance(result, SampledClip) else 0))


def num_cores() -> int:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
