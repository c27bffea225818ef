"""`--reuse-from`: a run that takes the answers of an earlier one writes the tables of a run that asks everything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.video_files import FPS, encode_frames
from run_pipeline import main
from tests.support.recipes_fixtures import FULL_YAML
from tests.support.run_fixtures import (
    ROOT,
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    find_hidden,
    make_shard,
    read_tables,
    tiny_clip,
)
from tests.support.shards_fixtures import make_tar, write
from tests.support.talking_engine import TalkingEngine

CHANGED_YAML = FULL_YAML.replace("Be brief.", "Be very brief.")
NUM_CLIPS, NUM_RECHECKS = 4, 3 * 2
NUM_ALL = 1 + 3 * 6 + 1  # of a clip: the caption, six questions per type, the second try about speed
DEMO = ROOT / "demo"


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return make_shard(tmp_path_factory.mktemp("inputs") / "shards" / "a.tar", NUM_CLIPS)


@pytest.fixture(scope="module")
def old(tmp_path_factory, shard):
    """The output of the recipe before the change."""
    output = tmp_path_factory.mktemp("before") / "old"
    run(output, shard, FULL_YAML)
    return output


@pytest.fixture(scope="module")
def full_tables(tmp_path_factory, shard):
    """The tables of a run that asks all that the changed recipe asks."""
    output = tmp_path_factory.mktemp("everything") / "full"
    _, asked = run(output, shard, CHANGED_YAML)
    assert len(asked) == NUM_CLIPS * NUM_ALL
    return read_tables(output)


def run(
    output: Path, inputs: str | list[str], recipe: str, *flags: str, too_large: str = "never"
) -> tuple[int, list[str]]:
    """Returns the exit status and the clips that were asked about, once per question."""
    named = [inputs] if isinstance(inputs, str) else inputs
    engine = TalkingEngine(checkpoint_revision(), too_large)
    path = output.parent / f"{output.name}.yaml"
    path.write_text(recipe)
    arguments = annotate_arguments(output.parent, named, output, "--canary-every", "0", *flags)
    status = annotate_with(engine, [*arguments, "--recipe", str(path)])
    return status, [clip_id for clip_id, _ in engine.asked]


def long_clip(number: int, seconds: int) -> bytes:
    """Returns a clip that gets brighter; other numbers begin with another brightness."""
    levels = np.linspace(20 * number, 200, FPS * seconds).astype(np.uint8)
    return encode_frames(np.broadcast_to(levels[:, None, None, None], (len(levels), 128, 128, 3)), 30, "ultrafast")


def reuse(earlier: Path) -> tuple[str, str]:
    return "--reuse-from", str(earlier)


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_run_file(output: Path) -> dict[str, Any]:
    return json.loads((output / "_framescribe" / "run.json").read_text())


def test_only_the_changed_task_is_asked_and_the_tables_are_those_of_a_full_run(
    tmp_path, shard, old, full_tables, capsys
):
    before = read_files(old)
    status, asked = run(tmp_path / "new", shard, CHANGED_YAML, *reuse(old))
    assert (status, len(asked)) == (0, NUM_CLIPS * NUM_RECHECKS)
    assert read_tables(tmp_path / "new") == full_tables
    assert read_files(old) == before
    assert find_hidden(tmp_path / "new") == []
    assert "answers: 56 taken from an earlier run, for 4 clips; 24 asked" in capsys.readouterr().err
    written = read_run_file(tmp_path / "new")
    counters = {name: written["counters"][f"framescribe.answers_{name}"] for name in ("asked", "reused")}
    assert counters == {"asked": NUM_CLIPS * NUM_RECHECKS, "reused": NUM_CLIPS * (NUM_ALL - NUM_RECHECKS)}
    assert written["reused_run"] == {"output": str(old), "fingerprint": read_run_file(old)["fingerprint"]}
    assert written["fingerprint"] != read_run_file(old)["fingerprint"]


def test_a_clip_that_failed_then_is_asked_everything(tmp_path, shard, full_tables):
    run(tmp_path / "old", shard, FULL_YAML, too_large="3")
    _, asked = run(tmp_path / "new", shard, CHANGED_YAML, *reuse(tmp_path / "old"))
    assert len(asked) == (NUM_CLIPS - 1) * NUM_RECHECKS + NUM_ALL
    assert read_tables(tmp_path / "new") == full_tables


def test_units_that_the_earlier_run_did_not_do_are_asked_everything(tmp_path, shard, old, full_tables):
    unfinished = Path(shutil.copytree(old, tmp_path / "unfinished"))
    sorted((unfinished / "_framescribe" / "parts").iterdir())[-1].unlink()  # of the last clip alone
    _, asked = run(tmp_path / "new", shard, CHANGED_YAML, *reuse(unfinished))
    assert len(asked) == (NUM_CLIPS - 1) * NUM_RECHECKS + NUM_ALL
    assert read_tables(tmp_path / "new") == full_tables


def test_answers_that_were_taken_can_be_taken_again_also_from_a_run_that_was_retried(tmp_path, shard, old, full_tables):
    run(tmp_path / "new", shard, CHANGED_YAML, *reuse(old), too_large="3")
    run(tmp_path / "new", shard, CHANGED_YAML, *reuse(old), "--retry-failed")
    _, asked = run(tmp_path / "newest", shard, CHANGED_YAML, *reuse(tmp_path / "new"))
    assert asked == []
    assert read_tables(tmp_path / "newest") == full_tables


def test_units_of_another_size_take_the_answers_all_the_same(tmp_path, shard, old, capsys):
    run(tmp_path / "full", shard, CHANGED_YAML, "--clips-per-unit", "4")
    _, asked = run(tmp_path / "new", shard, CHANGED_YAML, *reuse(old), "--clips-per-unit", "4")
    assert len(asked) == NUM_CLIPS * NUM_RECHECKS
    assert read_tables(tmp_path / "new") == read_tables(tmp_path / "full")
    said = capsys.readouterr().err
    assert "of 4 clips, 4 are in the earlier run" in said
    assert "answers: 56 taken from an earlier run, for 4 clips; 24 asked" in said
    assert not [*(tmp_path / "new").rglob("earlier/*")]  # the index goes once the tables are whole


@pytest.mark.parametrize("is_published", [True, False])
def test_some_of_the_inputs_and_more_of_them_ask_what_is_new_alone(tmp_path, is_published, capsys):
    folder = tmp_path / "set"
    for number in range(5):
        write(folder / f"{number}.mp4", tiny_clip(number))
    some = [str(folder / f"{number}.mp4") for number in (1, 3)]
    run(tmp_path / "some", some, FULL_YAML)
    if not is_published:
        (tmp_path / "some" / "_SUCCESS").unlink()
    _, asked = run(tmp_path / "all", str(folder), FULL_YAML, *reuse(tmp_path / "some"))
    assert {clip_id for clip_id in asked if clip_id} == {"set/0", "set/2", "set/4"}
    assert "of 5 clips, 2 are in the earlier run" in capsys.readouterr().err
    _, asked = run(tmp_path / "some_again", [some[1]], FULL_YAML, *reuse(tmp_path / "all"))
    assert asked == []
    assert read_tables(tmp_path / "some_again")["qa"] == [
        row for row in read_tables(tmp_path / "all")["qa"] if row["clip_id"] == "set/3"
    ]


def test_a_shard_that_was_packed_anew_asks_nothing_and_one_with_other_frames_asks_all_of_these(tmp_path, capsys):
    shard = write(tmp_path / "s" / "a.tar", make_tar([(f"{n}.mp4", tiny_clip(n)) for n in range(4)]))
    run(tmp_path / "old", shard, FULL_YAML)
    Path(shard).write_bytes(make_tar([(f"{n}.mp4", tiny_clip(n)) for n in (3, 1, 0)]))
    assert run(tmp_path / "new", shard, FULL_YAML, *reuse(tmp_path / "old"))[1] == []
    Path(shard).write_bytes(make_tar([("9.mp4", tiny_clip(1)), ("1.mp4", tiny_clip(2)), ("0.mp4", tiny_clip(0))]))
    _, asked = run(tmp_path / "newer", shard, FULL_YAML, *reuse(tmp_path / "old"))
    assert {clip_id for clip_id in asked if clip_id} == {"s/a/9", "s/a/1"}
    assert "answers: 20 taken from an earlier run, for 1 clip; 40 asked" in capsys.readouterr().err


def test_windows_take_the_answers_of_the_same_windows_however_they_were_cut(tmp_path):
    folder = tmp_path / "set"
    for number in range(3):
        write(folder / f"{number}.mp4", long_clip(number, seconds=4 + number))
    _, asked = run(tmp_path / "old", str(folder), FULL_YAML, "--split-seconds", "2")
    windows = {clip_id for clip_id in asked if clip_id}
    assert len(windows) == 8
    smaller = ("--split-seconds", "2", "--clips-per-unit", "1")
    assert run(tmp_path / "new", str(folder), FULL_YAML, *reuse(tmp_path / "old"), *smaller)[1] == []
    assert {row["clip_id"] for row in read_tables(tmp_path / "new")["clips"]} == windows
    _, asked = run(tmp_path / "wider", str(folder), FULL_YAML, *reuse(tmp_path / "old"), "--split-seconds", "4")
    assert {clip_id for clip_id in asked if clip_id} == {"set/0", "set/1@0-4", "set/2@0-4"}
    rows = [{"video": f"set/{n}.mp4", "start_s": s, "end_s": s + 2} for n in range(3) for s in (0, 2)]
    manifest = write(tmp_path / "set.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "listed", manifest, FULL_YAML)
    listed = reuse(tmp_path / "listed")
    assert run(tmp_path / "listed_anew", manifest, FULL_YAML, *listed, "--clips-per-unit", "2")[1] == []
    Path(manifest).write_text("".join(json.dumps({**row, "end_s": row["start_s"] + 4}) + "\n" for row in rows[::2]))
    assert run(tmp_path / "cut", manifest, FULL_YAML, *listed, "--split-seconds", "2")[1] == []


def test_a_run_goes_on_with_units_of_another_size_and_takes_its_own_answers(tmp_path, shard, full_tables, capsys):
    run(tmp_path / "out", shard, CHANGED_YAML)
    assert run(tmp_path / "out", shard, CHANGED_YAML, "--clips-per-unit", "1") == (0, [])
    assert "warning: up to 3 clips of those done before are written again, with the answers" in capsys.readouterr().err
    without_units = [{**row, "unit_id": ""} for row in full_tables["clips"]]
    tables = read_tables(tmp_path / "out")
    assert [{**row, "unit_id": ""} for row in tables["clips"]] == without_units
    assert (tables["qa"], tables["captions"]) == (full_tables["qa"], full_tables["captions"])


def test_a_run_that_takes_answers_is_killed_and_goes_on_with_the_same_index(tmp_path, shard, old, full_tables):
    flags = (*reuse(old), "--clips-per-unit", "1")
    run(tmp_path / "new", shard, CHANGED_YAML, *flags)
    tables = read_tables(tmp_path / "new")
    for part in [*(tmp_path / "new" / "_framescribe" / "parts").iterdir()][:3]:
        part.unlink()
    _, asked = run(tmp_path / "new", shard, CHANGED_YAML, *flags)
    assert len(asked) == 3 * NUM_RECHECKS
    assert read_tables(tmp_path / "new") == tables


def test_a_refused_reuse_leaves_nothing_behind(tmp_path, shard, old, capsys):
    status, asked = run(tmp_path / "new", shard, CHANGED_YAML, *reuse(old), "--num-frames", "3")
    assert (status, asked) == (1, [])
    assert "sampling.max_frames: 4 -> 3" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_demo_model_asked_only_what_changed_writes_what_it_writes_asked_everything(tmp_path):
    recipe = FULL_YAML.replace("penalty: 1.15", "penalty: 1.2")
    (tmp_path / "old.yaml").write_text(recipe)
    (tmp_path / "changed.yaml").write_text(recipe.replace("Describe this.", "Please describe this video in detail."))
    what = ("--input", *(str(DEMO / "clips" / name) for name in ("01_left.mp4", "02_right_up.mp4")))
    small = ("--model", str(DEMO / "checkpoint"), "--device", "cpu", "--num-frames", "4", "--decoder-processes", "1")
    for name, asked, *flags in (("old", "old"), ("full", "changed"), ("new", "changed", *reuse(tmp_path / "old"))):
        arguments = ("--output", str(tmp_path / name), "--recipe", str(tmp_path / f"{asked}.yaml"), *flags)
        assert main(["annotate", *what, *small, "--canary-every", "0", *arguments]) == 0
    assert read_tables(tmp_path / "new") == read_tables(tmp_path / "full")
    counters = read_run_file(tmp_path / "new")["counters"]
    assert counters["framescribe.answers_asked"] == counters["engine.questions"] == 2
