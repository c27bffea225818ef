"""Arbitrary text through the parsers: they never raise, never take long, and never say what the text does not.

`hypothesis` tries more where its settings profile says so.
"""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from framescribe.llava_video.engine.generation import Completion, FinishReason
from framescribe.llava_video.engine.loops import has_repeated_sentence, is_looping
from framescribe.recipes import RecipeError, load_recipe, parse_recipe
from framescribe.recipes.annotation import Status
from framescribe.recipes.answer_text import is_none, is_refusal, is_unspecified, normalise_answer, score_agreement
from framescribe.recipes.answers import parse_letter, parse_wrong_answers, read_pair_status
from framescribe.recipes.qa_pairs import parse_qa_pair
from tests.support.recipes_fixtures import FULL_YAML, LEVELS_YAML, FakeVideo

PIECES = [
    "Question", "question:", "Question: ", "Answer: ", "**Answer:** ", "Q: ", "A: ", "Q1: ", "A2: ", "\n", "\n\n", " ",
    '"Question": ', "'Answer': ", '"', "'", '\\"', "\\", "{", "}", "[", "]", ",", ", ", ":", "?", ".", "...", "- ",
    "1. ", "2) ", "A. ", "B. ", "(C)", "None", "null", "N/A", "the", "red", "Who is it?", "A dog.", "’", "**", "`", "_",
    "I'm sorry, but I can't", "does not specify", "Wrong answer 1: ", "{question}", "<|im_end|>", "\u202e", "é", "\x00",
    "\ud800", "🐕", "١", "Ⅻ", "ǅ",
]  # fmt: skip
YAML_PIECES = [*FULL_YAML.split(" "), "\n", "&a", "*a", "!!int"]
model_text = st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=300))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def says(text: str, words: str) -> bool:
    """Whether `words` stand in `text`, white space and JSON's backslashes apart."""
    without_escapes = re.sub(r"\\([\"'\\/nrt])", lambda found: " " if found[1] in "nrt" else found[1], text)
    return any(squeezed(words) in squeezed(spelling) for spelling in (text, without_escapes))


@given(model_text)
def test_a_pair_that_is_found_stands_in_the_text_in_that_order(text):
    pair = parse_qa_pair(text)

    assert pair is None or (says(text, pair.question) and says(text, pair.answer))
    assert pair is None or re.search(r"\w", pair.question)
    assert pair is None or re.search(r"\w", pair.answer)


@given(model_text)
def test_any_text_has_a_status_and_only_a_pair_is_ok(text):
    status = read_pair_status(text, parse_qa_pair(text))

    assert isinstance(status, Status)
    assert status is not Status.OK or parse_qa_pair(text) is not None


@given(model_text, model_text)
def test_wrong_answers_stand_in_the_text_and_differ(text, answer):
    wrong = parse_wrong_answers(text, answer)

    normal = [normalise_answer(option) for option in (*wrong, answer)]
    assert len(wrong) <= 3
    assert len(set(normal)) == len(normal)
    assert all(says(text, option) for option in wrong)


@given(model_text, st.lists(st.sampled_from(PIECES), min_size=4, max_size=4))
def test_a_letter_is_one_of_four_or_none(text, options):
    assert parse_letter(text, options) in ("A", "B", "C", "D", None)


@given(model_text, model_text)
def test_agreement_lies_between_0_and_1_and_is_symmetric(text, other):
    assert 0 <= score_agreement(text, other) <= 1
    assert score_agreement(text, other) == score_agreement(other, text)


@given(model_text)
def test_wording_is_read_from_any_text(text):
    assert {type(read(text)) for read in (is_none, is_refusal, is_unspecified, has_repeated_sentence)} == {bool}


@given(st.lists(st.integers(0, 5), max_size=300))
def test_what_counts_as_a_loop_repeats_its_last_token(token_ids):
    assert not is_looping(token_ids) or token_ids.count(token_ids[-1]) > 1


@pytest.mark.parametrize("piece", [*PIECES, 'Question: "Answer": "', "Answer:\n", '"Answer": "x', "(" * 50, "the "])
def test_twenty_thousand_characters_of_anything_are_read_in_well_under_a_second(piece):
    text = piece * (20_000 // len(piece))
    start = time.process_time()

    read_pair_status(text, parse_qa_pair(text))
    parse_wrong_answers(text, piece)
    parse_letter(text, ("red", "green", "blue", "yellow"))
    has_repeated_sentence(text)

    assert time.process_time() - start < 2.0


completions = st.builds(
    Completion,
    text=model_text,
    token_ids=st.just((1, 2)),
    finish_reason=st.sampled_from(FinishReason),
    num_prompt_tokens=st.just(5),
)


@given(st.lists(completions, min_size=1, max_size=12), st.sampled_from([FULL_YAML, LEVELS_YAML]))
def test_whatever_the_model_answers_every_question_becomes_a_row_with_a_status(answers, recipe_yaml):
    remaining = iter(answers * 100)
    script = {"": lambda question: next(remaining)}

    result = asyncio.run(parse_recipe(recipe_yaml, "my.yaml").annotate(FakeVideo(script, script, 35.0), "clip"))

    rows = [*result.captions, *result.qa_pairs]
    assert all(isinstance(row.status, Status) for row in rows)
    with_text = (Status.OK, Status.LENGTH, Status.DUPLICATE)
    assert all(row.question == "" for row in result.qa_pairs if row.status not in with_text)
    assert len([row for row in result.qa_pairs if row.kind == "open_ended"]) in (0, 3)


@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(YAML_PIECES)).map(" ".join)))
@example("recipe: !!int ''")
@example("? [a, b]\n: c")
def test_any_yaml_is_a_recipe_or_refused(text):
    with pytest.raises(RecipeError, match=r"my\.yaml"):
        parse_recipe(text, "my.yaml")


@given(st.binary(max_size=200))
def test_any_file_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("recipe") / "my.yaml"
    path.write_bytes(content)

    with pytest.raises(RecipeError, match=r"my\.yaml"):
        load_recipe(path)


@given(st.integers(0, len(FULL_YAML) - 1), st.text(max_size=3))
def test_a_recipe_with_some_characters_changed_loads_or_is_refused(place, other):
    changed = FULL_YAML[:place] + other + FULL_YAML[place + 1 :]

    try:
        refusal = None
        parse_recipe(changed, "my.yaml")
    except RecipeError as error:
        refusal = str(error)

    assert refusal is None or refusal.startswith("my.yaml")
