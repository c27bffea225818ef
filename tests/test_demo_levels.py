"""A whole `levels` run on the demo model: two scenes in one video are told segment by segment, then as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo import answers
from demo.video_files import encode_frames
from demo.world import Scene, draw_frames, random_scene
from run_pipeline import main

CHECKPOINT = Path(__file__).resolve().parent.parent / "demo" / "checkpoint"


def _scene(seed: int) -> Scene:
    return replace(random_scene(np.random.default_rng(seed)), duration_s=10.0)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Level and text of every caption of a video of two scenes of 10 seconds."""
    folder = tmp_path_factory.mktemp("levels")
    frames = [draw_frames(scene, np.linspace(0, 1, scene.num_frames)) for scene in (_scene(1), _scene(2))]
    (folder / "two.mp4").write_bytes(encode_frames(np.concatenate(frames)))
    flags = [
        "--model",
        str(CHECKPOINT),
        "--recipe",
        "levels",
        "--num-frames",
        "16",
        "--device",
        "cpu",
        "--decoder-processes",
        "1",
    ]
    assert main(["annotate", "--input", str(folder / "two.mp4"), "--output", str(folder / "out"), *flags]) == 0
    rows = pq.read_table(folder / "out" / "captions").to_pylist()
    return sorted((row["level"], row["text"]) for row in rows)


def test_every_segment_is_told_by_what_it_shows(told: list[tuple[str, str]]) -> None:
    wanted = {answers.caption(_scene(1)), answers.caption(_scene(2))}
    assert {text for level, text in told if level == "segment"} == wanted


def test_the_whole_video_is_told_in_the_order_in_which_it_happened(told: list[tuple[str, str]]) -> None:
    whole = answers.retell([answers.caption(_scene(1)), answers.caption(_scene(2))])
    assert [text for level, text in told if level == "video"] == [whole]
