"""A run that is killed at any moment and started again ends in the tables of an undisturbed one.

`make test-faults` kills 50 times; a few of these are part of every test run.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.faults.moments import OnSight, draw_moment, kill_at
from tests.faults.warm import fork_run
from tests.support.run_fixtures import annotate_arguments, find_hidden, make_shard, read_tables

_NUM_UNITS = 5
_KILLS_A_RUN = 2
_QUICK_SEEDS, _LONG_SEEDS = range(1), range(1, 26)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    make_shard(folder / "shards" / "a.tar", 8, num_broken=1)
    make_shard(folder / "shards" / "b.tar", 6)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The tables of a run that nothing happened to, and its seconds."""
    run_to_the_end(folder, folder / "warm-up")
    started_s = time.monotonic()
    run_to_the_end(folder, folder / "undisturbed")
    return read_tables(folder / "undisturbed"), time.monotonic() - started_s


def start(folder: Path, output: Path):
    return fork_run(annotate_arguments(folder, [str(folder / "shards")], output), folder / "log")


def run_to_the_end(folder: Path, output: Path) -> None:
    run = start(folder, output)
    run.join()
    assert run.exitcode == 0, (folder / "log").read_text()[-4000:]


def kill_some_times(folder: Path, output: Path, undisturbed_s: float, seed: int) -> int:
    """Kills starts on one output at moments drawn from a seed; returns how many starts that took."""
    rng = random.Random(seed)
    killed, starts = 0, 0
    while killed < _KILLS_A_RUN:
        starts += 1
        # A start that finds much done may end before its moment: then an earlier one is drawn.
        moment = draw_moment(rng, undisturbed_s / starts, _NUM_UNITS)
        killed += kill_at(start(folder, output), moment, output)
    return starts


def check_killed_run(folder: Path, undisturbed, seed: int) -> None:
    tables, seconds = undisturbed
    output = folder / f"killed-{seed}"
    kill_some_times(folder, output, seconds, seed)
    run_to_the_end(folder, output)
    assert read_tables(output) == tables
    assert (output / "_SUCCESS").exists()
    assert find_hidden(output) == []


@pytest.mark.parametrize("seed", _QUICK_SEEDS)
def test_a_run_that_is_killed_and_started_again_writes_the_undisturbed_tables(folder, undisturbed, seed):
    check_killed_run(folder, undisturbed, seed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", _LONG_SEEDS)
def test_a_run_that_is_killed_at_yet_another_moment_writes_the_undisturbed_tables(folder, undisturbed, seed):
    check_killed_run(folder, undisturbed, seed)


def test_two_runs_started_on_one_output_at_once_write_the_tables_of_one(folder, undisturbed):
    output = folder / "both"
    runs = [start(folder, output), start(folder, output)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0], (folder / "log").read_text()[-4000:]
    assert read_tables(output) == undisturbed[0]
    assert find_hidden(output) == []


def test_a_run_of_which_one_of_two_is_killed_is_finished_by_the_other(folder, undisturbed):
    output = folder / "one-of-two"
    survivor, victim = start(folder, output), start(folder, output)
    # The survivor publishes after this, however slow the machine is: at least one unit is not done yet.
    kill_at(victim, OnSight("_framescribe/parts/*.parquet", _NUM_UNITS - 2), output)
    survivor.join()
    assert survivor.exitcode == 0, (folder / "log").read_text()[-4000:]
    assert read_tables(output) == undisturbed[0]
    assert find_hidden(output) == []
