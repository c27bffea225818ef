"""Two runs on one output at once, and outputs that are removed while a run is at work, with real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from framescribe.publish.publish import publish
from framescribe.storage.journal import OtherRunError, commit_part, record_end, record_start
from framescribe.storage.output import open_output
from framescribe.storage.retries import StoreError
from schemas.part_rows import build_part
from tests.faults.moments import Moment, OnSight
from tests.faults.warm import fork_run
from tests.support.output_fixtures import RUN, RUN_RECORD, commit, make_annotation, make_failed, make_units
from tests.support.run_fixtures import annotate_arguments, find_hidden, make_shard, read_tables
from transforms.read_clips import SkipCommitted

IN_ITS_PUBLISH = OnSight("_framescribe/.framescribe-scratch-*")
FIRST_PART = OnSight("_framescribe/parts/*.parquet")
HOLD_TURN = """
import sys, time
from framescribe.storage.output import open_output
with open_output(sys.argv[1]).turn():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-writers")
    make_shard(folder / "shards" / "a.tar", 8, num_broken=1)
    make_shard(folder / "shards" / "b.tar", 6)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The tables of a run of both shards that nothing happened to."""
    assert end(start(folder, "undisturbed", "a", "b")) == 0
    return read_tables(folder / "undisturbed")


def start(folder: Path, output: str, *shards: str, flags: tuple[str, ...] = ()) -> BaseProcess:
    inputs = [str(folder / "shards" / f"{name}.tar") for name in shards]
    return fork_run(annotate_arguments(folder, inputs, folder / output, *flags), folder / f"{output}.log")


def end(run: BaseProcess) -> int | None:
    run.join()
    return run.exitcode


def stop_at(run: BaseProcess, moment: Moment, output: Path) -> None:
    """Suspends a run at a moment, as Ctrl-Z does, or a laptop that is closed."""
    while True:
        while not moment(output):
            assert run.is_alive(), "the run ended before its moment"
            time.sleep(0.001)
        os.kill(run.pid, signal.SIGSTOP)
        if not OnSight("_framescribe/parts/.*.tmp")(output):
            return
        go_on(run)  # it was in the middle of a commit: a moment later
        time.sleep(0.01)


def go_on(run: BaseProcess) -> None:
    os.kill(run.pid, signal.SIGCONT)


def read_success(output: Path) -> dict[str, object]:
    return json.loads((output / "_SUCCESS").read_text())


def other_part(unit_id: str = "one"):
    return build_part(unit_id, [make_failed("a", unit_id)], RUN)


def test_an_output_that_is_removed_in_the_middle_is_no_success(folder):
    output = folder / "removed"
    run = start(folder, "removed", "a", "b")
    stop_at(run, FIRST_PART, output)
    shutil.rmtree(output)
    go_on(run)
    assert end(run) == 1
    assert not (output / "_SUCCESS").exists()
    assert "removed, or started anew, while this run was at work" in (folder / "removed.log").read_text()


def test_parts_that_are_removed_in_the_middle_are_missed(folder, undisturbed):
    output = folder / "parts-removed"
    run = start(folder, "parts-removed", "a", "b")
    stop_at(run, OnSight("_framescribe/parts/*.parquet", 2), output)
    [part.unlink() for part in (output / "_framescribe/parts").glob("*.parquet")]
    go_on(run)
    assert end(run) == 1
    assert "units of this start have no part" in (folder / "parts-removed.log").read_text()
    assert not (output / "_SUCCESS").exists()
    assert end(start(folder, "parts-removed", "a", "b")) == 0
    assert read_tables(output) == undisturbed


def test_a_run_suspended_in_its_publish_does_not_take_back_what_another_published(folder, undisturbed):
    output = folder / "suspended"
    suspended = start(folder, "suspended", "a")
    stop_at(suspended, IN_ITS_PUBLISH, output)
    assert end(start(folder, "suspended", "a", "b")) == 0
    go_on(suspended)
    assert end(suspended) == 0
    assert read_tables(output) == undisturbed
    assert read_success(output)["num_clips"] == 14
    assert find_hidden(output) == []


def test_a_run_is_no_success_while_another_start_has_planned_more(folder, undisturbed):
    output = folder / "planned"
    first = start(folder, "planned", "a")
    stop_at(first, FIRST_PART, output)
    second = start(folder, "planned", "a", "b")
    while not OnSight("_framescribe/plan/*.parquet", 2)(output):
        time.sleep(0.001)
    second.kill()
    second.join()
    go_on(first)
    assert end(first) == 0
    assert "units are done: no _SUCCESS yet" in (folder / "planned.log").read_text()
    assert not (output / "_SUCCESS").exists()
    assert end(start(folder, "planned", "b")) == 0
    assert read_tables(output) == undisturbed


def test_of_two_recipes_started_at_once_on_an_empty_output_only_one_ends_well(folder):
    both = [start(folder, "recipes", "a", flags=("--num-frames", number)) for number in ("4", "3")]
    assert sorted(end(run) for run in both) == [0, 1]
    assert read_success(folder / "recipes")["num_clips"] == 8


def test_a_run_that_was_overwritten_while_it_was_suspended_leaves_the_other_run_alone(folder):
    output = folder / "overwritten"
    old = start(folder, "overwritten", "a")
    stop_at(old, FIRST_PART, output)
    assert end(start(folder, "overwritten", "a", flags=("--num-frames", "3", "--overwrite"))) == 0
    published = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    go_on(old)
    assert end(old) == 1
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == published


def test_an_output_without_a_planned_unit_is_no_success(tmp_path):
    record_start(open_output(str(tmp_path)), RUN_RECORD, None)
    with pytest.raises(ValueError, match="plans no unit"):
        publish(str(tmp_path))
    assert not (tmp_path / "_SUCCESS").exists()


def test_success_lists_a_digest_of_every_part_it_was_built_from(folder, undisturbed):
    output = folder / "undisturbed"
    parts = sorted((output / "_framescribe/parts").glob("*.parquet"))
    sums = subprocess.run(["sha256sum", *parts], capture_output=True, text=True, check=True).stdout.split("\n")
    wanted = {Path(line[66:]).stem: line[:64] for line in sums if line}
    assert read_success(output)["parts"] == wanted


def test_a_part_that_is_there_is_not_replaced_by_a_worker_that_comes_late(tmp_path):
    commit(str(tmp_path), "one", [make_annotation("a", "one")])
    before = (tmp_path / "_framescribe/parts/one.parquet").read_bytes()
    assert not commit_part(open_output(str(tmp_path)), "one", other_part(), RUN.fingerprint)
    assert (tmp_path / "_framescribe/parts/one.parquet").read_bytes() == before


def test_a_retried_unit_replaces_the_part_that_it_was_made_from_and_no_other(tmp_path):
    store, name = open_output(str(tmp_path)), "_framescribe/parts/one.parquet"
    commit(str(tmp_path), "one", [make_failed("a", "one")])
    seen = store.version(name)
    mended = build_part("one", [make_annotation("a", "one")], RUN)
    assert commit_part(store, "one", mended, RUN.fingerprint, seen)
    assert not commit_part(store, "one", other_part(), RUN.fingerprint, seen)
    assert store.read(name) == (tmp_path / name).read_bytes() != b""
    assert store.version(name) != seen


def test_a_part_that_a_worker_of_an_overwritten_run_left_is_replaced(tmp_path):
    store = open_output(str(tmp_path))
    record_start(store, RUN_RECORD, None)
    old = build_part("one", [make_annotation("a", "one")], RUN)
    commit_part(store, "one", old.replace_schema_metadata({"fingerprint": "beef"}), "f00d")
    assert commit_part(store, "one", old, "f00d")
    with pytest.raises(OtherRunError, match="settings by now"):
        commit_part(store, "one", old.replace_schema_metadata({"fingerprint": "beef"}), "beef")


def test_a_unit_that_has_its_part_passes_no_more(tmp_path):
    one, two = make_units("one", "two")
    commit(str(tmp_path), "one", [make_annotation("a", "one")])
    skip = SkipCommitted(str(tmp_path), RUN.fingerprint)
    skip.setup()
    assert [*skip.process(one), *skip.process(two)] == [two]
    other = SkipCommitted(str(tmp_path), "beef")
    other.setup()
    assert list(other.process(one)) == [one]


def test_a_turn_that_a_process_does_not_end_is_refused_with_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr("framescribe.storage.output.TURN_PATIENCE_S", 0.3)
    holder = subprocess.Popen([sys.executable, "-c", HOLD_TURN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match=f"process {holder.pid} on .* does not come to an end"):
        open_output(str(tmp_path)).turn().__enter__()
    holder.kill()
    holder.wait()
    with open_output(str(tmp_path)).turn() as has_turn:
        assert has_turn()
        shutil.rmtree(tmp_path / "_framescribe")
        assert not has_turn()


def test_the_end_of_a_run_is_recorded_only_where_it_still_is(tmp_path):
    store = open_output(str(tmp_path))
    with pytest.raises(OtherRunError, match="holds no run any more"):
        record_end(store, RUN_RECORD)
    assert not (tmp_path / "_framescribe/run.json").exists()
