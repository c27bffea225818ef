"""The engine inside Beam: loaded once, shared by all bundle threads, each clip encoded and prefilled once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from framescribe.decoding.sampling import Sampling
from framescribe.digests import digest_frames
from framescribe.llava_video import Engine, EngineConfig
from framescribe.llava_video.engine.errors import CheckpointError
from framescribe.llava_video.engine.generation import Completion, GenerationConfig
from framescribe.recipes import Recipe, parse_recipe
from framescribe.recipes.engine_video import EngineVideo, WrongVideo, choose_segment_frames
from schemas.records import ClipAnnotation, ClipRef, FailedClip, SampledClip, Stage, UnitEnd
from tests.support.golden_cases import COMMITTED
from transforms import worker as engine_registry
from transforms.annotate_clips import AnnotateClips, ModelChanged
from transforms.worker import SlotTaken, claim_slot, get_clip_budget, get_frame_budget

CONFIG = EngineConfig(model=str(COMMITTED / "checkpoints" / "g9"), device="cpu", dtype="float32", max_rows=64)
MEMORY = 1 << 24
NUM_THREADS = 4
ROOT = Path(__file__).parent.parent


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


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EngineConfig]]:
    """Records every load, in a process whose registry starts empty."""
    seen: list[EngineConfig] = []
    original = Engine.load.__func__  # type: ignore[attr-defined]

    def load(cls: type[Engine], config: EngineConfig) -> Engine:
        seen.append(config)
        return original(cls, config)

    monkeypatch.setattr(Engine, "load", classmethod(load))
    monkeypatch.setattr(engine_registry, "_running", {})
    yield seen
    for engine in engine_registry.loaded_engines():
        engine.close()


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


def _hold_budget(clips: list[SampledClip]) -> None:
    """Does what SampleFrames does before it hands frames on."""
    for clip in clips:
        assert get_frame_budget(MEMORY).try_acquire(clip.frames.nbytes)


def test_bundle_threads_share_one_engine_which_sees_each_clip_once(loads: list[EngineConfig], recipe: Recipe) -> None:
    clips = [_clip(number) for number in range(8)]
    _hold_budget(clips)

    def check(outcomes: list) -> None:
        assert sorted(outcome.ref.clip_id for outcome in outcomes) == [clip.ref.clip_id for clip in clips]
        assert {type(outcome) for outcome in outcomes} == {ClipAnnotation}

    _run(clips, AnnotateClips(CONFIG, recipe, None, MEMORY), check)
    (engine,) = engine_registry.loaded_engines()
    assert len(loads) == 1
    assert (engine.stats.encoded_clips, engine.stats.prefilled_prefixes) == (8, 8)
    assert get_frame_budget(MEMORY).held_bytes == 0


def test_all_bundle_threads_together_have_so_many_clips_in_the_model(
    loads: list[EngineConfig], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, open_now, most = [_clip(number) for number in range(12)], [], [0]
    _hold_budget(clips)
    original_open, original_close = EngineVideo.open.__func__, EngineVideo.close

    def open_video(cls: type[EngineVideo], *arguments: object) -> EngineVideo:
        open_now.append(1)
        most[0] = max(most[0], len(open_now))
        return original_open(cls, *arguments)

    def close_video(self: EngineVideo) -> None:
        open_now.pop()
        original_close(self)

    monkeypatch.setattr(EngineVideo, "open", classmethod(open_video))
    monkeypatch.setattr(EngineVideo, "close", close_video)

    def check(outcomes: list) -> None:
        assert sorted(outcome.ref.clip_id for outcome in outcomes) == sorted(clip.ref.clip_id for clip in clips)

    _run(clips, AnnotateClips(CONFIG, recipe, None, MEMORY, prefetch_clips=3), check)
    assert (most, open_now, get_clip_budget(3).held_bytes) == ([3], [], 0)


def test_failed_clips_and_unit_ends_pass_through(loads: list[EngineConfig], recipe: Recipe) -> None:
    failed = FailedClip(ClipRef("shard/9", "unit", "shard.tar"), Stage.DECODE, "no video stream", "audio only")
    end = UnitEnd("unit", 1)

    def check(outcomes: list) -> None:
        assert sorted(outcomes, key=str) == sorted([failed, end], key=str)

    _run([failed, end], AnnotateClips(CONFIG, recipe, None, MEMORY), check)


def test_a_clip_whose_prompt_is_too_long_fails_alone_with_its_numbers(
    loads: list[EngineConfig], recipe: Recipe
) -> None:
    clips = [_clip(0, num_frames=5), _clip(1)]
    _hold_budget(clips)

    def check(outcomes: list) -> None:
        failed = [outcome for outcome in outcomes if isinstance(outcome, FailedClip)]
        assert [(f.ref.clip_id, f.stage, f.reason) for f in failed] == [("shard/0", Stage.ANNOTATE, "prompt too long")]
        assert "never truncated" in failed[0].message
        assert len(outcomes) == 2

    tight = replace(CONFIG, config_overrides={"tokenizer_model_max_length": 190})
    _run(clips, AnnotateClips(tight, recipe, None, MEMORY), check)
    assert get_frame_budget(MEMORY).held_bytes == 0


def test_a_worker_that_finds_another_revision_of_the_model_stops(loads: list[EngineConfig], recipe: Recipe) -> None:
    with pytest.raises(RuntimeError, match="pin it with --revision") as caught:
        _run([_clip(0)], AnnotateClips(CONFIG, recipe, "another", MEMORY), lambda outcomes: None)
    assert ModelChanged.__name__ in str(caught.value) + type(caught.value).__name__


def test_frames_that_changed_on_the_way_stop_the_run(loads: list[EngineConfig], recipe: Recipe) -> None:
    clip = _clip(0)
    _hold_budget([clip])
    clip.frames[0, 0, 0, 0] ^= 1
    with pytest.raises(RuntimeError, match="frames changed between decoding and the model"):
        _run([clip], AnnotateClips(CONFIG, recipe, None, MEMORY), lambda outcomes: None)
    assert get_frame_budget(MEMORY).held_bytes == 0


def test_an_answer_about_another_clip_stops_the_run(
    loads: list[EngineConfig], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from framescribe.llava_video.engine import thread as engine_thread

    original = engine_thread.EngineThread._complete

    def complete(self, question, reason) -> Completion:  # type: ignore[no-untyped-def]
        done = original(self, question, reason)
        return Completion(done.text, done.token_ids, reason, done.num_prompt_tokens, "shard/other", done.frames_digest)

    monkeypatch.setattr(engine_thread.EngineThread, "_complete", complete)
    clip = _clip(0)
    _hold_budget([clip])
    with pytest.raises(RuntimeError, match="answered for 'shard/other'"):
        _run([clip], AnnotateClips(CONFIG, recipe, None, MEMORY), lambda outcomes: None)


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [(0.0, 10.0, slice(0, 2)), (10.0, 20.0, slice(2, 4)), (20.0, 24.0, slice(4, 5)), (6.0, 9.0, slice(1, 2))],
)
def test_a_segment_has_the_frames_of_its_time_and_at_least_one(start_s: float, end_s: float, expected: slice) -> None:
    assert choose_segment_frames((0.0, 5.0, 10.0, 15.0, 23.9), start_s, end_s, 24.0) == expected


def test_a_segment_is_asked_as_a_video_of_its_own(loads: list[EngineConfig]) -> None:
    running = engine_registry.get_engine(CONFIG)
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
def test_a_segment_holds_no_memory_once_it_is_left(loads: list[EngineConfig], fails: bool) -> None:
    running = engine_registry.get_engine(CONFIG)
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


def test_an_answer_about_other_frames_of_the_same_clip_is_found(loads: list[EngineConfig]) -> None:
    running = engine_registry.get_engine(CONFIG)

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


def test_threads_that_wait_for_a_load_that_fails_do_not_each_load_again(
    loads: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(cls: type[Engine], config: EngineConfig) -> Engine:
        loads.append(config)
        time.sleep(0.5)
        raise CheckpointError("no weights")

    monkeypatch.setattr(Engine, "load", classmethod(load))
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        failed = [threads.submit(engine_registry.get_engine, CONFIG) for _ in range(NUM_THREADS)]
    assert [str(load.exception()) for load in failed] == ["no weights"] * NUM_THREADS
    assert len(loads) == 1
    with pytest.raises(CheckpointError):
        engine_registry.get_engine(CONFIG)
    assert len(loads) == 2


def test_a_process_that_ends_in_the_middle_of_an_answer_is_not_aborted() -> None:
    ask = (
        "import time; from llava_video import EngineConfig, GenerationConfig;"
        f"from transforms.worker import get_engine; engine = get_engine({CONFIG!r}).engine;"
        "asked = [engine.ask('Why?', GenerationConfig(max_new_tokens=400)) for _ in range(8)]; time.sleep(0.3)"
    )
    ended = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_gpu_in_use_by_another_process_is_an_error_that_names_the_runner_option(tmp_path: Path) -> None:
    claim = (
        "import sys; from pathlib import Path; from transforms.worker import claim_slot;"
        f"slot = claim_slot(['GPU-1'], Path({str(tmp_path)!r})); print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", claim], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(SlotTaken, match="sdk_worker_parallelism=1"):
            claim_slot(["GPU-1"], tmp_path)
        assert claim_slot(["GPU-1", "GPU-2"], tmp_path).name == "GPU-2"
        other.kill()
    assert claim_slot(["GPU-1"], tmp_path).name == "GPU-1"
