"""The modelled GPU: the engine's own scheduler may not need more shapes of steps or starts than it does."""

from __future__ import annotations

from statistics import mean

import pytest

from benchmarks.simulate import NUM_FRAMES, NUM_PREFIX_TOKENS, Simulated, count_work, simulate
from benchmarks.workload import draw_full, walk


@pytest.fixture(scope="module")
def run() -> Simulated:
    return simulate("h200", 24)


def test_steps_come_in_few_shapes_and_clips_start_their_questions_in_few_groups(run: Simulated) -> None:
    assert run.shapes <= 60
    assert run.starts_per_clip <= 5
    assert run.fill >= 0.75


def test_the_model_gives_what_the_reference_page_does(run: Simulated) -> None:
    assert 0.8 <= run.clips_per_s <= 1.3


def test_questions_that_wait_for_some_more_start_in_fewer_groups_and_cost_nothing() -> None:
    waiting, at_once = simulate("h200", 6, num_ahead=3), simulate("h200", 6, num_ahead=3, least_start_tokens=0)
    assert waiting.starts_per_clip < at_once.starts_per_clip / 2
    assert waiting.clips_per_s > at_once.clips_per_s


def test_the_work_of_a_clip_is_counted_as_the_shapes_have_it() -> None:
    work = count_work()
    assert (NUM_FRAMES, NUM_PREFIX_TOKENS, work.token_bytes) == (64, 13_654, 57_344)
    assert work.vision_flops / 1e12 == pytest.approx(42.6, rel=0.02)
    assert work.prefill_flops / 1e12 == pytest.approx(214, rel=0.03)
    assert work.question_token_flops * 5_080 / 1e12 == pytest.approx(86, rel=0.15)
    assert work.step_bytes(2, 100) == pytest.approx(work.weight_bytes + 2 * 13_654 * 57_344 + 100 * 57_344)


def test_the_drawn_questions_are_those_of_the_default_recipe() -> None:
    clips = [list(walk(draw_full(seed))) for seed in range(100)]
    assert mean(map(len, clips)) == pytest.approx(77, abs=2)
    assert mean(sum(ask.num_question_tokens for ask in clip) for clip in clips) == pytest.approx(5_080, rel=0.05)
    assert mean(sum(ask.num_answer_tokens for ask in clip) for clip in clips) == pytest.approx(1_600, rel=0.05)
