"""Stage 3's clips: encoded and decoded for good, seen once by the finished tower and kept as visual tokens."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from demo.training.batches import random_time_instruction
from demo.training.language import SeenClips
from demo.training.perception import Perception, pool, to_pixels
from demo.video_files import decode_evenly, encode_scene
from demo.world import FPS, Scene, random_scene

NUM_FRAMES = (8, 8, 8, 8, 8, 8, 6, 7, 9, 10)


@dataclass(frozen=True, slots=True)
class KeptClip:
    """One clip as the tower saw it: tokens float16 [T, 4, D] and the numbers of its frames [T]."""

    scene: Scene
    tokens: torch.Tensor
    frames: np.ndarray


def see_clips(perception: Perception, rng: np.random.Generator, num_clips: int) -> Iterator[KeptClip]:
    """Yields random clips that went through an encoder, a decoder, the resize and the tower."""
    for number in range(num_clips):
        scene = random_scene(rng)
        video = encode_scene(scene, crf=int(rng.integers(16, 30)), preset="ultrafast" if number % 2 else "veryfast")
        frames, times_s, _ = decode_evenly(video, NUM_FRAMES[number % len(NUM_FRAMES)])
        yield KeptClip(scene, see(perception, frames).half(), np.rint(times_s * FPS).astype(int))


@torch.no_grad()
def see(perception: Perception, frames: np.ndarray) -> torch.Tensor:
    """Returns the pooled visual tokens [T, 4, D] of uint8 frames [T, H, W, 3]."""
    return pool(perception(to_pixels(frames)))


class ClipStore:
    """Kept clips, drawn in batches of one number of frames."""

    def __init__(self, clips: list[KeptClip]) -> None:
        self.by_length: dict[int, list[KeptClip]] = {}
        for clip in clips:
            self.by_length.setdefault(len(clip.frames), []).append(clip)
        self.lengths = sorted(self.by_length)
        counts = np.array([len(self.by_length[length]) for length in self.lengths])
        self.probabilities = counts / counts.sum()

    def draw(self, rng: np.random.Generator, num_clips: int) -> SeenClips:
        """Draws clips of one length; lengths come as often as they were kept."""
        kept = self.by_length[int(rng.choice(self.lengths, p=self.probabilities))]
        # The right object is seen in clips of two alone, so those come more often.
        chances = np.array([len(clip.scene.actors) ** 1.5 for clip in kept])
        clips = [kept[int(index)] for index in rng.choice(len(kept), num_clips, p=chances / chances.sum())]
        instructions = [random_time_instruction(clip.scene, clip.frames, rng) for clip in clips]
        tokens = torch.stack([clip.tokens for clip in clips]).float()
        return SeenClips([clip.scene for clip in clips], tokens, [clip.frames for clip in clips], instructions)


def keep_clips(perception: Perception, path: Path, num_clips: int, seed: int) -> ClipStore:
    """Sees clips and writes them to `path`; reads them from there where they are kept already."""
    if not path.exists():
        started, clips = time.time(), []
        for clip in see_clips(perception, np.random.default_rng(seed), num_clips):
            clips.append(clip)
            if len(clips) % 1000 == 0:
                print(f"{time.time() - started:.0f} s: {len(clips)} clips seen", flush=True)
        path.write_bytes(pickle.dumps(clips))
    return ClipStore(pickle.loads(path.read_bytes()))
