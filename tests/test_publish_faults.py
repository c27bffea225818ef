"""Publishing that is killed, or done by two at once, ends in the same tables."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from framescribe.publish.publish import publish
from framescribe.storage.output import open_output
from tests.support.output_fixtures import RUN_RECORD, commit, make_annotation, make_units, start_run

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


def test_two_publishes_at_once_leave_what_one_leaves(output):
    publish(str(output))
    undisturbed = read_files(output)
    both = [start_publish(output), start_publish(output)]
    assert [publishing.wait() for publishing in both] == [0, 0]
    assert read_files(output) == undisturbed
