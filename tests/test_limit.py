"""A first look at some clips, and the full run that goes on from there."""

from __future__ import annotations

import json
import os
import signal
import time

import pyarrow.parquet as pq
import pytest

from framescribe.storage.access import Store
from pipeline.config import UnitConfig
from pipeline.subset import Subset, order_clips, pick_units
from pipeline.units import list_shards, plan_units
from run_pipeline import main
from tests.support.run_fixtures import (
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    make_shard,
    read_tables,
    start_run,
    tiny_clip,
)
from tests.support.shards_fixtures import QUICK, make_tar, webdataset_members, write
from tests.support.talking_engine import TalkingEngine
from transforms.read_clips import ReadClipsConfig, ReadClipsFn


def run(folder, *flags, inputs=None, output="out") -> TalkingEngine:
    """Annotates the shards of a folder and returns the engine that was asked."""
    engine = TalkingEngine(checkpoint_revision())
    named = [str(folder / "shards" / "*.tar")] if inputs is None else inputs
    assert annotate_with(engine, annotate_arguments(folder, named, folder / output, "--canary-every", "0", *flags)) == 0
    return engine


def rows(folder, output="out"):
    """Returns the rows of the tables, but for the part that they came from."""
    return {
        name: [{column: value for column, value in row.items() if column != "unit_id"} for row in table]
        for name, table in read_tables(folder / output).items()
    }


def clip_ids(folder, output="out") -> list[str]:
    return [str(row["clip_id"]) for row in read_tables(folder / output)["clips"]]


def success(folder, output="out"):
    return json.loads((folder / output / "_SUCCESS").read_text())


@pytest.fixture
def shards(tmp_path):
    for name in "ab":
        make_shard(tmp_path / "shards" / f"{name}.tar", num_clips=5, num_broken=1)
    return tmp_path


def test_a_limited_run_takes_the_first_clips_and_says_so_everywhere(shards, capsys):
    run(shards, "--limit", "3")
    assert clip_ids(shards) == ["shards/a/00000", "shards/a/00001", "shards/a/00002"]
    said = capsys.readouterr()
    assert "3 clips in 1 unit: the first 3 of 10 clips" in said.err
    assert "limited: only the first 3 of 10 clips" in said.out
    limited = {"num_clips": 3, "num_listed": 10, "seed": None, "split_s": None}
    limited |= {"where": None, "num_false": 0, "num_null": 0}
    assert success(shards)["limited"] == [limited]
    assert json.loads((shards / "out" / "_framescribe" / "run.json").read_text())["limited"] == limited
    assert "> **Limited:** only the first 3 of 10 clips were annotated." in (shards / "out" / "README.md").read_text()
    (table,) = (shards / "out" / "clips").glob("*.parquet")
    assert pq.read_schema(table).metadata[b"limited"] == b"the first 3 of 10 clips"


def test_a_full_run_goes_on_from_a_limited_one_and_claims_the_whole(shards, capsys):
    first = run(shards, "--limit", "4")
    second = run(shards)
    run(shards, output="whole")
    assert rows(shards) == rows(shards, "whole")
    assert not {clip_id for clip_id, _ in first.asked} & {clip_id for clip_id, _ in second.asked}
    assert "limited:" not in capsys.readouterr().out.splitlines()[-1]
    assert success(shards)["limited"] == []
    assert "Limited" not in (shards / "out" / "README.md").read_text()
    (table,) = (shards / "out" / "clips").glob("*.parquet")
    assert b"limited" not in (pq.read_schema(table).metadata or {})


def test_a_sample_grows_to_a_larger_one_and_to_all_and_nothing_is_asked_twice(shards):
    engines = [run(shards, *flags) for flags in (["--sample", "3"], ["--sample", "6"], [])]
    run(shards, output="whole")
    assert rows(shards) == rows(shards, "whole")
    asked = [question for engine in engines for question in engine.asked]
    assert sorted(asked) == sorted({*asked})


def test_a_limited_run_that_lost_a_part_on_the_way_goes_on_too(shards):
    run(shards, "--sample", "6", "--clips-per-unit", "1")
    parts = sorted((shards / "out" / "_framescribe" / "parts").glob("*.parquet"))
    parts[-1].unlink()  # as if the run had been killed before its last unit
    (shards / "out" / "_SUCCESS").unlink()
    run(shards, "--sample", "6", "--clips-per-unit", "1")
    parts[0].unlink()
    run(shards)
    run(shards, output="whole")
    assert rows(shards) == rows(shards, "whole")


@pytest.mark.slow
def test_a_limited_run_that_is_killed_is_gone_on_with_by_the_full_run(tmp_path):
    shard = make_shard(tmp_path / "shards" / "a.tar", num_clips=8)
    flags = ("--clips-per-unit", "1", "--sample", "6")
    killed = start_run(annotate_arguments(tmp_path, [shard], tmp_path / "out", *flags))
    parts = tmp_path / "out" / "_framescribe" / "parts"
    while killed.poll() is None and not list(parts.glob("*.parquet")):
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    for output in ("out", "whole"):
        assert start_run(annotate_arguments(tmp_path, [shard], tmp_path / output)).wait() == 0
    assert rows(tmp_path) == rows(tmp_path, "whole")


def test_a_sample_depends_on_seed_and_clip_ids_alone(tmp_path):
    videos = [write(tmp_path / "v" / f"{number:02d}.mp4", tiny_clip(number)) for number in range(12)]
    for output, inputs, seed in (("a", videos, "0"), ("b", videos[::-1], "0"), ("c", videos, "1")):
        run(tmp_path, "--sample", "4", "--seed", seed, "--clips-per-unit", "12", inputs=inputs, output=output)
    assert clip_ids(tmp_path, "a") == clip_ids(tmp_path, "b")
    assert clip_ids(tmp_path, "a") != clip_ids(tmp_path, "c")
    assert "a sample of 4 of 12 clips (seed 1)" in (tmp_path / "c" / "README.md").read_text().replace("\\", "")


def test_more_than_there_is_takes_all_and_is_not_limited(shards, capsys):
    run(shards, "--limit", "2000")
    assert success(shards)["limited"] == []
    assert "10 clips in 4 units: all there are, 2,000 were asked for" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--limit", "--sample"])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many"])
def test_a_number_of_no_clips_is_refused_in_one_line(tmp_path, capsys, flag, value):
    with pytest.raises(SystemExit) as ended:
        main(["annotate", "--input", str(tmp_path), "--output", str(tmp_path / "out"), flag, value])
    assert ended.value.code == 2
    assert "wanted a whole number of at least 1" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flags", [["--limit", "2"], ["--sample", "2"], ["--sample", "8", "--seed", "5"]])
def test_a_limit_that_would_take_finished_clips_out_of_the_tables_is_refused(shards, capsys, flags):
    run(shards, "--sample", "5")
    before = rows(shards)
    arguments = annotate_arguments(shards, [str(shards / "shards" / "*.tar")], shards / "out", *flags)
    assert annotate_with(TalkingEngine(checkpoint_revision()), arguments) == 1
    said = capsys.readouterr().err
    assert "holds clips of an earlier start (a sample of 5 of 10 clips (seed 0)) that would leave the tables" in said
    assert rows(shards) == before


@pytest.mark.parametrize("flags", [["--limit", "5"], ["--sample", "5"]])
def test_windows_count_as_clips_and_the_full_run_asks_only_for_the_others(tmp_path, flags):
    long = [str(path) for path in ("demo/clips/01_left.mp4", "demo/clips/02_right_up.mp4", "demo/clips/03_up.mp4")]
    split = ("--split-seconds", "1")
    first = run(tmp_path, *split, *flags, inputs=long)
    assert len(clip_ids(tmp_path)) == 5
    assert all("@" in clip_id for clip_id in clip_ids(tmp_path))
    second = run(tmp_path, *split, inputs=long)
    run(tmp_path, *split, inputs=long, output="whole")
    assert rows(tmp_path) == rows(tmp_path, "whole")
    assert not {clip_id for clip_id, _ in first.asked} & {clip_id for clip_id, _ in second.asked}


def test_a_sample_of_windows_takes_one_of_each_video_before_a_second_of_any(tmp_path):
    long = [str(path) for path in ("demo/clips/01_left.mp4", "demo/clips/02_right_up.mp4", "demo/clips/03_up.mp4")]
    run(tmp_path, "--split-seconds", "1", "--sample", "3", inputs=long)
    assert len({clip_id.partition("@")[0] for clip_id in clip_ids(tmp_path)}) == 3


def make_inputs(folder, kind) -> list[str]:
    """Writes eight videos as shards of a kind; of `groups`, two lie under each key."""
    members = webdataset_members(8)
    if kind == "files":
        return [write(folder / "v" / name, content) for name, content in members if name.endswith(".mp4")]
    if kind == "groups":
        members = [(f"{number // 2}.{number % 2}.mp4", b"v" * (100 + number)) for number in range(8)]
    if kind == "manifest":
        videos = make_inputs(folder, "files")
        return [write(folder / "m.jsonl", "".join(json.dumps({"video": video}) + "\n" for video in videos))]
    name, mode = ("s.tar.gz", "w:gz") if kind == "tar.gz" else ("s.tar", "w")
    return [write(folder / name, make_tar(members, mode))]


@pytest.mark.parametrize("kind", ["files", "tar", "groups", "tar.gz", "manifest"])
@pytest.mark.parametrize("seed", [None, 3])
def test_of_every_kind_of_shard_exactly_the_picked_clips_are_read(tmp_path, kind, seed):
    store = Store({}, QUICK)
    shards = list_shards(store, make_inputs(tmp_path, kind), UnitConfig(max_clips=3))
    units = pick_units(store, shards, Subset(3, seed), UnitConfig(max_clips=3))
    read = [one for unit in units for one in ReadClipsFn(ReadClipsConfig(QUICK)).process(unit)]
    every = [
        one.ref.clip_id
        for listed in shards
        for unit in listed.units
        for one in ReadClipsFn(ReadClipsConfig(QUICK)).process(unit)
        if hasattr(one, "ref")
    ]
    picked = [every[position] for _, position in order_clips(shards, 3, seed)]
    assert sorted(one.ref.clip_id for one in read if hasattr(one, "ref")) == sorted(picked)
    assert sum(unit.num_clips for unit in units) == 3


def test_units_of_a_limited_run_are_those_of_the_full_run_where_they_hold_the_same(tmp_path):
    shard = write(tmp_path / "s.tar", make_tar(webdataset_members(8)))
    config = UnitConfig(max_clips=3)
    limited = pick_units(Store({}, QUICK), list_shards(Store({}, QUICK), [shard], config), Subset(7), config)
    assert [unit.unit_id for unit in limited[:2]] == [unit.unit_id for unit in plan_units([shard], config)[:2]]
