"""What happens when memory runs out, the device is lost, or clips are not closed: nothing waits for ever."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framescribe.llava_video import Engine, GenerationConfig
from framescribe.llava_video.attention.cascade import attend_chunks
from framescribe.llava_video.attention.kv_cache import Prefix, PrefixKV, PrefixPool
from framescribe.llava_video.engine import thread as engine_thread
from framescribe.llava_video.engine.oom_recovery import is_memory_fault
from framescribe.llava_video.engine.runner import ModelRunner
from framescribe.llava_video.engine.scheduler import Limits, Scheduler
from framescribe.llava_video.engine.stats import EngineStats
from framescribe.llava_video.engine.tasks import QuestionTask, StopRule, VideoTask
from framescribe.llava_video.engine.thread import EngineThread
from framescribe.llava_video.errors import ClipTooLarge, EngineBroken, EngineClosed
from framescribe.llava_video.model.prompts import VideoPrefix
from tests.support.engine_fixtures import CONFIG, QUESTIONS, SHORT, make_frames, make_times, remember_answer


class _FaultyRunner:
    """Computes nothing, and runs out of memory now and then, in any step."""

    def __init__(self, random: Random, pool: PrefixPool | None) -> None:
        self.random, self.pool, self.fault_fraction = random, pool, random.choice([0, 0.02, 0.1, 0.3])

    def bind_thread(self) -> None:
        pass

    def encode_videos(self, videos: Sequence[VideoTask]) -> list[None]:
        self._run_out_of_memory_sometimes()
        return [None] * len(videos)

    def prefill(self, video: VideoTask, video_tokens: None) -> Prefix:  # there are none
        assert video.frames is not None
        self._run_out_of_memory_sometimes()
        return PrefixKV() if self.pool is None else self.pool.open(video.num_tokens)

    def release_cached(self) -> None:
        pass

    def shrink_prefixes(self, num_tokens: int) -> int | None:
        has_shrunk = self.pool is not None and self.pool.shrink(-(-num_tokens // self.pool.chunk_tokens))
        return self.pool.num_chunks * self.pool.chunk_tokens if has_shrunk else None

    def start(self, questions: Sequence[QuestionTask]) -> list[int]:
        assert all(question.video.prefix is not None and not question.generated for question in questions)
        for question in questions:
            question.logprobs = [-1.0 for _ in question.wanted]
        return self.decode([question for question in questions if not question.wanted])

    def decode(self, questions: Sequence[QuestionTask]) -> list[int]:
        pages = [page for question in questions for page in question.pages]
        assert len(pages) == len(set(pages))
        self._run_out_of_memory_sometimes()
        return [1] * len(questions)

    def _run_out_of_memory_sometimes(self) -> None:
        if self.random.random() < self.fault_fraction:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")


class _Tokenizer:
    def decode(self, token_ids: Sequence[int]) -> str:
        return str(len(token_ids))


def _make_thread(random: Random, has_pool: bool, stats: EngineStats) -> EngineThread:
    limits = Limits(
        prefix_tokens=random.randint(20, 120),
        num_pages=random.randint(2, 20),
        max_rows=random.randint(1, 8),
        prefill_tokens=random.randint(10, 60),
        prefix_unit=4 if has_pool else 1,
    )
    pool = PrefixPool(limits.prefix_tokens // 4, 4, 1, 1, [torch.device("cpu")], torch.float32, attend_chunks)
    runner, rule = _FaultyRunner(random, pool if has_pool else None), StopRule(frozenset([0]))
    return EngineThread(runner, Scheduler(limits), rule, _Tokenizer(), stats)  # type: ignore[arg-type]


def _open(thread: EngineThread, random: Random, order: int) -> VideoTask:
    nothing = np.empty(0, dtype=np.int64)
    video = VideoTask(order, "", "", np.zeros(1), nothing, VideoPrefix((), ()), random.randint(3, 130))
    thread.add_video(video)
    return video


def _ask_and_close(thread: EngineThread, random: Random, order: int) -> list[Future]:
    """Opens a video, asks it, cancels a question or not, and closes it now or once all its questions are done."""
    video = _open(thread, random, order)
    futures: list[Future] = [Future() for _ in range(random.randint(1, 4))]
    left = set(futures)

    def close_after_the_last(future: Future) -> None:
        left.discard(future)
        if not left:
            thread.close_video(video)

    for future in futures:
        future.add_done_callback(close_after_the_last)
        generation = GenerationConfig(max_new_tokens=random.randint(1, 64))
        wanted = ((1,),) if random.random() < 0.3 else ()  # an answer to be scored
        thread.add_question(QuestionTask(video, [0] * random.randint(1, 40), generation, 1.0, future, wanted=wanted))
    if random.random() < 0.2:
        time.sleep(random.choice([0.0, 0.001]))
        thread.close_video(video)
    if random.random() < 0.3:
        random.choice(futures).cancel()
    return futures


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), has_pool=st.booleans())
def test_whatever_fails_every_question_ends_and_all_memory_is_free_again(seed: int, has_pool: bool) -> None:
    random, stats = Random(seed), EngineStats()
    thread = _make_thread(random, has_pool, stats)
    scheduler, stop_s = thread.scheduler, time.monotonic() + 30
    futures = [future for order in range(12) for future in _ask_and_close(thread, random, order)]
    assert not wait(futures, 30).not_done
    while scheduler.videos and time.monotonic() < stop_s:
        time.sleep(0.001)
    thread.stop()
    with pytest.raises(EngineClosed):  # nothing else ended it
        _open(thread, random, 12)
    assert (scheduler.used_prefix_tokens, stats.kv_prefix_bytes, scheduler.running) == (0, 0, [])
    assert scheduler.num_free_pages == scheduler.limits.num_pages
    assert all(future.cancelled() or future.exception() is None or _is_reason(future) for future in futures)


def _is_reason(future: Future) -> bool:
    return isinstance(future.exception(), ClipTooLarge | EngineClosed)


MEMORY_FAULTS = [
    torch.OutOfMemoryError("CUDA out of memory (pretended)"),
    torch.AcceleratorError("CUDA error: out of memory (pretended)", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)` (pretended)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED (pretended)"),
]


@pytest.mark.parametrize(
    ("step", "fault"), list(zip(["encode_videos", "prefill", "start", "decode"], MEMORY_FAULTS, strict=True))
)
def test_running_out_of_memory_undoes_the_step_and_loses_no_answer(
    step: str, fault: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(ModelRunner, step)
    faults = iter([True, False, True])
    emptied: list[int] = []
    monkeypatch.setattr(ModelRunner, "release_cached", lambda self: emptied.append(1))

    def run(self: ModelRunner, *arguments: Any) -> Any:
        if next(faults, False):
            raise fault
        return original(self, *arguments)

    requests = [(seed, 3, question, 8) for seed in range(3) for question in QUESTIONS]
    expected = [remember_answer(request) for request in requests]
    with Engine.load(CONFIG) as engine:
        monkeypatch.setattr(ModelRunner, step, run)
        videos = [engine.open(make_frames(seed), make_times(3), 1.5) for seed in range(3)]
        futures = [
            [video.ask(question, GenerationConfig(max_new_tokens=8)) for question in QUESTIONS] for video in videos
        ]
        answers = []
        for video, asked in zip(videos, futures, strict=True):
            answers += [future.result(60).token_ids for future in asked]
            video.close()
        assert (engine.stats.oom_recoveries, len(emptied)) == (2, 2)
    assert answers == expected


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "cuDNN Frontend error: no execution plan",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_an_error_that_is_not_about_memory_is_none_that_can_be_undone(message: str) -> None:
    assert not is_memory_fault(torch.AcceleratorError(message, 1))


def test_a_busy_thread_beside_the_engine_keeps_it_waiting_for_half_a_millisecond_at_a_time() -> None:
    stopped = threading.Event()
    busy = threading.Thread(target=lambda: [None for _ in iter(stopped.is_set, True)])
    with Engine.load(CONFIG) as engine:
        interval_s = sys.getswitchinterval()
        busy.start()
        engine.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=50)).result(60)
        stopped.set()
        busy.join()
        assert engine.stats.interpreter_wait_s > 0
    assert interval_s <= 5e-4


def test_a_question_that_is_too_large_takes_nothing_from_the_others() -> None:
    config = replace(CONFIG, kv_budget_bytes=2 << 20)
    with Engine.load(config) as engine, engine.open(make_frames(0), make_times(3), 1.5) as video:
        with pytest.raises(ClipTooLarge):
            video.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=4096)).result(60)
        answer = video.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=8)).result(60)
    assert answer.token_ids == remember_answer((0, 3, QUESTIONS[0], 8))


def test_a_question_cancelled_after_its_closed_clip_was_sent_back_holds_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, faults = ModelRunner.decode, iter([False, True])  # before the second step the closings were read
    closed = threading.Event()

    def decode(self: ModelRunner, questions: list) -> list[int]:
        if closed.wait(0.01) and next(faults, False):
            futures[1].cancel()
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return original(self, questions)

    with Engine.load(CONFIG) as engine:
        monkeypatch.setattr(ModelRunner, "decode", decode)
        videos = [engine.open(make_frames(seed), make_times(3), 1.5) for seed in range(2)]
        futures = [video.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=300)) for video in videos]
        while engine.stats.questions < len(videos):
            time.sleep(0.01)
        for video in videos:
            video.close()
        closed.set()
        futures[0].result(60)
        engine.ask("Hi", SHORT).result(60)
        assert (engine.thread.scheduler.used_prefix_tokens, engine.stats.kv_prefix_bytes) == (0, 0)
        assert (engine.stats.oom_recoveries, futures[1].cancelled()) == (1, True)


def test_a_clip_that_waits_for_memory_burns_no_core_and_is_not_left_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_thread, "MOST_IDLE", 4)
    config = replace(CONFIG, kv_budget_bytes=int(1.6 * _bytes_per_prefix()))
    with Engine.load(config) as engine, engine.open(make_frames(0), make_times(3), 1.5) as first:
        first.ask(QUESTIONS[0], SHORT).result(60)
        with engine.open(make_frames(1), make_times(3), 1.5) as second:
            with pytest.raises(ClipTooLarge, match="waited 0 s for memory: open clips hold 155 of"):
                second.ask(QUESTIONS[0], SHORT).result(60)
            assert engine.stats.memory_waits <= 7
            waiting = second.ask(QUESTIONS[0], SHORT)
            first.close()
            assert waiting.result(60).token_ids == remember_answer((1, 3, QUESTIONS[0], 6))


def test_questions_that_end_with_their_first_token_make_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "IDLE_S", 100.0)
    with Engine.load(replace(CONFIG, max_rows=1)) as engine:
        futures = [engine.ask(question, GenerationConfig(max_new_tokens=1)) for question in QUESTIONS * 3]
        assert [len(future.result(60).token_ids) for future in futures] == [1] * len(futures)


def _bytes_per_prefix() -> int:
    with Engine.load(CONFIG) as engine, engine.open(make_frames(0), make_times(3), 1.5) as video:
        video.ask(QUESTIONS[0], SHORT).result(60)
        return engine.stats.kv_prefix_bytes


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread says why it ends
def test_a_lost_device_ends_every_question_and_refuses_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: ModelRunner, questions: list) -> list[int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered (pretended)")

    monkeypatch.setattr(ModelRunner, "decode", decode)
    engine = Engine.load(CONFIG)
    video = engine.open(make_frames(0), make_times(3), 1.5)
    with pytest.raises(EngineBroken, match="illegal memory access"):
        video.ask("What?", SHORT).result(60)
    with pytest.raises(EngineBroken, match="restart the process"):
        video.ask("What?", SHORT)
    engine.close()
