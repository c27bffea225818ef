"""Publishing that is killed, overtaken, or done by two at once, ends in the tables of all that is there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from framescribe.publish.export import CannotExport, ExportConfig, export
from framescribe.publish.publish import OwnUnits, publish
from framescribe.publish.sort import index_clips
from framescribe.storage.journal import DamagedRunError, OtherRunError
from framescribe.storage.output import OutputStore, open_output
from framescribe.storage.plan import add_to_plan
from schemas.tables import TABLES
from tests.support.output_fixtures import (
    RUN,
    RUN_RECORD,
    commit,
    make_annotation,
    make_units,
    memory_output,
    start_run,
)

PUBLISH_AND_DIE = """
import os, signal, sys
from pathlib import Path
place_file = Path.replace
placed = []
def place_and_die(path, target):
    place_file(path, target)
    placed.append(target)
    if len(placed) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
Path.replace = place_and_die
from framescribe.publish.publish import publish
publish(sys.argv[1])
"""
PUBLISH_AND_WAIT = PUBLISH_AND_DIE.replace("SIGKILL", "SIGSTOP")
READ_AND_WAIT = """
import os, signal, sys, tempfile
make_folder = tempfile.mkdtemp
def make_and_wait(*args, **named):
    if str(named.get("prefix")).startswith(".read"):  # the folder that takes the name of the target at the end
        os.kill(os.getpid(), signal.SIGSTOP)
    return make_folder(*args, **named)
tempfile.mkdtemp = make_and_wait
from run_pipeline import main
raise SystemExit(main(sys.argv[1:]))
"""
PUBLISH = """
import sys
from framescribe.publish.publish import publish
print("started", flush=True)
publish(sys.argv[1])
"""


@pytest.fixture
def output(tmp_path):
    units = make_units(*(f"unit-{number}" for number in range(20)))
    start_run(open_output(str(tmp_path)), RUN_RECORD, units)
    for unit in units:
        commit(str(tmp_path), unit.unit_id, [make_annotation(f"{unit.unit_id}-{n}", unit.unit_id) for n in range(3)])
    return tmp_path


def start_publish(output: Path) -> subprocess.Popen[str]:
    publishing = subprocess.Popen([sys.executable, "-c", PUBLISH, str(output)], stdout=subprocess.PIPE, text=True)
    assert publishing.stdout is not None
    assert publishing.stdout.readline() == "started\n"
    return publishing


def wait_until_suspended(process: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def read_files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("num_placed", [1, 2, 3, 4, 5])
def test_a_publish_killed_between_two_files_leaves_no_success_and_done_again_what_an_undisturbed_one_leaves(
    output, num_placed
):
    publish(str(output))
    undisturbed = read_files(output)
    killed = subprocess.run([sys.executable, "-c", PUBLISH_AND_DIE, str(output), str(num_placed)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (output / "_SUCCESS").exists()
    publish(str(output))
    assert read_files(output) == undisturbed


@pytest.mark.parametrize("num_placed", [3, 5])  # of captions, qa, clips, failures and the card; then `_SUCCESS`
def test_tables_that_are_removed_before_they_are_a_success_are_built_again(output, num_placed):
    publish(str(output))
    undisturbed = read_files(output)
    arguments = [sys.executable, "-c", PUBLISH_AND_WAIT, str(output), str(num_placed)]
    with subprocess.Popen(arguments) as publishing:
        wait_until_suspended(publishing)
        shutil.rmtree(output / "captions")
        publishing.send_signal(signal.SIGCONT)
    assert publishing.returncode == 0
    assert read_files(output) == undisturbed


@pytest.mark.parametrize("command", [("export", "--format", "hf", "--no-videos"), ("review", "--thumbnails", "0")])
def test_tables_that_are_published_anew_while_they_are_read_are_not_mixed(output, tmp_path_factory, command):
    target = tmp_path_factory.mktemp("target") / "read"
    publish(str(output))
    name, *flags = command
    arguments = [sys.executable, "-c", READ_AND_WAIT, name, str(output), "--to", str(target), *flags]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as reading:
        wait_until_suspended(reading)
        (output / "_framescribe/parts/unit-3.parquet").unlink()
        commit(str(output), "unit-3", [make_annotation(f"unit-3-{n}", "unit-3", num_pairs=1) for n in range(3)])
        publish(str(output))
        reading.send_signal(signal.SIGCONT)
        words = reading.stderr.read()
    assert (reading.returncode, target.exists()) == (1, False)
    assert "published anew in the middle" in words.splitlines()[-1]


def test_tables_of_two_publishes_are_not_exported_together(output, tmp_path_factory):
    publish(str(output))
    captions = next((output / "captions").glob("*.parquet"))
    pq.write_table(pq.read_table(captions).slice(1), captions)
    target = tmp_path_factory.mktemp("target") / "read"
    with pytest.raises(CannotExport, match="do not belong together"):
        export(str(output), target, ExportConfig("hf", has_videos=False))
    assert not target.exists()


def test_two_publishes_at_once_leave_what_one_leaves(output):
    publish(str(output))
    undisturbed = read_files(output)
    both = [start_publish(output), start_publish(output)]
    assert [publishing.wait() for publishing in both] == [0, 0]
    assert read_files(output) == undisturbed


@pytest.fixture
def half_done():
    """A run of two units of which one is done."""
    output = memory_output()
    start_run(open_output(output), RUN_RECORD, make_units("one", "two"))
    commit(output, "one", [make_annotation("a", "one")])
    return output


def while_it_builds_tables(monkeypatch, act) -> None:
    """Lets somebody else act once, while a publisher builds its tables."""
    acts = [act]

    def index_while_another_acts(*arguments):
        index = index_clips(*arguments)
        if acts:
            acts.pop()()
        return index

    monkeypatch.setattr("framescribe.publish.publish.index_clips", index_while_another_acts)


def test_a_part_that_comes_while_an_unfinished_run_is_published_is_published_with_it(half_done, monkeypatch):
    while_it_builds_tables(monkeypatch, lambda: commit(half_done, "two", [make_annotation("b", "two")]))
    assert publish(half_done).num_rows["clips"] == 2
    assert "_SUCCESS" in open_output(half_done).list_files("")


def test_a_unit_that_is_planned_while_success_is_written_takes_it_back(half_done, monkeypatch):
    store, create = open_output(half_done), OutputStore.create
    commit(half_done, "two", [make_annotation("b", "two")])

    def create_while_another_plans(self, name, payload):
        made = create(self, name, payload)
        if name == "_SUCCESS":
            add_to_plan(store, make_units("one", "two", "three"))
        return made

    monkeypatch.setattr(OutputStore, "create", create_while_another_plans)
    assert not publish(half_done).is_complete
    assert "_SUCCESS" not in store.list_files("")


def test_a_publisher_that_lost_its_turn_replaces_nothing(half_done, monkeypatch):
    store, replaced = open_output(half_done), []
    commit(half_done, "two", [make_annotation("b", "two")])
    replace_with_file = OutputStore.replace_with_file
    monkeypatch.setattr(
        OutputStore,
        "replace_with_file",
        lambda self, name, *rest: (replaced.append(name), replace_with_file(self, name, *rest))[1],
    )
    turns = [store.turn()]
    text_of = OutputStore.read_text

    def read_while_another_begins(self, name):
        if name == "_framescribe/locks/turn" and turns and text_of(self, name):
            turns.pop().__enter__()
        return text_of(self, name)

    monkeypatch.setattr(OutputStore, "read_text", read_while_another_begins)
    assert publish(half_done).is_complete
    assert sorted(replaced) == sorted(f"{table}/{table}-00000-of-00001.parquet" for table in TABLES)


def test_tables_that_were_removed_are_built_again_though_success_is_there(half_done):
    store = open_output(half_done)
    commit(half_done, "two", [make_annotation("b", "two")])
    publish(half_done)
    store.remove("captions/captions-00000-of-00001.parquet")
    publish(half_done)
    assert store.list_files("captions") == ["captions-00000-of-00001.parquet"]


def test_a_start_misses_units_of_its_own_and_a_run_that_is_no_more_its_own(half_done):
    with pytest.raises(DamagedRunError, match="1 of the 2 units of this start have no part .* 'two'"):
        publish(half_done, own=OwnUnits(RUN.fingerprint, frozenset({"one", "two"})))
    with pytest.raises(OtherRunError, match="holds a run with other settings by now"):
        publish(half_done, own=OwnUnits("beef", frozenset({"one"})))
    assert publish(half_done, own=OwnUnits(RUN.fingerprint, frozenset({"one"}))).num_units_done == 1


def test_what_was_left_while_tables_were_built_goes_at_the_end(tmp_path, monkeypatch):
    start_run(open_output(str(tmp_path)), RUN_RECORD, make_units("one"))
    leftover = tmp_path / f".README.md.{'0' * 32}.tmp"
    while_it_builds_tables(monkeypatch, lambda: leftover.write_bytes(b"half"))
    publish(str(tmp_path))
    assert not leftover.exists()
