"""Makes the demo clips and what they show: `python -m demo.make_clips`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from demo.answers import caption
from demo.video_files import encode_scene
from demo.world import MOTIONS, Scene, random_scene

CLIPS = Path(__file__).parent / "clips"
SEED = 178
NUM_CLIPS = 12


def choose_scenes(seed: int, num_scenes: int) -> list[Scene]:
    """Draws scenes, one object and two in turn, whose first object takes every motion in turn."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < num_scenes:
        scene = random_scene(rng)
        wanted_actors, wanted_motion = 1 + len(scenes) % 2, MOTIONS[len(scenes) % len(MOTIONS)]
        if len(scene.actors) == wanted_actors and scene.actors[0].motion == wanted_motion:
            scenes.append(scene)
    return scenes


def describe_scene(name: str, scene: Scene) -> str:
    """Returns the line of the truth file for one clip."""
    facts = {
        "background": scene.background,
        "duration_s": round(scene.num_frames / 8, 3),
        "objects": [
            {key: value for key, value in asdict(actor).items() if key in ("shape", "colour", "end_colour", "motion")}
            for actor in scene.actors
        ],
    }
    return json.dumps({"file": name, "caption": caption(scene), **facts})


def main() -> None:
    """Writes the clips and truth.jsonl."""
    CLIPS.mkdir(exist_ok=True)
    lines = []
    for number, scene in enumerate(choose_scenes(SEED, NUM_CLIPS), start=1):
        motions = "_".join(actor.motion for actor in scene.actors)
        name = f"{number:02d}_{motions}.mp4"
        (CLIPS / name).write_bytes(encode_scene(scene, crf=18, preset="slow"))
        lines.append(describe_scene(name, scene))
    (CLIPS / "truth.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
