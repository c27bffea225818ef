"""`--reuse-from`: a run that takes the answers of an earlier one writes the tables of a run that asks everything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

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
)
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


def run(output: Path, shard: str, recipe: str, *flags: str, too_large: str = "never") -> tuple[int, list[str]]:
    """Returns the exit status and the clips that were asked about, once per question."""
    engine = TalkingEngine(checkpoint_revision(), too_large)
    path = output.parent / f"{output.name}.yaml"
    path.write_text(recipe)
    arguments = annotate_arguments(output.parent, [shard], output, "--canary-every", "0", *flags)
    status = annotate_with(engine, [*arguments, "--recipe", str(path)])
    return status, [clip_id for clip_id, _ in engine.asked]


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
    assert "answers: 56 taken from the earlier run, 24 asked" in capsys.readouterr().err
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
