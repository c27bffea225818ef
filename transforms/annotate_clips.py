"""Annotates sampled clips with the worker's engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from framescribe.errors import FrameScribeError
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.errors import ClipTooLarge, EngineBroken, PromptTooLong
from framescribe.recipes.engine_video import EngineVideo, WrongVideo
from framescribe.recipes.recipe import Recipe
from schemas.records import ClipAnnotation, FailedClip, KeptCompletion, SampledClip, Stage, UnitEnd
from transforms.answer_reuse import ClipMemory, EarlierAnswers, RememberingVideo, ReusableRun
from transforms.canary import CanaryFailed
from transforms.counts import WorkerCounter
from transforms.lookahead import LookAheadDoFn
from transforms.worker import (
    ENGINE_TOTALS,
    WORKER,
    Budget,
    RunningEngine,
    Worker,
    WorkerConfig,
    name_dtype,
    name_metric,
)

_log = logging.getLogger(__name__)
# sysexits.h EX_SOFTWARE: the runner starts another process.
_EXIT_BROKEN_DEVICE = 70
_NAMESPACE, _ENGINE_NAMESPACE = "framescribe", "engine"
_Outcome = ClipAnnotation | FailedClip


class ModelChanged(FrameScribeError, RuntimeError):
    """The worker found another revision of the model than the run was started with."""


@dataclass(frozen=True, slots=True)
class AnnotateClipsConfig:
    """What is asked about each clip, and of which model.

    Attributes:
        model_revision: what the checkpoint's revision must be in the worker; None accepts any.
        earlier: runs of the same model and frames; what they asked already is not asked again.
    """

    engine: EngineConfig
    recipe: Recipe
    model_revision: str | None = None
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    earlier: tuple[ReusableRun, ...] = ()


class AnnotateClips(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """SampledClip -> ClipAnnotation | FailedClip; what is no SampledClip passes through."""

    def __init__(self, config: AnnotateClipsConfig, worker: Worker = WORKER) -> None:
        super().__init__()
        self._fn = AnnotateClipsFn(config, worker)

    def expand(self, clips: beam.PCollection) -> beam.PCollection:
        """Puts the step behind `clips`."""
        outcomes = ClipAnnotation | FailedClip | UnitEnd
        return clips | "Ask the model" >> beam.ParDo(self._fn).with_output_types(outcomes)


class AnnotateClipsFn(LookAheadDoFn):
    """Runs the recipe over each clip; the engine batches the questions of all of them."""

    def __init__(self, config: AnnotateClipsConfig, worker: Worker = WORKER) -> None:
        super().__init__(config.workers.prefetch_clips)
        self._config = config
        self._worker = worker
        self._num_asked = WorkerCounter(worker, _NAMESPACE, "answers_asked")
        self._num_reused = WorkerCounter(worker, _NAMESPACE, "answers_reused")
        self._num_clips_known = WorkerCounter(worker, _NAMESPACE, "clips_with_earlier_answers")
        self._totals = {name: Metrics.counter(_ENGINE_NAMESPACE, name_metric(name)) for name in ENGINE_TOTALS}

    def setup(self) -> None:
        """Finds or loads the worker's engine.

        Raises:
            ModelChanged: it has another revision than the run was started with.
        """
        super().setup()
        config = self._config
        self._running: RunningEngine = self._worker.get_engine(config.engine)
        self._frames: Budget = self._worker.get_frame_budget(config.workers.frame_memory_bytes)
        self._clips: Budget = self._worker.get_clip_budget(config.workers.prefetch_clips)
        engine = self._running.engine
        self._earlier = [EarlierAnswers(run, name_dtype(engine)) for run in config.earlier]
        if config.model_revision not in (None, engine.checkpoint.revision):
            raise ModelChanged(
                f"{engine.checkpoint.name} has revision {engine.checkpoint.revision} here, the run was started with "
                f"{config.model_revision}; give every worker the same checkpoint, or pin it with --revision"
            )

    def handles(self, element: Any) -> bool:
        """Whether it is a sampled clip."""
        return isinstance(element, SampledClip)

    def submit(self, element: SampledClip) -> Future[tuple[_Outcome, ClipMemory]] | None:
        """Starts the recipe over a clip, or returns None while the worker has as many under way as it may.

        The clip's share of the frame budget is given back once, whatever happens.
        """
        if not self._clips.try_acquire(1):
            return None
        release = _once(lambda: self._frames.release(element.frames.nbytes))
        with ExitStack() as on_error:
            on_error.callback(self._clips.release, 1)
            on_error.callback(release)
            memory = ClipMemory(self._find_answers(element))
            self._worker.keeper.begin(element.ref, element.sampling, memory)
            future = self._running.run(self._annotate(element, release, memory))
            on_error.pop_all()
        future.add_done_callback(lambda _: release())
        future.add_done_callback(lambda _: self._clips.release(1))
        return future

    def _find_answers(self, clip: SampledClip) -> Mapping[bytes, KeptCompletion]:
        """Returns what the first run that knows anything of the clip was answered."""
        return next(filter(None, (run.find(clip) for run in self._earlier)), {})

    def wait_for_room(self, element: SampledClip) -> None:  # noqa: ARG002  # every clip is one
        """Blocks until a clip of another thread has its answers."""
        self._clips.wait_for_room(1)

    async def _annotate(
        self, clip: SampledClip, release: Callable[[], None], memory: ClipMemory
    ) -> tuple[_Outcome, ClipMemory]:
        try:
            await self._running.canary.pass_clip(self._config.workers.canary_every)
        except CanaryFailed:
            self._worker.keeper.discard()  # what this model said is not to be trusted, nor taken by the next start
            raise
        return await annotate_clip(self._running, self._config.recipe, clip, release, memory), memory

    def collect(self, future: Future[tuple[_Outcome, ClipMemory]]) -> _Outcome:
        """Returns the annotated or failed clip; a lost GPU ends the process."""
        outcome, memory = self._wait(future)
        self._num_asked.inc(memory.num_asked)
        self._num_reused.inc(memory.num_reused)
        self._num_clips_known.inc(int(memory.num_reused > 0))
        self._count_engine()
        return outcome

    def _wait(self, future: Future[tuple[_Outcome, ClipMemory]]) -> tuple[_Outcome, ClipMemory]:
        try:
            return future.result()
        except EngineBroken as error:
            if self._running.engine.model.device.type == "cuda":
                # A lost device stays lost for this process; only the runner's next one can go on. Nothing of the
                # units under way is committed.
                _log.critical("%s", error)
                os._exit(_EXIT_BROKEN_DEVICE)
            raise

    def finish_bundle(self) -> Any:
        """Yields the rest and counts what the engine did last."""
        yield from super().finish_bundle()
        self._count_engine()

    def _count_engine(self) -> None:
        """Counts what the engine did since any bundle last asked: metrics from its own thread would be lost."""
        for name, total in self._running.take_totals().items():
            self._totals[name].inc(total)


async def annotate_clip(
    running: RunningEngine, recipe: Recipe, clip: SampledClip, release: Callable[[], None], memory: ClipMemory
) -> ClipAnnotation | FailedClip:
    """Runs a recipe over one clip; `release` is called once the engine no longer holds the frames.

    Args:
        memory: what is known of this clip's answers; a clip of which all are known is never encoded.

    Raises:
        WrongVideo: the frames are not those that were sampled, or an answer belongs to another clip.
    """
    sampling, clip_id = clip.sampling, clip.ref.clip_id
    try:
        video = EngineVideo.open(
            running.engine, clip_id, clip.frames, sampling.timestamps_s, sampling.duration_s, release
        )
    except PromptTooLong as error:
        return FailedClip(clip.ref, Stage.ANNOTATE, "prompt too long", str(error))
    try:
        if video.video.frames_digest != sampling.frames_digest:
            raise WrongVideo(
                f"clip {clip_id!r}: the frames changed between decoding and the model (digest "
                f"{video.video.frames_digest[:12]}, sampled as {sampling.frames_digest[:12]}); the run stops"
            )
        result = await recipe.annotate(RememberingVideo(video, memory), clip_id)
    except PromptTooLong as error:
        return FailedClip(clip.ref, Stage.ANNOTATE, "prompt too long", str(error))
    except ClipTooLarge as error:
        return FailedClip(clip.ref, Stage.ANNOTATE, "too large for the device", str(error))
    finally:
        video.close()
    return ClipAnnotation(clip.ref, sampling, result.captions, result.qa_pairs, memory.completions)


def _once(action: Callable[[], None]) -> Callable[[], None]:
    """Wraps an action that several may call so that it happens once; each takes it off a list."""
    actions = [action]

    def run() -> None:
        try:
            actions.pop()()  # atomic: two threads never pop the same
        except IndexError:
            return

    return run
