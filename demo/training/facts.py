"""What one frame shows, as the short vector that the tower learns to write into every visual token."""

from __future__ import annotations

import numpy as np

from demo.world import BACKGROUNDS, COLOURS, SHAPES, Scene

NUM_BACKGROUNDS, NUM_COLOURS, NUM_SHAPES = len(BACKGROUNDS), len(COLOURS), len(SHAPES)
SLOT_SIZE = NUM_COLOURS + NUM_SHAPES + 3
NUM_FACTS = NUM_BACKGROUNDS + 1 + 2 * SLOT_SIZE
FACT_SCALE = 1.25


def frame_facts(scene: Scene, fraction: np.ndarray) -> np.ndarray:
    """Returns float32 [T, NUM_FACTS] at these fractions of the clip.

    One-hot background; -1 or 1 for one or two objects; then for the only or left object, and for the right one,
    one-hot colour and shape, x, y and radius around 0. The slot of an absent object is zero.
    """
    facts = np.zeros((len(fraction), NUM_FACTS), dtype=np.float32)
    facts[:, list(BACKGROUNDS).index(scene.background)] = 1
    facts[:, NUM_BACKGROUNDS] = 2 * len(scene.actors) - 3
    for slot, actor in enumerate(scene.actors):
        at = NUM_BACKGROUNDS + 1 + slot * SLOT_SIZE
        shown = [at + list(COLOURS).index(name) for name in actor.colours(fraction)]
        facts[np.arange(len(fraction)), shown] = 1
        facts[:, at + NUM_COLOURS + SHAPES.index(actor.shape)] = 1
        x, y, radius = actor.place(fraction).T
        middle = 0.5 if len(scene.actors) == 1 else (0.26, 0.74)[slot]
        facts[:, at + SLOT_SIZE - 3] = (x - middle) * 6
        facts[:, at + SLOT_SIZE - 2] = (y - 0.5) * 5
        facts[:, at + SLOT_SIZE - 1] = (radius - 0.14) * 14
    return facts


def fact_directions(width: int) -> np.ndarray:
    """Returns float32 [NUM_FACTS, width]: orthogonal directions of the model's width, the same in every run."""
    rng = np.random.default_rng(2024)
    orthogonal, _ = np.linalg.qr(rng.standard_normal((width, NUM_FACTS)))
    return (FACT_SCALE * orthogonal.T).astype(np.float32)
