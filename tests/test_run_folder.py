"""A run in its output folder: started, gone on with, refused or overwritten."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from framescribe.decoding.config import SamplingConfig
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.publish.publish import publish
from framescribe.recipes import load_recipe
from framescribe.storage.journal import (
    DamagedRunError,
    OtherRunError,
    commit_part,
    list_done_units,
    list_set_aside,
    read_run,
    record_end,
    record_start,
    set_part_aside,
)
from framescribe.storage.output import OutputStore, open_output, part_name
from framescribe.storage.plan import PlannedUnit, Source, add_to_plan, read_plan
from framescribe.storage.retries import StoreError
from pipeline.checks import check_same_settings, describe_difference
from pipeline.config import RunConfig
from pipeline.start import AnnotateRequest, inspect
from pipeline.start import commit as commit_start
from schemas.part_rows import build_part
from schemas.records import InputKind
from tests.support.output_fixtures import (
    RUN,
    RUN_RECORD,
    commit,
    make_annotation,
    make_failed,
    make_units,
    memory_output,
    overwrite_run,
    plan_start,
    start_run,
)
from tests.support.run_fixtures import CHECKPOINT

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
    again = start_run(store, RUN_RECORD, make_units("one", "two"))
    assert (again.todo, again.outdated) == ((), frozenset())


def test_the_same_start_again_adds_no_plan(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one", "two"))
    start_run(store, RUN_RECORD, make_units("one", "two")[::-1])
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


def test_a_start_that_another_one_overtook_goes_on_with_the_same_settings_and_no_others(output):
    store = open_output(output)
    same, other = plan_start(store, RUN_RECORD, make_units("one")), plan_start(store, OTHER_RUN, make_units("two"))
    for plan in (same, other):
        plan.look_up_rest()
    start_run(store, RUN_RECORD, make_units("three"))
    commit_start(same)
    with pytest.raises(OtherRunError, match="holds a run with other settings by now"):
        commit_start(other)
    assert read_run(store) == RUN_RECORD
    assert "two" not in [unit.unit_id for unit in read_plan(store)]


def test_of_two_that_overwrite_at_the_same_moment_the_later_is_refused(output, monkeypatch):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    another = replace(RUN_RECORD, fingerprint="cafe")

    def look_while_another_starts(found):
        assert record_start(found, another, found.version("_framescribe/run.json"))
        return False

    monkeypatch.setattr("pipeline.start.holds_run", look_while_another_starts)
    with pytest.raises(OtherRunError, match="another run was started .* at the same moment"):
        overwrite_run(store, OTHER_RUN, make_units("two"))
    assert read_run(store) == another


def test_what_was_set_aside_is_taken_over_by_the_next_start_and_removed_by_an_overwriting_one(output):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    commit(output, "one", [make_annotation("a", "one")])
    set_part_aside(store, "one")
    assert (list_done_units(store), list_set_aside(store)) == ([], ["one"])
    assert len(plan_start(store, RUN_RECORD, make_units("one")).reusable) == 1
    store.put("_framescribe/parts/notes.txt", b"mine")
    assert overwrite_run(store, RUN_RECORD, make_units("one")).reusable == ()
    assert (list_set_aside(store), store.list_files("_framescribe/parts")) == ([], ["notes.txt"])


def test_a_part_that_cannot_be_set_aside_stays_where_it_is(output, monkeypatch):
    store = open_output(output)
    commit(output, "one", [make_annotation("a", "one")])

    def refuse(store, name, payload):
        raise StoreError("full")

    with monkeypatch.context() as patched:
        patched.setattr(OutputStore, "put", refuse)
        with pytest.raises(StoreError):
            set_part_aside(store, "one")
    assert list_done_units(store) == ["one"]


def test_the_end_of_a_run_is_recorded_though_another_start_of_it_writes_at_the_same_time(output, monkeypatch):
    store = open_output(output)
    record_start(store, RUN_RECORD, None)
    version, ended = OutputStore.version, replace(RUN_RECORD, counters={"clips": 7})
    others = [replace(RUN_RECORD, versions={"framescribe": "0.1.1"})]

    def look_before_another_writes(store, name):
        seen = version(store, name)
        if others:
            assert record_start(store, others.pop(), seen)
        return seen

    monkeypatch.setattr(OutputStore, "version", look_before_another_writes)
    record_end(store, ended)
    assert read_run(store) == ended


def test_a_part_of_an_overwritten_run_that_a_third_worker_replaces_first_stays_as_that_one_wrote_it(output):
    store = open_output(output)
    record_start(store, RUN_RECORD, None)
    part = build_part("one", [make_annotation("a", "one")], RUN)
    late = build_part("one", [make_failed("a", "one")], RUN)
    commit_part(store, "one", part.replace_schema_metadata({"fingerprint": "beef"}), "beef")
    assert commit_part(store, "one", part, RUN.fingerprint)
    assert not commit_part(store, "one", late, RUN.fingerprint)


def inspect_here(output: str, runner: str = "DirectRunner", dtype: str = "auto"):
    config = RunConfig(output, EngineConfig("g9", dtype=dtype), load_recipe("model_card"), SamplingConfig())
    return inspect(AnnotateRequest(config, inputs=(), runner=runner))


def test_workers_elsewhere_get_places_they_find_and_the_image_size_of_the_model(tmp_path, monkeypatch):
    (tmp_path / "g9").symlink_to(CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    config = inspect_here("out").config
    assert (config.output, config.engine.model) == (str(tmp_path / "out"), str(tmp_path / "g9"))
    assert config.sampling.image_size == 126


def test_what_auto_comes_to_is_known_where_the_start_is_the_worker(tmp_path, monkeypatch):
    (tmp_path / "g9").symlink_to(CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    assert (inspect_here("out").dtype, inspect_here("out", "DataflowRunner").dtype) == ("float32", "auto")


@pytest.mark.parametrize("name", ["000000-0123456789abcdef.parquet.bak", "notes.txt", "000001-x.parquet"])
def test_what_others_put_beside_the_plan_is_no_plan(output, name):
    store, units = open_output(output), make_units("one", "two")
    start_run(store, RUN_RECORD, units)
    planned = read_plan(store)
    store.put(f"_framescribe/plan/{name}", b"mine")
    assert read_plan(store) == planned
    start_run(store, RUN_RECORD, [*units, *make_units("one", "two", "three")[2:]])
    assert len(read_plan(store)) == 3


@pytest.mark.parametrize("num_bytes", [0, 100, 1500])
def test_a_damaged_plan_is_named_with_what_to_do(output, num_bytes):
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    name = f"_framescribe/plan/{store.list_files('_framescribe/plan')[0]}"
    whole = store.read(name)
    store.put(name, whole[:num_bytes] + b"x" * (len(whole) - num_bytes) * (num_bytes == 1500))
    with pytest.raises(DamagedRunError, match="plan/0000.*is damaged .* remove it and start"):
        read_plan(store)


def test_a_file_whose_name_is_no_text_is_planned_and_its_unit_carried(output):
    name = os.fsdecode(b"/videos/\xff.mp4")
    unit = replace(make_units("one")[0], kind=InputKind.FILES, files=(name,), clip_ids=("_",), stop=1, metadata=("{}",))
    work = add_to_plan(open_output(output), [unit], {"one"})
    assert work.units == (unit,)
    assert [one.unit_id for one in read_plan(open_output(output))] == ["one"]


def test_a_part_that_was_removed_while_another_was_written_is_written(output, monkeypatch):
    store, create, refusals = open_output(output), OutputStore.create, [False]
    record_start(store, RUN_RECORD, None)
    monkeypatch.setattr(OutputStore, "create", lambda *asked: refusals.pop() if refusals else create(*asked))
    assert commit_part(store, "one", build_part("one", [make_annotation("a", "one")], RUN), RUN.fingerprint)
    assert list_done_units(store) == ["one"]
