"""What planning and publishing take as inputs grow: seconds, and the most memory of a process that does nothing else.

    python -m benchmarks.scale manifest --clips 1000000
    python -m benchmarks.scale shards --clips 1000000 --clips-per-shard 100
    python -m benchmarks.scale publish --clips 100000 --pairs 20

`manifest` plans the rows of one Parquet file, `shards` the members of tars, each on a local disk; `publish` builds the
tables of committed parts whose texts differ from clip to clip. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe_machine
from framescribe.decoding.sampling import Sampling
from framescribe.publish.publish import publish
from framescribe.recipes.annotation import Caption, QAPair, Status
from framescribe.storage.journal import RunRecord, commit_part, record_start
from framescribe.storage.output import open_output
from framescribe.storage.plan import add_to_plan
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.part_rows import build_part
from schemas.records import ClipAnnotation, ClipRef, InputKind, WorkUnit
from schemas.run_columns import RunColumns

_TAR = "s3://bucket/clips.tar"
_CLIPS_PER_UNIT = UnitConfig().max_clips
_RUN = RunColumns(
    recipe="detailed", model="a/model", model_revision="0", prompt_layout="model_card", pool_mode="average",
    dtype="bfloat16", framescribe_version="0", fingerprint="scale",
)  # fmt: skip


def write_manifest(folder: Path, flags: argparse.Namespace) -> None:
    """Writes a manifest of videos on a web server."""
    addresses = [f"https://videos.example/{number // 1000:06d}/{number:09d}.mp4" for number in range(flags.clips)]
    pq.write_table(pa.table({"video": addresses}), folder / "in.parquet")


def write_shards(folder: Path, flags: argparse.Namespace) -> None:
    """Writes tars of clips of a few bytes."""
    (folder / "in").mkdir()
    for shard in range(-(-flags.clips // flags.clips_per_shard)):
        with tarfile.open(folder / "in" / f"{shard:06d}.tar", "w") as tar:
            for clip in range(flags.clips_per_shard):
                member = tarfile.TarInfo(f"{shard:06d}_{clip:04d}.mp4")
                member.size = 8
                tar.addfile(member, BytesIO(b"12345678"))


def commit_parts(folder: Path, flags: argparse.Namespace) -> None:
    """Commits parts as a run does."""
    store = open_output(str(folder / "out"))
    record_start(store, RunRecord(_RUN.fingerprint, {}, {}, {}), None)
    units = []
    for number, start in enumerate(range(0, flags.clips, _CLIPS_PER_UNIT)):
        unit_id, size = f"clips-{number:09d}", min(_CLIPS_PER_UNIT, flags.clips - start)
        units.append(WorkUnit(unit_id, InputKind.TAR, _TAR, "clips", start, start + size, size))
        clips = [_annotate(f"clip-{start + clip:09d}", unit_id, flags.pairs) for clip in range(size)]
        commit_part(store, unit_id, build_part(unit_id, clips, _RUN), _RUN.fingerprint)
    add_to_plan(store, units)


def _annotate(clip_id: str, unit_id: str, num_pairs: int) -> ClipAnnotation:
    ref = ClipRef(clip_id, unit_id, _TAR, f"{clip_id}.mp4", 0.0, None, "{}")
    times = tuple(float(second) for second in range(64))
    sampling = Sampling(tuple(range(64)), times, 64.0, clip_id.ljust(64, "0"), "pyav", 1280, 720, 1.0)
    said: dict[str, Any] = {
        "status": Status.OK,
        "finish_reason": "stop",
        "num_prompt_tokens": 13000,
        "num_completion_tokens": 200,
    }
    text = f"What {clip_id} shows is told here in a sentence of about the length that captions have. " * 8
    caption = Caption(
        level="clip", start_s=0.0, end_s=64.0, text=text, prompt_id="c", prompt="Describe.", attempt=0, **said
    )
    pairs = (
        QAPair(
            kind="open_ended", question_type="Count", question=f"How many are there in {clip_id}, of kind {pair}?",
            answer=f"There are {pair} of them.", completion="", prompt_id="q", prompt="Ask.", **said,
        )
        for pair in range(num_pairs)
    )  # fmt: skip
    return ClipAnnotation(ref, sampling, (caption,), tuple(pairs))


_PREPARE = {"manifest": write_manifest, "shards": write_shards, "publish": commit_parts}
_PLANNED = {"manifest": "in.parquet", "shards": "in"}


def _act(kind: str, folder: Path) -> dict[str, object]:
    before_mib = _peak_mib()
    started_s, cpu_s = time.perf_counter(), time.process_time()
    found: dict[str, object]
    if kind == "publish":
        found = {"rows": dict(publish(str(folder / "out")).num_rows)}
    else:
        found = {"units": len(plan_units([str(folder / _PLANNED[kind])]))}
    return {
        **found,
        "seconds": round(time.perf_counter() - started_s, 2),
        "cpu_s": round(time.process_time() - cpu_s, 2),
        "peak_mib": round(_peak_mib()),
        "peak_mib_of_imports": round(before_mib),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def main() -> None:
    """Makes the input in one process, works on it in another, and prints the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=_PREPARE)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--clips-per-shard", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=20, help="question-answer pairs of each clip")
    flags = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        # Each in a process of its own, so that memory is that of the work alone.
        with ProcessPoolExecutor(1, processes) as process:
            process.submit(_PREPARE[flags.kind], Path(name), flags).result()
        with ProcessPoolExecutor(1, processes) as process:
            result = process.submit(_act, flags.kind, Path(name)).result()
    workload = {"clips": flags.clips, "clips_per_shard": flags.clips_per_shard, "pairs": flags.pairs}
    print(
        json.dumps({"benchmark": f"scale {flags.kind}", **workload, **result, "machine": describe_machine()}, indent=2)
    )


if __name__ == "__main__":
    main()
