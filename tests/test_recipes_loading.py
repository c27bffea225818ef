"""Recipes are read from YAML strictly."""

from __future__ import annotations

import asyncio
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from framescribe import recipes
from framescribe.recipes import SHIPPED, RecipeError, load_recipe, parse_recipe
from framescribe.recipes.annotation import Status
from tests.support.recipes_fixtures import FULL_YAML, FakeVideo

RECIPES = Path(recipes.__file__).parent
DRAWN_YAML, CHOSEN_YAML = "recipe: detailed\nopen_ended_per_clip", "multiple_choice_per_clip"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_names_its_flow(name):
    recipe = load_recipe(name)

    assert recipe.name == name
    assert recipe.stop_loops


def test_the_seed_recipe_asks_the_model_cards_prompt_with_its_limit():
    recipe = load_recipe("model_card")

    assert recipe.caption.prompt == "Please describe this video in detail."
    assert recipe.caption.max_new_tokens == 4096


@pytest.mark.parametrize("name", ["detailed", "full"])
def test_the_recipes_of_questions_know_the_16_types_of_llava_video_178k(name):
    recipe = load_recipe(name)

    assert len(recipe.open_ended.types) == 16
    assert recipe.open_ended.types[10].name == "Non-Existent Actions with Existent Scene Depictions"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_settings_of_a_recipe_are_plain_json_and_a_recipe_can_be_sent_to_workers(name):
    recipe = load_recipe(name)

    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_a_changed_prompt_changes_the_settings_and_what_is_asked(tmp_path):
    copy = tmp_path / "my.yaml"
    shipped = (RECIPES / "model_card.yaml").read_text()
    copy.write_text(shipped.replace("Please describe this video in detail.", "What do you see?"))
    video = FakeVideo({})

    recipe = load_recipe(copy)
    asyncio.run(recipe.annotate(video, "clip"))

    assert recipe.to_dict() != load_recipe("model_card").to_dict()
    assert [asked.question for asked in video.asked] == ["What do you see?"]


def test_the_loop_detector_can_be_switched_off():
    recipe = replace(load_recipe("model_card"), stop_loops=False)
    video = FakeVideo({})

    asyncio.run(recipe.annotate(video, "clip"))

    assert not video.asked[0].generation.stop_loops
    assert recipe.to_dict()["stop_loops"] is False


def test_a_recipe_says_which_endings_are_tried_again():
    recipe = parse_recipe(FULL_YAML + "retry_on: [length, refused]\n", "my.yaml")

    assert recipe.retry_on == (Status.LENGTH, Status.REFUSED)
    assert parse_recipe(FULL_YAML, "my.yaml").retry_on == (Status.LOOPED, Status.EMPTY)


def test_braces_that_name_nothing_stay_in_a_prompt():
    text = FULL_YAML.replace("Describe this.", "'Reply as {\"caption\": ...}.'")

    assert parse_recipe(text, "my.yaml").caption.prompt == 'Reply as {"caption": ...}.'


def test_a_name_that_is_neither_shipped_nor_a_file_is_refused_with_what_is():
    with pytest.raises(
        FileNotFoundError,
        match="'detailled'; did you mean detailed. Wanted one of captions, detailed, full, model_card, levels",
    ):
        load_recipe("detailled")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stop_loops: true", "stop_lops: true", "line 21: stop_lops: unknown key; allowed here: recipe, caption,"),
        ("id: open\n", "id: open\n  temperature: 1\n", "open_ended.temperature: unknown key; allowed here: id, prompt"),
        ("stop_loops: true\n", "", "missing key 'stop_loops'"),
        ("max_new_tokens: 40", "max_new_tokens: '40'", "open_ended.max_new_tokens: wanted a whole number, got '40'"),
        ("max_new_tokens: 40", "max_new_tokens: 0", "max_new_tokens must be at least 1, got 0"),
        ("max_new_tokens: 40", "max_new_tokens: 40.5", "open_ended.max_new_tokens: wanted a whole number, got '40.5'"),
        ("stop_loops: true", "stop_loops: 1", "stop_loops: wanted true or false, got '1'"),
        ("prompt: Describe this.", "prompt: 12", "caption.prompt: wanted text, got '12'; put quotes"),
        ("prompt: Describe this.", "prompt: ''", "id and prompt must not be empty"),
        (
            "Describe this.",
            "'Describe {this}.'",
            "line 2: caption: {this} cannot be filled in; this prompt may hold none",
        ),
        ("{type}: {definition}", "{type}: {answer}", "{answer} cannot be filled in; this prompt may hold {definition}"),
        ("Ask {type}: {definition}", "Ask.", "the prompt must hold {type}"),
        ("{question} Be brief.", "Be brief.", "line 18: recheck.prompt: the prompt must hold {question}"),
        ("min_recheck_score: 0.5", "min_recheck_score: 1.5", "min_recheck_score must lie between 0 and 1, got 1.5"),
        ("min_recheck_score: 0.5", "min_recheck_score: .nan", "wanted a number, got '.nan'"),
        ("[{repetition_penalty: 1.15}]", "[{repetition_penalty: 0}]", "repetition_penalty must be positive, got 0"),
        ("[{repetition_penalty: 1.15}]", "[1.15]", "retries[0]: wanted a mapping, got '1.15'"),
        ("[{repetition_penalty: 1.15}]", "1.15", "retries: wanted a list, got '1.15'"),
        (
            "[{repetition_penalty: 1.15}]",
            "[{penalty: 1}]",
            "retries[0].penalty: unknown key; allowed here: repetition_p",
        ),
        ("[Only the letter., Letter and option.]", "[]", "closings must hold at least one line"),
        ("Count: how many.", "Count: 3", "open_ended.types.Count: wanted text, got '3'"),
        ("Count: how many.", "Speed: how many.", "keys must be plain words, each given once"),
        ("recipe: full", "recipe: full\nopen_ended_per_clip: 2", "open_ended_per_clip: unknown key; allowed here"),
        ("recipe: full", "recipe: detailed", "missing key 'open_ended_per_clip'"),
        ("recipe: full", f"{DRAWN_YAML}: 4\n{CHOSEN_YAML}: 1", "must lie between 1 and the 3 types, got 4"),
        ("recipe: full", f"{DRAWN_YAML}: 2\n{CHOSEN_YAML}: 2.5", "multiple_choice_per_clip must lie between 0 and"),
        ("id: choice", "id: open", "prompt ids must differ within a recipe, got open twice"),
        (
            "recipe: full",
            "recipe: ful",
            "recipe: unknown flow 'ful'; wanted one of captions, detailed, full, model_card, levels",
        ),
        (
            "prompt: Describe this.",
            "prompt: 'Describe",
            "not valid YAML: while scanning a quoted scalar that begins in l",
        ),
        ("stop_loops: true", "stop_loops: \0", "line 21: not valid YAML: special characters are not allowed"),
        (
            "stop_loops: true",
            "stop_loops: [",
            "line 23: not valid YAML: while parsing a flow sequence that begins in line 21, ",
        ),
        (
            "stop_loops: true",
            "stop_loops: true\nretry_on: [ok]",
            "retry_on[0]: got 'ok'; wanted any of looped, empty, len",
        ),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_with_file_key_and_what_is_allowed(old, new, message):
    assert old in FULL_YAML

    with pytest.raises(RecipeError) as refused:
        parse_recipe(FULL_YAML.replace(old, new, 1), "my.yaml")

    assert str(refused.value).startswith("my.yaml")
    assert message in str(refused.value)


def test_all_mistakes_of_a_recipe_are_told_at_once():
    text = FULL_YAML.replace("stop_loops: true", "stop_lops: true").replace("Count: how many.", "Count: 3")

    with pytest.raises(RecipeError) as refused:
        parse_recipe(text, "my.yaml")

    assert [line.split(": ", 1)[1][:40] for line in str(refused.value).splitlines()] == [
        "missing key 'stop_loops'",
        "open_ended.types.Count: wanted text, got",
        "stop_lops: unknown key; allowed here: re",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- seed\n",
        b"\xff\xfe",
        b"recipe: !!python/object/apply:os.system ['true']\n",
        b"[" * 1000,
        b"recipe: model_card\nretries: " + b"[" * 250 + b"]" * 250,
        b"recipe: model_card\n" + b"#" * 1_000_001,
        b"&a [*a]",
        b"recipe: model_card\ncaption: &c {<<: *c, id: x}\n",
        b'recipe: model_card\ncaption: {id: a, prompt: "\\ud800", max_new_tokens: 1}\nstop_loops: true\nretries: []\n',
        b"recipe: model_card\nretries: [&a [x, x], &b [*a, *a], &c [*b, *b], *c]\n",
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_bytes(content)

    with pytest.raises(RecipeError, match=r"other\.yaml"):
        load_recipe(path)
