"""Annotates thousands of small clips in one go and measures whether anything grows: `python -m tests.soak`.

Decoding, look-ahead, recipes, commits and Beam are the real ones. The engine is a stub by default, so that the pipeline
is what is measured; `--engine model` takes the tiny random checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high

import psutil

from run_pipeline import main as run_framescribe
from tests.support.run_fixtures import annotate_arguments, annotate_with, checkpoint_revision, make_shard
from tests.support.stub_engine import StubEngine
from transforms.worker import WORKER

_CLIPS_A_SHARD = 500
_SECONDS_BETWEEN_SAMPLES = 0.5
# Allocators breathe: a leak of 10 kB a clip would be 40 MiB over the second half of 8,000 clips.
MAX_GROWTH_BYTES = 40 << 20
MAX_MORE_DESCRIPTORS = 8
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """The run at one moment.

    Attributes:
        cpu_s: processor time of the run's processes so far, ended ones included.
        children_bytes, children_descriptors: of the decoder process that holds most.
    """

    time_s: float
    num_clips: int
    cpu_s: float
    main_bytes: int
    main_descriptors: int
    num_children: int
    children_bytes: int
    children_descriptors: int


class Sampler:
    """Takes samples of this process and its children, on a thread, until it is told to stop."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._stopped = threading.Event()
        self._process = psutil.Process()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_SAMPLES):
            self.samples.append(take_sample(self._process))


def take_sample(process: psutil.Process) -> Sample:
    children = [seen for child in process.children(recursive=True) if (seen := _measure(child))]
    cpu = process.cpu_times()
    return Sample(
        time_s=time.monotonic(),
        num_clips=sum(engine.stats.encoded_clips for engine in WORKER.engines),
        cpu_s=cpu.user + cpu.system + cpu.children_user + cpu.children_system + sum(cpu_s for *_, cpu_s in children),
        main_bytes=process.memory_info().rss,
        main_descriptors=process.num_fds(),
        num_children=len(children),
        children_bytes=max((size for size, *_ in children), default=0),
        children_descriptors=max((number for _, number, _ in children), default=0),
    )


def _measure(child: psutil.Process) -> tuple[int, int, float] | None:
    try:
        with child.oneshot():
            cpu = child.cpu_times()
            return child.memory_info().rss, child.num_fds(), cpu.user + cpu.system
    except psutil.Error:  # it was recycled between listing and looking
        return None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the run: the most memory, the usual number of open files, and what a clip cost."""

    name: str
    clips: int
    clips_a_s: float
    cpu_ms_per_clip: float
    main_bytes: int
    main_descriptors: int
    children_bytes: int
    children_descriptors: int

    def __str__(self) -> str:
        return (
            f"{self.name:8}{self.clips:7} clips{self.clips_a_s:8.1f} clips/s{self.cpu_ms_per_clip:8.1f} CPU ms/clip"
            f"   pipeline {self.main_bytes / _MIB:6.0f} MiB {self.main_descriptors:4} files"
            f"   largest decoder {self.children_bytes / _MIB:5.0f} MiB {self.children_descriptors:3} files"
        )


def summarise(name: str, samples: list[Sample]) -> Stretch:
    first, last = samples[0], samples[-1]
    clips = last.num_clips - first.num_clips
    return Stretch(
        name=name,
        clips=clips,
        clips_a_s=clips / (last.time_s - first.time_s),
        cpu_ms_per_clip=(last.cpu_s - first.cpu_s) * 1000 / clips,
        main_bytes=max(sample.main_bytes for sample in samples),
        main_descriptors=median_high(sample.main_descriptors for sample in samples),
        children_bytes=max(sample.children_bytes for sample in samples),
        children_descriptors=median_high(sample.children_descriptors for sample in samples),
    )


def cut(samples: list[Sample], num_clips: int) -> list[Stretch]:
    """Returns start, middle and end of the run, each a third of the clips after the first tenth, which warms up."""
    bounds = [round(num_clips * fraction) for fraction in (0.1, 0.4, 0.7, 1.0)]
    names = ("start", "middle", "end")
    return [
        summarise(name, [sample for sample in samples if low <= sample.num_clips <= high])
        for name, low, high in zip(names, bounds[:-1], [*bounds[1:3], num_clips - 1], strict=True)
    ]


def find_growth(start: Stretch, end: Stretch, max_slowdown: float) -> list[str]:
    """Returns what grew beyond its bound, in words."""
    checks = (
        ("memory of the pipeline, MiB", start.main_bytes / _MIB, end.main_bytes / _MIB, MAX_GROWTH_BYTES / _MIB),
        ("memory of a decoder, MiB", start.children_bytes / _MIB, end.children_bytes / _MIB, MAX_GROWTH_BYTES / _MIB),
        ("open files of the pipeline", start.main_descriptors, end.main_descriptors, MAX_MORE_DESCRIPTORS),
        ("open files of a decoder", start.children_descriptors, end.children_descriptors, MAX_MORE_DESCRIPTORS),
        # Processor time, not the clock's: other programs on the machine change the latter.
        ("CPU ms per clip", start.cpu_ms_per_clip, end.cpu_ms_per_clip, max_slowdown * start.cpu_ms_per_clip),
    )
    return [
        f"{what}: {before:.1f} at the start, {after:.1f} at the end; allowed are {allowed:.1f} more"
        for what, before, after, allowed in checks
        if after - before > allowed
    ]


def soak(folder: Path, num_clips: int, engine: str) -> list[Sample]:
    """Annotates so many clips and returns the samples taken meanwhile."""
    for number in range(-(-num_clips // _CLIPS_A_SHARD)):
        make_shard(folder / "shards" / f"{number:04d}.tar", min(_CLIPS_A_SHARD, num_clips - number * _CLIPS_A_SHARD))
    arguments = annotate_arguments(
        folder, [str(folder / "shards")], folder / "out", "--clips-per-unit=16", "--decoder-processes=2"
    )
    sampler = Sampler()
    is_stub = engine == "stub"
    status = annotate_with(StubEngine(checkpoint_revision()), arguments) if is_stub else run_framescribe(arguments)
    sampler.stop()
    done = json.loads((folder / "out" / "_SUCCESS").read_text())
    assert (status, done["num_annotated"]) == (0, num_clips), f"status {status}: {done}"
    return sampler.samples


def main() -> int:
    """Runs the soak, prints its figures and returns 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--engine", choices=("stub", "model"), default="stub")
    parser.add_argument("--max-slowdown", type=float, default=0.05, help="of processor time a clip (0.05)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        stretches = cut(soak(Path(folder), flags.clips, flags.engine), flags.clips)
    print(*stretches, sep="\n")
    grown = find_growth(stretches[0], stretches[-1], flags.max_slowdown)
    print("\n".join(grown) or "nothing grew")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
