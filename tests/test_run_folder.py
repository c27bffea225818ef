"""A run in its output folder: started, gone on with, refused or overwritten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framescribe.publish.publish import publish
from framescribe.storage.journal import DamagedRunError, OtherRunError, list_done_units, read_run
from framescribe.storage.output import open_output, part_name
from framescribe.storage.plan import PlannedUnit, Source, read_plan
from pipeline.checks import check_same_settings, describe_difference
from tests.support.output_fixtures import (
    RUN_RECORD,
    commit,
    make_annotation,
    make_units,
    memory_output,
    overwrite_run,
    plan_start,
    start_run,
)

SHARD = (Source("s3://bucket/shards/000.tar", ""),)
OTHER_RUN = replace(RUN_RECORD, fingerprint="beef", settings={"sampling": {"max_frames": 32}, "recipe": "detailed"})


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path):
    return {"local": str(tmp_path / "out"), "memory": memory_output()}[request.param]


def test_a_new_run_is_recorded_with_all_its_units_to_do(output):
    store, units = open_output(output), make_units("one", "two")
    started = start_run(store, RUN_RECORD, units)
    assert (started.todo, len(started.units), started.num_done) == (tuple(units), 2, 0)
    assert read_run(store) == RUN_RECORD
    assert read_plan(store) == [
        PlannedUnit("one", "000", 0, 3, 1000, SHARD),
        PlannedUnit("two", "000", 3, 6, 1000, SHARD),
    ]


def test_a_rerun_does_only_the_units_without_a_part(output):
    store, units = open_output(output), make_units("one", "two", "three")
    start_run(store, RUN_RECORD, units)
    commit(output, "two", [make_annotation("a", "two")])
    started = start_run(store, RUN_RECORD, units)
    assert [unit.unit_id for unit in started.todo] == ["one", "three"]
    assert started.num_done == 1


def test_a_rerun_with_more_inputs_adds_to_the_plan(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    commit(output, "one", [make_annotation("a", "one")])
    started = start_run(store, RUN_RECORD, make_units("one", "two"))
    assert [unit.unit_id for unit in started.todo] == ["two"]
    assert [unit.unit_id for unit in read_plan(store)] == ["one", "two"]


def test_a_rerun_with_other_shards_only_keeps_the_plan_of_the_first(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    start_run(store, RUN_RECORD, [replace(make_units("two")[0], shard_id="001")])
    assert [unit.unit_id for unit in read_plan(store)] == ["one", "two"]


def test_a_shard_that_changed_is_planned_anew_and_its_old_parts_are_outdated(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one", "two"))
    commit(output, "one", [make_annotation("a", "one")])
    commit(output, "two", [make_annotation("b", "two")])
    started = start_run(store, RUN_RECORD, make_units("one", "two-longer"))
    assert ([unit.unit_id for unit in started.todo], len(started.outdated)) == (["two-longer"], 1)
    assert [unit.unit_id for unit in started.replaced] == ["two"]
    assert [unit.unit_id for unit in read_plan(store)] == ["one", "two-longer"]
    assert start_run(store, RUN_RECORD, make_units("one", "two-longer")).replaced == ()
    assert start_run(store, RUN_RECORD, make_units("one", "two")).todo == ()


def test_the_same_start_again_adds_no_plan(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    start_run(store, RUN_RECORD, make_units("one"))
    assert len(store.list_files("_framescribe/plan")) == 1


def test_more_to_do_takes_the_mark_of_success_away(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    commit(output, "one", [make_annotation("a", "one")])
    publish(output)
    start_run(store, RUN_RECORD, make_units("one"))
    assert "_SUCCESS" in store.list_files("")
    start_run(store, RUN_RECORD, make_units("one", "two"))
    assert "_SUCCESS" not in store.list_files("")


def test_other_settings_are_refused_with_the_difference_and_nothing_is_changed(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    with pytest.raises(OtherRunError, match=r"sampling\.max_frames: 64 -> 32\n"):
        start_run(store, OTHER_RUN, make_units("two"))
    assert read_run(store) == RUN_RECORD
    assert [unit.unit_id for unit in read_plan(store)] == ["one"]


def test_settings_are_checked_before_anything_is_planned(output):
    check_same_settings(plan_start(open_output(output), RUN_RECORD, []))
    start_run(open_output(output), RUN_RECORD, [])
    check_same_settings(plan_start(open_output(output), replace(RUN_RECORD, versions={"framescribe": "0.2.0"}), []))


def test_parts_without_a_record_of_their_settings_are_refused(output):
    commit(output, "one", [make_annotation("a", "one")])
    with pytest.raises(OtherRunError, match=r"no run\.json"):
        start_run(open_output(output), RUN_RECORD, make_units("one"))


def test_overwriting_removes_the_parts_the_plan_and_the_tables_of_the_old_run(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    commit(output, "one", [make_annotation("a", "one")])
    publish(output)
    store.put("qa/notes.txt", b"mine")
    started = overwrite_run(store, OTHER_RUN, make_units("two"))
    assert [unit.unit_id for unit in started.todo] == ["two"]
    assert (read_run(store), list_done_units(store)) == (OTHER_RUN, [])
    assert [unit.unit_id for unit in read_plan(store)] == ["two"]
    assert [store.list_files(folder) for folder in ("captions", "qa", "")] == [[], ["notes.txt"], ["README.md"]]


OWN_NAME = "clips/clips-00000-of-00001.parquet"


def test_overwriting_keeps_the_users_own_parquet_beside_the_tables(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    commit(output, "one", [make_annotation("a", "one")])
    publish(output)
    store.put("clips/mine.parquet", b"mine")
    overwrite_run(store, OTHER_RUN, make_units("two"))
    assert store.list_files("clips") == ["mine.parquet"]


def test_overwriting_where_no_run_is_recorded_removes_nothing(output):
    store = open_output(output)
    for name in ("captions/a.parquet", "clips/clips-7.parquet", "_SUCCESS"):
        store.put(name, b"mine")
    overwrite_run(store, RUN_RECORD, [])
    assert [store.read(name) for name in ("captions/a.parquet", "clips/clips-7.parquet", "_SUCCESS")] == [b"mine"] * 3


@pytest.mark.parametrize("start", [start_run, overwrite_run])
def test_a_file_of_no_run_that_publishing_would_replace_is_refused(output, start):
    store = open_output(output)
    store.put(OWN_NAME, b"mine")
    with pytest.raises(OtherRunError, match=rf"{OWN_NAME} has the name of one of our tables.*another --output"):
        start(store, RUN_RECORD, make_units("one"))
    assert (store.read(OWN_NAME), read_run(store)) == (b"mine", None)


def test_overwriting_removes_a_run_whose_record_is_damaged(output):
    store = open_output(output)
    store.put("_framescribe/run.json", b"{")
    store.put(OWN_NAME, b"old")
    overwrite_run(store, RUN_RECORD, [])
    assert (read_run(store), store.list_files("clips")) == (RUN_RECORD, [])


def test_a_damaged_record_is_an_error_that_says_what_to_do(output):
    store = open_output(output)
    store.put("_framescribe/run.json", b'{"finger')
    with pytest.raises(DamagedRunError, match=r"run.json is damaged.*--overwrite"):
        read_run(store)


def test_a_start_removes_what_a_killed_writer_left(tmp_path):
    start_run(open_output(str(tmp_path)), RUN_RECORD, make_units("one"))
    leftover = tmp_path / "_framescribe/parts" / f".one.parquet.{'0' * 32}.tmp"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    assert list_done_units(open_output(str(tmp_path))) == []
    start_run(open_output(str(tmp_path)), RUN_RECORD, make_units("one"))
    assert not leftover.exists()


def test_a_long_prompt_is_shown_where_it_differs():
    before = replace(RUN_RECORD, prompts={"a": "same " * 100 + "before"})
    after = replace(RUN_RECORD, prompts={"a": "same " * 100 + "after"})
    (line,) = describe_difference(before, after)
    assert line == 'prompts.a: ...same same same same before" -> ...same same same same after"'


def test_a_setting_that_is_new_or_gone_is_shown_as_not_set():
    after = replace(RUN_RECORD, settings={"recipe": "detailed", "sampling": {"max_frames": 64, "fps": 2}})
    assert describe_difference(RUN_RECORD, after) == ["sampling.fps: (not set) -> 2"]


def test_another_fingerprint_of_the_same_settings_is_shown_too():
    (line,) = describe_difference(RUN_RECORD, replace(RUN_RECORD, fingerprint="beef"))
    assert line.startswith("fingerprint: f00d -> beef")


@pytest.mark.parametrize("unit_id", ["", "../a", "a/b", "a\\b", ".hidden", "x" * 201])
def test_a_unit_id_that_is_no_file_name_is_refused(unit_id):
    with pytest.raises(ValueError, match="is no file name"):
        part_name(unit_id)


def test_a_file_in_the_folder_of_parts_that_is_no_part_is_not_a_done_unit(tmp_path):
    Path(tmp_path, "_framescribe/parts").mkdir(parents=True)
    Path(tmp_path, "_framescribe/parts/notes.txt").write_text("mine")
    assert list_done_units(open_output(str(tmp_path))) == []


def test_a_plan_that_is_given_up_and_taken_again_is_the_plan():
    store = open_output(memory_output())
    one, two = make_units("a", "b"), [replace(unit, unit_id=f"{unit.unit_id}-cut") for unit in make_units("a", "b")]
    for units in (one, two, one):
        start_run(store, RUN_RECORD, units)
    assert [unit.unit_id for unit in read_plan(store)] == ["a", "b"]


def test_the_same_plan_again_is_not_written_again():
    store = open_output(memory_output())
    for _ in range(3):
        start_run(store, RUN_RECORD, make_units("a", "b"))
    assert len(store.list_files("_framescribe/plan")) == 1
