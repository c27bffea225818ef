"""Decoding in fixed shapes from a pool of chunks gives the answers of the plain steps; run here without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import COMMITTED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava_video import Engine, EngineConfig, GenerationConfig, cuda_graphs, memory
from llava_video.cuda_graphs import GraphedDecoder
from llava_video.language_model import LanguageModel
from llava_video.prompts import VideoPrefix
from llava_video.static_decode import StepShape, round_up
from llava_video.tasks import QuestionTask, VideoTask

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


class _Graph:
    """A graph that was captured; replayed, it runs the step that it was captured from."""

    step: Callable[[], Tensor]

    def replay(self) -> None:
        self.step()


class _Capture:
    """What `torch.cuda.graph` does to streams; where the step failed, ending the capture fails too and leaves them."""

    streams: list[object]

    def __init__(self, graph: _Graph, pool: object, stream: object, capture_error_mode: str) -> None:
        self.arguments = (graph, pool, stream, capture_error_mode)

    def __enter__(self) -> None:
        self.streams.append(self.arguments[2])

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            raise RuntimeError("operation failed due to a previous error during capture (pretended)")
        self.streams.append("usual")


@pytest.fixture
def streams(engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The current streams, one after the other, of a machine on which steps can be captured."""
    _Capture.streams = streams = ["usual"]
    handles = iter(range(100))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"for captures on {device}")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "usual")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "graph", _Capture)
    decoder = engines[0]._thread._runner._static
    decoder.forget_graphs()
    monkeypatch.setattr(decoder, "_captures", True)
    monkeypatch.setattr(decoder, "_stream", None)
    return streams


def test_a_step_that_cannot_be_captured_runs_all_the_same(
    engines: tuple[Engine, Engine],
    streams: list[object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    static, plain = engines
    decoder = static._thread._runner._static
    original = decoder._decoder.run

    def run(*arguments: Any) -> Tensor:
        if streams[-1] != "usual":
            raise torch.OutOfMemoryError("pretended")
        return original(*arguments)

    monkeypatch.setattr(decoder._decoder, "run", run)
    requests = [(1, 2, QUESTIONS[2], 30)]
    assert _ask(static, requests, 2) == _ask(plain, requests, 2)
    assert caplog.text.count("no more CUDA graphs, further shapes of steps run kernel by kernel") == 1
    assert streams == ["usual", "for captures on cpu", "usual"]


def test_a_pool_of_graphs_is_not_used_again_once_its_last_graph_is_gone(
    engines: tuple[Engine, Engine], streams: list[object]
) -> None:
    decoder = engines[0]._thread._runner._static
    handles = []
    for shape in (StepShape(rows, 4, 12, 6, 4, 4, has_text=False) for rows in (32, 48)):
        step = decoder._find_step(shape)
        with torch.inference_mode():
            decoder._capture(step)
        handles.append(decoder._memory)
    decoder.forget_graphs()
    with torch.inference_mode():
        decoder._capture(decoder._find_step(StepShape(32, 4, 12, 6, 4, 4, has_text=False)))
    assert [*handles, decoder._memory] == [0, 0, 1]
    assert streams == ["usual", *["for captures on cpu", "usual"] * 3]


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
    shape, only_text = decoder.shape_of(questions), decoder.shape_of(questions[:30])
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
        assert static.stats.memory_faults > 0
    assert pool.num_chunks <= 10
