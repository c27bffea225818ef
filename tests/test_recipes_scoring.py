"""How far two answers agree."""

from __future__ import annotations

import pytest

from framescribe.recipes.answer_text import normalise_answer, score_agreement, token_f1


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The red ball.", "a RED ball!", 1.0),
        ("red ball", "red", 2 / 3),
        ("red red", "red", 2 / 3),
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("...", "!!!", 0.0),
        ("the", "a", 0.0),
    ],
)
def test_token_f1_is_that_of_the_squad_evaluation(answer, reference, f1):
    assert token_f1(answer, reference) == pytest.approx(f1)


def test_normalising_drops_case_punctuation_articles_and_spaces():
    assert normalise_answer("  The  man's   a-b, An end. ") == "mans ab end"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Yes, the man is walking.", "No, the man is walking."),
        ("It moves to the left.", "It moves to the right."),
        ("There are two cars.", "There are 3 cars."),
    ],
)
def test_answers_that_contradict_each_other_do_not_agree_whatever_else_they_share(answer, reference):
    assert token_f1(answer, reference) >= 0.5
    assert score_agreement(answer, reference) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("yes", "Yes, the man is walking.", 1.0),
        ("No, he is not.", "no", 1.0),
        ("two cars", "2 cars", 0.5),
        ("from left to right", "from the left to the right", 1.0),
        ("left", "from left to right", 0.4),
        ("two of the three men", "two men", 2 / 3),
    ],
)
def test_answers_that_do_not_contradict_each_other_score_by_their_tokens(answer, reference, score):
    assert score_agreement(answer, reference) == pytest.approx(score)
