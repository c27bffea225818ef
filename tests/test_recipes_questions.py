"""The recipes detailed and full: which questions follow which answers, and what the rows say."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace

import pytest

from framescribe.llava_video.engine.generation import FinishReason
from framescribe.recipes import describe_prompts, load_recipe, parse_recipe
from framescribe.recipes.annotation import Status
from framescribe.recipes.config import RecheckConfig
from framescribe.recipes.multiple_choice import draw_closing, draw_letter, find_giveaway
from framescribe.recipes.open_ended import add_scores
from tests.support.output_fixtures import make_pair
from tests.support.recipes_fixtures import FULL_YAML, FakeVideo, completed

RECIPE = parse_recipe(FULL_YAML, "my.yaml")
SCRIPT = {
    "Describe": "Two red balls roll slowly.",
    "Ask Count": "Question: How many balls are there?\nAnswer: Two balls.",
    "Ask Speed": "None",
    "Ask Colour": "**Question:** Which colour are the balls?\n**Answer:** Red.",
    "Wrong for How many": "One ball\nThree balls\nFour balls.",
    "Wrong for Which": "1. Blue\n2. Green\n3. Yellow",
    "How many balls are there? Be": "There are two balls.",
    "Which colour are the balls? Be": "Blue.",
    "How many balls are there?\nA.": "Two balls",
    "Which colour are the balls?\nA.": "The answer is (Z).",
}
BLIND = {"How many balls are there? Be": "Two.", "Which colour are the balls?\nA.": "Red"}


def annotate(changes=None, clip_id="clip", recipe=RECIPE):
    video = FakeVideo({**SCRIPT, **(changes or {})}, BLIND)
    return asyncio.run(recipe.annotate(video, clip_id)), video


def write_pair(question):
    """A pair whose question names the type, so that no two types of a clip ask the same."""
    kind = re.search('"(.*?)"', question)[1]
    return f"Question: What is {kind}?\nAnswer: A ball."


ASK_BACK = {"Write one question": write_pair}


def rows_of(result, kind):
    return [row for row in result.qa_pairs if row.kind == kind]


def test_there_is_one_caption_one_row_a_type_and_one_choice_for_each_pair():
    result, _ = annotate()

    assert [caption.text for caption in result.captions] == ["Two red balls roll slowly."]
    assert [(row.question_type, row.status) for row in rows_of(result, "open_ended")] == [
        ("Count", Status.OK),
        ("Speed", Status.NOT_APPLICABLE),
        ("Colour", Status.OK),
    ]
    assert [row.question_type for row in rows_of(result, "multiple_choice")] == ["Count", "Colour"]


def test_independent_questions_are_asked_at_the_same_time():
    _, video = annotate()

    assert video.most_at_once >= 4  # three types and the caption, then four rechecks


def test_a_pair_holds_the_models_words_and_where_they_came_from():
    row = rows_of(annotate()[0], "open_ended")[2]

    assert (row.question, row.answer) == ("Which colour are the balls?", "Red.")
    assert row.completion == SCRIPT["Ask Colour"]
    assert (row.prompt_id, row.prompt) == ("open", "Ask Colour: which colour.")


def test_a_type_that_does_not_apply_keeps_its_row_without_a_pair_and_without_scores():
    row = rows_of(annotate()[0], "open_ended")[1]

    assert (row.question, row.answer, row.completion) == ("", "", "None")
    assert (row.recheck_score, row.blind_score, row.is_consistent) == (None, None, None)


def test_an_answer_is_checked_by_asking_again_with_the_video_and_blind():
    count, _, colour = rows_of(annotate()[0], "open_ended")

    assert (count.recheck_answer, count.recheck_score) == ("There are two balls.", pytest.approx(2 * 2 / 6))
    assert (count.blind_answer, count.blind_score) == ("Two.", pytest.approx(2 * 1 / 3))
    assert count.is_consistent is True
    assert (colour.recheck_answer, colour.recheck_score, colour.is_consistent) == ("Blue.", 0.0, False)


def test_a_choice_has_the_answer_under_its_letter_and_three_wrong_options():
    count, colour = rows_of(annotate()[0], "multiple_choice")

    assert (count.question, count.answer) == ("How many balls are there?", "Two balls")
    assert sorted(count.options) == ["Four balls", "One ball", "Three balls", "Two balls"]
    assert count.options["ABCD".index(count.answer_letter)] == "Two balls"
    assert colour.options["ABCD".index(colour.answer_letter)] == "Red"
    assert (count.prompt_id, count.completion) == ("choice", SCRIPT["Wrong for How many"])


def test_a_choice_is_asked_as_in_llava_video_178k_with_the_closing_lines_in_turn():
    result, video = annotate()
    count, colour = rows_of(result, "multiple_choice")
    asked = [asked.question for asked in video.asked if "\nA. " in asked.question and asked.window]
    closings = [draw_closing(RECIPE.multiple_choice.closings, "clip", place) for place in (0, 2)]

    a, b, c, d = count.options
    assert asked[0] == f"How many balls are there?\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n{closings[0]}"
    a, b, c, d = colour.options
    assert asked[1] == f"Which colour are the balls?\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n{closings[1]}"
    assert {draw_closing(("x", "y"), "clip", place) for place in (0, 1)} == {"x", "y"}


def test_a_choice_is_checked_by_its_letter():
    count, colour = rows_of(annotate()[0], "multiple_choice")

    assert (count.recheck_answer, count.recheck_score, count.is_consistent) == ("Two balls", 1.0, True)
    assert (colour.recheck_answer, colour.recheck_score, colour.is_consistent) == ("The answer is (Z).", 0.0, False)
    assert (count.blind_score, colour.blind_score) == (0.0, 1.0)


@pytest.mark.parametrize("wrong", ["One ball\nTwo balls.\nthe two balls\nThree balls", "One ball", "-\n-\n-"])
def test_fewer_than_three_different_wrong_answers_leave_an_unparsable_row(wrong):
    count, colour = rows_of(annotate({"Wrong for How many": wrong})[0], "multiple_choice")

    assert (count.status, count.question, count.options, count.answer_letter) == (Status.UNPARSABLE, "", (), None)
    assert count.completion == wrong
    assert colour.status is Status.OK


def test_a_wrong_answer_that_the_token_limit_may_have_cut_is_not_an_option():
    cut = completed("One ball\nThree balls\nFo", FinishReason.LENGTH)

    count, _ = rows_of(annotate({"Wrong for How many": cut})[0], "multiple_choice")

    assert (count.status, count.finish_reason) == (Status.LENGTH, "length")


@pytest.mark.parametrize(
    ("completion", "status", "pair"),
    [
        ("", Status.EMPTY, ("", "")),
        ("The balls roll.", Status.UNPARSABLE, ("", "")),
        ("I'm sorry, but I can't watch videos.", Status.REFUSED, ("", "")),
        ("Question: Who?\nAnswer: The video does not specify who.", Status.UNSPECIFIED, ("", "")),
        ("Question: Who?\nAnswer: None", Status.NOT_APPLICABLE, ("", "")),
        (completed("Question: Who?\nAnswer: A ma", FinishReason.LENGTH), Status.LENGTH, ("Who?", "A ma")),
        (completed("Question: Who", FinishReason.LENGTH), Status.LENGTH, ("", "")),
        (completed("Question: Who?\nAnswer: Ann.\nQues", FinishReason.LENGTH), Status.OK, ("Who?", "Ann.")),
        (completed("Question: Who?\nAnswer: Ann Ann Ann", FinishReason.LOOPED), Status.LOOPED, ("", "")),
    ],
)
def test_what_is_not_a_whole_pair_becomes_a_row_with_its_status(completion, status, pair):
    row = rows_of(annotate({"Ask Speed": completion})[0], "open_ended")[1]

    assert (row.status, (row.question, row.answer)) == (status, pair)


def test_a_looped_question_is_asked_again_with_the_rungs_penalty():
    answers = iter([completed("a a a", FinishReason.LOOPED), "Question: How fast?\nAnswer: Slowly."])

    result, video = annotate({"Ask Speed": lambda question: next(answers)})

    assert (rows_of(result, "open_ended")[1].attempt, rows_of(result, "open_ended")[1].status) == (2, Status.OK)
    assert [a.generation.repetition_penalty for a in video.asked if "Ask Speed" in a.question] == [None, 1.15]


def test_text_of_the_model_never_fills_a_placeholder():
    tricky = "Question: What is {answer} {type}?\nAnswer: {question} {0.__class__}"

    _, video = annotate({"Ask Speed": tricky})

    asked = [asked.question for asked in video.asked]
    assert "Wrong for What is {answer} {type}? not {question} {0.__class__}" in asked
    assert "What is {answer} {type}? Be brief." in asked


def test_the_same_answers_give_the_same_rows_and_another_clip_other_letters():
    letters = {
        clip_id: tuple(row.answer_letter for row in rows_of(annotate(clip_id=clip_id)[0], "multiple_choice"))
        for clip_id in ("one", "two", "three", "four", "five")
    }

    assert annotate(clip_id="one")[0] == annotate(clip_id="one")[0]
    assert len(set(letters.values())) > 1


@pytest.mark.parametrize("num_questions", [1, 5, 16])
def test_the_letters_of_a_clip_are_in_balance(num_questions):
    counts = Counter(dict.fromkeys("ABCD", 0))
    counts.update(draw_letter("clip", place) for place in range(num_questions))

    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("place", [0, 1, 5])
def test_over_many_clips_each_letter_and_each_closing_line_comes_about_equally_often(place):
    clip_ids = [f"shard-{number}/clip" for number in range(2000)]
    drawn = Counter((draw_letter(one, place), draw_closing(("x", "y"), one, place)) for one in clip_ids)

    assert len(drawn) == 8
    assert 200 < min(drawn.values()) <= max(drawn.values()) < 300  # 250 expected, standard deviation 15


def test_an_engine_error_stops_the_recipe_and_cancels_the_questions_still_open():
    def fail(question):
        raise ConnectionError("the engine is gone")

    with pytest.raises(ConnectionError):
        annotate({"Ask Count": fail})


def test_the_full_recipe_asks_each_type_for_its_own_pair():
    video = FakeVideo({**ASK_BACK, "Write three": "Cat\nDog\nCow"})
    recipe = replace(load_recipe("full"), retries=())

    result = asyncio.run(recipe.annotate(video, "clip"))

    assert Counter((row.kind, row.status) for row in result.qa_pairs) == {
        ("open_ended", Status.OK): 16,
        ("multiple_choice", Status.OK): 16,
    }
    assert Counter(row.answer_letter for row in rows_of(result, "multiple_choice")) == dict.fromkeys("ABCD", 4)
    assert len(video.asked) == recipe.count_prompts(12.0).most == 1 + 16 + 16 * (2 + 1 + 2)


@pytest.mark.parametrize(("score", "is_consistent"), [(0.49, False), (0.5, True), (0.51, True)])
def test_a_score_that_reaches_the_bar_is_enough(score, is_consistent):
    config = RecheckConfig("again", "{question}", 5, min_recheck_score=0.5)
    assert add_scores(make_pair(), ("one", "two"), (score, 0.9), config).is_consistent is is_consistent


def test_what_follows_from_a_question_does_not_wait_for_the_slowest_of_the_clip():
    order = []

    class SlowVideo(FakeVideo):
        async def ask(self, question, generation):
            if question.startswith("Ask Count"):
                for _ in range(200):
                    await asyncio.sleep(0)
            answer = await super().ask(question, generation)
            order.append(question)
            return answer

    asyncio.run(RECIPE.annotate(SlowVideo(SCRIPT, BLIND), "clip"))
    slowest = next(number for number, words in enumerate(order) if words.startswith("Ask Count"))
    early = [words for words in order[:slowest] if "Which colour" in words]
    assert sorted(words.split()[0] for words in early) == [
        "Which",
        "Which",
        "Wrong",
    ]  # seen, as a choice, and wrong answers


def test_letters_and_closing_lines_are_those_of_the_order_of_types_whatever_arrives_first():
    usual, _ = annotate()

    class Backwards(FakeVideo):
        async def ask(self, question, generation):
            for _ in range(100 if "Count" in question or "How many" in question else 0):
                await asyncio.sleep(0)
            return await super().ask(question, generation)

    assert asyncio.run(RECIPE.annotate(Backwards(SCRIPT, BLIND), "clip")) == usual


def detailed(num_asked=3, num_choices=1):
    drawn = f"recipe: detailed\nopen_ended_per_clip: {num_asked}\nmultiple_choice_per_clip: {num_choices}\n"
    return parse_recipe(FULL_YAML.replace("recipe: full\n", drawn), "my.yaml")


def test_the_detailed_recipe_asks_each_clip_about_its_own_types():
    recipe = detailed(num_asked=2)
    result, video = annotate(recipe=recipe)
    asked = [one.question.split()[1].rstrip(":") for one in video.asked if one.question.startswith("Ask")]

    assert asked == [kind.name for kind in recipe.draw_types("clip")]
    assert [row.question_type for row in rows_of(result, "open_ended")] == asked
    assert len({recipe.draw_types(f"clip-{number}") for number in range(100)}) == 6  # every two of three, in each order


def test_over_1600_clips_the_detailed_recipe_asks_all_16_types_evenly():
    recipe = load_recipe("detailed")
    drawn = [recipe.draw_types(f"shard-{number // 100:05}/clip_{number}") for number in range(1600)]
    counts = Counter(kind.name for types in drawn for kind in types)
    first = Counter(types[0].name for types in drawn)

    assert all(len(set(types)) == 6 for types in drawn)
    assert len(counts) == len(first) == 16
    assert 600 - 78 < min(counts.values()) <= max(counts.values()) < 600 + 78  # 600 expected, standard deviation 19
    assert 100 - 40 < min(first.values()) <= max(first.values()) < 100 + 40  # they get the choice: 100, 10


def test_the_detailed_recipe_has_one_choice_per_clip_and_two_for_every_tenth():
    recipe = load_recipe("detailed")
    numbers = Counter(recipe.draw_num_choices(f"clip-{number}") for number in range(2000))

    assert set(numbers) == {1, 2}
    assert 150 < numbers[2] < 250  # 200 expected, standard deviation 13


def test_the_first_pairs_that_come_out_become_choices():
    no_pair = {"Ask Speed": "None", "Ask Colour": "What?"}

    for_one, _ = annotate(recipe=detailed(num_choices=1))
    for_last, _ = annotate(no_pair, recipe=detailed(num_choices=1))
    for_none, _ = annotate(recipe=detailed(num_choices=0))

    first = next(row for row in rows_of(for_one, "open_ended") if row.status is Status.OK)
    assert [row.question for row in rows_of(for_one, "multiple_choice")] == [first.question]
    assert [row.question_type for row in rows_of(for_last, "multiple_choice")] == ["Count"]
    assert rows_of(for_none, "multiple_choice") == []


def test_the_shipped_detailed_recipe_asks_as_many_prompts_as_it_says():
    video, silent = FakeVideo({**ASK_BACK, "Write three": "Cat\nDog\nCow"}), FakeVideo({"Write one": "None"})
    recipe = replace(load_recipe("detailed"), retries=(), multiple_choice_per_clip=2)

    asyncio.run(recipe.annotate(video, "clip"))
    asyncio.run(recipe.annotate(silent, "clip"))

    count = load_recipe("detailed").count_prompts(12.0)
    assert (len(silent.asked), len(video.asked)) == (count.fewest, count.most) == (7, 9)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("captions", "captions: 2 prompts per clip"),
        ("detailed", "detailed: 7 to 9 prompts per clip, up to 28 scores"),
        ("full", "full: 17 to 97 prompts per clip"),
        ("model_card", "model_card: 1 prompt per clip"),
        ("levels", "levels: 6 prompts per clip"),  # 40 s: four segments, a summary and the whole
    ],
)
def test_a_recipe_says_how_many_prompts_it_asks(name, line):
    assert describe_prompts(load_recipe(name), 40.0) == line


def test_detailed_and_full_ask_with_the_same_words():
    few, all_types = load_recipe("detailed").to_dict(), load_recipe("full").to_dict()

    own = {"recipe", "recheck", "score"}
    assert {key: few[key] for key in all_types.keys() - own} == {key: all_types[key] for key in all_types.keys() - own}
    assert few["score"]["prompt"] == all_types["recheck"]["prompt"]


def test_the_captions_recipe_asks_for_a_long_and_a_short_caption():
    video = FakeVideo({"in detail": "A red ball rolls to the left.", "one sentence": "A ball rolls."})

    result = asyncio.run(load_recipe("captions").annotate(video, "clip"))

    assert [(one.prompt_id, one.text) for one in result.captions] == [
        ("long_caption", "A red ball rolls to the left."),
        ("short_caption", "A ball rolls."),
    ]
    assert (result.qa_pairs, video.most_at_once) == ((), 2)


SAME_QUESTION = {"Ask Colour": "Question: how many balls are there\nAnswer: Two of them."}


@pytest.mark.parametrize("recipe", [RECIPE, detailed(num_choices=3)], ids=["full", "detailed"])
def test_a_question_that_a_clip_was_asked_before_is_a_duplicate(recipe):
    result, _ = annotate(SAME_QUESTION, recipe=recipe)
    kept, again = (
        next(row for row in rows_of(result, "open_ended") if row.status is status)
        for status in (Status.OK, Status.DUPLICATE)
    )

    assert {kept.question, again.question} == {"How many balls are there?", "how many balls are there"}
    assert [row.question_type for row in rows_of(result, "multiple_choice")] == [kept.question_type]
    assert (again.recheck_score, again.blind_score, again.is_consistent) == (None, None, None)


def test_a_question_with_another_word_is_no_duplicate():
    other = {"Ask Colour": "Question: How many red balls are there?\nAnswer: Two."}

    assert [row.status for row in rows_of(annotate(other)[0], "open_ended")].count(Status.OK) == 2


@pytest.mark.parametrize(
    ("right", "wrong", "giveaway"),
    [
        ("red", ["blue", "green", "yellow"], None),
        ("a red ball that rolls to the left", ["a ball", "a blue ball", "a cube"], "longest"),
        ("a red ball", ["a cube", "cubes", "balls"], None),  # longest, but not by far
        ("3 balls", ["some balls", "no balls", "all balls"], "number"),
        ("Two of them.", ["all of them", "the left", "the right"], "number"),
        ("none", ["one", "2", "three"], "number"),
        ("one", ["2", "three", "four"], None),
        ("one", ["2", "three", "many"], None),
    ],
)
def test_an_option_that_gives_itself_away_is_named(right, wrong, giveaway):
    assert find_giveaway(right, wrong) == giveaway


def test_a_choice_says_what_gives_its_answer_away():
    wrong = {"Wrong for Which": "1. Blue\n2. Green\n3. 2 colours", "Wrong for How many": "No ball\nBalls\nNone at all"}

    count, colour = rows_of(annotate(wrong)[0], "multiple_choice")

    assert (count.giveaway, colour.giveaway) == ("number", None)
