"""Says in minutes whether the engine is right on this GPU, and how fast.

    python -m benchmarks.gpu_acceptance --out acceptance.json
    python -m benchmarks.gpu_acceptance --device cpu --small --out acceptance.json

Eight stages, at most eight minutes on one GPU. It needs PyTorch, transformers and
what the engine imports, no Beam, no decoder, no network: the 7B is made of random weights on the device. The JSON file
is written anew after every stage, so that a run that is cut short leaves its verdicts so far. Exit status 1 where a
stage failed; a stage with nothing to decide has failed. `--device cpu` runs what a processor can, and says what not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.acceptance_kernels import check_kernels
from benchmarks.acceptance_setting import Check, NotHere, Setting, StageResult
from benchmarks.acceptance_stages import (
    check_graphs,
    check_ids,
    check_logprobs,
    check_memory,
    measure_machine,
    measure_workload,
    profile_steps,
)
from benchmarks.machine import describe_machine
from framescribe.llava_video.engine.memory import choose_device

# Whatever a stage raises is its verdict, and the next one still runs. MemoryError, ImportError and so on end the run.
_STAGE_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its share of the minutes, and what runs it."""

    name: str
    planned_s: int
    run: Callable[[Setting], StageResult]


STAGES = (
    Stage("machine", 15, measure_machine),
    Stage("kernels", 25, check_kernels),
    Stage("ids", 60, check_ids),
    Stage("logprobs", 110, check_logprobs),
    Stage("graphs", 40, check_graphs),
    Stage("memory", 80, check_memory),
    Stage("workload", 120, measure_workload),
    Stage("profile", 30, profile_steps),
)


@dataclass(slots=True)
class Verdict:
    """How a stage ended: `passed`, `failed`, or `skipped` where the device cannot run it."""

    number: int
    name: str
    state: str
    seconds: float
    planned_s: int
    checks: list[Check] = field(default_factory=list)
    measured: dict[str, object] = field(default_factory=dict)
    reason: str = ""


def run_stage(number: int, stage: Stage, setting: Setting) -> Verdict:
    """Runs one stage and judges it; an error is a verdict too."""
    started = time.perf_counter()
    verdict = Verdict(number, stage.name, "failed", 0.0, stage.planned_s)
    try:
        if started >= setting.deadline:
            raise TimeoutError("the minutes were used up before this stage began")
        result = stage.run(setting)
        verdict.checks, verdict.measured = list(result.checks), dict(result.measured)
        verdict.reason = result.reason
        if result.checks and all(check.passes for check in result.checks):
            verdict.state = "passed"
        elif not result.checks:
            verdict.reason = "there was nothing to decide"
    except NotHere as error:
        verdict.state, verdict.reason = "skipped" if setting.device.type == "cpu" else "failed", str(error)
    except _STAGE_ERRORS as error:
        verdict.reason = f"{type(error).__name__}: {error}"
    finally:
        setting.release()
    verdict.seconds = round(time.perf_counter() - started, 2)
    return verdict


def run_stages(setting: Setting, stages: Sequence[Stage], out: Path) -> dict[str, object]:
    """Runs the stages one after the other and writes the report after each; returns the last report."""
    verdicts: list[Verdict] = []
    for number, stage in enumerate(STAGES):
        if stage not in stages:
            continue
        verdicts.append(run_stage(number, stage, setting))
        report = _report(setting, verdicts, is_complete=len(verdicts) == len(stages))
        partial = out.with_name(f".{out.name}.partial")
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(out)
        print(_describe(verdicts[-1]), file=sys.stderr, flush=True)
    return report


def _report(setting: Setting, verdicts: Sequence[Verdict], is_complete: bool) -> dict[str, object]:
    return {
        "benchmark": "gpu_acceptance",
        "device": str(setting.device),
        "small": setting.is_small,
        "complete": is_complete,
        "passed": is_complete and all(verdict.state != "failed" for verdict in verdicts),
        "attention": setting.attention,
        "seconds": round(sum(verdict.seconds for verdict in verdicts), 1),
        "stages": [asdict(verdict) for verdict in verdicts],
        "machine": describe_machine(),
    }


def _describe(verdict: Verdict) -> str:
    failed = [f"{one.name}: {one.seen}, wanted {one.wanted}" for one in verdict.checks if not one.passes]
    why = "; ".join([*failed, verdict.reason] if verdict.reason else failed)
    return f"{verdict.number} {verdict.name}: {verdict.state} after {verdict.seconds:.1f} s{': ' if why else ''}{why}"


def _parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a model of a few megabytes instead of the 7B")
    parser.add_argument("--out", type=Path, default=Path("gpu_acceptance.json"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=8.0, help="no stage begins later; default: 8")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in STAGES], help="default: all")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; returns 1 where one failed."""
    flags = _parse_flags(arguments)
    device = choose_device(flags.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    chosen = [stage for stage in STAGES if flags.stages is None or stage.name in flags.stages]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, flags.small, Path(folder), time.perf_counter() + 60 * flags.minutes)
        report = run_stages(setting, chosen, flags.out)
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
