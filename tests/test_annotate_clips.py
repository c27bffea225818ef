"""The engine inside Beam: loaded once, shared by all bundle threads, each clip encoded and prefilled once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from framescribe.decoding.sampling import Sampling
from framescribe.digests import digest_frames
from framescribe.llava_video import Engine, EngineConfig
from framescribe.llava_video.engine.generation import Completion, GenerationConfig
from framescribe.llava_video.errors import ClipTooLarge, EngineBroken
from framescribe.recipes import Recipe, parse_recipe
from framescribe.recipes.engine_video import EngineVideo, WrongVideo, choose_segment_frames
from framescribe.storage.journal import DamagedRunError
from schemas.records import ClipAnnotation, ClipRef, FailedClip, SampledClip, Stage, UnitEnd
from tests.support.golden_cases import COMMITTED
from tests.support.output_fixtures import commit, make_annotation, memory_output
from tests.support.stub_engine import StubEngine, StubVideo
from transforms.annotate_clips import AnnotateClips, AnnotateClipsConfig, AnnotateClipsFn, ModelChanged
from transforms.answer_reuse import ReusableRun
from transforms.worker import Worker, WorkerConfig, load_engine

CONFIG = EngineConfig(model=str(COMMITTED / "checkpoints" / "g9"), device="cpu", dtype="float32", max_rows=64)
MEMORY = 1 << 24
WORKERS = WorkerConfig(frame_memory_bytes=MEMORY, canary_every=0)
NUM_THREADS = 4


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(
        """
        recipe: model_card
        caption: {id: model_card_caption, prompt: Please describe this video in detail., max_new_tokens: 4}
        stop_loops: true
        retries: []
        """.replace("\n        ", "\n"),
        "test.yaml",
    )


class CountingLoads(Worker):
    """A worker that notes each load."""

    def __init__(self) -> None:
        super().__init__(load=self._count_load)
        self.loads: list[EngineConfig] = []

    def _count_load(self, config: EngineConfig) -> Engine:
        self.loads.append(config)
        return load_engine(config)


@pytest.fixture
def worker() -> Iterator[CountingLoads]:
    worker = CountingLoads()
    yield worker
    worker.close()


def _clip(number: int, num_frames: int = 2) -> SampledClip:
    frames = np.random.default_rng(number).integers(0, 256, (num_frames, 126, 126, 3), dtype=np.uint8)
    times = tuple(float(index) for index in range(num_frames))
    sampling = Sampling(tuple(range(num_frames)), times, float(num_frames), digest_frames(frames), "test", 126, 126)
    return SampledClip(ClipRef(f"shard/{number}", f"unit-{number % 3}", "shard.tar"), sampling, frames)


_ELEMENTS: list = []


def _run(elements: list, transform: AnnotateClips, check: Callable[[list], None]) -> None:
    _ELEMENTS[:] = elements
    options = PipelineOptions(["--direct_running_mode=multi_threading", f"--direct_num_workers={NUM_THREADS}"])
    with beam.Pipeline("FnApiRunner", options=options) as pipeline:
        # Elements are looked up in the worker: `Create` would pack their frames into the graph.
        numbers = pipeline | beam.Create(range(len(elements))) | beam.Reshuffle()
        outcomes = numbers | beam.Map(lambda number: _ELEMENTS[number]) | transform
        assert_that(outcomes, check)


def _annotate_with(
    worker: Worker, recipe: Recipe, engine: EngineConfig = CONFIG, revision: str | None = None
) -> AnnotateClips:
    return AnnotateClips(AnnotateClipsConfig(engine, recipe, revision, WORKERS), worker)


def _hold_budget(worker: Worker, clips: list[SampledClip]) -> None:
    """Does what SampleFrames does before it hands frames on."""
    for clip in clips:
        assert worker.get_frame_budget(MEMORY).try_acquire(clip.frames.nbytes)


def test_bundle_threads_share_one_engine_which_sees_each_clip_once(worker: CountingLoads, recipe: Recipe) -> None:
    clips = [_clip(number) for number in range(8)]
    _hold_budget(worker, clips)

    def check(outcomes: list) -> None:
        assert sorted(outcome.ref.clip_id for outcome in outcomes) == [clip.ref.clip_id for clip in clips]
        assert {type(outcome) for outcome in outcomes} == {ClipAnnotation}

    _run(clips, _annotate_with(worker, recipe), check)
    (engine,) = worker.engines
    assert len(worker.loads) == 1
    assert (engine.stats.encoded_clips, engine.stats.prefilled_prefixes) == (8, 8)
    assert worker.get_frame_budget(MEMORY).held == 0


class CountingOpenClips(StubEngine):
    """Knows how many clips are open, and the most that ever were; its answers take a moment."""

    def __init__(self, revision: str) -> None:
        super().__init__(revision)
        self.open_clips: set[str] = set()
        self.most = 0

    def open(self, *arguments: object, clip_id: str = "", **settings: object) -> StubVideo:
        self.open_clips.add(clip_id)
        self.most = max(self.most, len(self.open_clips))
        video = super().open(*arguments, clip_id=clip_id, **settings)  # type: ignore[arg-type]
        video.close = lambda: self.open_clips.discard(clip_id)  # type: ignore[method-assign]
        return video

    def answer(self, future: Future[Completion], completion: Completion) -> None:
        threading.Timer(0.05, future.set_result, (completion,)).start()


def test_all_bundle_threads_together_have_so_many_clips_in_the_model(worker: CountingLoads, recipe: Recipe) -> None:
    clips, engine = [_clip(number) for number in range(12)], CountingOpenClips("any")
    worker.use_engine(CONFIG, engine)  # type: ignore[arg-type]
    _hold_budget(worker, clips)

    def check(outcomes: list) -> None:
        assert sorted(outcome.ref.clip_id for outcome in outcomes) == sorted(clip.ref.clip_id for clip in clips)

    config = AnnotateClipsConfig(CONFIG, recipe, None, replace(WORKERS, prefetch_clips=3))
    _run(clips, AnnotateClips(config, worker), check)
    assert (engine.most, engine.open_clips, worker.get_clip_budget(3).held) == (3, set(), 0)


def test_failed_clips_and_unit_ends_pass_through(worker: CountingLoads, recipe: Recipe) -> None:
    failed = FailedClip(ClipRef("shard/9", "unit", "shard.tar"), Stage.DECODE, "no video stream", "audio only")
    end = UnitEnd("unit", 1)

    def check(outcomes: list) -> None:
        assert sorted(outcomes, key=str) == sorted([failed, end], key=str)

    _run([failed, end], _annotate_with(worker, recipe), check)


def test_a_clip_whose_prompt_is_too_long_fails_alone_with_its_numbers(worker: CountingLoads, recipe: Recipe) -> None:
    clips = [_clip(0, num_frames=5), _clip(1)]
    _hold_budget(worker, clips)

    def check(outcomes: list) -> None:
        failed = [outcome for outcome in outcomes if isinstance(outcome, FailedClip)]
        assert [(f.ref.clip_id, f.stage, f.reason) for f in failed] == [("shard/0", Stage.ANNOTATE, "prompt too long")]
        assert "never truncated" in failed[0].message
        assert len(outcomes) == 2

    tight = replace(CONFIG, config_overrides={"tokenizer_model_max_length": 190})
    _run(clips, _annotate_with(worker, recipe, tight), check)
    assert worker.get_frame_budget(MEMORY).held == 0


def test_a_worker_that_finds_another_revision_of_the_model_stops(worker: CountingLoads, recipe: Recipe) -> None:
    with pytest.raises(RuntimeError, match="pin it with --revision") as caught:
        _run([_clip(0)], _annotate_with(worker, recipe, revision="another"), lambda outcomes: None)
    assert ModelChanged.__name__ in str(caught.value) + type(caught.value).__name__


def test_frames_that_changed_on_the_way_stop_the_run(worker: CountingLoads, recipe: Recipe) -> None:
    clip = _clip(0)
    _hold_budget(worker, [clip])
    clip.frames[0, 0, 0, 0] ^= 1
    with pytest.raises(RuntimeError, match="frames changed between decoding and the model"):
        _run([clip], _annotate_with(worker, recipe), lambda outcomes: None)
    assert worker.get_frame_budget(MEMORY).held == 0


class Mislabelling(StubEngine):
    """Gives each answer out as one about another clip."""

    def answer(self, future: Future[Completion], completion: Completion) -> None:
        future.set_result(replace(completion, clip_id="shard/other"))


def test_an_answer_about_another_clip_stops_the_run(worker: CountingLoads, recipe: Recipe) -> None:
    worker.use_engine(CONFIG, Mislabelling("any"))  # type: ignore[arg-type]
    clip = _clip(0)
    _hold_budget(worker, [clip])
    with pytest.raises(RuntimeError, match="answered for 'shard/other'"):
        _run([clip], _annotate_with(worker, recipe), lambda outcomes: None)


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [(0.0, 10.0, slice(0, 2)), (10.0, 20.0, slice(2, 4)), (20.0, 24.0, slice(4, 5)), (6.0, 9.0, slice(1, 2))],
)
def test_a_segment_has_the_frames_of_its_time_and_at_least_one(start_s: float, end_s: float, expected: slice) -> None:
    assert choose_segment_frames((0.0, 5.0, 10.0, 15.0, 23.9), start_s, end_s, 24.0) == expected


def test_a_segment_is_asked_as_a_video_of_its_own(worker: CountingLoads) -> None:
    running = worker.get_engine(CONFIG)
    clip = _clip(0, num_frames=4)

    async def ask() -> tuple[int, int]:
        whole = EngineVideo.open(running.engine, "c", clip.frames, clip.sampling.timestamps_s, 4.0)
        async with whole.segment(2.0, 4.0) as part:
            asked = await part.ask("What?", GenerationConfig(max_new_tokens=2))
            everything = await whole.ask("What?", GenerationConfig(max_new_tokens=2))
        whole.close()
        return asked.num_prompt_tokens, everything.num_prompt_tokens

    of_part, of_whole = running.run(ask()).result(60)
    assert of_part < of_whole


@pytest.mark.parametrize("fails", [False, True])
def test_a_segment_holds_no_memory_once_it_is_left(worker: CountingLoads, fails: bool) -> None:
    running = worker.get_engine(CONFIG)
    clip = _clip(0, num_frames=4)

    async def ask() -> None:
        whole = EngineVideo.open(running.engine, "c", clip.frames, clip.sampling.timestamps_s, 4.0)
        try:
            async with whole.segment(2.0, 4.0) as part:
                await part.ask("What?", GenerationConfig(max_new_tokens=2))
                assert running.engine.stats.kv_prefix_bytes > 0
                assert not fails
        finally:
            whole.close()

    with pytest.raises(AssertionError) if fails else nullcontext():
        running.run(ask()).result(60)
    deadline_s = time.monotonic() + 20
    while running.engine.stats.kv_prefix_bytes and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert running.engine.stats.kv_prefix_bytes == 0


def test_an_answer_about_other_frames_of_the_same_clip_is_found(worker: CountingLoads) -> None:
    running = worker.get_engine(CONFIG)

    async def ask() -> None:
        first, second = (
            EngineVideo.open(running.engine, "c", one.frames, one.sampling.timestamps_s, 2.0)
            for one in (_clip(0), _clip(1))
        )
        crossed = SimpleNamespace(frames_digest=first.video.frames_digest, ask=second.video.ask)
        try:
            await replace(first, video=crossed).ask("What?", GenerationConfig(max_new_tokens=2))
        finally:
            first.close()
            second.close()

    with pytest.raises(WrongVideo, match="answered for 'c'"):
        running.run(ask()).result(60)


class Failing(StubEngine):
    """Fails every question."""

    def __init__(self, error: Exception, device: str = "cpu") -> None:
        super().__init__("any")
        self.error = error
        self.model.device.type = device

    def answer(self, future: Future[Completion], completion: Completion) -> None:
        future.set_exception(self.error)


def _start_step(worker: Worker, recipe: Recipe, engine: StubEngine, **settings: object) -> AnnotateClipsFn:
    worker.use_engine(CONFIG, engine)  # type: ignore[arg-type]
    step = AnnotateClipsFn(AnnotateClipsConfig(CONFIG, recipe, workers=WORKERS, **settings), worker)  # type: ignore[arg-type]
    step.setup()
    step.start_bundle()
    return step


def _annotate_one(step: AnnotateClipsFn, clip: SampledClip) -> object:
    (outcome,) = [*step.process(clip), *step.finish_bundle()]
    return getattr(outcome, "value", outcome)


def test_a_clip_without_room_on_the_device_fails_alone(worker: CountingLoads, recipe: Recipe) -> None:
    _hold_budget(worker, [_clip(0)])
    outcome = _annotate_one(_start_step(worker, recipe, Failing(ClipTooLarge("9 GiB"))), _clip(0))
    assert outcome == FailedClip(_clip(0).ref, Stage.ANNOTATE, "too large for the device", "9 GiB")


def test_a_lost_gpu_ends_the_process_so_that_the_runner_starts_another(
    worker: CountingLoads, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("transforms.annotate_clips.os._exit", ended.append)
    for device in ("cpu", "cuda"):
        _hold_budget(worker, [_clip(0)])
        with pytest.raises(EngineBroken):
            _annotate_one(_start_step(worker, recipe, Failing(EngineBroken("lost"), device)), _clip(0))
    assert ended == [70]


def test_an_annotation_keeps_every_completion_for_later_runs(worker: CountingLoads, recipe: Recipe) -> None:
    _hold_budget(worker, [_clip(0)])
    outcome = _annotate_one(_start_step(worker, recipe, StubEngine("any")), _clip(0))
    assert isinstance(outcome, ClipAnnotation)
    assert len(outcome.completions) == 1


def test_a_clip_that_cannot_be_begun_leaves_its_room_to_others(worker: CountingLoads, recipe: Recipe) -> None:
    output, clip = memory_output(), _clip(0)
    commit(output, clip.ref.unit_id, [make_annotation(clip.ref.clip_id, clip.ref.unit_id)])
    step = _start_step(worker, recipe, StubEngine("any"), earlier=(ReusableRun(output, "other settings"),))
    _hold_budget(worker, [clip])
    with pytest.raises(DamagedRunError):
        list(step.process(clip))
    assert (worker.get_frame_budget(MEMORY).held, worker.get_clip_budget(WORKERS.prefetch_clips).held) == (0, 0)


def test_a_canary_is_asked_among_the_clips(worker: CountingLoads, recipe: Recipe) -> None:
    engine = StubEngine("any")
    worker.use_engine(CONFIG, engine)  # type: ignore[arg-type]
    step = AnnotateClipsFn(AnnotateClipsConfig(CONFIG, recipe, workers=replace(WORKERS, canary_every=1)), worker)
    step.setup()
    step.start_bundle()
    _hold_budget(worker, [_clip(0)])
    _annotate_one(step, _clip(0))
    assert engine.stats.encoded_clips == 1 + 2
