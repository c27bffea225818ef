"""Runs the scheduler over the questions of the recipe `full` on a modelled GPU: what to expect, and what waits.

    python -m benchmarks.simulate
    python -m benchmarks.simulate --clips 300 --gpu h100 --ahead 16 --waves

The scheduler, the prefix pool and the rounding of steps are the engine's own; answers have drawn lengths, and time is
counted, not measured. Work, and what a GPU makes of it, come from `framescribe/llava_video/model/roofline.py`, whose
constants nobody has compared with a GPU yet. Prints one JSON object for each GPU and number of clips.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.geometry import write_configuration
from benchmarks.workload import Ask, draw_full
from framescribe.llava_video.attention.cascade import attend_chunks
from framescribe.llava_video.attention.cuda_graphs import CAPTURE_AFTER
from framescribe.llava_video.attention.kv_cache import CHUNK_TOKENS, PAGE_TOKENS, PrefixPool, SuffixPages
from framescribe.llava_video.attention.static_decode import StaticDecoder
from framescribe.llava_video.engine.generation import GenerationConfig
from framescribe.llava_video.engine.runner import row_of
from framescribe.llava_video.engine.scheduler import Limits, Scheduler
from framescribe.llava_video.engine.tasks import QuestionTask, VideoTask
from framescribe.llava_video.model.checkpoint import Checkpoint
from framescribe.llava_video.model.config import read_model_config
from framescribe.llava_video.model.prompts import VideoPrefix
from framescribe.llava_video.model.roofline import (
    CAPTURE_S,
    H100_BYTES_PER_S,
    H200_BYTES_PER_S,
    HOST_S,
    LEAST_START_TOKENS,
    MAX_ROWS,
    MODELLED_FRAMES,
    MODELLED_PREFIX_TOKENS,
    MOVED,
    PREFILL_S,
    PREFIX_FRACTION,
    START_KERNELS,
    STEP_KERNELS,
    VISION_S,
    WAIT_S,
    ClipWork,
    Gpu,
    count_clip_work,
)

NUM_FRAMES, NUM_PREFIX_TOKENS, NUM_TEXT_TOKENS = MODELLED_FRAMES, MODELLED_PREFIX_TOKENS, 14
_CPU = torch.device("cpu")


GPUS = {"h100": Gpu(H100_BYTES_PER_S, 48e9), "h200": Gpu(H200_BYTES_PER_S, 108e9)}


@dataclass(slots=True)
class Simulated:
    """What a simulated run came to; times in modelled seconds."""

    clips: int
    clips_per_s: float = 0.0
    rows_per_step: float = 0.0
    fill: float = 0.0  # rows that ran, of those that a step was rounded up to
    steps: int = 0
    shapes: int = 0
    captures: int = 0
    starts_per_clip: float = 0.0
    waited_for_rows_s: float = 0.0  # in the mean over questions, from asked to started
    phases_s: dict[str, float] = field(default_factory=dict)


class Simulation:
    """One run: clips come, are prefilled and asked as the scheduler decides, and the clock goes on."""

    def __init__(self, gpu: Gpu, num_clips: int, num_ahead: int, in_waves: bool, limits: Limits) -> None:
        self._gpu, self._num_clips, self._num_ahead, self._in_waves = gpu, num_clips, num_ahead, in_waves
        self._work = count_work()
        self._scheduler = Scheduler(limits)
        self._pool = PrefixPool(
            limits.prefix_tokens // CHUNK_TOKENS, CHUNK_TOKENS, 1, 1, [_CPU], torch.float32, attend_chunks
        )
        pages = SuffixPages(limits.num_pages, 1, 1, [_CPU], torch.float32)
        self._decoder = StaticDecoder(None, self._pool, pages, SimpleNamespace(spare_row=limits.max_rows))  # type: ignore[arg-type]  # neither is run
        self._text = _video(-1, NUM_TEXT_TOKENS)
        self._text.prefix = self._decoder.text
        self._scheduler.add_video(self._text)
        self._now_s, self._num_opened, self._num_open = 0.0, 0, 0
        self._steps: Counter = Counter()
        self._phases: dict[str, float] = defaultdict(float)
        self._asked_s: dict[int, float] = {}
        self._then: dict[int, Callable[[], None]] = {}
        self._num_starts = self._num_rows = self._num_padded = self._captures = 0
        self._waits: list[float] = []

    def run(self) -> Simulated:
        """Runs to the last answer."""
        self._open_more()
        while self._scheduler.has_work:
            self._prefill()
            self._start()
            self._decode()
        steps = sum(self._steps.values())
        return Simulated(
            clips=self._num_clips,
            clips_per_s=round(self._num_clips / self._now_s, 3),
            rows_per_step=round(self._num_rows / steps, 1),
            fill=round(self._num_rows / self._num_padded, 3),
            steps=steps,
            shapes=len(self._steps),
            captures=self._captures,
            starts_per_clip=round(self._num_starts / self._num_clips, 2),
            waited_for_rows_s=round(sum(self._waits) / len(self._waits), 3),
            phases_s={name: round(seconds, 1) for name, seconds in self._phases.items()},
        )

    def _open_more(self) -> None:
        while self._num_open < self._num_ahead and self._num_opened < self._num_clips:
            video = _video(self._num_opened, NUM_PREFIX_TOKENS)
            asks = draw_full(self._num_opened)
            self._num_opened, self._num_open = self._num_opened + 1, self._num_open + 1
            self._scheduler.add_video(video)
            clip = _Clip(self, video)
            clip.ask(_waves(asks) if self._in_waves else asks)

    def ask(self, video: VideoTask, ask: Ask, then: Callable[[], None]) -> None:
        """Asks a question of a clip, or of none, and goes on with `then` once it is answered."""
        generation = GenerationConfig(max_new_tokens=ask.num_answer_tokens)
        target = video if ask.has_video else self._text
        question = QuestionTask(target, [0] * ask.num_question_tokens, generation, 1.05, Future())
        self._then[id(question)], self._asked_s[id(question)] = then, self._now_s
        self._scheduler.add_question(question)

    def close(self, video: VideoTask) -> None:
        """Closes a clip that has all its answers; the next is opened."""
        self._scheduler.close_video(video)
        self._num_open -= 1
        self._open_more()

    def _prefill(self) -> None:
        for video in self._scheduler.next_videos():
            video.prefix = self._pool.open(video.num_tokens)
            self._spend("vision", self._work.vision_flops / self._gpu.vision_flops + VISION_S + WAIT_S)
            self._spend("prefill", self._work.prefill_flops / self._gpu.language_flops + PREFILL_S)

    def _start(self) -> None:
        questions = self._scheduler.next_questions()
        if not questions:
            return
        self._num_starts += 1
        num_tokens = sum(len(question.token_ids) for question in questions)
        computed_s = num_tokens * self._work.question_token_flops / self._gpu.language_flops
        self._spend("start", max(computed_s, START_KERNELS * self._gpu.eager_s))
        self._waits += [self._now_s - self._asked_s.pop(id(question)) for question in questions]
        self._extend(questions)

    def _decode(self) -> None:
        running = list(self._scheduler.running)
        if not running:
            return
        shape = self._decoder.shape_of([row_of(question) for question in running])
        self._steps[shape] += 1
        num_clips = len({id(question.video) for question in running if question.video is not self._text})
        suffix = sum(question.num_suffix_tokens for question in running)
        moved = self._work.step_bytes(num_clips, suffix) - self._work.weight_bytes
        bytes_s = (self._work.weight_bytes + MOVED * moved) / self._gpu.bytes_per_s
        self._num_rows, self._num_padded = self._num_rows + len(running), self._num_padded + shape.rows
        is_captured = self._steps[shape] > CAPTURE_AFTER
        self._captures += self._steps[shape] == CAPTURE_AFTER + 1
        self._spend("capture", CAPTURE_S * (self._steps[shape] == CAPTURE_AFTER + 1))
        launched_s = STEP_KERNELS * (self._gpu.launch_s if is_captured else self._gpu.eager_s)
        self._spend("decode", bytes_s + launched_s + HOST_S)
        self._extend(running)

    def _extend(self, questions: Sequence[QuestionTask]) -> None:
        for question in questions:
            question.generated.append(0)
            if len(question.generated) >= question.generation.max_new_tokens:
                self._scheduler.finish(question)
                self._then.pop(id(question))()

    def _spend(self, phase: str, seconds: float) -> None:
        self._now_s += seconds
        self._phases[phase] += seconds


class _Clip:
    """Asks what follows once what it follows is answered, and closes the clip after the last."""

    def __init__(self, simulation: Simulation, video: VideoTask) -> None:
        self._simulation, self._video, self._num_open = simulation, video, 0

    def ask(self, asks: Sequence[Ask]) -> None:
        self._num_open += len(asks)
        for ask in asks:
            self._simulation.ask(self._video, ask, lambda ask=ask: self._follow(ask))  # type: ignore[misc]  # its own ask

    def _follow(self, ask: Ask) -> None:
        self.ask(ask.follow_ups)
        self._num_open -= 1
        if not self._num_open:
            self._simulation.close(self._video)


def _waves(asks: tuple[Ask, ...]) -> tuple[Ask, ...]:
    """Returns the same questions, but all that follow wait for the slowest of those before."""
    caption, *types = asks
    slowest = max(range(len(types)), key=lambda index: types[index].num_answer_tokens)
    follow_ups = tuple(ask for one in types for ask in one.follow_ups)
    last = max((one for one in follow_ups), key=lambda ask: ask.num_answer_tokens, default=None)
    choices = tuple(ask for one in follow_ups for ask in one.follow_ups)
    second = tuple(
        Ask(one.num_question_tokens, one.num_answer_tokens, one.has_video, choices if one is last else ())
        for one in follow_ups
    )
    first = tuple(
        Ask(one.num_question_tokens, one.num_answer_tokens, True, second if index == slowest else ())
        for index, one in enumerate(types)
    )
    return (caption, *first)


def _video(order: int, num_tokens: int) -> VideoTask:
    return VideoTask(order, "", "", None, np.empty(0, np.int64), VideoPrefix((), ()), num_tokens)


def count_work() -> ClipWork:
    """Counts what one clip of the 7B model costs, from its configuration alone."""
    with tempfile.TemporaryDirectory() as folder:
        write_configuration("7b", Path(folder))
        config = read_model_config(Checkpoint("7b", Path(folder), ""))
    return count_clip_work(config, NUM_FRAMES, NUM_PREFIX_TOKENS, 151_646)


def _limits(gpu: Gpu, work: ClipWork, max_rows: int, least_start_tokens: int) -> Limits:
    return Limits(
        prefix_tokens=int(PREFIX_FRACTION * gpu.kv_bytes / work.token_bytes),
        num_pages=int((1 - PREFIX_FRACTION) * gpu.kv_bytes / work.token_bytes) // PAGE_TOKENS,
        max_rows=max_rows,
        prefill_tokens=65536,
        least_start_tokens=least_start_tokens,
        prefix_unit=CHUNK_TOKENS,
    )


def simulate(
    gpu: str,
    num_clips: int,
    num_ahead: int = 48,
    in_waves: bool = False,
    max_rows: int = MAX_ROWS,
    least_start_tokens: int = LEAST_START_TOKENS,
) -> Simulated:
    """Simulates one run.

    Args:
        num_ahead: clips that are open at once.
        in_waves: whether follow-ups wait for the slowest question of their clip.
        max_rows, least_start_tokens: as the engine's `Limits` have them.
    """
    limits = _limits(GPUS[gpu], count_work(), max_rows, least_start_tokens)
    return Simulation(GPUS[gpu], num_clips, num_ahead, in_waves, limits).run()


def main() -> None:
    """Simulates what the command line says and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--gpu", choices=GPUS, nargs="+", default=list(GPUS))
    parser.add_argument("--ahead", type=int, default=48, help="clips that are open at once; default: 48")
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, help="questions answered at once; default: 256")
    parser.add_argument(
        "--least-start-tokens", type=int, default=LEAST_START_TOKENS, help="that a start waits for; default: 1024"
    )
    parser.add_argument("--waves", action="store_true", help="follow-ups wait for the slowest question of their clip")
    flags = parser.parse_args()
    for gpu in flags.gpu:
        for num_clips in flags.clips:
            run = simulate(gpu, num_clips, flags.ahead, flags.waves, flags.max_rows, flags.least_start_tokens)
            print(json.dumps({"gpu": gpu, "ahead": flags.ahead, "waves": flags.waves, **asdict(run)}), flush=True)


if __name__ == "__main__":
    main()
