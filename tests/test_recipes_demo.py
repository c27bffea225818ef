"""The demo's right answers pass the recipe full without a loss: recipe and training data agree on every word."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from demo import answers, questions
from demo.world import random_scene
from framescribe.recipes import load_recipe
from framescribe.recipes.annotation import Status
from tests.support.recipes_fixtures import FakeVideo


def script_of(scene):
    """What a model that makes no mistake answers to each prompt; a multiple-choice question gets its option's words."""
    pairs = [*answers.all_pairs(scene), *answers.typed_pairs(scene).values()]
    asked = [questions.ask_typed(scene, name) for name, _ in questions.prompts().types]
    asked += [ask(pair) for pair in pairs for ask in (questions.ask_short, questions.ask_wrong_answers)]
    asked.append(questions.ask_caption(scene))
    return {one.question: one.answer for one in asked} | {f"{question}\nA. ": answer for question, answer in pairs}


@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_answers_as_the_demo_is_taught_has_only_consistent_pairs(seed):
    scene = random_scene(np.random.default_rng(seed))
    video = FakeVideo(script_of(scene), {"": answers.WITHOUT_VIDEO})

    result = asyncio.run(load_recipe("full").annotate(video, f"clip-{seed}"))

    num_pairs = len(answers.typed_pairs(scene))
    assert result.captions[0].text == answers.caption(scene)
    assert Counter((row.kind, row.status, row.is_consistent, row.blind_score) for row in result.qa_pairs) == {
        ("open_ended", Status.OK, True, 0.0): num_pairs,
        ("open_ended", Status.NOT_APPLICABLE, None, None): 16 - num_pairs,
        ("multiple_choice", Status.OK, True, 0.0): num_pairs,
    }
