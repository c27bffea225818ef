"""The acceptance run of a GPU: how it judges, and its stages as far as a processor can run them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.acceptance_setting import Check, NotHere, Setting, StageResult
from benchmarks.gpu_acceptance import STAGES, Stage, main, run_stage, run_stages
from tests.support.source_tree import ROOT

CPU = torch.device("cpu")
# What a machine with a GPU, PyTorch and transformers need not have.
NOT_HERE = """
import sys
from importlib.machinery import PathFinder
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = {"apache_beam", "pyarrow", "av", "decord", "fasteners", "psutil", "grpc", "datasets", "pandas"}
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)
sys.meta_path = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
"""
PASSES, FAILS = Check("one", 1, "1", passes=True), Check("two", 1, "2", passes=False)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(CPU, True, tmp_path, time.perf_counter() + 60)


def _raise(error: Exception) -> StageResult:
    raise error


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (lambda _: StageResult([PASSES]), "passed"),
        (lambda _: StageResult([PASSES, FAILS]), "failed"),
        (lambda _: StageResult([]), "failed"),
        (lambda _: _raise(RuntimeError("CUDA error: an illegal memory access (pretended)")), "failed"),
        (lambda _: _raise(NotHere("a processor has no CUDA graphs")), "skipped"),
    ],
)
def test_a_stage_passes_when_it_decided_something_and_nothing_failed(setting: Setting, result, state: str) -> None:
    assert run_stage(0, Stage("one", 1, result), setting).state == state


def test_what_a_processor_may_skip_fails_on_a_gpu(setting: Setting) -> None:
    setting.device = torch.device("cuda", 0)
    assert run_stage(0, Stage("one", 1, lambda _: _raise(NotHere("not here"))), setting).state == "failed"


def test_a_stage_that_would_begin_after_the_last_minute_fails(setting: Setting) -> None:
    setting.deadline = time.perf_counter()
    verdict = run_stage(0, Stage("one", 1, lambda _: StageResult([PASSES])), setting)
    assert (verdict.state, "minutes were used up" in verdict.reason) == ("failed", True)


def test_the_report_is_written_after_every_stage(setting: Setting, tmp_path: Path, monkeypatch) -> None:
    out, seen = tmp_path / "report.json", []

    def look(_: Setting) -> StageResult:
        seen.append(json.loads(out.read_text("utf-8")) if out.exists() else None)
        return StageResult([PASSES], {"number": 3})

    stages = (Stage("first", 1, look), Stage("second", 1, look))
    monkeypatch.setattr("benchmarks.gpu_acceptance.STAGES", stages)
    report = run_stages(setting, stages, out)
    assert seen[0] is None
    assert (seen[1]["complete"], seen[1]["passed"], len(seen[1]["stages"])) == (False, False, 1)
    assert report == json.loads(out.read_text("utf-8"))
    assert (report["complete"], report["passed"]) == (True, True)
    assert report["stages"][1]["checks"] == [{"name": "one", "seen": 1, "wanted": "1", "passes": True}]


def test_the_stages_fit_the_minutes_that_one_gpu_is_at_hand() -> None:
    assert len(STAGES) == 8
    assert sum(stage.planned_s for stage in STAGES) <= 8 * 60


@pytest.mark.parametrize("stage", ["machine", "kernels", "ids", "graphs", "profile"])
def test_a_processor_runs_what_it_can_of_a_stage(stage: str, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert main(["--device", "cpu", "--small", "--out", str(out), "--stages", stage]) == 0
    (verdict,) = json.loads(out.read_text("utf-8"))["stages"]
    assert verdict["state"] == ("skipped" if stage == "graphs" else "passed")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_processor_runs_all_it_can_of_the_whole(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert main(["--device", "cpu", "--small", "--out", str(out), "--minutes", "20"]) == 0
    report = json.loads(out.read_text("utf-8"))
    assert [verdict["state"] for verdict in report["stages"]].count("passed") == 7


def test_a_wrong_engine_fails_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.acceptance_kernels.merge_attention", lambda out, *_: out.float())
    out = tmp_path / "report.json"
    assert main(["--device", "cpu", "--small", "--out", str(out), "--stages", "kernels"]) == 1
    assert json.loads(out.read_text("utf-8"))["passed"] is False


def test_it_needs_no_beam_no_decoder_and_no_parquet(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    code = f"{NOT_HERE}\nfrom benchmarks.gpu_acceptance import main\nsys.exit(main(sys.argv[1:]))"
    flags = ["--device", "cpu", "--small", "--out", str(out), "--stages", "machine", "ids"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [stage["state"] for stage in json.loads(out.read_text("utf-8"))["stages"]] == ["passed"] * 2


def test_what_is_not_here_cannot_be_imported() -> None:
    code = f"{NOT_HERE}\nimport pyarrow"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'pyarrow'" in done.stderr
