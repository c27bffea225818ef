"""The whole local pipeline against the engine alone, on the same clips, frames and questions in one run.

    python -m benchmarks.pipeline --make-checkpoint mid --clips 12 --num-frames 16

The engine alone gets frames that are decoded already; the pipeline reads, decodes, annotates, commits and publishes.
Neither side's time holds starting Python or loading the model. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

from benchmarks.engine import make_engine
from benchmarks.geometry import DEMO_TOKENIZER, SIZES
from benchmarks.machine import describe_machine
from benchmarks.videos import write_videos
from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.pool import DecoderPool
from framescribe.decoding.sampling import ClipFrames
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.model.checkpoint import CONFIGURATION, find_checkpoint
from framescribe.recipes import Recipe, parse_recipe
from framescribe.recipes.engine_video import EngineVideo
from pipeline.annotate import annotate
from pipeline.config import RunConfig, UnitConfig
from pipeline.start import AnnotateRequest
from transforms.worker import WORKER, RunningEngine, WorkerConfig

_RECIPE = """
recipe: full
caption: {id: caption, prompt: Please describe this video in detail., max_new_tokens: 128}
open_ended:
  id: open_ended
  prompt: Ask a question of the type {type}.
  max_new_tokens: 32
  types: {Count: a, Binary: b, Speed: c, Spatial: d, Temporal: e, Causal: f, Camera Direction: g, Object Direction: h}
multiple_choice: {id: choice, prompt: "{question}", max_new_tokens: 32, closings: [Answer.]}
recheck: {id: recheck, prompt: "{question}", max_new_tokens: 16, min_recheck_score: 0.5}
stop_loops: false
retries: []
"""


def sample_all(videos: list[Path], sampling: SamplingConfig) -> list[ClipFrames]:
    """Decodes every video; what the engine alone is given."""
    pool = DecoderPool(2, sampling)
    futures = [pool.submit(video) for video in videos]
    sampled = [result for result in (future.result() for future in futures) if isinstance(result, ClipFrames)]
    pool.close()
    assert len(sampled) == len(videos), "made videos decode"
    return sampled


def run_engine_alone(running: RunningEngine, recipe: Recipe, clips: list[ClipFrames]) -> float:
    """Returns the seconds that the recipe takes over clips whose frames lie in memory."""

    async def annotate_all() -> None:
        await asyncio.gather(*(_annotate(running, recipe, f"clip-{n}", clip) for n, clip in enumerate(clips)))

    started = time.perf_counter()
    running.run(annotate_all()).result()
    return time.perf_counter() - started


async def _annotate(running: RunningEngine, recipe: Recipe, clip_id: str, clip: ClipFrames) -> None:
    sampling = clip.sampling
    video = EngineVideo.open(running.engine, clip_id, clip.frames, sampling.timestamps_s, sampling.duration_s)
    await recipe.annotate(video, clip_id)
    video.close()


def run_pipeline(config: RunConfig, folder: Path) -> float:
    """Returns the seconds that `annotate` takes from planning to published tables."""
    started = time.perf_counter()
    annotate(AnnotateRequest(config, (str(folder),)))
    return time.perf_counter() - started


def main() -> None:
    """Runs both sides and prints the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-checkpoint", choices=SIZES, default="mid")
    parser.add_argument("--tokenizer", type=Path, default=DEMO_TOKENIZER)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each made video, 720p")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(_compare(flags, Path(name)), indent=2))


def _compare(flags: argparse.Namespace, folder: Path) -> dict[str, object]:
    checkpoint, videos = folder / "checkpoint", write_videos(folder / "videos", flags.clips, flags.seconds)
    engine_config = EngineConfig(model=str(checkpoint), device=flags.device)
    engine = make_engine(flags.make_checkpoint, engine_config, checkpoint, flags.tokenizer)
    # The engine was made in memory; the pipeline asks the folder for the revision, and both must be the same.
    engine.checkpoint = find_checkpoint(str(checkpoint), files=CONFIGURATION)
    WORKER.use_engine(engine_config, engine)
    recipe = parse_recipe(_RECIPE, "benchmark")
    sampling = SamplingConfig(max_frames=flags.num_frames, image_size=engine.model.config.tower.image_size)
    config = RunConfig(
        str(folder / "out"),
        engine_config,
        recipe,
        sampling,
        units=UnitConfig(max_clips=4),
        workers=WorkerConfig(canary_every=0),
    )
    clips = sample_all(videos, sampling)
    running = WORKER.get_engine(engine_config)
    run_engine_alone(running, recipe, clips[:1])  # warm
    alone_s = run_engine_alone(running, recipe, clips)
    pipeline_s = run_pipeline(config, folder / "videos")
    return {
        "benchmark": "pipeline",
        "checkpoint": flags.make_checkpoint,
        "workload": {"clips": flags.clips, "frames": flags.num_frames, "seconds": flags.seconds, "size": "1280x720"},
        "engine_alone": {"wall_s": alone_s, "clips_per_s": round(flags.clips / alone_s, 4)},
        "pipeline": {"wall_s": pipeline_s, "clips_per_s": round(flags.clips / pipeline_s, 4)},
        "ratio": round(alone_s / pipeline_s, 3),
        "machine": describe_machine(),
    }


if __name__ == "__main__":
    main()
