"""Scenes as encoded videos, and videos as sampled frames; `python -m demo.video_files` makes the demo clips anew."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from demo.answers import caption
from demo.world import FPS, FRAME_PX, MOTIONS, Scene, draw_frames, random_scene
from framescribe.decoding.sampling import spread_indices

CLIPS = Path(__file__).parent / "clips"
SEED = 178
NUM_CLIPS = 12


def encode_scene(scene: Scene, crf: int = 20, preset: str = "veryfast") -> bytes:
    """Renders a scene and encodes it as H.264 in mp4, 8 frames per second."""
    return encode_frames(draw_frames(scene, np.linspace(0, 1, scene.num_frames)), crf, preset)


def encode_frames(frames: np.ndarray, crf: int = 20, preset: str = "veryfast") -> bytes:
    """Encodes uint8 [N, 128, 128, 3] as H.264 in mp4, the same bytes each time on one build of x264."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": str(crf), "preset": preset})
        track.width, track.height, track.pix_fmt = FRAME_PX, FRAME_PX, "yuv420p"
        track.codec_context.thread_count = 1
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(track.encode())
    return stream.getvalue()


def decode_evenly(video: bytes, num_frames: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns frames uint8 [T, H, W, 3], their times in seconds [T] and the duration in seconds."""
    with av.open(io.BytesIO(video), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = np.array(spread_indices(len(frames), num_frames))
    return np.stack([frames[index] for index in chosen]), chosen / FPS, len(frames) / FPS


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
