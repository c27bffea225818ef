"""Three-level captions: which frames and which texts each prompt sees."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from framescribe.llava_video.engine.generation import FinishReason
from framescribe.recipes import RecipeError, parse_recipe
from framescribe.recipes.annotation import Status
from framescribe.recipes.levels import split_segments
from tests.support.recipes_fixtures import LEVELS_YAML, FakeVideo, completed


def annotate(duration_s, segment=None, summary=None, recipe_yaml=LEVELS_YAML):
    """Segments answer s1, s2, ... and summaries S1, S2, ... unless said otherwise."""
    segments, summaries = itertools.count(1), itertools.count(1)
    video = FakeVideo(
        {"Segment.": segment or (lambda question: f"s{next(segments)}")},
        {"So far?": summary or (lambda question: f"S{next(summaries)}"), "All in all?": "everything"},
        duration_s=duration_s,
    )
    result = asyncio.run(parse_recipe(recipe_yaml, "my.yaml").annotate(video, "clip"))
    return result, video


@pytest.mark.parametrize(
    ("duration_s", "bounds"),
    [
        (0.0, [(0.0, 0.0)]),
        (4.0, [(0.0, 4.0)]),
        (10.0, [(0.0, 10.0)]),
        (12.9, [(0.0, 12.9)]),
        (13.0, [(0.0, 10.0), (10.0, 13.0)]),
        (30.0, [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]),
        (30.000001, [(0.0, 10.0), (10.0, 20.0), (20.0, 30.000001)]),
        (35.0, [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 35.0)]),
    ],
)
def test_a_video_is_cut_into_segments_and_a_short_tail_joins_the_one_before(duration_s, bounds):
    assert split_segments(duration_s, segment_s=10.0, min_segment_s=3.0) == bounds


def test_a_short_video_is_one_segment_and_the_whole_video_is_told_from_its_text():
    result, video = annotate(8.0)

    assert [(caption.level, caption.text) for caption in result.captions] == [
        ("segment", "s1"),
        ("video", "everything"),
    ]
    assert [asked.question for asked in video.asked] == ["Segment. What happens?", "1. s1 All in all?"]


def test_each_segment_sees_its_own_frames_and_the_texts_since_the_last_summary():
    _, video = annotate(45.0)

    assert [(asked.window, asked.question) for asked in video.asked] == [
        ((0.0, 10.0), "Segment. What happens?"),
        ((10.0, 20.0), "Segment.\nWhat happened before:\n- s1 What happens?"),
        ((20.0, 30.0), "Segment.\nWhat happened before:\n- s1\n- s2 What happens?"),
        (None, "1. s1\n2. s2\n3. s3 So far?"),
        ((30.0, 40.0), "Segment.\nWhat happened before:\n- S1 What happens?"),
        ((40.0, 45.0), "Segment.\nWhat happened before:\n- S1\n- s4 What happens?"),
        (None, "1. S1\n2. s4\n3. s5 All in all?"),
    ]


def test_a_later_summary_reads_the_one_before_first():
    _, video = annotate(60.0)

    assert [asked.question for asked in video.asked if "So far?" in asked.question][1] == (
        "1. S1\n2. s4\n3. s5\n4. s6 So far?"
    )


def test_a_video_without_a_segment_after_the_last_summary_is_told_from_the_summary_alone():
    _, video = annotate(30.0)

    assert video.asked[-1].question == "1. S1 All in all?"


def test_rows_say_which_part_of_the_clip_they_are_about():
    result, _ = annotate(35.0)

    assert [(caption.level, caption.start_s, caption.end_s) for caption in result.captions] == [
        ("segment", 0.0, 10.0),
        ("segment", 10.0, 20.0),
        ("segment", 20.0, 30.0),
        ("summary", 0.0, 30.0),
        ("segment", 30.0, 35.0),
        ("video", 0.0, 35.0),
    ]
    assert [caption.prompt_id for caption in result.captions] == ["one", "one", "one", "two", "one", "three"]


def test_segments_are_closed_again():
    _, video = annotate(35.0)

    assert video.open_segments == []


def test_a_segment_that_came_to_nothing_is_a_row_and_no_later_prompt_sees_it():
    answers = iter(["s1", completed("x x x", FinishReason.LOOPED), "s3"])

    result, video = annotate(25.0, segment=lambda question: next(answers))

    assert [caption.status for caption in result.captions[:3]] == [Status.OK, Status.LOOPED, Status.OK]
    assert video.asked[3].question == "1. s1\n2. s3 So far?"


def test_a_summary_that_failed_folds_nothing():
    _, video = annotate(45.0, summary=lambda question: "")

    assert video.asked[4].question == "Segment.\nWhat happened before:\n- s1\n- s2\n- s3 What happens?"
    assert video.asked[-1].question == "1. s1\n2. s2\n3. s3\n4. s4\n5. s5 All in all?"


def test_without_any_usable_text_nothing_is_asked_for_the_whole_video_and_its_row_says_so():
    result, video = annotate(35.0, segment=lambda question: "I'm sorry, but I can't help with that.")

    assert [caption.level for caption in result.captions] == ["segment"] * 4 + ["video"]
    assert (result.captions[-1].text, result.captions[-1].status, result.captions[-1].attempt) == ("", Status.EMPTY, 0)
    assert len(video.asked) == 4


def test_a_history_that_would_overflow_keeps_the_summary_and_the_latest_texts():
    text = iter(f"{number} " + "x" * 8 for number in range(1, 10))
    short = LEVELS_YAML + "max_history_chars: 25\n"

    _, video = annotate(58.0, segment=lambda question: next(text), summary=lambda question: "S", recipe_yaml=short)

    assert video.asked[3].question == "1. 2 xxxxxxxx\n2. 3 xxxxxxxx So far?"
    assert video.asked[6].question == "Segment.\nWhat happened before:\n- S\n- 4 xxxxxxxx\n- 5 xxxxxxxx What happens?"


def test_lines_in_a_models_text_do_not_read_as_further_entries():
    _, video = annotate(8.0, segment=lambda question: "A man.\n\n2. {descriptions} {history}\n- done")

    assert video.asked[-1].question == "1. A man. 2. {descriptions} {history} - done All in all?"


@pytest.mark.parametrize("bad", ["segment_s: 0.0", "segment_s: 2.0", "min_segment_s: -1.0", "segments_per_summary: 0"])
def test_segment_lengths_that_cannot_be_cut_are_refused(bad):
    key = bad.split(":")[0]
    lines = [bad if line.startswith(f"{key}:") else line for line in LEVELS_YAML.splitlines()]

    with pytest.raises(RecipeError, match=key):
        parse_recipe("\n".join(lines), "my.yaml")
