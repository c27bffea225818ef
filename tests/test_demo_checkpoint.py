"""The demo checkpoint: its size and layout, and that it really sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demo import answers, evaluate, questions
from demo.evaluate import CHECKPOINT
from demo.questions import Asked
from demo.show import fewest_expected, read_promised_fraction
from demo.video_files import decode_evenly, encode_scene
from demo.world import play_backwards, random_scene
from framescribe.llava_video import Engine, EngineConfig, GenerationConfig
from tests.support.output_fixtures import make_pair

ROOT = Path(__file__).parent.parent
MAX_BYTES = 6_000_000
NUM_CLIPS = 8

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="demo/checkpoint holds no weights: train them first"
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(EngineConfig(model=str(CHECKPOINT), device="cpu", dtype="float32")) as loaded:
        yield loaded


def describe(engine: Engine, frames: np.ndarray, times_s: np.ndarray, duration_s: float) -> str:
    video = engine.open(frames, times_s.tolist(), duration_s)
    text = video.ask(questions.prompts().caption, GenerationConfig(max_new_tokens=96)).result().text
    video.close()
    return text


def test_the_checkpoint_is_at_most_six_megabytes():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= MAX_BYTES


def test_as_many_captions_say_what_encoded_clips_show_as_the_model_card_promises(engine):
    rng = np.random.default_rng(404)
    scenes = [random_scene(rng) for _ in range(NUM_CLIPS)]
    wanted = [questions.ask_caption(scene).answer for scene in scenes]
    got = [describe(engine, *decode_evenly(encode_scene(scene), 8)) for scene in scenes]
    num_right = sum(caption == truth for caption, truth in zip(got, wanted, strict=True))
    assert num_right >= fewest_expected(NUM_CLIPS, read_promised_fraction(CHECKPOINT / "README.md"))


def test_a_clip_played_backwards_is_described_backwards(engine):
    scene = random_scene(np.random.default_rng(405))
    frames, times_s, duration_s = decode_evenly(encode_scene(scene), 8)
    wanted = questions.ask_caption(play_backwards(scene)).answer
    assert describe(engine, frames[::-1].copy(), times_s, duration_s) == wanted


def test_without_the_video_the_model_says_that_it_cannot_tell(engine):
    asked = questions.ask_without_video(questions.ask_short(("What shape is the object?", "ring")))
    answer = engine.ask(asked.question, GenerationConfig(max_new_tokens=48)).result().text
    assert answer == "I cannot tell without the video."


def test_no_kind_of_question_falls_behind_what_evaluation_demands(engine):
    groups = evaluate.split_kinds(evaluate.evaluate(engine, seed=404, num_clips=6))
    num_right = {kind: sum(one.is_right for one in group) for kind, group in groups.items()}
    wanted = {kind: fewest_expected(len(group), evaluate.MIN_FRACTION_RIGHT) for kind, group in groups.items()}
    assert {kind: right for kind, right in num_right.items() if right < wanted[kind]} == {}


def test_evaluation_counts_every_kind_of_question_by_itself():
    answered = [
        evaluate.Answered(Asked("caption", "?", "A ring."), "A ring."),
        evaluate.Answered(Asked("open_ended", "?", "None"), "None"),
        evaluate.Answered(Asked("open_ended", "?", "Question: Q?\nAnswer: A"), "None"),
    ]
    groups = evaluate.split_kinds(answered)
    assert {kind: evaluate.fraction_right(group) for kind, group in groups.items()} == {
        "caption": 1.0,
        "open_ended, None": 1.0,
        "open_ended, a pair": 0.0,
    }


def test_a_pair_is_right_where_the_scene_has_that_question_and_that_answer():
    scene = random_scene(np.random.default_rng(7))
    question, answer = answers.count_pair(scene)
    judged = [
        evaluate.judge(replace(make_pair(), kind="open_ended", question=question, answer=one), scene)
        for one in (answer, "many")
    ]
    assert [one.is_right for one in judged] == [True, False]


def test_the_table_of_consistency_counts_right_pairs_among_all_and_among_consistent_ones():
    consistent, other = (replace(make_pair(is_consistent=one), kind="open_ended") for one in (True, False))
    judged = [evaluate.JudgedPair(consistent, True), evaluate.JudgedPair(consistent, False)]
    table = evaluate.write_consistency_table([*judged, evaluate.JudgedPair(other, False)])
    assert [line.split() for line in table.splitlines()[1:3]] == [
        ["open_ended", "all", "1", "3", "33.3%"],
        ["open_ended", "consistent", "1", "2", "50.0%"],
    ]


def test_pairs_about_clips_with_fewer_frames_are_judged(engine):
    judged = evaluate.annotate_and_judge(engine, seed=11, num_clips=2, num_frames=4)
    assert {one.pair.kind for one in judged} == {"open_ended", "multiple_choice"}
    assert all(one.pair.recheck_score is not None for one in judged)
    assert sum(one.is_right for one in judged) > len(judged) / 2


def test_the_library_lines_of_the_readme_print_what_it_says():
    readme = (ROOT / "README.md").read_text()
    lines, _, after = readme.partition("```python\n")[2].partition("```")
    real, ours = '"lmms-lab/LLaVA-Video-7B-Qwen2"', '"demo/checkpoint", num_frames=8'
    lines = lines.replace(real, ours).replace("a.mp4", "demo/clips/01_left.mp4")
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"prints `{done.stdout.strip()}`" in after
