"""The clips and questions of the engine benchmarks: a caption and eight questions, or the mix of the recipe `full`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CAPTION = "Please describe this video in detail."
QUESTIONS = tuple(
    f"What about the {subject} in this video? Answer in a few words."
    for subject in ("people", "place", "colours", "beginning", "end", "camera", "objects", "weather")
)


@dataclass(frozen=True, slots=True)
class MadeClip:
    """Frames uint8 [T, S, S, 3] with their times, made from a seed."""

    frames: np.ndarray
    timestamps_s: tuple[float, ...]
    duration_s: float


@dataclass(frozen=True, slots=True)
class Workload:
    """What both sides have to do: `questions` with the most new tokens of each, for every clip."""

    clips: tuple[MadeClip, ...]
    questions: tuple[tuple[str, int], ...]


def make_workload(
    num_clips: int, num_frames: int, image_size: int, caption_tokens: int, answer_tokens: int
) -> Workload:
    """Makes clips of moving gradients over noise; no two frames are alike."""
    clips = tuple(_make_clip(seed, num_frames, image_size) for seed in range(num_clips))
    questions = ((CAPTION, caption_tokens), *((question, answer_tokens) for question in QUESTIONS))
    return Workload(clips, questions)


@dataclass(frozen=True, slots=True)
class Ask:
    """One question by its lengths in tokens, and the questions that are asked once it is answered."""

    num_question_tokens: int
    num_answer_tokens: int
    has_video: bool = True
    follow_ups: tuple[Ask, ...] = ()


def draw_full(seed: int) -> tuple[Ask, ...]:
    """Draws what the recipe `full` asks of one clip: 77 questions where 12 of 16 types give a usable pair.

    Some 5,000 question tokens and 1,600 answer tokens per clip: prompts are as long as `recipes/full.yaml` and a
    pair make them, answers as long as LLaVA-Video-178K's.
    """
    random = np.random.default_rng(seed)

    def near(mean: int) -> int:
        return max(1, round(random.normal(mean, mean / 3)))

    def draw_type() -> Ask:
        if random.random() >= 0.75:
            return Ask(near(85), 3)  # it replies None
        check, choice = near(38), near(88)
        chosen = tuple(Ask(choice, near(6), has_video) for has_video in (True, False))
        rechecks = tuple(Ask(check, near(10), has_video) for has_video in (True, False))
        return Ask(near(85), near(38), True, (*rechecks, Ask(near(66), near(34), True, chosen)))

    return (Ask(20, min(512, near(330))), *(draw_type() for _ in range(16)))


def walk(asks: tuple[Ask, ...]) -> Iterator[Ask]:
    """Yields every question, follow-ups after what they follow."""
    for ask in asks:
        yield ask
        yield from walk(ask.follow_ups)


def _make_clip(seed: int, num_frames: int, image_size: int) -> MadeClip:
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, image_size, dtype=np.float32)
    base = (ramp[:, None, None] + ramp[None, :, None] * random.uniform(-1, 1, 3).astype(np.float32)) % 256
    shifts = random.integers(1, 9) * np.arange(num_frames)
    noise = random.integers(0, 32, (num_frames, image_size, image_size, 3))
    frames = np.stack([np.roll(base, shift, axis=1) for shift in shifts]) * 0.8 + noise
    times = tuple(float(time) for time in np.arange(num_frames) * 0.5)
    return MadeClip(frames.clip(0, 255).astype(np.uint8), times, num_frames * 0.5)
