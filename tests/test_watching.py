"""What one sees of a run while it goes on: on a terminal, in a log file, from Prometheus, and at Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.options import parse_command
from run_pipeline import main
from tests.support.run_fixtures import ROOT, annotate_arguments, make_shard, tiny_clip
from tests.support.web_fixtures import give_when, web_server

_PROGRESS = re.compile(r"(\d+) of (\d+) clips done, (\d+) failed; .*; (\d+) kept")


def _start(arguments: Sequence[str], stderr: int = subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "run_pipeline.py", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _parts(output: Path) -> list[Path]:
    return [*(output / "_framescribe" / "parts").glob("*.parquet")]


def _count_committed(output: Path) -> int:
    return sum(pq.read_metadata(part).num_rows for part in _parts(output))


def _read_terminal(terminal: int) -> str:
    said = b""
    try:
        while chunk := os.read(terminal, 65536):
            said += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    return said.decode()


def test_a_log_file_says_at_once_and_in_plain_lines_where_the_run_is(tmp_path):
    shard = make_shard(tmp_path / "a.tar", 9, num_broken=2)
    done = _start(annotate_arguments(tmp_path, [shard], tmp_path / "out"))
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0
    shown = [_PROGRESS.fullmatch(line) for line in err.splitlines() if " done, " in line]
    assert shown
    assert all(shown)
    assert "\x1b" not in err
    last = out.splitlines()[-1]
    assert re.fullmatch(r"9 clips in \d+ s \([\d.]+/(s|min)\)(, limited by [a-z ]+)?; 2 failed", last)
    assert "rows:" not in out
    summary = json.loads((tmp_path / "out" / "_framescribe" / "run.json").read_text())["summary"]
    assert (summary["clips"], summary["clips_failed"], summary["clips_done_before"]) == (9, 2, 0)
    slowest = summary["slowest_units"]
    assert sorted((unit["shard"], unit["start"], unit["stop"]) for unit in slowest) == [
        (shard, start, start + 3) for start in (0, 3, 6)
    ]
    times = [unit["seconds"] for unit in slowest]
    assert 0 < times[-1] <= times[0] <= summary["seconds"]
    assert times == sorted(times, reverse=True)


def test_a_terminal_shows_lines_that_are_redrawn_and_the_log_above_them(tmp_path):
    shard = make_shard(tmp_path / "a.tar", 9)
    terminal, other_side = pty.openpty()
    done = _start(annotate_arguments(tmp_path, [shard], tmp_path / "out"), other_side, TERM="xterm", COLUMNS="100")
    os.close(other_side)
    said = _read_terminal(terminal)
    assert done.wait(timeout=120) == 0
    assert "of 9 clips done, 0 failed" in said
    assert "Ctrl-C keeps" in said
    assert "\x1b[2K" in said, "lines are erased and drawn anew"
    assert said.rstrip().splitlines()[-1].endswith("building the tables")


def test_what_ctrl_c_says_is_kept_is_what_is_found(tmp_path):
    output = tmp_path / "out"
    shard = make_shard(tmp_path / "a.tar", 60)
    process = _start(annotate_arguments(tmp_path, [shard], output))
    _wait_until(lambda: len(_parts(output)) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    said = re.search(
        rf"stopped; kept under {re.escape(str(output))}: (\d+) of 60 clips( and \d+ answers? about others)?\. The same "
        "command",
        err,
    )
    assert said is not None, err
    assert int(said[1]) == _count_committed(output) > 0


def test_a_run_that_goes_on_counts_what_was_done_before(tmp_path, capsys):
    first = make_shard(tmp_path / "a.tar", 6)
    assert main(annotate_arguments(tmp_path, [first], tmp_path / "out")) == 0
    capsys.readouterr()
    second = make_shard(tmp_path / "b.tar", 3)
    assert main(annotate_arguments(tmp_path, [first, second], tmp_path / "out", "--verbose")) == 0
    out, err = capsys.readouterr()
    shown = [match for line in err.splitlines() if (match := _PROGRESS.fullmatch(line))]
    assert [int(number) for number in shown[0].groups()[:2]] in ([6, 9], [7, 9], [8, 9], [9, 9])
    assert re.search(r"^3 clips in .*; 6 done before; 0 failed$", out, re.MULTILINE)
    assert "rows: captions 9" in out
    assert "around it: decoding" in err
    assert f"slowest units: clips 0 to 2 of {second} in " in err, "those of this start alone"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _scrape(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return answer.read().decode()
    except OSError:
        return ""


def test_prometheus_reads_the_numbers_of_a_run_that_goes_on(tmp_path):
    port, output, is_seen = _free_port(), tmp_path / "out", threading.Event()
    shard, manifest = make_shard(tmp_path / "a.tar", 30), tmp_path / "last.jsonl"
    scraped: list[str] = []

    def is_committed() -> bool:
        scraped.append(_scrape(port))
        return bool(re.search(r"^framescribe_clips_kept\{.*\} [1-9]", scraped[-1], re.MULTILINE))

    with web_server() as server:
        # The run does not end before it was asked, however fast the machine is.
        server.answers["/last.mp4"] = give_when(is_seen, tiny_clip(0))
        manifest.write_text(json.dumps({"video": f"{server.url}/last.mp4"}) + "\n")
        flags = ("--metrics-port", str(port), "--trusted-hosts", server.host)
        process = _start(annotate_arguments(tmp_path, [shard, str(manifest)], output, *flags))
        _wait_until(is_committed, process)
        is_seen.set()
        assert process.communicate(timeout=120)
    fingerprint = json.loads((output / "_framescribe" / "run.json").read_text())["fingerprint"]
    labels = f'run="{fingerprint}",output="{output}"'
    assert f"framescribe_clips_planned{{{labels}}} 31" in scraped[-1].splitlines()
    assert f'framescribe_counter_total{{{labels},name="framescribe.clips_sampled"}}' in scraped[-1]
    assert process.returncode == 0


def test_a_port_that_is_taken_is_one_line_before_anything_is_written(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shard = make_shard(tmp_path / "a.tar", 1)
        assert main(annotate_arguments(tmp_path, [shard], tmp_path / "out", "--metrics-port", str(port))) == 1
    assert f"--metrics-port 127.0.0.1:{port} cannot be opened (Address already in use)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("typed", "meant"), [("9100", ("127.0.0.1", 9100)), ("0.0.0.0:9100", ("0.0.0.0", 9100)), ("[::]:1", ("::", 1))]
)
def test_metrics_are_for_this_machine_unless_a_host_is_given(typed, meant):
    flags = parse_command(["annotate", "--input", "a", "--output", "b", "--metrics-port", typed]).flags
    assert flags.metrics_port == meant


@pytest.mark.parametrize("typed", ["x", "70000", ":9100", "host:"])
def test_a_port_that_is_none_is_refused_as_it_is_typed(typed, capsys):
    with pytest.raises(SystemExit):
        parse_command(["annotate", "--input", "a", "--output", "b", "--metrics-port", typed])
    assert f"got '{typed}', wanted a port, such as 9100" in capsys.readouterr().err


def _count_answers(output: Path) -> int:
    """Answers about clips of units without a part, as the next start finds them."""
    aside = (output / "_framescribe" / "set_aside" / "_framescribe" / "parts").glob("*.parquet")
    committed = {part.name for part in _parts(output)}
    with contextlib.suppress(FileNotFoundError):  # its unit was committed in that moment
        tables = [pq.read_table(part, columns=["completions"]) for part in aside if part.name not in committed]
        return sum(len(row) for table in tables for row in table["completions"].to_pylist())
    return 0


@pytest.mark.timeout(600)
def test_answers_about_unfinished_units_are_kept_at_ctrl_c_and_not_asked_again(tmp_path, capsys):
    output, clips = tmp_path / "out", tmp_path / "clips"
    # One unit that takes several times as long as the first pause before answers are written, on fast machines too.
    for copy in range(3):
        shutil.copytree(ROOT / "demo" / "clips", clips / str(copy))
    arguments = [
        "annotate", "--input", str(clips), "--output", str(output), "--recipe", "full", "--clips-per-unit", "36",
        "--model", str(ROOT / "demo" / "checkpoint"), "--num-frames", "4", "--device", "cpu",
    ]  # fmt: skip
    process = _start(arguments)
    # Written now and then while the run goes on, and all of it at Ctrl-C.
    _wait_until(lambda: _count_answers(output) > 0, process, seconds=250)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    said = re.search(r"(\d+) of 36 clips and (\d+) answers about others\. The same command goes on", err)
    assert said is not None, err
    kept = _count_answers(output)
    assert (int(said[1]), int(said[2])) == (0, kept)
    assert main(arguments) == 0
    reused = re.search(r"answers: (\d+) taken", capsys.readouterr().err)
    assert reused is not None
    assert int(reused[1]) == kept
    assert not [*(output / "_framescribe" / "set_aside").rglob("*.parquet")]
