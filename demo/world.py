"""The demo's world: one or two objects that move, grow, shrink, change colour or stand still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("square", "ring", "cross")
COLOURS = {"red": (215, 35, 35), "green": (20, 165, 60), "blue": (35, 70, 225), "yellow": (240, 210, 30)}
BACKGROUNDS = {"black": (12, 12, 12), "white": (244, 244, 244), "grey": (128, 128, 128)}
DIRECTIONS = ("left", "right", "up", "down")
MOTIONS = (*DIRECTIONS, "grows", "shrinks", "turns", "still")
BACKWARDS = {"left": "right", "right": "left", "up": "down", "down": "up", "grows": "shrinks", "shrinks": "grows"}
FRAME_PX = 128
FPS = 8


@dataclass(frozen=True, slots=True)
class Actor:
    """One object; places and radii in frame widths, `start` and `end` are (x, y, radius)."""

    shape: str
    colour: str
    end_colour: str
    motion: str
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    turn_at: float  # fraction of the clip after which `end_colour` is shown

    def place(self, moments: np.ndarray) -> np.ndarray:
        """Returns (x, y, radius) as float [T, 3] at these moments of the clip (0 start, 1 end)."""
        start, end = np.array(self.start), np.array(self.end)
        return start + moments[:, None] * (end - start)

    def colours(self, moments: np.ndarray) -> list[str]:
        """Returns the name of the colour shown at each moment (0 to 1) of the clip."""
        return [self.end_colour if moment >= self.turn_at else self.colour for moment in moments]


@dataclass(frozen=True, slots=True)
class Scene:
    """What one clip shows; two actors stand in the left and in the right half, left first."""

    background: str
    actors: tuple[Actor, ...]
    duration_s: float
    shade: int  # added to every channel of the background, so that no exact value is learnt

    @property
    def num_frames(self) -> int:
        """Frames of the clip, two at least."""
        return max(2, round(self.duration_s * FPS))


def random_scene(rng: np.random.Generator) -> Scene:
    """Draws one scene; every kind of motion, colour, shape and background is equally likely."""
    num_actors = int(rng.integers(1, 3))
    centres = (0.5,) if num_actors == 1 else (0.26, 0.74)
    actors = tuple(_random_actor(rng, centre, roomy=num_actors == 1) for centre in centres)
    background = str(rng.choice(list(BACKGROUNDS)))
    return Scene(background, actors, float(rng.uniform(2.0, 10.0)), int(rng.integers(-10, 11)))


def _random_actor(rng: np.random.Generator, centre_x: float, roomy: bool) -> Actor:
    motion = str(rng.choice(MOTIONS))
    wide = 2.0 if roomy else 1.0
    x = centre_x + rng.uniform(-0.02, 0.02) * wide * 2
    y = 0.5 + rng.uniform(-0.1, 0.1)
    radius = rng.uniform(0.115, 0.14) * (1.4 if roomy else 1.0)
    start, end = [x, y, radius], [x, y, radius]
    if motion in DIRECTIONS:
        axis, sign = (0, 1) if motion in ("left", "right") else (1, 1)
        sign = -1 if motion in ("left", "up") else 1
        travel = rng.uniform(0.17, 0.21) * wide * 1.1 if axis == 0 else rng.uniform(0.34, 0.44)
        start[axis] -= sign * travel / 2
        end[axis] += sign * travel / 2
    if motion in ("grows", "shrinks"):
        small, large = (
            rng.uniform(0.075, 0.09) * (1.2 if roomy else 1.0),
            rng.uniform(0.175, 0.2) * (1.3 if roomy else 1.0),
        )
        start[2], end[2] = (small, large) if motion == "grows" else (large, small)
    colour = str(rng.choice(list(COLOURS)))
    others = [name for name in COLOURS if name != colour]
    end_colour = str(rng.choice(others)) if motion == "turns" else colour
    return Actor(
        str(rng.choice(SHAPES)), colour, end_colour, motion, _place(start), _place(end), float(rng.uniform(0.38, 0.62))
    )


def _place(numbers: Sequence[float]) -> tuple[float, float, float]:
    x, y, radius = numbers
    return x, y, radius


def play_backwards(scene: Scene) -> Scene:
    """Returns the scene that the same frames show in reverse order."""
    return replace(scene, actors=tuple(_turn_round(actor) for actor in scene.actors))


def _turn_round(actor: Actor) -> Actor:
    return replace(
        actor,
        colour=actor.end_colour,
        end_colour=actor.colour,
        motion=BACKWARDS.get(actor.motion, actor.motion),
        start=actor.end,
        end=actor.start,
        turn_at=1.0 - actor.turn_at,
    )


def draw_frames(scene: Scene, moments: np.ndarray) -> np.ndarray:
    """Draws uint8 [T, 128, 128, 3] at these moments (0 to 1) of the clip, with soft edges of one pixel."""
    ground = np.array(BACKGROUNDS[scene.background], dtype=np.float32) + scene.shade
    frames = np.empty((len(moments), FRAME_PX, FRAME_PX, 3), dtype=np.float32)
    frames[:] = ground
    for actor in scene.actors:
        for frame, place, colour in zip(frames, actor.place(moments), actor.colours(moments), strict=True):
            x, y, radius = place * FRAME_PX
            _draw_shape(frame, actor.shape, x, y, radius, np.array(COLOURS[colour], dtype=np.float32))
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8)


def _draw_shape(frame: np.ndarray, shape: str, x: float, y: float, radius: float, paint: np.ndarray) -> None:
    """Paints one shape into a float frame in place; only its own box is touched, which is most of the speed."""
    left, top = (max(0, int(centre - radius - 2)) for centre in (x, y))
    box = frame[top : int(y + radius + 3), left : int(x + radius + 3)]
    dy = np.abs(np.arange(top, top + box.shape[0])[:, None] + 0.5 - y)
    dx = np.abs(np.arange(left, left + box.shape[1])[None, :] + 0.5 - x)
    cover = np.clip(0.5 - _distance(shape, dx, dy, radius), 0.0, 1.0)[..., None]
    box += cover.astype(np.float32) * (paint - box)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels from the outline, below zero inside."""
    if shape == "square":
        return np.maximum(dx, dy) - radius * 0.9
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - 0.75 * radius) - 0.25 * radius
    arm = 0.26 * radius
    return np.minimum(np.maximum(dx - radius, dy - arm), np.maximum(dx - arm, dy - radius))
