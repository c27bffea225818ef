"""The library by itself: three lines in anybody's folder, without Beam and without our other packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import framescribe
from framescribe.decoding.config import SamplingConfig, UndecodableClip

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "demo" / "clips" / "01_left.mp4"
CAPTION = "A yellow square moves left on a white background."


@pytest.fixture(scope="module")
def model():
    with framescribe.load(str(ROOT / "demo" / "checkpoint"), num_frames=8) as loaded:
        yield loaded


def test_a_video_is_described_with_the_model_cards_prompt(model):
    assert model.describe(CLIP) == CAPTION


def test_the_bytes_of_a_video_are_described_as_its_file_is(model):
    assert model.describe(CLIP.read_bytes()) == CAPTION


def test_a_video_is_asked_a_question(model):
    assert model.ask(str(CLIP), "What colour is the background?") == "white"


def test_a_video_is_annotated_with_a_recipe_by_its_name(model):
    result = model.annotate(CLIP, "model_card")
    assert [(caption.text, caption.status.value) for caption in result.captions] == [(CAPTION, "ok")]


def test_a_status_reads_as_its_word_in_a_text(model):
    (caption,) = model.annotate(CLIP, "model_card").captions
    assert f"{caption.status} {caption.status!s}" == "ok ok"


def test_a_notebook_whose_thread_runs_an_event_loop_can_annotate(model):
    import asyncio

    async def cell():
        return model.annotate(CLIP, "model_card")

    assert asyncio.run(cell()).captions[0].text == CAPTION


def test_a_file_that_is_not_there_is_named(model):
    with pytest.raises(FileNotFoundError, match="no video at 'missing.mp4'"):
        model.describe("missing.mp4")


def test_a_folder_is_called_one(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder at .*: wanted the path of a local file"):
        model.describe(tmp_path)


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(model, question):
    with pytest.raises(ValueError, match="the question is empty"):
        model.ask(CLIP, question)


def test_an_empty_question_on_the_command_line_is_refused_before_the_model_is_loaded():
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "ask", str(CLIP), "", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "the question is empty" in done.stderr) == (1, True)


def test_a_file_that_is_no_video_says_why(model):
    with pytest.raises(UndecodableClip) as caught:
        model.describe(b"not a video")
    assert caught.value.reason == "not a readable video"


def test_frames_are_sampled_in_their_order_with_repeats():
    sampled = framescribe.sample_frames(CLIP, SamplingConfig(max_frames=5, image_size=32))
    assert sampled.stack().shape == (5, 32, 32, 3)
    assert len(sampled.timestamps_s) == 5


def test_the_library_works_beside_modules_of_the_same_names_as_our_other_packages(tmp_path):
    for name in ("schemas", "transforms", "pipeline", "storage", "publish", "recipes", "decoding", "shards"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('somebody else\\'s module was imported')\n")
    code = f"""
import json, sys
import framescribe
model = framescribe.load({str(ROOT / "demo" / "checkpoint")!r}, num_frames=8)
texts = [model.describe({str(CLIP)!r}), model.annotate({str(CLIP)!r}, "model_card").captions[0].text]
model.close()
others = {{"apache_beam", "schemas", "transforms", "pipeline"}}
print(json.dumps([texts, sorted(others & set(sys.modules))]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[CAPTION, CAPTION], []]


def test_importing_framescribe_loads_neither_torch_nor_our_other_packages():
    heavy = {"torch", "av", "schemas", "pipeline", "apache_beam"}
    code = f"import sys, framescribe; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
