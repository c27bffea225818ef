"""CPU seconds per clip of our decoding against the model card's `load_video` and its preprocessing.

    python -m benchmarks.decode --clips DIR|made [--num-frames 64] [--rounds 3]

Both sides take one clip after the other, in turn, each in a process of its own; user and system time of that process
count. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import psutil

from benchmarks.model_card import cpu_seconds_of_model_card
from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.pool import DecoderPool
from framescribe.decoding.sampling import ClipFrames

_PACKAGES = ("av", "decord", "pillow", "numpy")
_VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", ".ts", ".3gp"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", default="made", help="a folder of videos, or 'made' for clips made on the spot")
    parser.add_argument("--num-frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="each clip's figure is the median of so many runs")
    parser.add_argument("--decoders", nargs="+", default=["auto"], help="the first one is the ratio's")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clips = _make_clips(Path(folder)) if options.clips == "made" else _list_clips(Path(options.clips))
        print(json.dumps(_compare(clips, options.num_frames, options.rounds, options.decoders), indent=1))


def _compare(clips: Sequence[Path], frames: int, rounds: int, decoders: Sequence[str]) -> dict[str, object]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as card:
        card.submit(cpu_seconds_of_model_card, str(clips[0]), frames).result()  # imports are no clip's cost
        sides = {name: _Side(frames, name, clips[0]) for name in decoders}
        rows = [_compare_clip(card, sides, clip, frames, rounds) for clip in clips]
    for side in sides.values():
        side.pool.close()
    compared = [row for row in rows if row.card_s is not None and None not in row.ours_s.values()]
    card_s = sum(row.card_s or 0.0 for row in compared) / len(compared)
    ours_s = {name: sum(row.ours_s[name] or 0.0 for row in compared) / len(compared) for name in decoders}
    return {
        "benchmark": "decode",
        "unit": "CPU seconds per clip, user and system",
        "frames": frames,
        "clips_compared": len(compared),
        "clips_with_equal_pixels": sum(row.is_equal for row in compared),
        "model_card_s": card_s,
        "framescribe_s": ours_s,
        "ratio": card_s / ours_s[decoders[0]],
        "ratios": {name: card_s / seconds for name, seconds in ours_s.items()},
        "clips": [asdict(row) for row in rows],
        "versions": {name: _version_of(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
    }


@dataclass(frozen=True)
class _Row:
    """One clip: CPU seconds of the model card and of each decoder of ours, None for one that failed."""

    clip: str
    card_s: float | None
    ours_s: dict[str, float | None]
    is_equal: bool


class _Side:
    """Our decoding with one decoder, in a pool of one process."""

    def __init__(self, frames: int, decoder: str, warm_up: Path) -> None:
        self.pool = DecoderPool(1, SamplingConfig(max_frames=frames, decoder=decoder))
        self.pool.submit(warm_up).result()

    def sample(self, path: Path) -> tuple[float, str] | None:
        """Returns CPU seconds and the digest of the frames, None if the clip fails."""
        started_s = _cpu_seconds_of_children() + time.process_time()
        result = self.pool.submit(path).result()
        cpu_s = time.process_time() + _cpu_seconds_of_children() - started_s  # in this order: looking takes time too
        return (cpu_s, result.sampling.frames_digest) if isinstance(result, ClipFrames) else None


def _cpu_seconds_of_children() -> float:
    """CPU time of this process's children, ended ones too: a pool replaces its process now and then."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = [child.cpu_times() for child in psutil.Process().children()]
    return ended.ru_utime + ended.ru_stime + sum(times.user + times.system for times in alive)


def _compare_clip(card: ProcessPoolExecutor, sides: dict[str, _Side], clip: Path, frames: int, rounds: int) -> _Row:
    """Runs all sides in turn, `rounds` times, and keeps each one's median."""
    runs: dict[str, list[tuple[float, str] | None]] = {name: [] for name in ("card", *sides)}
    for _ in range(rounds):
        runs["card"].append(card.submit(cpu_seconds_of_model_card, str(clip), frames).result())
        for name, side in sides.items():
            runs[name].append(side.sample(clip))
    digests = {run[1] if run else None for side_runs in runs.values() for run in side_runs}
    medians = {name: _median([run[0] for run in side_runs if run]) for name, side_runs in runs.items()}
    return _Row(clip.name, medians.pop("card"), medians, len(digests) == 1 and None not in digests)


def _median(seconds: list[float]) -> float | None:
    return statistics.median(seconds) if seconds else None


def _list_clips(folder: Path) -> list[Path]:
    clips = sorted(path for path in folder.iterdir() if path.suffix in _VIDEO_SUFFIXES)
    if not clips:
        raise FileNotFoundError(f"no video in {folder}: --clips takes a folder that holds some, or 'made'")
    return clips


def _make_clips(folder: Path) -> list[Path]:
    """Makes three textured H.264 clips of ten seconds, 640x360, 960x540 and 1280x720."""
    return [_make_clip(folder / f"made_{height}p.mp4", height * 16 // 9, height) for height in (360, 540, 720)]


def _make_clip(path: Path, width: int, height: int) -> Path:
    texture = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8 + 300, 3), dtype=np.uint8)
    wide = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(300):
            picture = np.ascontiguousarray(wide[:, 4 * number : 4 * number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
