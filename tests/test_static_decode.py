"""Decoding in fixed shapes from a pool of chunks gives the answers of the plain steps; run here without CUDA graphs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
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
    monkeypatch.setattr(static.thread.runner.pool, "attend_paged", attend_paged)
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

        def replay(self) -> None:
            pass

    return _Graph


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> _Allocator:
    """A machine on which steps can be captured."""
    allocator, handles = _Allocator(), iter(range(100))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _make_graphs(allocator))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(torch.cuda, "stream", allocator.stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", allocator.end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", allocator.release)
    return allocator


class _Steps:
    """Steps that compute nothing, one shape for each number of rows; while they are captured, they can break."""

    def __init__(self, allocator: _Allocator) -> None:
        self.allocator, self.breaks = allocator, False

    def shape_of(self, rows: Sequence[StepRow]) -> StepShape:
        return StepShape(len(rows), 4, 12, 6, 4, 4, has_text=False)

    def write_numbers(self, rows: Sequence[StepRow], shape: StepShape, numbers: np.ndarray) -> None:
        pass

    def run(self, numbers: object, penalties: Tensor, shape: StepShape) -> Chosen:
        if self.breaks and self.allocator.streams[-1] != "usual":
            raise torch.AcceleratorError(
                "CUDA error: operation not permitted when stream is capturing (pretended)", 900
            )
        return Chosen(torch.zeros(shape.rows), None)


def _make_decoder(steps: _Steps, **limits: int) -> GraphedDecoder:
    decoder = GraphedDecoder(steps, CPU, capture_after=0, **limits)  # type: ignore[arg-type]
    decoder.captures = True
    return decoder


def _decode(decoder: GraphedDecoder, num_rows: int) -> None:
    row = StepRow(token_id=0, position=0, row=0, pages=(), num_suffix_tokens=1, penalty=1.0, prefix=None)
    assert len(decoder.decode([row] * num_rows).ids) == num_rows


def test_a_step_that_cannot_be_captured_runs_all_the_same(
    engines: tuple[Engine, Engine],
    allocator: _Allocator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    static, plain = engines
    decoder = static.thread.runner.static
    assert decoder is not None
    original = decoder.decoder.run

    def run(*arguments: Any) -> Chosen:
        if allocator.streams[-1] != "usual":
            raise torch.OutOfMemoryError("pretended")
        return original(*arguments)

    monkeypatch.setattr(decoder, "captures", True)
    monkeypatch.setattr(decoder.decoder, "run", run)
    requests = [(1, 2, QUESTIONS[2], 30)]
    assert _ask(static, requests, 2) == _ask(plain, requests, 2)
    said = [record.getMessage() for record in caplog.records if "run kernel by kernel" in record.getMessage()]
    assert len(said) == len(set(said)) > 0  # once for each shape
    assert allocator.streams[-1] == "usual"


@pytest.mark.parametrize("capture_ends", [True, False])
def test_a_broken_capture_leaves_the_allocator_whole_and_costs_one_shape(
    allocator: _Allocator, capture_ends: bool
) -> None:
    steps = _Steps(allocator)
    decoder = _make_decoder(steps)
    _decode(decoder, 32)
    steps.breaks, allocator.breaks = True, not capture_ends
    _decode(decoder, 48)
    steps.breaks = allocator.breaks = False
    for num_rows in (48, 64):  # the broken one is not tried again
        _decode(decoder, num_rows)
    assert (decoder.num_steps, decoder.num_captures, decoder.num_replays, decoder.captures) == (4, 2, 2, True)
    assert (allocator.recording, allocator.streams[-1]) == ([], "usual")
    # A graph that was ended gives its part of the pool back itself, once it goes.
    assert allocator.users == {0: 2 + capture_ends}


def test_captures_that_break_one_after_the_other_are_given_up(allocator: _Allocator) -> None:
    steps = _Steps(allocator)
    decoder = _make_decoder(steps, most_failures=3)
    steps.breaks = True
    allowed = []
    for num_rows in (32, 48, 64):
        _decode(decoder, num_rows)
        allowed.append(decoder.captures)
    assert allowed == [True, True, False]


def test_a_pool_of_graphs_is_not_used_again_once_its_last_graph_is_gone(allocator: _Allocator) -> None:
    decoder = _make_decoder(_Steps(allocator))
    for num_rows in (32, 48):
        _decode(decoder, num_rows)
    decoder.forget_graphs()
    _decode(decoder, 32)
    assert allocator.users == {0: 2, 1: 1}


def test_the_shapes_used_last_keep_their_graphs(allocator: _Allocator) -> None:
    decoder = _make_decoder(_Steps(allocator), most_shapes=2)
    captured = []
    for num_rows in (32, 48, 32, 64, 32, 48):
        _decode(decoder, num_rows)
        captured.append(decoder.num_captures)
    assert captured == [1, 2, 2, 3, 3, 4]


def test_questions_without_a_video_do_not_widen_the_rows_of_clips(engines: tuple[Engine, Engine]) -> None:
    static, _ = engines
    runner = static.thread.runner
    assert runner.static is not None
    assert runner.pool is not None
    decoder = runner.static.decoder
    text, video = static.thread.scheduler.videos[0], _task(1)
    video.prefix = runner.pool.open(40)
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
    pool = static.thread.runner.pool
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
