"""Parts become flat tables that every reader opens in its plainest call."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import datasets
import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from framescribe.publish.publish import publish
from framescribe.publish.sort import DoubledClipError, index_clips, sort_clips
from framescribe.publish.tables import TableFiles, flatten_clips
from framescribe.recipes.annotation import Status
from framescribe.storage.journal import DamagedRunError
from framescribe.storage.output import open_output
from framescribe.storage.parts import read_parts
from schemas.part_rows import build_part
from schemas.tables import TABLES
from tests.support.output_fixtures import (
    RUN,
    RUN_RECORD,
    commit,
    make_annotation,
    make_caption,
    make_failed,
    make_pair,
    make_units,
    memory_output,
    start_run,
)

# Rows of an output of two units: clips a to d were annotated, with one caption and two QA pairs each; e and f failed.
NUM_ROWS = {"captions": 4, "qa": 8, "clips": 4, "failures": 2}


@pytest.fixture
def output(tmp_path):
    return commit_two_units(str(tmp_path / "out"))


@pytest.fixture(autouse=True)
def offline_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()


def commit_two_units(output: str) -> str:
    start_run(open_output(output), RUN_RECORD, make_units("one", "two"))
    commit(output, "one", [make_annotation("d", "one"), make_annotation("b", "one"), make_failed("f", "one")])
    commit(output, "two", [make_annotation("a", "two"), make_annotation("c", "two"), make_failed("e", "two")])
    return output


def hash_files(folder: str) -> dict[str, str]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_finished_run_is_summarised_and_marked(output):
    published = publish(output)
    assert (published.num_units_done, published.num_units_planned, published.is_complete) == (2, 2, True)
    assert (dict(published.num_rows), published.num_consistent) == (NUM_ROWS, 8)
    assert json.loads(Path(output, "_SUCCESS").read_text())["num_clips"] == 6


def test_an_output_in_a_store_is_published_like_a_local_one(output):
    stored = commit_two_units(memory_output())
    publish(output)
    publish(stored)
    store = fsspec.filesystem("memory")
    of_store = {name: store.cat_file(f"{stored}/{name}") for name in hash_files(output) if name.count("/") == 1}
    assert {Path(name).parent.name for name in of_store} == {*TABLES, "_framescribe"}
    assert of_store == {name: Path(output, name).read_bytes() for name in of_store}


@pytest.mark.parametrize("table", TABLES)
def test_pyarrow_reads_a_table(output, table):
    publish(output)
    rows = pq.read_table(f"{output}/{table}")
    assert (rows.num_rows, rows.schema) == (NUM_ROWS[table], TABLES[table])


@pytest.mark.parametrize("table", TABLES)
def test_pandas_reads_a_table(output, table):
    publish(output)
    assert len(pd.read_parquet(f"{output}/{table}")) == NUM_ROWS[table]


@pytest.mark.parametrize("table", TABLES)
def test_polars_reads_a_table(output, table):
    publish(output)
    assert pl.read_parquet(f"{output}/{table}/*.parquet").height == NUM_ROWS[table]


@pytest.mark.parametrize("table", TABLES)
def test_duckdb_reads_a_table(output, table):
    publish(output)
    assert duckdb.sql(f"select count(*) from '{output}/{table}/*.parquet'").fetchall() == [(NUM_ROWS[table],)]


@pytest.mark.parametrize("table", TABLES)
def test_datasets_reads_a_table_by_its_folder(output, table):
    publish(output)
    assert datasets.load_dataset(f"{output}/{table}")["train"].num_rows == NUM_ROWS[table]


@pytest.mark.parametrize("table", TABLES)
def test_datasets_reads_a_table_by_its_name_in_the_card(output, table):
    publish(output)
    assert datasets.load_dataset(output, table)["train"].num_rows == NUM_ROWS[table]


def test_datasets_reads_the_captions_when_no_table_is_named(output):
    publish(output)
    assert datasets.load_dataset(output)["train"]["text"][0] == "A red ball rolls."


def test_datasets_reads_parquet_files_by_their_folder(output):
    publish(output)
    assert datasets.load_dataset("parquet", data_dir=f"{output}/qa")["train"][0]["options"][0] == "one"


def test_a_table_without_rows_is_read_with_its_columns(tmp_path):
    output = str(tmp_path / "out")
    start_run(open_output(output), RUN_RECORD, make_units("one"))
    commit(output, "one", [make_annotation("a", "one")])
    publish(output)
    assert pl.read_parquet(f"{output}/failures/*.parquet").columns == TABLES["failures"].names
    assert pd.read_parquet(f"{output}/failures").columns.tolist() == TABLES["failures"].names
    assert datasets.get_dataset_config_names(output) == ["captions", "qa", "clips"]


def test_rows_are_sorted_by_clip_id_over_all_units(output):
    publish(output)
    assert pq.read_table(f"{output}/clips")["clip_id"].to_pylist() == ["a", "b", "c", "d"]
    assert pq.read_table(f"{output}/failures")["clip_id"].to_pylist() == ["e", "f"]


def test_captions_and_qa_pairs_keep_their_clip_their_order_and_their_words():
    annotation = replace(
        make_annotation("a"),
        captions=(make_caption("first"), make_caption("second", Status.LENGTH)),
        qa_pairs=(make_pair(), make_pair(Status.EMPTY, is_consistent=None)),
    )
    tables = flatten_clips(build_part("one", [annotation, make_failed("b"), make_annotation("c", num_pairs=0)], RUN))
    captions, qa = tables["captions"].to_pylist(), tables["qa"].to_pylist()
    assert [(row["clip_id"], row["caption_index"], row["text"], row["status"]) for row in captions] == [
        ("a", 0, "first", "ok"),
        ("a", 1, "second", "length"),
        ("c", 0, "A red ball rolls.", "ok"),
    ]
    assert [(row["clip_id"], row["qa_index"], row["status"], row["is_consistent"]) for row in qa] == [
        ("a", 0, "ok", True),
        ("a", 1, "empty", None),
    ]
    assert (captions[0]["start_s"], captions[0]["caption_end_s"], captions[0]["decoder"]) == (1.5, 4.1, "pyav 18.1.0")


def test_an_unfinished_run_publishes_what_is_there_without_a_mark(output):
    start_run(open_output(output), RUN_RECORD, make_units("one", "two", "three"))
    published = publish(output)
    assert (published.num_units_done, published.num_units_planned) == (2, 3)
    assert published.missing_units == ("three",)
    assert not Path(output, "_SUCCESS").exists()
    assert "2 of 3 planned units are done" in Path(output, "README.md").read_text()
    assert pq.read_table(f"{output}/clips").num_rows == 4


def test_a_shard_that_was_cut_anew_is_published_in_its_newest_form(output):
    start_run(open_output(output), RUN_RECORD, make_units("one", "two-longer"))
    commit(output, "two-longer", [make_annotation(clip, "two-longer") for clip in ("a", "c", "e", "g")])
    published = publish(output)
    assert (published.num_units_done, published.num_parts_outdated, published.is_complete) == (2, 1, True)
    assert pq.read_table(f"{output}/clips")["clip_id"].to_pylist() == ["a", "b", "c", "d", "e", "g"]


def test_a_run_that_has_only_been_planned_publishes_empty_tables(tmp_path):
    start_run(open_output(str(tmp_path)), RUN_RECORD, make_units("one"))
    assert set(publish(str(tmp_path)).num_rows.values()) == {0}
    assert pq.read_table(f"{tmp_path}/qa").schema == TABLES["qa"]


def test_publishing_twice_gives_the_same_bytes(output):
    publish(output)
    first = hash_files(output)
    publish(output)
    assert hash_files(output) == first


def test_a_new_publish_removes_the_files_of_an_older_one_and_nothing_else(output):
    stale, foreign = Path(output, "qa/qa-00001-of-00007.parquet"), Path(output, "qa/notes.txt")
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    foreign.write_text("mine")
    publish(output)
    assert sorted(path.name for path in stale.parent.iterdir()) == ["notes.txt", "qa-00000-of-00001.parquet"]


def test_a_clip_in_two_parts_is_an_error_that_names_both(output):
    start_run(open_output(output), RUN_RECORD, [replace(make_units("one-again")[0], shard_id="001")])
    commit(output, "one-again", [make_annotation("b", "one-again")])
    with pytest.raises(DoubledClipError, match=r"'b' is in the parts of two units, 'one' and 'one-again'"):
        publish(output)


def test_a_part_of_other_settings_is_an_error_that_names_it(output):
    start_run(open_output(output), RUN_RECORD, make_units("one", "two", "three"))
    other = build_part("three", [make_annotation("z", "three")], replace(RUN, fingerprint="beef"))
    pq.write_table(other, f"{output}/_framescribe/parts/three.parquet")
    with pytest.raises(DamagedRunError, match=r"three.parquet was made with the settings 'beef'"):
        publish(output)


def test_a_damaged_part_is_an_error_that_names_it(output):
    Path(output, "_framescribe/parts/one.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(DamagedRunError, match=r"one.parquet is damaged"):
        publish(output)


def test_a_failed_publish_leaves_the_older_tables_and_their_mark(output):
    publish(output)
    before = hash_files(output)
    Path(output, "_framescribe/parts/one.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(DamagedRunError, match="damaged"):
        publish(output)
    assert {**hash_files(output), "_framescribe/parts/one.parquet": before["_framescribe/parts/one.parquet"]} == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        publish(str(tmp_path))


def test_clips_that_lie_scattered_over_parts_are_sorted_slice_by_slice(tmp_path):
    units = [f"unit-{number}" for number in range(5)]
    for number, unit in enumerate(units):
        commit(str(tmp_path), unit, [make_annotation(f"c{number + 5 * n:02d}", unit) for n in range(6)])
    store = open_output(str(tmp_path))
    index = index_clips(store, units, RUN.fingerprint, min_slice_rows=20)
    slices = list(sort_clips(read_parts(store, units, RUN.fingerprint), index.slice_starts, tmp_path))
    assert [clips.num_rows for clips in slices] == [5, 5, 5, 5, 5, 5]
    assert [clip for clips in slices for clip in clips["clip_id"].to_pylist()] == [f"c{n:02d}" for n in range(30)]


def test_a_large_table_is_cut_into_evenly_sized_files_however_its_rows_come(tmp_path):
    rows = flatten_clips(build_part("one", [make_annotation(f"c{n}", num_pairs=0) for n in range(10)], RUN))["clips"]
    files = TableFiles(tmp_path, "clips", TABLES["clips"], num_rows=10, rows_a_file=4)
    files.write(rows.slice(0, 1))
    files.write(rows.slice(1, 9))
    files.close()
    assert [path.name for path in files.paths] == [f"clips-0000{n}-of-00003.parquet" for n in range(3)]
    assert [pq.read_metadata(path).num_rows for path in files.paths] == [3, 3, 4]
    assert pq.read_table(tmp_path).equals(rows)


def test_however_many_rows_there_are_no_more_files_are_open_than_a_process_may_have():
    output = memory_output()
    commit(output, "one", [make_annotation(f"{number:04d}", "one", num_pairs=0) for number in range(600)])
    starts = index_clips(open_output(output), ["one"], RUN.fingerprint, min_slice_rows=1).slice_starts
    assert 200 <= len(starts) <= 256
    assert list(starts) == sorted(set(starts))
    assert starts[0] == "0000"


def test_the_very_first_clip_in_two_parts_is_found():
    output = memory_output()
    commit(output, "one", [make_annotation("a", "one"), make_annotation("b", "one")])
    commit(output, "two", [make_annotation("a", "two")])
    with pytest.raises(DoubledClipError, match="clip 'a' is in the parts of two units, 'one' and 'two'"):
        index_clips(open_output(output), ["one", "two"], RUN.fingerprint)


@pytest.mark.parametrize("num_counted", [1, 3])
def test_rows_that_do_not_add_up_to_those_that_were_counted_are_an_error(tmp_path, num_counted):
    files = TableFiles(tmp_path, "failures", TABLES["failures"], num_counted)
    files.write(flatten_clips(build_part("one", [make_failed("a"), make_failed("b")], RUN))["failures"])
    with pytest.raises(AssertionError, match="the rows do not add up"):
        files.close()
