"""Given answers are as likely to the engine as to transformers' own forward pass, whatever they are scored beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from benchmarks.model_card_loop import ModelCardLoop
from framescribe.llava_video import Engine, GenerationConfig, Score
from framescribe.llava_video.engine import runner as model_runner
from framescribe.llava_video.engine.runner import ModelRunner
from framescribe.llava_video.errors import EngineClosed, PromptTooLong
from tests.support.engine_fixtures import CONFIG, QUESTIONS, TOKENIZER, make_frames, make_times, remember_answer

ANSWERS = ("A red ball rolls to the left and stops.", "No.")
LETTERS = ("A", "B", "C", "D")
SETTINGS = {
    "plain": CONFIG,
    "fixed shapes": replace(CONFIG, static_decode=True, max_rows=4),
    "little memory": replace(CONFIG, max_rows=2, kv_budget_bytes=300_000),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(CONFIG) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(engine: Engine) -> dict[tuple[int | None, str, str], list[float]]:
    """What transformers finds, one forward pass for each prompt, by clip (None: no video), question and answer."""
    loop = ModelCardLoop(engine)
    return {
        (seed, question, answer): _logprobs(engine, _embed(engine, loop, seed, question), answer)
        for seed in (0, 1, None)
        for question in QUESTIONS[:2]
        for answer in ANSWERS
    } | {(0, QUESTIONS[0], one): _logprobs(engine, _embed(engine, loop, 0, QUESTIONS[0]), one) for one in LETTERS}


def _embed(engine: Engine, loop: ModelCardLoop, seed: int | None, question: str) -> torch.Tensor:
    if seed is not None:
        return loop.embed(make_frames(seed), make_times(3), 1.5, question)
    ids = engine.tokenizer.text_prefix() + engine.tokenizer.text_question(question)
    return engine.model.language.embed(torch.tensor(ids))


@torch.inference_mode()
def _logprobs(engine: Engine, prompt: torch.Tensor, answer: str) -> list[float]:
    ids = torch.tensor(TOKENIZER.encode(answer, add_special_tokens=False).ids)
    module = engine.model.language.module
    embeddings = torch.cat([prompt, module.model.embed_tokens(ids)])
    logits = module(inputs_embeds=embeddings[None]).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0].tolist()


def _read(futures: Sequence[Future[Score]]) -> list[list[float]]:
    return [list(future.result(60).logprobs) for future in futures]


@pytest.mark.parametrize("name", SETTINGS)
def test_scores_of_many_clips_and_of_none_among_questions_that_are_answered_equal_transformers(
    name: str, expected: dict[tuple[int | None, str, str], list[float]]
) -> None:
    asked = [(question, answer) for question in QUESTIONS[:2] for answer in ANSWERS]
    with Engine.load(SETTINGS[name]) as engine:
        videos = [engine.open(make_frames(seed), make_times(3), 1.5) for seed in range(2)]
        told = [video.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=8)) for video in videos]
        scored = [[video.score(*one) for one in asked] for video in videos]
        blind = [engine.score(*one) for one in asked]
        answers, seen = [], []
        for video, future, scores in zip(videos, told, scored, strict=True):
            answers.append(future.result(60).token_ids)
            seen += _read(scores)
            video.close()
        not_seen = _read(blind)
    assert answers == [remember_answer((seed, 3, QUESTIONS[0], 8)) for seed in range(2)]
    wanted = [expected[(seed, *one)] for seed in (0, 1, None) for one in asked]
    flat = [value for values in (*seen, *not_seen) for value in values]
    assert flat == pytest.approx([value for values in wanted for value in values], abs=1e-4)
    assert [len(values) for values in (*seen, *not_seen)] == list(map(len, wanted))


def test_choices_are_as_likely_as_each_is_as_the_first_token_of_an_answer(
    engine: Engine, expected: dict[tuple[int | None, str, str], list[float]]
) -> None:
    with engine.open(make_frames(0), make_times(3), 1.5) as video:
        score = video.score_choices(QUESTIONS[0], LETTERS).result(60)
    assert list(score.logprobs) == pytest.approx([expected[0, QUESTIONS[0], one][0] for one in LETTERS], abs=1e-4)


def test_a_score_says_its_tokens_their_sum_and_whose_it_is(engine: Engine) -> None:
    with engine.open(make_frames(0), make_times(3), 1.5, clip_id="a") as video:
        asked = video.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=1)).result(60)
        score = video.score(QUESTIONS[0], ANSWERS[0]).result(60)
    assert engine.tokenizer.decode(score.token_ids) == ANSWERS[0]
    assert score.logprob == pytest.approx(sum(score.logprobs))
    assert (score.clip_id, score.frames_digest) == ("a", video.frames_digest)
    assert score.num_prompt_tokens == asked.num_prompt_tokens


def test_a_score_is_one_prefill_on_the_clip_s_prefix_without_a_decoding_step_or_a_page() -> None:
    with Engine.load(CONFIG) as engine:
        with engine.open(make_frames(0), make_times(3), 1.5) as video:
            _read([video.score(question, answer) for question in QUESTIONS for answer in ANSWERS])
            scheduler = engine.thread.scheduler
            assert scheduler.num_free_pages == scheduler.limits.num_pages
        stats = engine.stats
        assert (stats.scores, stats.prefilled_prefixes) == (len(QUESTIONS) * len(ANSWERS), 1)
        assert (stats.decode_steps, stats.generated_tokens) == (0, 0)


def test_logits_of_a_few_tokens_at_a_time_give_the_same_scores(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, expected: dict[tuple[int | None, str, str], list[float]]
) -> None:
    sizes = []
    original = engine.model.language.logits
    monkeypatch.setattr(model_runner, "_MOST_SCORED", 3)
    monkeypatch.setattr(
        engine.model.language, "logits", lambda hidden: (sizes.append(len(hidden)), original(hidden))[1]
    )
    scores = _read([engine.score(QUESTIONS[0], answer) for answer in ANSWERS])
    for answer, found in zip(ANSWERS, scores, strict=True):
        assert found == pytest.approx(expected[None, QUESTIONS[0], answer], abs=1e-4)
    assert max(sizes) == 3


def test_a_cancelled_score_leaves_the_others_as_they_are(
    engine: Engine, expected: dict[tuple[int | None, str, str], list[float]]
) -> None:
    with engine.open(make_frames(1), make_times(3), 1.5) as video:
        first, second, third = (video.score(QUESTIONS[0], answer) for answer in (*ANSWERS, ANSWERS[0]))
        second.cancel()
        found = _read([first, third])
    wanted = expected[1, QUESTIONS[0], ANSWERS[0]]
    assert found == [pytest.approx(wanted, abs=1e-4)] * 2


def test_running_out_of_memory_loses_no_score(
    monkeypatch: pytest.MonkeyPatch, expected: dict[tuple[int | None, str, str], list[float]]
) -> None:
    original, faults = ModelRunner.start, iter([True, True, False, True])

    def start(self: ModelRunner, questions: Sequence) -> list[int]:
        if next(faults, False):
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return original(self, questions)

    with Engine.load(CONFIG) as engine:
        monkeypatch.setattr(ModelRunner, "start", start)
        with engine.open(make_frames(0), make_times(3), 1.5) as video:
            told = video.ask(QUESTIONS[0], GenerationConfig(max_new_tokens=8))
            found = _read([video.score(QUESTIONS[1], answer) for answer in ANSWERS])
            assert told.result(60).token_ids == remember_answer((0, 3, QUESTIONS[0], 8))
        assert engine.stats.oom_recoveries == 3
    assert found == [pytest.approx(expected[0, QUESTIONS[1], answer], abs=1e-4) for answer in ANSWERS]


def test_a_closed_video_and_a_closed_engine_score_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(CONFIG)
    video = engine.open(make_frames(0), make_times(3), 1.5)
    video.close()
    with pytest.raises(EngineClosed, match="open it again"):
        video.score(QUESTIONS[0], ANSWERS[0])
    monkeypatch.setattr(engine.thread.scheduler, "next_questions", list)  # so that the score waits
    waiting = engine.score(QUESTIONS[0], ANSWERS[0])
    engine.close()
    with pytest.raises(EngineClosed):
        waiting.result(60)
    with pytest.raises(EngineClosed):
        engine.score_choices(QUESTIONS[0], LETTERS)


def test_scores_that_make_no_sense_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="answer is empty"):
        engine.score("Why?", "")
    with pytest.raises(ValueError, match="begin with different tokens"):
        engine.score_choices("Why?", ["A", "A. yes"])
    with pytest.raises(ValueError, match="begin with different tokens"):
        engine.score_choices("Why?", ["A", ""])
    with pytest.raises(ValueError, match="begin with different tokens"):
        engine.score_choices("Why?", [])
    with pytest.raises(PromptTooLong, match="over the model's 32768"):
        engine.score("Why?", "no " * 32768)
