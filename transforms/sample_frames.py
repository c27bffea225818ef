"""Samples the frames of clips, in decoder processes, ahead of the model."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import apache_beam as beam

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.pool import DecoderFuture, DecoderPool
from framescribe.decoding.sampling import ClipFrames
from schemas.records import Clip, ClipRef, FailedClip, SampledClip, Stage, UnitEnd
from transforms.counts import WorkerCounter
from transforms.lookahead import LookAheadDoFn
from transforms.worker import WORKER, Budget, Worker, WorkerConfig

_NAMESPACE = "framescribe"
_Decoded = ClipFrames | UndecodableClip


@dataclass(frozen=True, slots=True)
class SampleFramesConfig:
    """Which frames are sampled, and by how much of a machine."""

    sampling: SamplingConfig
    workers: WorkerConfig = field(default_factory=WorkerConfig)


class SampleFrames(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """Clip -> SampledClip | FailedClip; what is no Clip passes through."""

    def __init__(self, config: SampleFramesConfig, worker: Worker = WORKER) -> None:
        super().__init__()
        self._fn = SampleFramesFn(config, worker)

    def expand(self, clips: beam.PCollection) -> beam.PCollection:
        """Puts the step behind `clips`."""
        return clips | "Decode and sample" >> beam.ParDo(self._fn).with_output_types(SampledClip | FailedClip | UnitEnd)


class SampleFramesFn(LookAheadDoFn):
    """Hands clips to the worker's decoder pool within the worker's frame budget."""

    def __init__(self, config: SampleFramesConfig, worker: Worker = WORKER) -> None:
        super().__init__(config.workers.prefetch_clips)
        self._config = config
        self._worker = worker
        self._frames_bytes = config.sampling.frames_bytes
        self._sampled = WorkerCounter(worker, _NAMESPACE, "clips_sampled")
        self._failed = WorkerCounter(worker, _NAMESPACE, "clips_failed_to_decode")
        self._decode_ms = WorkerCounter(worker, _NAMESPACE, "decode_milliseconds")
        self._idle_ms = WorkerCounter(worker, _NAMESPACE, "decoders_idle_milliseconds")
        self._waited_ms = WorkerCounter(worker, _NAMESPACE, "waited_for_frame_memory_milliseconds")

    def setup(self) -> None:
        """Finds or starts the worker's decoder pool."""
        super().setup()
        workers = self._config.workers
        self._pool: DecoderPool = self._worker.get_decoder_pool(self._config.sampling, workers.num_decoder_processes)
        self._budget: Budget = self._worker.get_frame_budget(workers.frame_memory_bytes)
        # Weak, so that a clip that is abandoned leaves nothing behind.
        self._refs: WeakKeyDictionary[Future[_Decoded], ClipRef] = WeakKeyDictionary()

    def handles(self, element: Any) -> bool:
        """Whether it is a clip that is still to be sampled."""
        return isinstance(element, Clip)

    def submit(self, element: Clip) -> DecoderFuture[ClipFrames] | None:
        """Hands a clip to the pool, or returns None while its frames would exceed the budget."""
        if not self._budget.try_acquire(self._frames_bytes):
            return None
        future = self._pool.submit(element.video, TimeWindow(element.ref.start_s, element.ref.end_s))
        future.add_done_callback(partial(_release_unused, self._budget, self._frames_bytes))
        self._refs[future] = element.ref
        return future

    def wait_for_room(self, element: Clip) -> None:  # noqa: ARG002  # every clip takes the same room
        """Blocks until the budget has room for one clip."""
        started_s = time.monotonic()
        self._budget.wait_for_room(self._frames_bytes)
        self._waited_ms.inc(round((time.monotonic() - started_s) * 1000))

    def collect(self, future: DecoderFuture[ClipFrames]) -> SampledClip | FailedClip:
        """Returns the sampled or failed clip and counts it."""
        decoded, ref = future.result(), self._refs[future]
        self._decode_ms.inc(round(future.decode_s * 1000))
        self._idle_ms.inc(self._pool.take_idle_ms())
        if isinstance(decoded, UndecodableClip):
            self._failed.inc()
            return FailedClip(ref, Stage.DECODE, decoded.reason, decoded.message)
        self._sampled.inc()
        return SampledClip(ref, decoded.sampling, decoded.frames)

    def discard(self, result: _Decoded) -> None:
        """Gives a clip's frames back to the budget."""
        self._budget.release(_count_bytes(result))


def _release_unused(budget: Budget, acquired_bytes: int, future: Future[_Decoded]) -> None:
    """Leaves held what the clip's frames really take: less than asked for, or nothing if it failed."""
    is_lost = future.cancelled() or future.exception() is not None
    budget.release(acquired_bytes - (0 if is_lost else _count_bytes(future.result())))


def _count_bytes(decoded: _Decoded) -> int:
    return decoded.frames.nbytes if isinstance(decoded, ClipFrames) else 0
