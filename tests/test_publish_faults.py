"""Publishing that is killed, or done by two at once, ends in the same tables."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.run_folder import start_run
from publish.publish_run import publish
from storage.output_store import open_output
from tests.output_fixtures import RUN_RECORD, commit, make_annotation, make_units

PUBLISH = """
import sys
from publish.publish_run import publish
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


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.2, 0.3])
def test_a_killed_publish_done_again_leaves_what_an_undisturbed_one_leaves(output, delay_s):
    publish(str(output))
    undisturbed = read_files(output)
    (output / "_SUCCESS").unlink()
    publishing = start_publish(output)
    time.sleep(delay_s)
    publishing.kill()
    publishing.wait()
    publish(str(output))
    assert read_files(output) == undisturbed


def test_two_publishes_at_once_leave_what_one_leaves(output):
    publish(str(output))
    undisturbed = read_files(output)
    both = [start_publish(output), start_publish(output)]
    assert [publishing.wait() for publishing in both] == [0, 0]
    assert read_files(output) == undisturbed
