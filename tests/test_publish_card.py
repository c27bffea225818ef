"""The dataset card says what is in the tables, and nothing in it can break out of its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from framescribe.publish.card import OWN_TEXT_MARK, escape, fence, plain_text
from framescribe.publish.publish import publish
from framescribe.recipes.annotation import ScoreStatus
from framescribe.storage.output import open_output
from schemas.tables import TABLES
from tests.support.output_fixtures import (
    RUN_RECORD,
    commit,
    make_annotation,
    make_caption,
    make_failed,
    make_pair,
    make_units,
    start_run,
)


def publish_card(output: Path, outcomes, run=RUN_RECORD, units=("one",)) -> str:
    """Publishes planned units, of which the last is committed now."""
    start_run(open_output(str(output)), run, make_units(*units))
    commit(str(output), units[-1], outcomes)
    publish(str(output))
    return (output / "README.md").read_text()


def test_the_header_declares_every_table(tmp_path):
    header = yaml.safe_load(publish_card(tmp_path, [make_annotation("a"), make_failed("b")]).split("---\n")[1])
    assert [config["config_name"] for config in header["configs"]] == list(TABLES)
    assert [config["config_name"] for config in header["configs"] if config.get("default")] == ["captions"]


def test_the_card_says_what_was_counted_and_who_wrote_it(tmp_path):
    card = publish_card(tmp_path, [make_annotation("a"), make_failed("b")])
    assert "of 1 clips, written by lmms-lab/LLaVA-Video-7B-Qwen2 (revision abc123, recipe detailed)" in card
    assert "| `qa/` | ok | 2 |" in card
    assert "2 QA pairs are consistent" in card
    assert "| no video stream | 1 |" in card
    assert "Please describe this video in detail." in card
    assert "A red ball rolls." in card


def test_the_card_counts_scores_where_nothing_was_asked_again(tmp_path):
    pair = replace(make_pair(), recheck_answer=None, recheck_score=None, is_consistent=None)
    scored = replace(pair, answer_logprob=-0.1, num_answer_tokens=1, score_status=ScoreStatus.OK)
    pairs = (
        replace(scored, is_rotation_consistent=True),
        replace(scored, answer_logprob=-3.0, is_rotation_consistent=False),
        replace(pair, score_status=ScoreStatus.TOO_LONG),
    )
    card = publish_card(tmp_path, [replace(make_annotation("a"), qa_pairs=pairs)])
    assert "2 QA pairs are scored (without scores: too_long 1)" in card
    assert "1 answers have a probability of at least 0.5 for each token" in card
    assert "right letter is the likeliest in all four rotations: 1." in card
    assert "are consistent: asked again" not in card


def test_the_card_says_what_could_be_guessed_without_a_video(tmp_path):
    choice = make_pair()
    yes, no = (replace(choice, kind="open_ended", answer=one, answer_letter=None, options=()) for one in ("Yes.", "no"))
    pairs = (choice, replace(choice, answer_letter="C", giveaway="longest"), yes, yes, no)
    card = publish_card(tmp_path, [replace(make_annotation("a"), qa_pairs=pairs)])
    assert "Answers that open with yes: 2; with no: 1." in card
    assert "Right letters: A 1, C 1." in card
    assert "told by its form (`giveaway`): 1." in card


def test_the_card_says_what_consistency_does_not_show(tmp_path):
    card = publish_card(tmp_path, [make_annotation("a")])
    assert "agreement of the model with itself" in card
    assert "does not show that an answer is right" in card


def test_a_finished_run_is_not_called_unfinished(tmp_path):
    assert "Unfinished" not in publish_card(tmp_path, [make_annotation("a")])


def test_markup_in_a_clip_id_stays_text(tmp_path):
    card = publish_card(tmp_path, [make_annotation("<img src=x>|[a](http://b)")])
    assert r"**&lt;img src=x&gt;\|\[a\]\(http\://b\)**" in card
    assert "<img" not in card


def test_a_caption_cannot_end_its_block(tmp_path):
    annotation = replace(make_annotation("a"), captions=(make_caption("```\n# Not a heading\n````"),))
    card = publish_card(tmp_path, [annotation])
    assert "`````text\n```\n# Not a heading\n````\n`````" in card


def test_what_the_user_wrote_below_the_mark_is_kept(tmp_path):
    card = publish_card(tmp_path, [make_annotation("a")])
    (tmp_path / "README.md").write_text(card.partition(OWN_TEXT_MARK)[0] + OWN_TEXT_MARK + "\n\nCC BY 4.0\n")
    again = publish_card(tmp_path, [make_annotation("b", "two")], units=("one", "two"))
    assert again.endswith(OWN_TEXT_MARK + "\n\nCC BY 4.0\n")
    assert "of 2 clips" in again


def test_a_page_that_was_there_before_is_kept_below_the_card(tmp_path):
    (tmp_path / "README.md").write_text("# My videos\n")
    assert publish_card(tmp_path, [make_annotation("a")]).endswith(OWN_TEXT_MARK + "\n\n# My videos\n")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\nb\x1b[31m", r"a b \[31m"),
        ("x | y", r"x \| y"),
        ("www.example.com", r"www\.example.com"),
        ("me@example.com", r"me\@example.com"),
        ("1. one", r"1\. one"),
        ("- dash", r"\- dash"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("a\u202eb\u200bc", "a b c"),
    ],
)
def test_markup_is_escaped(text, escaped):
    assert escape(text) == escaped


@given(st.text())
def test_no_text_keeps_a_control_character_or_a_second_line(text):
    assert all(letter.isprintable() for letter in plain_text(text))


@given(st.text(alphabet="`~a\n \r\x0b"))
def test_no_text_ends_its_code_block(text):
    first, *lines, last = fence(text).split("\n")
    assert first == f"{last}text"
    assert not any(line.strip().startswith(last) for line in lines)
