"""One question with its retry ladder, and many questions at once."""

from __future__ import annotations

import asyncio

import pytest

from framescribe.llava_video.engine.generation import FinishReason
from framescribe.recipes import parse_recipe
from framescribe.recipes.annotation import Status
from tests.support.recipes_fixtures import FakeVideo, completed

SEED_YAML = """\
recipe: model_card
caption: {id: cap, prompt: Describe this., max_new_tokens: 50}
stop_loops: true
retries: [{repetition_penalty: 1.15}, {repetition_penalty: 1.3}]
"""
LOOPED = completed("the man the man the man", FinishReason.LOOPED)


def annotate(answers, recipe_yaml=SEED_YAML):
    remaining = iter(answers)
    video = FakeVideo({"": lambda question: next(remaining)})
    result = asyncio.run(parse_recipe(recipe_yaml, "my.yaml").annotate(video, "clip"))
    return result.captions[0], video


def test_a_good_caption_is_asked_for_once_with_the_checkpoints_own_penalty():
    caption, video = annotate(["A man walks."])

    assert (caption.text, caption.status, caption.attempt) == ("A man walks.", Status.OK, 1)
    assert [asked.generation.repetition_penalty for asked in video.asked] == [None]
    assert video.asked[0].generation.max_new_tokens == 50
    assert video.asked[0].generation.stop_loops


def test_a_caption_carries_its_window_its_tokens_and_the_prompt_as_asked():
    caption, _ = annotate(["A man walks."])

    assert (caption.level, caption.start_s, caption.end_s) == ("clip", 0.0, 12.0)
    assert (caption.num_prompt_tokens, caption.num_completion_tokens, caption.finish_reason) == (7, 3, "stop")
    assert (caption.prompt_id, caption.prompt) == ("cap", "Describe this.")


def test_each_rung_of_the_ladder_is_one_more_try_with_its_own_penalty():
    caption, video = annotate([LOOPED, "  ", "A man walks."])

    assert (caption.text, caption.status, caption.attempt) == ("A man walks.", Status.OK, 3)
    assert [asked.generation.repetition_penalty for asked in video.asked] == [None, 1.15, 1.3]


def test_where_no_rung_helps_the_last_try_is_kept_with_its_status():
    caption, _ = annotate([LOOPED, LOOPED, LOOPED])

    assert (caption.status, caption.finish_reason, caption.attempt) == (Status.LOOPED, "looped", 3)
    assert caption.text == LOOPED.text


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("I'm sorry, but I can't describe this video.", Status.REFUSED),
        (completed("A man walks and", FinishReason.LENGTH), Status.LENGTH),
    ],
)
def test_other_endings_are_kept_at_once_with_their_status(answer, status):
    caption, video = annotate([answer])

    assert (caption.status, caption.attempt, len(video.asked)) == (status, 1, 1)


def test_an_ending_that_the_recipe_names_is_tried_again():
    cut = completed("A man walks and", FinishReason.LENGTH)

    caption, _ = annotate([cut, "A man walks."], SEED_YAML + "retry_on: [length]\n")

    assert (caption.status, caption.attempt) == (Status.OK, 2)


def test_a_numbered_loop_that_the_model_ended_itself_counts_as_looped():
    numbered = "\n".join(f"{number}. The man is walking." for number in range(1, 15))

    caption, _ = annotate([numbered, "A man walks."])

    assert (caption.text, caption.attempt) == ("A man walks.", 2)


def test_repeated_sentences_are_kept_where_loops_are_not_to_be_stopped():
    numbered = "\n".join(f"{number}. The man is walking." for number in range(1, 15))

    caption, _ = annotate([numbered], SEED_YAML.replace("stop_loops: true", "stop_loops: false"))

    assert (caption.status, caption.attempt) == (Status.OK, 1)


def test_an_error_of_the_engine_leaves_the_recipe_as_it_is():
    def fail(question):
        raise ConnectionError("the engine is gone")

    with pytest.raises(ConnectionError, match="the engine is gone"):
        asyncio.run(parse_recipe(SEED_YAML, "my.yaml").annotate(FakeVideo({"": fail}), "clip"))
