"""Clips chosen by an SQL expression over the columns of their rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from run_pipeline import main
from tests.support.run_fixtures import (
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    make_shard,
    read_tables,
    tiny_clip,
)
from tests.support.shards_fixtures import write
from tests.support.talking_engine import TalkingEngine

ROWS = [
    {"video": "v/0.mp4", "duration_s": 5.0, "motion": 0.5, "duplicate_of": None},
    {"video": "v/1.mp4", "duration_s": 5.0, "motion": 0.5, "duplicate_of": "v/0"},
    {"video": "v/2.mp4", "duration_s": 2.0, "motion": 0.5, "duplicate_of": None},
    {"video": "v/3.mp4", "duration_s": 4, "motion": None, "duplicate_of": None},
    {"video": "v/4.mp4", "duration_s": 9.5, "motion": 0.03, "duplicate_of": None},
]
WHERE = "duration_s >= 4 and motion > 0.02 and duplicate_of is null"
KEPT = ["0", "4"]
SAID = f"2 of 5 clips where {WHERE} (left out: 2 false, 1 null)"


def write_csv(rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_parquet(rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def write_videos_in_parquet(rows) -> bytes:
    return write_parquet([{**row, "video": tiny_clip(number)} for number, row in enumerate(rows)])


FORMATS = {
    "m.csv": write_csv,
    "m.csv.gz": lambda rows: gzip.compress(write_csv(rows)),
    "m.jsonl": write_jsonl,
    "m.jsonl.gz": lambda rows: gzip.compress(write_jsonl(rows)),
    "m.json": lambda rows: json.dumps(rows).encode(),
    "m.parquet": write_parquet,
    "with_videos.parquet": write_videos_in_parquet,
}


@pytest.fixture
def folder(tmp_path):
    for number in range(len(ROWS)):
        write(tmp_path / "v" / f"{number}.mp4", tiny_clip(number))
    return tmp_path


@pytest.fixture
def manifest(folder) -> str:
    return write(folder / "m.jsonl", write_jsonl(ROWS))


def annotate(folder, manifest, *flags, output="out") -> TalkingEngine:
    """Annotates the clips of a manifest and returns the engine that was asked."""
    engine = TalkingEngine(checkpoint_revision())
    arguments = annotate_arguments(folder, [manifest], folder / output, "--canary-every", "0", *flags)
    assert annotate_with(engine, arguments) == 0
    return engine


def clips(folder, output="out") -> list[dict]:
    rows = read_tables(folder / output)["clips"]
    return [{column: value for column, value in row.items() if column != "unit_id"} for row in rows]


def refusal(capsys, *arguments) -> str:
    """Returns the one line that a command line is refused with."""
    assert main(["plan", *arguments]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("name", FORMATS)
def test_of_every_manifest_plan_says_what_is_left_out_and_null_apart_from_false(folder, capsys, name):
    manifest = write(folder / name, FORMATS[name](ROWS))
    assert main(["plan", "--input", manifest, "--where", WHERE]) == 0
    said = capsys.readouterr()
    assert f"clips      2 ({SAID})" in said.err
    assert "by the headers of all clips" in said.err


def test_what_is_left_out_stands_in_run_json_in_the_card_and_in_the_last_lines(folder, manifest, capsys):
    annotate(folder, manifest, "--where", WHERE)
    assert [row["clip_id"].rpartition("/")[2] for row in clips(folder)] == KEPT
    said = capsys.readouterr()
    assert f"2 clips in 2 units: {SAID}" in said.err
    assert f"limited: only {SAID}" in said.out
    limited = json.loads((folder / "out" / "_framescribe" / "run.json").read_text())["limited"]
    assert limited == {
        "num_clips": None, "num_listed": 5, "seed": None, "split_s": None, "where": WHERE, "num_false": 2, "num_null": 1
    }  # fmt: skip
    card = (folder / "out" / "README.md").read_text().replace("\\", "")
    assert "**Limited:** only 2 of 5 clips where" in card
    assert "left out: 2 false, 1 null" in card


def test_a_run_without_it_goes_on_from_its_answers_and_ends_as_one_that_never_had_it(folder, manifest):
    engines = [
        annotate(folder, manifest, *flags) for flags in (["--where", WHERE, "--limit", "1"], ["--where", WHERE], [])
    ]
    annotate(folder, manifest, output="whole")
    assert clips(folder) == clips(folder, "whole")
    asked = [question for engine in engines for question in engine.asked]
    assert sorted(asked) == sorted({*asked})


def test_another_expression_that_would_take_finished_clips_out_of_the_tables_is_refused(folder, manifest, capsys):
    annotate(folder, manifest, "--where", "motion > 0.02")
    arguments = annotate_arguments(folder, [manifest], folder / "out", "--canary-every", "0", "--where", "motion > 0.4")
    assert annotate_with(TalkingEngine(checkpoint_revision()), arguments) != 0
    assert "Leave out --limit, --sample and --where" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--limit", "--sample"])
def test_a_number_of_clips_counts_those_that_are_kept(folder, manifest, flag):
    annotate(folder, manifest, "--where", "motion is not null", flag, "3")
    assert len(clips(folder)) == 3
    assert "3" not in [row["clip_id"].rpartition("/")[2] for row in clips(folder)]


def test_windows_of_kept_videos_are_all_taken(folder, capsys):
    windows = [{"video": "v/0.mp4", "spans": [[0, 0.1], [0.1, 0.2]], "score": score} for score in (1, 9)]
    windows[1]["video"] = "v/1.mp4"
    manifest = write(folder / "w.jsonl", write_jsonl(windows))
    flags = ["--input", manifest, "--columns", "windows=spans", "--where", "score > 5"]
    assert main(["plan", *flags]) == 0
    assert "2 of 4 clips where score > 5" in capsys.readouterr().err


def test_columns_of_a_table_beside_video_files_can_be_named(folder, capsys):
    rows = [{"file_name": row["video"].rpartition("/")[2], "motion": row["motion"]} for row in ROWS]
    write(folder / "v" / "metadata.jsonl", write_jsonl(rows))
    assert main(["plan", "--input", str(folder / "v"), "--where", "motion > 0.1"]) == 0
    assert "3 of 5 clips where motion > 0.1 (left out: 1 false, 1 null)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "num_clips"),
    [("id = '007'", 1), ("big > 5", 1), ("score > 1", 1), ("score is null", 1), ("video like '%2%'", 1)],
)
def test_a_column_of_a_csv_file_is_numbers_where_all_its_cells_are(folder, capsys, where, num_clips):
    table = b"video,id,big,score\nv/0.mp4,007,1234567890123456789,1.5\nv/1.mp4,8a,4,\nv/2.mp4,9,5,.5\n"
    assert main(["plan", "--input", write(folder / "t.csv", table), "--where", where]) == 0
    assert f": {num_clips} of 3 clips where" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("motoin > 0.02 and duration_s > 1", 'column "motoin" not found'),
        ("motoin > 0.02", "columns there: video, duration_s, motion, duplicate_of"),
        ("motion > 0.02; drop table clips", "more than one statement"),
        ("avg(motion) > 0.02", "WHERE clause cannot contain aggregates"),
        ("row_number() over (order by motion) > 1", "WHERE clause cannot contain window functions"),
        ("motion > (select count(*) from read_csv('/etc/passwd'))", "disabled by configuration"),
        ("exists (select 1 from '/etc/passwd') and motion > 0", "--where"),
        ("motion >", "syntax error"),
        ("motion > 0) or (true", "syntax error"),
        ("motion > 0, true", "single expression"),
        ("duplicate_of > 4", "Cannot compare values of type VARCHAR"),
        ("motion > random()", "says another thing at another time"),
        ("motion > 7", "keeps none of 5 clips: 4 false, 1 null"),
        ("", "--where"),
    ],
)
def test_what_is_no_condition_on_the_columns_is_refused_in_one_line(folder, manifest, capsys, where, wanted):
    line = refusal(capsys, "--input", manifest, "--where", where)
    assert wanted in line
    assert "root:" not in line


def test_inputs_without_columns_are_refused(folder, tmp_path, capsys):
    shard = make_shard(tmp_path / "s.tar", num_clips=1)
    assert "a tar has none" in refusal(capsys, "--input", shard, "--where", "motion > 1")
    assert "columns there: none" in refusal(capsys, "--input", str(folder / "v"), "--where", "motion > 1")


def test_without_duckdb_the_line_says_how_to_install_it(manifest, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "pip install 'framescribe[where]'" in refusal(capsys, "--input", manifest, "--where", WHERE)
