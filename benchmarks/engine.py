"""The model card's loop against the engine, on the same checkpoint in one run.

    python -m benchmarks.engine --make-checkpoint mid --clips 4 --num-frames 16
    python -m benchmarks.engine --make-checkpoint 7b --device cuda --clips 24 --num-frames 64 --model-card-clips 1

Prints one JSON object: both sides, the ratio, how far the answers agree, versions and machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.agreement import compare_answers
from benchmarks.geometry import DEMO_TOKENIZER, SIZES, make_weights, write_configuration
from benchmarks.machine import describe_machine
from benchmarks.model_card_loop import ModelCardLoop
from benchmarks.workload import Ask, MadeClip, Workload, draw_full, make_workload
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.engine import Engine
from framescribe.llava_video.engine.generation import Completion, GenerationConfig
from framescribe.llava_video.engine.memory import choose_device, choose_dtype
from framescribe.llava_video.model.checkpoint import Checkpoint
from framescribe.llava_video.model.config import read_model_config
from framescribe.llava_video.model.model import load_model
from framescribe.llava_video.model.prompts import PromptTokenizer
from framescribe.llava_video.model.roofline import H200_BYTES_PER_S, H200_FLOPS, count_clip_work

Answers = list[list[int]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One side's cost: seconds of wall time and of all processor threads, for `num_clips` clips."""

    num_clips: int
    wall_s: float
    cpu_s: float

    @property
    def clips_per_s(self) -> float:
        """Clips a second of wall time."""
        return self.num_clips / self.wall_s


def make_engine(size: str, config: EngineConfig, folder: Path, tokenizer: Path) -> Engine:
    """Builds an engine of random weights in memory; nothing but its configuration touches the disk."""
    write_configuration(size, folder, tokenizer)
    checkpoint = Checkpoint(f"random-{size}", folder, "random")
    model_config = read_model_config(checkpoint)
    prompts = PromptTokenizer(checkpoint)
    device = choose_device(config.device)
    model = load_model(
        make_weights,
        model_config,
        prompts.num_ids,
        [device] * model_config.language.num_hidden_layers,
        choose_dtype(config.dtype, device),
        config.attn_implementation,
    )
    return Engine(config, checkpoint, model, prompts)


def run_model_card_loop(
    engine: Engine, workload: Workload, num_clips: int, num_questions: int | None = None
) -> tuple[Measured, Answers]:
    """Runs the model card's loop over the first clips, with the first questions or all."""
    loop = ModelCardLoop(engine)
    clips = workload.clips[:num_clips]
    started = _now()
    answers = [
        loop.ask(clip.frames, clip.timestamps_s, clip.duration_s, question, max_new_tokens)
        for clip in clips
        for question, max_new_tokens in workload.questions[:num_questions]
    ]
    return _measure(num_clips, started), answers


def run_engine(engine: Engine, workload: Workload) -> tuple[Measured, Answers]:
    """Opens all clips and asks all questions as they come, and closes each clip when its answers are there."""
    started = _now()
    opened = []
    for clip in workload.clips:
        video = engine.open(clip.frames, clip.timestamps_s, clip.duration_s)
        generations = [(question, GenerationConfig(max_new_tokens=limit)) for question, limit in workload.questions]
        opened.append((video, [video.ask(question, generation) for question, generation in generations]))
    answers: Answers = []
    for video, futures in opened:
        answers.extend(list(future.result().token_ids) for future in futures)
        video.close()
    return _measure(len(opened), started), answers


class FullClip:
    """One clip that is asked the mix of the recipe full; follow-ups are asked from wherever an answer arrives."""

    def __init__(self, engine: Engine, clip: MadeClip, asks: Sequence[Ask], shorten: int = 1) -> None:
        self.completions: list[Completion] = []
        self.done: Future[None] = Future()
        self._engine, self._shorten, self._num_open, self._lock = engine, shorten, 0, threading.Lock()
        self._video = engine.open(clip.frames, clip.timestamps_s, clip.duration_s)
        self._ask(asks)

    def _ask(self, asks: Sequence[Ask]) -> None:
        with self._lock:
            self._num_open += len(asks)
        for ask in asks:
            question = write_question(self._engine, ask.num_question_tokens)
            target = self._video if ask.has_video else self._engine
            num_tokens = -(-ask.num_answer_tokens // self._shorten)
            future = target.ask(question, GenerationConfig(max_new_tokens=num_tokens))
            future.add_done_callback(partial(self._follow, ask))

    def _follow(self, ask: Ask, answered: Future[Completion]) -> None:
        error = answered.exception()
        if error is None:
            self.completions.append(answered.result())
            self._ask(ask.follow_ups)
        with self._lock:
            self._num_open -= 1
            is_last = not self._num_open
        if error is not None and not self.done.done():
            self.done.set_exception(error)
        if is_last:
            self._video.close()
            if not self.done.done():
                self.done.set_result(None)


def write_question(engine: Engine, num_tokens: int) -> str:
    """Returns a text that makes a question of about so many tokens, the turns around it included."""
    empty, probe = (len(engine.tokenizer.video_question(" a" * number)) for number in (0, 64))
    return " a" * max(1, round((num_tokens - empty) * 64 / (probe - empty)))


def run_full(engine: Engine, clips: Sequence[MadeClip], most_at_once: int, shorten: int = 1) -> tuple[Measured, int]:
    """Asks the mix of the recipe full of each clip, so many clips at once; returns also how many answers there were.

    Args:
        shorten: answers are cut to one of so many tokens.
    """
    started, waiting, answers = _now(), [], 0
    for seed, clip in enumerate(clips):
        waiting.append(FullClip(engine, clip, draw_full(seed), shorten))
        while len(waiting) >= most_at_once or (waiting and seed == len(clips) - 1):
            wait([one.done for one in waiting], return_when=FIRST_COMPLETED)
            finished = [one for one in waiting if one.done.done()]
            waiting = [one for one in waiting if not one.done.done()]
            for one in finished:
                one.done.result()
                answers += len(one.completions)
    return _measure(len(clips), started), answers


def run_benchmark(flags: argparse.Namespace, engine: Engine) -> dict[str, object]:
    """Runs both sides and returns the JSON object."""
    workload = make_workload(
        flags.clips, flags.num_frames, engine.model.config.tower.image_size, flags.caption_tokens, flags.answer_tokens
    )
    on_gpu = engine.model.device.type == "cuda"
    if on_gpu:  # kernels are planned and graphs captured while it runs for the first time
        run_engine(engine, workload)
        torch.cuda.reset_peak_memory_stats()
    else:
        _warm_up(engine, workload)
    engine.stats.kv_prefix_peak_bytes = 0
    before = asdict(engine.stats)
    engine_side, answers = run_engine(engine, workload)
    stats = {name: value - before[name] for name, value in asdict(engine.stats).items() if name != "kv_prefix_bytes"}
    bound = _compare_with_bound(flags, engine, engine_side, stats) if on_gpu else None
    if on_gpu:
        run_model_card_loop(engine, workload, 1, num_questions=1)
    model_card_side, expected = run_model_card_loop(engine, workload, flags.model_card_clips or flags.clips)
    per_clip = [side.cpu_s / side.num_clips for side in (model_card_side, engine_side)]
    return {
        "benchmark": "engine",
        "checkpoint": engine.checkpoint.name,
        "dtype": str(engine.model.language.dtype).removeprefix("torch."),
        "device": str(engine.model.device),
        "workload": {"clips": flags.clips, "frames": flags.num_frames, "questions": [n for _, n in workload.questions]},
        "model_card_loop": asdict(model_card_side) | {"clips_per_s": round(model_card_side.clips_per_s, 4)},
        "engine": asdict(engine_side) | {"clips_per_s": round(engine_side.clips_per_s, 4), "counters": stats},
        "ratio_wall": round(engine_side.clips_per_s / model_card_side.clips_per_s, 2),
        "ratio_cpu": None if on_gpu else round(per_clip[0] / per_clip[1], 2),
        "agreement": asdict(compare_answers(engine, workload, expected, answers)),
        "bound": bound,
        "full": _measure_full(engine, workload, flags.full_clips),
        "machine": describe_machine(),
    }


def _measure_full(engine: Engine, workload: Workload, num_clips: int) -> dict[str, float] | None:
    """Measures the engine with the mix of the recipe full, without the other side, which would take hours."""
    if not num_clips:
        return None
    clips = [workload.clips[index % len(workload.clips)] for index in range(num_clips)]
    side, answers = run_full(engine, clips, most_at_once=48)
    return asdict(side) | {"clips_per_s": round(side.clips_per_s, 4), "answers": answers}


def _compare_with_bound(
    flags: argparse.Namespace, engine: Engine, side: Measured, stats: dict[str, float]
) -> dict[str, float]:
    """Says which fraction of a GPU's rates was reached."""
    prefix = int(stats["prefilled_tokens"] / side.num_clips)
    work = count_clip_work(engine.model.config, flags.num_frames, prefix, engine.model.language.num_ids)
    rows = stats["generated_tokens"] / max(1, stats["decode_steps"])
    questions_per_clip = stats["questions"] / side.num_clips
    suffix = (stats["question_tokens"] + stats["generated_tokens"] / 2) / max(1, stats["questions"])
    bound_s = work.bound_s(
        flags.peak_flops,
        flags.peak_bytes_per_s,
        stats["question_tokens"] / side.num_clips,
        stats["decode_steps"] / side.num_clips,
        work.step_bytes(min(side.num_clips, rows / questions_per_clip), rows * suffix),  # clips side by side: at least
    )
    busy_s = stats["encode_s"] + stats["prefill_s"]
    return {
        "vision_s_per_clip": stats["encode_s"] / side.num_clips,
        "prefill_s_per_clip": stats["prefill_s"] / side.num_clips,
        "decode_s_per_clip": (stats["decode_s"] + stats["question_s"]) / side.num_clips,
        "mfu_vision_and_prefill": side.num_clips * (work.vision_flops + work.prefill_flops) / busy_s / flags.peak_flops,
        "fraction_of_bound": bound_s * side.num_clips / side.wall_s,
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated()),  # with the pool, which takes all but 12 GiB
    }


def _warm_up(engine: Engine, workload: Workload) -> None:
    clip = workload.clips[0]
    with engine.open(clip.frames, clip.timestamps_s, clip.duration_s) as video:
        video.ask("Warm up.", GenerationConfig(max_new_tokens=4)).result()


def _now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _measure(num_clips: int, started: tuple[float, float]) -> Measured:
    ended = _now()
    return Measured(num_clips, ended[0] - started[0], ended[1] - started[1])


def _parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--make-checkpoint", choices=SIZES, help="random weights of this geometry")
    source.add_argument("--model", help="a real checkpoint: folder, URI or hub id")
    parser.add_argument("--tokenizer", type=Path, default=DEMO_TOKENIZER, help="folder of the random checkpoint's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--attn-implementation", default="sdpa")
    parser.add_argument(
        "--static-decode", action=argparse.BooleanOptionalAction, help="fixed shapes and CUDA graphs; on one GPU"
    )
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--model-card-clips", type=int, help="clips of the model card's loop; all")
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--caption-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--full-clips", type=int, default=0, help="clips asked the mix of the recipe full as well")
    parser.add_argument("--threads", type=int, help="processor threads of PyTorch")
    parser.add_argument("--peak-flops", type=float, default=H200_FLOPS, help="bfloat16 rate of the GPU")
    parser.add_argument("--peak-bytes-per-s", type=float, default=H200_BYTES_PER_S)
    return parser.parse_args()


def main() -> None:
    """Runs the benchmark and prints its JSON."""
    flags = _parse_flags()
    if choose_device(flags.device).type == "cuda":
        torch.cuda.set_device(choose_device(flags.device))
    if flags.threads:
        torch.set_num_threads(flags.threads)
    config = EngineConfig(
        model=flags.model or f"random-{flags.make_checkpoint}",
        device=flags.device,
        dtype=flags.dtype,
        attn_implementation=flags.attn_implementation,
        static_decode=flags.static_decode,
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = (
            Engine.load(config)
            if flags.model
            else make_engine(flags.make_checkpoint, config, Path(folder), flags.tokenizer)
        )
        with engine:
            print(json.dumps(run_benchmark(flags, engine), indent=2))


if __name__ == "__main__":
    main()
