"""The Arrow schemas of the tables, and parts as rows of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pytest

from framescribe.recipes.annotation import ScoreStatus, Status
from schemas.part_rows import build_part, read_outcomes
from schemas.records import ClipRef, KeptCompletion
from schemas.run_columns import RunColumns
from schemas.tables import PART_SCHEMA, TABLES, describe_tables, field_description
from tests.support.output_fixtures import RUN, make_annotation, make_caption, make_failed, make_pair, make_ref

PAGE = Path(__file__).parent.parent / "docs" / "columns.md"
CARRIED_BY_EVERY_ROW = {"clip_id", "source", "member", "start_s", "end_s"} | {
    field.name for field in fields(RunColumns)
}
CARRIED_BY_EVERY_ANSWER = {
    *("status", "finish_reason", "num_prompt_tokens", "num_completion_tokens", "prompt_id", "prompt", "attempt"),
    *("frames_digest", "decoder"),
}


@pytest.mark.parametrize("schema", [PART_SCHEMA, *TABLES.values()])
def test_every_column_says_what_it_holds(schema):
    assert [field.name for field in schema if not field_description(field)] == []


@pytest.mark.parametrize("column", ["captions", "qa_pairs", "completions"])
def test_every_nested_column_says_what_it_holds(column):
    nested = PART_SCHEMA.field(column).type.value_type
    assert [field.name for field in nested if not field_description(field)] == []


@pytest.mark.parametrize("table", TABLES)
def test_every_row_carries_its_clip_and_its_run(table):
    assert set(TABLES[table].names) >= CARRIED_BY_EVERY_ROW


@pytest.mark.parametrize("table", ["captions", "qa"])
def test_every_caption_and_qa_row_carries_how_it_was_asked_and_answered(table):
    assert set(TABLES[table].names) >= CARRIED_BY_EVERY_ANSWER


@pytest.mark.parametrize("table", TABLES)
def test_no_table_has_a_column_twice(table):
    assert len(set(TABLES[table].names)) == len(TABLES[table].names)


def test_a_part_gives_back_the_records_it_was_built_from():
    completions = (
        KeptCompletion(b"0123456789abcdef", (1, 151645), "stop", 3000),
        KeptCompletion(b"fedcba9876543210", (1, 2), "scored", 3000, (-0.5, -1.25)),
    )
    scored = replace(make_pair(), answer_logprob=-0.1, option_probabilities=(0.7, 0.1), score_status=ScoreStatus.OK)
    outcomes = [
        replace(make_annotation("a"), completions=completions, qa_pairs=(make_pair(), scored)),
        make_failed("b"),
        make_annotation("c", num_pairs=0),
    ]
    assert read_outcomes(build_part("unit-0", outcomes, RUN)) == outcomes


def test_the_same_clips_in_another_order_give_the_same_part():
    outcomes = [make_annotation("a"), make_failed("b")]
    assert build_part("unit-0", outcomes, RUN).equals(build_part("unit-0", outcomes[::-1], RUN), check_metadata=True)


def test_a_part_says_which_unit_and_settings_it_is_of():
    part = build_part("unit-0", [make_failed("b")], RUN)
    expected = {b"unit_id": b"unit-0", b"fingerprint": b"f00d", b"format": b"4", b"workers": b"[]", b"sources": b"{}"}
    assert part.schema.metadata == expected


def test_a_unit_without_clips_is_a_part_without_rows():
    assert build_part("unit-0", [], RUN).num_rows == 0


def test_a_part_counts_captions_and_qa_pairs_by_what_they_are_worth():
    captions = (make_caption(), make_caption(status=Status.LOOPED))
    pairs = (make_pair(), make_pair(is_consistent=False), make_pair(Status.EMPTY, is_consistent=None))
    part = build_part("unit-0", [replace(make_annotation("a"), captions=captions, qa_pairs=pairs)], RUN)
    counted = {name: part[name][0].as_py() for name in part.column_names if name.startswith("num_")}
    assert counted == {
        "num_captions": 2,
        "num_captions_ok": 1,
        "num_qa_pairs": 3,
        "num_qa_pairs_ok": 2,
        "num_qa_pairs_consistent": 1,
    }


def test_a_file_name_that_is_no_unicode_is_stored_escaped():
    ref = replace(make_ref("a"), member="clip-\udcff.mp4")
    part = build_part("unit-0", [replace(make_annotation("a"), ref=ref)], RUN)
    assert part["member"].to_pylist() == ["clip-\\udcff.mp4"]


def test_every_field_of_a_clip_is_a_column_of_the_part():
    assert {field.name for field in fields(ClipRef)} - {"source_version"} <= set(PART_SCHEMA.names)  # in its metadata


def test_the_page_has_a_line_for_every_column_of_every_table():
    lines = describe_tables().splitlines()
    assert sum(line.startswith("| `") for line in lines) == sum(len(schema) for schema in TABLES.values())


def test_the_page_is_printed_by_running_the_module():
    printed = subprocess.run([sys.executable, "-m", "schemas.tables"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == describe_tables()


def test_the_page_of_columns_is_what_the_schemas_say():
    assert PAGE.read_text() == describe_tables() + "\n", "run `make docs`"


def test_types_are_written_in_words():
    assert "| `timestamps_s` | list of double |" in describe_tables()
    assert TABLES["qa"].field("is_consistent").type == pa.bool_()
