"""The clips and questions of the engine benchmarks: one caption and eight questions a clip."""

from __future__ import annotations

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


def _make_clip(seed: int, num_frames: int, image_size: int) -> MadeClip:
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, image_size, dtype=np.float32)
    base = (ramp[:, None, None] + ramp[None, :, None] * random.uniform(-1, 1, 3).astype(np.float32)) % 256
    shifts = random.integers(1, 9) * np.arange(num_frames)
    noise = random.integers(0, 32, (num_frames, image_size, image_size, 3))
    frames = np.stack([np.roll(base, shift, axis=1) for shift in shifts]) * 0.8 + noise
    times = tuple(float(time) for time in np.arange(num_frames) * 0.5)
    return MadeClip(frames.clip(0, 255).astype(np.uint8), times, num_frames * 0.5)
