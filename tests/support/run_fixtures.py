"""Whole runs of `annotate` over small shards with the tiny random model, and what they leave."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from demo.video_files import encode_frames
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.model.checkpoint import CONFIGURATION, find_checkpoint
from run_pipeline import main
from schemas.tables import TABLES
from tests.support.shards_fixtures import make_tar, write
from tests.support.stub_engine import StubEngine
from transforms.worker import WORKER

ROOT = Path(__file__).parents[2]
CHECKPOINT = str(ROOT / "tests" / "golden" / "checkpoints" / "g9")
_RECIPE = """
recipe: model_card
caption: {id: model_card_caption, prompt: Please describe this video in detail., max_new_tokens: 3}
stop_loops: true
retries: []
"""
_NUM_DISTINCT = 4


@cache
def tiny_clip(number: int) -> bytes:
    """Returns one of a few encoded clips: a bright block that lies elsewhere in each."""
    frames = np.full((4, 128, 128, 3), 40 * (number % _NUM_DISTINCT), np.uint8)
    frames[:, 20:60, 20 + 10 * number : 60 + 10 * number] = (250, 40, 90)
    return encode_frames(frames, crf=35, preset="ultrafast")


def make_shard(path: Path, num_clips: int, num_broken: int = 0) -> str:
    """Writes a tar shard of tiny clips with a sidecar each; the last `num_broken` clips are no videos."""
    members = []
    for number in range(num_clips):
        is_broken = number >= num_clips - num_broken
        members.append((f"{number:05d}.json", f'{{"number": {number}}}'.encode()))
        members.append((f"{number:05d}.mp4", b"no video" * 100 if is_broken else tiny_clip(number % _NUM_DISTINCT)))
    return write(path, make_tar(members))


def annotate_arguments(folder: Path, inputs: Sequence[str], output: Path | str, *flags: str) -> list[str]:
    """Returns the command line of a small run; its recipe is written to `folder`."""
    recipe = write(folder / "tiny.yaml", _RECIPE)
    small = (
        "--num-frames",
        "4",
        "--clips-per-unit",
        "3",
        "--decoder-processes",
        "1",
        "--device",
        "cpu",
        "--kv-cache-gib",
        "0.1",
    )
    what = ("--input", *inputs, "--output", str(output), "--model", CHECKPOINT, "--recipe", recipe)
    return ["annotate", *what, *small, *flags]


def annotate_with(engine: StubEngine, arguments: list[str]) -> int:
    """Runs the command in this process with a stub in the model's place, and returns its exit status."""
    config = EngineConfig(model=CHECKPOINT, device="cpu", kv_budget_bytes=int(0.1 * 2**30))
    WORKER.use_engine(config, engine)  # type: ignore[arg-type]
    return main(arguments)


def checkpoint_revision() -> str:
    """Returns the revision that a stub engine must have."""
    return find_checkpoint(CHECKPOINT, None, {}, CONFIGURATION).revision


def start_run(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Starts the command as a process of its own."""
    command = [sys.executable, "run_pipeline.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_tables(output: Path) -> dict[str, list[dict[str, object]]]:
    """Returns the rows of every published table, in their order."""
    return {name: pq.read_table(output / name).to_pylist() for name in TABLES}


def find_hidden(output: Path) -> list[str]:
    """Returns temporary files and folders anywhere below an output."""
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.name.startswith("."))
