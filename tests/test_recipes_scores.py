"""Answers are scored in place of asking again: what the rows say, and that a score that fails costs no pair."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from framescribe.llava_video.errors import ClipTooLarge, PromptTooLong
from framescribe.recipes import load_recipe, parse_recipe
from framescribe.recipes.annotation import ScoreStatus, Status
from framescribe.recipes.loading import RecipeError
from framescribe.recipes.multiple_choice import score_choice
from framescribe.recipes.open_ended import score_open_ended
from tests.support.output_fixtures import make_pair
from tests.support.recipes_fixtures import FULL_YAML, FakeVideo

RECHECK = FULL_YAML[FULL_YAML.index("recheck:") : FULL_YAML.index("stop_loops")]
SCORE = 'score: {id: score, prompt: "{question} Be brief."}\n'
SCORED = parse_recipe(FULL_YAML.replace(RECHECK, SCORE), "scored.yaml")
BOTH = parse_recipe(FULL_YAML.replace(RECHECK, RECHECK + SCORE), "both.yaml")
CONFIG = SCORED.score
OPEN = replace(make_pair(), kind="open_ended", options=(), answer_letter=None)
CHOICE = replace(make_pair(), answer="two", options=("one", "two", "three", "four"), answer_letter="B")
SCRIPT = {"Ask Count": "Question: How many?\nAnswer: Two.", "Ask": "None", "Wrong": "One\nThree\nFour"}
LETTERS_RIGHT = {  # whatever the order, "two" is the likeliest
    ("one", "two", "three", "four"): [0.1, 0.7, 0.1, 0.1],
    ("two", "three", "four", "one"): [0.8, 0.1, 0.05, 0.05],
    ("three", "four", "one", "two"): [0.2, 0.1, 0.2, 0.5],
    ("four", "one", "two", "three"): [0.1, 0.1, 0.6, 0.2],
}
ALWAYS_B = {options: [0.1, 0.7, 0.1, 0.1] for options in LETTERS_RIGHT}


def logs(probabilities, share=0.5):
    """Log-probabilities of letters that leave the other tokens of the vocabulary their share."""
    return {options: [math.log(share * one) for one in four] for options, four in probabilities.items()}


def score_of_open(scores, blind_scores):
    return asyncio.run(score_open_ended(FakeVideo({}, {}, scores, blind_scores), OPEN, CONFIG))


def score_of_choice(scores, blind_scores=None):
    video = FakeVideo({}, {}, logs(scores), logs(blind_scores or ALWAYS_B))
    return asyncio.run(score_choice(video, CHOICE, "Only the letter.")), video


def test_an_answer_has_its_log_probability_with_the_video_and_without_and_what_the_video_adds():
    row = score_of_open({("one",): [-0.25, -0.5]}, {("one",): [-2.0, -3.0]})

    assert (row.answer_logprob, row.blind_logprob, row.num_answer_tokens) == (-0.75, -5.0, 2)
    assert row.video_gain_per_token == 2.125
    assert row.score_status is ScoreStatus.OK
    assert (row.option_probabilities, row.is_rotation_consistent) == (None, None)


def test_an_answer_is_scored_after_the_bare_question():
    video = FakeVideo({})
    asyncio.run(score_open_ended(video, OPEN, CONFIG))

    prompt = "How many balls are there? Be brief."
    assert sorted(video.scored) == [(prompt, ("one",), False), (prompt, ("one",), True)]
    assert video.asked == []


def test_options_have_the_mean_of_their_probabilities_over_four_rotations():
    row, video = score_of_choice(LETTERS_RIGHT)

    expected = [(0.1 + 0.05 + 0.2 + 0.1) / 4, (0.7 + 0.8 + 0.5 + 0.6) / 4, (0.1 + 0.1 + 0.2 + 0.2) / 4, 0.35 / 4]
    assert row.option_probabilities == pytest.approx(expected)
    assert (row.answer_logprob, row.num_answer_tokens) == (pytest.approx(math.log(0.65)), 1)
    assert row.video_gain_per_token == pytest.approx(math.log(0.65) - math.log(0.25))
    assert row.is_rotation_consistent is True
    assert len(video.scored) == 8


def test_a_letter_that_the_model_likes_whatever_stands_there_does_not_survive_rotation():
    row, _ = score_of_choice(ALWAYS_B)

    assert row.is_rotation_consistent is False
    assert row.option_probabilities == pytest.approx([0.25] * 4)


def test_a_wrong_option_that_is_the_likeliest_in_all_rotations_is_not_consistent():
    row, _ = score_of_choice(
        {options: [0.9 if one == "one" else 0.1 / 3 for one in options] for options in LETTERS_RIGHT}
    )

    assert row.is_rotation_consistent is False
    assert row.option_probabilities[0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (PromptTooLong("33,000 tokens"), ScoreStatus.TOO_LONG),
        (ClipTooLarge("out of memory"), ScoreStatus.TOO_LARGE),
        ([math.nan], ScoreStatus.NOT_FINITE),
        ([-math.inf], ScoreStatus.NOT_FINITE),
    ],
)
def test_a_score_that_fails_leaves_the_pair_with_a_status_and_no_numbers(fault, status):
    blind_fails = score_of_open({}, {("one",): fault})
    seen_fails = score_of_open({("one",): fault}, {})
    choice = asyncio.run(score_choice(FakeVideo({}, {}, {CHOICE.options: fault}), CHOICE, "Only the letter."))

    assert blind_fails == seen_fails == replace(OPEN, score_status=status)
    assert choice == replace(CHOICE, score_status=status)


def test_any_other_fault_is_not_hidden():
    with pytest.raises(RuntimeError, match="lost"):
        score_of_open({("one",): RuntimeError("the device is lost")}, {})


def test_a_recipe_that_scores_asks_nothing_again():
    video = FakeVideo(SCRIPT)
    rows = asyncio.run(SCORED.annotate(video, "clip")).qa_pairs
    pairs = [row for row in rows if row.status is Status.OK]

    assert [(row.kind, row.score_status, row.recheck_score) for row in pairs] == [
        ("open_ended", ScoreStatus.OK, None),
        ("multiple_choice", ScoreStatus.OK, None),
    ]
    assert (len(video.asked), len(video.scored)) == (1 + 3 + 1, 2 + 8)


def test_a_recipe_may_score_and_ask_again():
    rows = asyncio.run(BOTH.annotate(FakeVideo(SCRIPT), "clip")).qa_pairs
    pairs = [row for row in rows if row.status is Status.OK]

    assert len(pairs) == 2
    assert all(row.recheck_score is not None and row.answer_logprob is not None for row in pairs)


def test_a_recipe_may_do_neither():
    recipe = parse_recipe(FULL_YAML.replace(RECHECK, ""), "neither.yaml")
    rows = asyncio.run(recipe.annotate(FakeVideo(SCRIPT), "clip")).qa_pairs

    assert {(row.recheck_score, row.score_status) for row in rows} == {(None, None)}


def test_a_duplicate_has_no_scores():
    script = {"Ask Colour": "Question: how many\nAnswer: Three.", **SCRIPT}
    rows = asyncio.run(BOTH.annotate(FakeVideo(script), "clip")).qa_pairs
    (again,) = [row for row in rows if row.status is Status.DUPLICATE]

    assert (again.answer_logprob, again.video_gain_per_token, again.num_answer_tokens) == (None, None, None)
    assert (again.score_status, again.recheck_score) == (None, None)


def test_the_shipped_detailed_recipe_scores_as_many_answers_as_it_says():
    recipe = replace(load_recipe("detailed"), retries=(), multiple_choice_per_clip=2)
    script = {
        '"': lambda prompt: f"Question: What is {prompt[30:60]}?\nAnswer: A ball.",
        "Write three": "Cat\nDog\nCow",
    }
    video = FakeVideo({"Write three": script["Write three"], **script})
    asyncio.run(recipe.annotate(video, "clip"))

    count = load_recipe("detailed").count_prompts(12.0)
    assert (len(video.asked), len(video.scored)) == (count.most, count.most_scores) == (9, 28)


def test_a_wrong_key_of_the_score_is_refused_with_those_that_are_allowed():
    with pytest.raises(RecipeError, match=r"score\.max_new_tokens: unknown key; allowed here: id, prompt"):
        parse_recipe(FULL_YAML.replace(RECHECK, SCORE.replace("{id", "{max_new_tokens: 5, id")), "my.yaml")


def test_a_prompt_of_the_score_must_hold_the_question():
    with pytest.raises(RecipeError, match=r"score\.prompt: the prompt must hold \{question\}"):
        parse_recipe(FULL_YAML.replace(RECHECK, SCORE.replace("{question} ", "")), "my.yaml")
