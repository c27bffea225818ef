"""Decoding in fixed shapes from a pool of chunks gives the answers of the plain steps; run here without CUDA graphs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from framescribe.llava_video import Engine, EngineConfig, GenerationConfig
from framescribe.llava_video.attention import cuda_graphs
from framescribe.llava_video.attention.cascade import attend_chunks, attend_paged
from framescribe.llava_video.attention.cuda_graphs import GraphedDecoder
from framescribe.llava_video.attention.kv_cache import PrefixPool, SuffixPages
from framescribe.llava_video.attention.static_decode import (
    Chosen,
    SeenIds,
    StaticDecoder,
    StepRow,
    StepShape,
    round_up,
    sizes_of,
    view_numbers,
)
from framescribe.llava_video.engine import memory
from framescribe.llava_video.engine.runner import row_of
from framescribe.llava_video.engine.tasks import QuestionTask, VideoTask
from framescribe.llava_video.model.language_model import LanguageModel
from framescribe.llava_video.model.prompts import VideoPrefix
from tests.support.golden_cases import COMMITTED

CPU = torch.device("cpu")
CONFIG = EngineConfig(model=str(COMMITTED / "checkpoints" / "g9"), device="cpu", dtype="float32", static_decode=False)
STATIC = EngineConfig(
    model=CONFIG.model, device="cpu", dtype="float32", static_decode=True, kv_budget_bytes=24 << 20, max_rows=12
)
QUESTIONS = ("What is this?", "Count the colours.\nAnswer with a number.", "Why?")
Request = tuple[int, int, str, int]


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    """A static engine, with chunks so small that every clip has several, and a plain one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CHUNK_TOKENS", 32)
        static = Engine.load(STATIC)
    with static, Engine.load(CONFIG) as plain:
        yield static, plain


def _ask(engine: Engine, requests: list[Request], num_each: int) -> list[tuple[int, ...]]:
    """Asks every request's question `num_each` times, all at once, half of them without their video as well."""
    rng = np.random.default_rng(7)
    asked = []
    for seed, num_frames, question, length in requests:
        frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 126, 126, 3), dtype=np.uint8)
        video = engine.open(frames, [index / 2 for index in range(num_frames)], num_frames / 2)
        generations = [
            GenerationConfig(max_new_tokens=length + extra, repetition_penalty=float(rng.choice([1.0, 1.3])))
            for extra in range(num_each)
        ]
        futures = [video.ask(question, generation) for generation in generations]
        asked.append((video, [*futures, engine.ask(question, generations[0])]))
    answers = []
    for video, futures in asked:
        answers += [future.result(60).token_ids for future in futures]
        video.close()
    return answers


@settings(max_examples=10, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 4), st.sampled_from(QUESTIONS), st.integers(1, 40)),
        min_size=1,
        max_size=4,
    ),
    num_each=st.integers(1, 4),
)
def test_any_mix_gets_the_answers_of_the_plain_steps(
    engines: tuple[Engine, Engine], requests: list[Request], num_each: int
) -> None:
    static, plain = engines
    assert _ask(static, requests, num_each) == _ask(plain, requests, num_each)


def test_attention_to_pages_gives_the_answers_of_the_plain_steps(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    static, plain = engines
    requests = [(0, 4, QUESTIONS[0], 20), (1, 1, QUESTIONS[1], 9), (2, 3, QUESTIONS[2], 33), (3, 2, QUESTIONS[0], 5)]
    expected = _ask(plain, requests, 4)
    monkeypatch.setattr(static._thread._runner._pool, "attend_paged", attend_paged)
    assert _ask(static, requests, 4) == expected


def test_chunks_are_free_again_once_all_videos_are_closed(engines: tuple[Engine, Engine]) -> None:
    static, _ = engines
    held = []
    for _ in range(2):
        _ask(static, [(1, 3, QUESTIONS[0], 4), (2, 2, QUESTIONS[1], 4)], 2)
        static.ask("Hello?", GenerationConfig(max_new_tokens=1)).result(60)  # the thread has read the closings by now
        held.append(static.stats.kv_prefix_bytes)
    assert held == [0, 0]


@pytest.mark.parametrize(
    ("number", "least", "expected"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (5, 1, 6), (7, 1, 8), (9, 1, 12), (3, 4, 4)]
)
def test_sizes_are_rounded_up_by_a_third_at_most(number: int, least: int, expected: int) -> None:
    assert round_up(number, least) == expected


class _Allocator:
    """What PyTorch's allocator and captures do to each other: while it records for a capture, it frees nothing."""

    def __init__(self) -> None:
        self.streams: list[object] = ["usual"]
        self.recording: list[object] = []
        self.users: Counter = Counter()
        self.breaks = False

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.append("usual")

    def end(self, device: int, pool: object) -> None:
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id (pretended)")
        self.recording.remove(pool)

    def release(self, device: int, pool: object) -> None:
        self.users[pool] -= 1


def _make_graphs(allocator: _Allocator) -> type:
    class _Graph:
        """A graph that was captured; replayed, it does nothing."""

        def capture_begin(self, pool: object, capture_error_mode: str) -> None:
            assert capture_error_mode == "thread_local"
            self.pool = pool
            allocator.recording.append(pool)
            allocator.users[pool] += 1

        def capture_end(self) -> None:
            if allocator.breaks:
                raise RuntimeError("operation failed due to a previous error during capture (pretended)")
            allocator.end(0, self.pool)

    return _Graph


@pytest.fixture
def allocator(engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> _Allocator:
    """A machine on which steps can be captured."""
    allocator, handles = _Allocator(), iter(range(100))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _make_graphs(allocator))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(torch.cuda, "stream", allocator.stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", allocator.end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", allocator.release)
    decoder = engines[0]._thread._runner._static
    decoder.forget_graphs()
    monkeypatch.setattr(decoder, "captures", True)
    monkeypatch.setattr(decoder, "_stream", None)
    monkeypatch.setattr(decoder, "_num_failed", 0)
    return allocator


def _capture(decoder: GraphedDecoder, rows: int) -> Any:
    step = decoder._find_step(StepShape(rows, 4, 12, 6, 4, 4, has_text=False))
    with torch.inference_mode():
        decoder._capture(step)
    return step


def test_a_step_that_cannot_be_captured_runs_all_the_same(
    engines: tuple[Engine, Engine],
    allocator: _Allocator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    static, plain = engines
    decoder = static._thread._runner._static
    original = decoder._decoder.run

    def run(*arguments: Any) -> Chosen:
        if allocator.streams[-1] != "usual":
            raise torch.OutOfMemoryError("pretended")
        return original(*arguments)

    monkeypatch.setattr(decoder._decoder, "run", run)
    requests = [(1, 2, QUESTIONS[2], 30)]
    assert _ask(static, requests, 2) == _ask(plain, requests, 2)
    assert caplog.text.count("such steps run kernel by kernel") == 1
    assert allocator.streams[-1] == "usual"


@pytest.mark.parametrize("capture_ends", [True, False])
def test_a_broken_capture_leaves_the_allocator_whole_and_costs_one_shape(
    engines: tuple[Engine, Engine], allocator: _Allocator, monkeypatch: pytest.MonkeyPatch, capture_ends: bool
) -> None:
    decoder = engines[0]._thread._runner._static
    first = _capture(decoder, 32)
    with monkeypatch.context() as patch:
        allocator.breaks = not capture_ends
        patch.setattr(decoder._decoder, "run", _wait_for_the_device)
        broken = _capture(decoder, 48)
    allocator.breaks = False
    third = _capture(decoder, 64)
    assert [step.graph is None for step in (first, broken, third)] == [False, True, False]
    assert (broken.may_be_captured, broken.chosen, decoder.captures) == (False, None, True)
    assert (allocator.recording, allocator.streams[-1]) == ([], "usual")
    # A graph that was ended gives its share of the pool back itself, once it goes.
    assert allocator.users == {0: 2 + capture_ends}


def _wait_for_the_device(*arguments: Any) -> Chosen:
    raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing (pretended)", 900)


def test_captures_that_break_one_after_the_other_are_given_up(
    engines: tuple[Engine, Engine], allocator: _Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = engines[0]._thread._runner._static
    monkeypatch.setattr(decoder._decoder, "run", _wait_for_the_device)
    allowed = []
    for rows in range(32, 32 + cuda_graphs._MOST_FAILURES):
        _capture(decoder, rows)
        allowed.append(decoder.captures)
    assert allowed == [True] * (cuda_graphs._MOST_FAILURES - 1) + [False]


def test_a_pool_of_graphs_is_not_used_again_once_its_last_graph_is_gone(
    engines: tuple[Engine, Engine], allocator: _Allocator
) -> None:
    decoder = engines[0]._thread._runner._static
    handles = []
    for rows in (32, 48):
        _capture(decoder, rows)
        handles.append(decoder._memory)
    decoder.forget_graphs()
    _capture(decoder, 32)
    assert [*handles, decoder._memory] == [0, 0, 1]


def test_the_shapes_used_last_keep_their_graphs(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST_SHAPES", 2)
    decoder = GraphedDecoder(engines[0]._thread._runner._static._decoder, CPU)
    first, second, third = (StepShape(rows, 4, 12, 6, 4, 4, has_text=False) for rows in (32, 48, 64))
    steps = [decoder._find_step(shape) for shape in (first, second, first, third, first, second)]
    assert steps[0] is steps[2] is steps[4]
    assert steps[1] is not steps[5]


def test_questions_without_a_video_do_not_widen_the_rows_of_clips(engines: tuple[Engine, Engine]) -> None:
    static, _ = engines
    decoder = static._thread._runner._static._decoder
    text, video = static._text_only, _task(1)
    video.prefix = decoder._pool.open(40)
    questions = [QuestionTask(task, [0], GenerationConfig(), 1.0, Future()) for task in [text] * 30 + [video]]
    for question in questions:
        question.generated.append(0)
    rows = [row_of(question) for question in questions]
    shape, only_text = decoder.shape_of(rows), decoder.shape_of(rows[:30])
    video.prefix.release()
    assert (shape.rows, shape.rows_per_clip, shape.has_text) == (32, 12, True)
    assert (only_text.rows_per_clip, only_text.has_text) == (12, True)


def _task(order: int) -> VideoTask:
    return VideoTask(order, "", "", None, np.empty(0, np.int64), VideoPrefix((), ()), 40)


def test_a_clip_that_finds_no_memory_gets_what_the_pool_kept_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LanguageModel.forward

    def forward(self: LanguageModel, hidden: Tensor, *arguments: object) -> Tensor:
        if len(hidden) > 50 and pool.num_chunks > 10:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return original(self, hidden, *arguments)

    requests = [(seed, 3, QUESTIONS[2], 8) for seed in range(3)]
    with Engine.load(CONFIG) as plain:
        expected = _ask(plain, requests, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CHUNK_TOKENS", 32)
        static = Engine.load(STATIC)
    pool = static._thread._runner._pool
    monkeypatch.setattr(LanguageModel, "forward", forward)
    with static:
        assert _ask(static, requests, 2) == expected
        assert static.stats.oom_recoveries > 0
    assert pool.num_chunks <= 10


@pytest.mark.parametrize("chunk", [0, 15, 16, 17, 31, 32, 39])
def test_a_step_has_room_for_the_highest_chunk_in_use(chunk: int) -> None:
    pages = SuffixPages(4, 1, 4, [CPU], torch.float32)
    pool = PrefixPool(40, 2, 1, 4, [CPU], torch.float32, attend_chunks)
    prefixes = [pool.open(2) for _ in range(chunk + 1)]
    decoder = StaticDecoder(None, pool, pages, SeenIds(2, 8, CPU))  # type: ignore[arg-type]  # no step is run
    rows = [StepRow(1, 5, 0, (0,), 3, 1.0, prefixes[-1])]
    shape = decoder.shape_of(rows)
    buffer = np.empty(sum(math.prod(size) for size in sizes_of(shape)), np.int64)
    decoder.write_numbers(rows, shape, buffer)
    numbers = view_numbers(buffer, shape)
    assert (numbers.chunks[0, 0], numbers.fills[chunk], numbers.owners[chunk]) == (chunk, 2, 0)
    assert chunk < shape.chunks <= pool.num_chunks
