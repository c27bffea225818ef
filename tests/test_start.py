"""A start looks at each thing once, writes nothing before all checks, and hands the job a plan by its address."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest

from framescribe.decoding.config import SamplingConfig
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.recipes import load_recipe
from framescribe.storage.journal import OtherRunError
from framescribe.storage.output import open_output
from framescribe.storage.plan import OpenedWork, PlannedWork, add_to_plan, read_plan, read_slice
from pipeline.config import RunConfig
from pipeline.graph import build_graph
from pipeline.start import AnnotateRequest, StartPlan
from run_pipeline import main
from schemas.records import InputKind, PlanSlice, WorkUnit
from tests.support.output_fixtures import RUN, RUN_RECORD, make_units, memory_output, start_run
from tests.support.run_fixtures import CHECKPOINT, annotate_arguments, annotate_with, checkpoint_revision, make_shard
from tests.support.shards_fixtures import write
from tests.support.talking_engine import TalkingEngine
from transforms.read_clips import ReadUnitsConfig, ReadUnitsFn, TakeUnitsFn

FILES = WorkUnit(
    unit_id="v-000000-000002",
    kind=InputKind.FILES,
    shard="s3://bucket/v",
    shard_id="v",
    start=0,
    stop=2,
    size_bytes=7,
    files=("s3://bucket/v/a.mp4", "s3://bucket/v/größer.mp4"),
    clip_ids=("v/a", "v/größer"),
    metadata=('{"label": "cat"}', "{}"),
    versions=("etag 1", ""),
)
TAR = WorkUnit("s-000000-000003", InputKind.TAR, "gs://b/s.tar", "s", 0, 3, 99, 512, 4096, versions=("etag 2",))


def annotate(folder: Path, *flags: str) -> int:
    if not (folder / "shards").exists():
        make_shard(folder / "shards" / "a.tar", 5)
    arguments = annotate_arguments(folder, [str(folder / "shards")], folder / "out", "--canary-every", "0", *flags)
    return annotate_with(TalkingEngine(checkpoint_revision()), arguments)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_workers_ask_the_hub_for_the_commit_that_the_start_found(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / commit).symlink_to(CHECKPOINT)
    write(repository / "refs" / "main", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = RunConfig(
        output=str(tmp_path / "out"),
        engine=EngineConfig("someone/model"),
        recipe=load_recipe("captions"),
        sampling=SamplingConfig(),
    )
    engine = StartPlan(AnnotateRequest(config, inputs=())).config.engine
    assert (engine.model, engine.revision) == ("someone/model", commit)


@pytest.mark.parametrize("flags", [(), ("--retry-failed",), ("--changed-inputs", "redo")])
def test_each_thing_is_looked_up_once(tmp_path, monkeypatch, flags):
    import pipeline.found
    import pipeline.start

    assert annotate(tmp_path) == 0
    looked_up: Counter[str] = Counter()
    looking = {
        pipeline.start: ("find_checkpoint", "read_model_config", "list_shards"),
        pipeline.found: ("read_run", "list_done_units", "read_plan"),
    }
    names = [(module, name) for module, of_module in looking.items() for name in of_module]

    def spy(module, name):
        real = getattr(module, name)
        return lambda *args, **kwargs: (looked_up.update([name]), real(*args, **kwargs))[1]

    for module, name in names:
        monkeypatch.setattr(module, name, spy(module, name))
    assert annotate(tmp_path, *flags) == 0
    assert looked_up == {name: 1 for _, name in names}


def test_a_plan_of_a_begun_run_says_what_is_done_and_writes_nothing(tmp_path, capsys):
    assert annotate(tmp_path) == 0
    next((tmp_path / "out" / "_framescribe" / "parts").glob("*000003-*")).unlink()
    before = snapshot(tmp_path / "out")
    capsys.readouterr()
    where = ["plan", "--input", str(tmp_path / "shards"), "--clips-per-unit", "3"]
    assert main([*where, "--output", str(tmp_path / "out"), "--split-seconds", "30"]) == 0
    out, err = capsys.readouterr()
    assert [line.split("\t")[-1] for line in out.splitlines()] == ["done", "to do"]
    assert err.splitlines()[0] == "5 clips in 2 units, 1 done before"
    assert "windows of 30 s: 3 in 1 finished unit; the others are known once they are decoded" in err.splitlines()
    assert "clips      5, 3 done before, 2 to do" in err.splitlines()
    assert snapshot(tmp_path / "out") == before
    assert main([*where, "--split-seconds", "30"]) == 0
    assert "windows of 30 s: how many there are is known once the clips are decoded" in capsys.readouterr().err


def test_a_plan_for_an_output_that_is_not_there_makes_none(tmp_path, capsys):
    make_shard(tmp_path / "a.tar", 1)
    assert main(["plan", "--input", str(tmp_path / "a.tar"), "--output", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out").exists()
    assert "1 clip in 1 unit\n" in capsys.readouterr().err


def test_units_are_read_from_the_plan_as_they_were_planned():
    store = open_output(memory_output())
    work = add_to_plan(store, [TAR, FILES], {TAR.unit_id, FILES.unit_id})
    assert ([unit for one in work.slices for unit in read_slice(store, one)], work.units) == ([TAR, FILES], ())


def test_only_units_that_are_to_be_done_are_read_from_the_plan():
    store = open_output(memory_output())
    units = [replace(TAR, unit_id=f"s-{number:06d}") for number in range(600)]
    todo = {units[3].unit_id, units[599].unit_id}
    work = add_to_plan(store, units, todo)
    assert {unit.unit_id for one in work.slices for unit in read_slice(store, one)} == todo
    assert (len(work.slices), work.num_units) == (2, 2)


@pytest.mark.parametrize(
    "unit",
    [
        replace(TAR, shard="https://me:secret@host/s.tar"),
        replace(TAR, shard="https://host/s.tar?sig=secret"),
        replace(FILES, files=("https://host/a.mp4?sig=secret", "b.mp4")),
        replace(FILES, metadata=('{"url": "https://me:secret@host/a"}', "{}")),
    ],
)
def test_credentials_in_addresses_stay_in_the_job_and_out_of_the_plan(tmp_path, unit):
    store = open_output(str(tmp_path))
    work = add_to_plan(store, [unit], {unit.unit_id})
    assert (work.slices, work.units) == ((), (unit,))
    assert not [name for name, content in snapshot(tmp_path).items() if b"secret" in content]
    assert [planned.unit_id for planned in read_plan(store)] == [unit.unit_id]


def test_a_plan_that_an_overwriting_start_removed_ends_the_job_with_the_reason():
    output = memory_output()
    start_run(open_output(output), replace(RUN_RECORD, fingerprint="beef"), make_units("one"))
    gone = PlanSlice("000000-gone.parquet", 0, (0,))
    read = ReadUnitsFn(ReadUnitsConfig(output, "f00d"))
    take = TakeUnitsFn(ReadUnitsConfig(output, "f00d"), PlannedWork((gone,), ()), "start")
    read.setup()
    take.setup()
    with pytest.raises(OtherRunError, match="holds a run with other settings by now"):
        list(read.process(gone))
    with pytest.raises(OtherRunError, match="holds a run with other settings by now"):
        list(take.process((0, [0])))


def test_a_lane_reads_the_units_of_a_job_from_the_plan_and_those_with_credentials_from_the_job():
    store = open_output(memory_output())
    secret = replace(TAR, unit_id="secret", shard="https://host/s.tar?sig=secret")
    units = [*(replace(TAR, unit_id=f"s-{number:06d}", size_bytes=number) for number in range(600)), secret]
    todo = {units[3].unit_id, units[599].unit_id, "secret"}
    opened = OpenedWork(store, add_to_plan(store, units, todo))
    assert opened.sizes == {"s-000003": 3, "s-000599": 599, "secret": TAR.size_bytes}
    assert [opened.read(unit_id) for unit_id in opened.sizes] == [units[600], units[3], units[599]]


@pytest.mark.parametrize("num_lanes", [None, 1000])
def test_a_million_clips_leave_the_job_description_under_a_megabyte(num_lanes):
    units = [
        replace(TAR, unit_id=f"s-{number:06d}", shard=f"s3://bucket/{number}.tar", start=0, stop=32)
        for number in range(31_250)
    ]
    work = add_to_plan(open_output(memory_output()), units, {unit.unit_id for unit in units})
    assert sum(unit.stop - unit.start for unit in units) == 1_000_000
    assert (work.num_units, work.units) == (31_250, ())
    config = RunConfig("out", EngineConfig("model"), load_recipe("model_card"), SamplingConfig())
    pipeline = beam.Pipeline()
    build_graph(pipeline, work, config, RUN, "start", num_lanes)
    assert len(pipeline.to_runner_api().SerializeToString()) < 1_000_000


def test_a_success_that_a_publisher_wrote_while_more_was_planned_is_taken_back(monkeypatch):
    store = open_output(memory_output())

    def plan_while_another_publishes(*arguments):
        store.put("_SUCCESS", b"of fewer units")
        return add_to_plan(*arguments)

    monkeypatch.setattr("pipeline.start.add_to_plan", plan_while_another_publishes)
    start_run(store, RUN_RECORD, make_units("one"))
    assert store.list_files("") == []
