"""Fifty command lines as a new user would type them, and the one line that each is answered with."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys

import pytest
import torch

from run_pipeline import main
from tests.support.run_fixtures import ROOT
from tests.support.shards_fixtures import write

_RUN = "annotate --input demo/clips --model demo/checkpoint --output {out}"
_NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
_REFUSED_BY_THE_PARSER = [
    ("anotate --input demo/clips", "there is no sub-command 'anotate'; did you mean annotate?"),
    ("Plan --input demo/clips", "there is no sub-command 'Plan'; did you mean plan?"),
    ("run --input demo/clips", "there is no sub-command 'run'; did you mean annotate?"),
    ("describe a.mp4", "there is no sub-command 'describe'; did you mean ask?"),
    ("frobnicate", "there is no sub-command 'frobnicate', wanted one of annotate, plan, pilot, publish"),
    ("--input demo/clips --output {out}", "got --input first, wanted one of annotate, plan, pilot, publish"),
    ("demo/clips/01_left.mp4", "for example `ask demo/clips/01_left.mp4`, or `annotate --input demo/clips/01_left.mp4"),
    ("annotate", "the following arguments are required: --input, --output"),
    ("annotate demo/clips", "got 'demo/clips', wanted a flag: --input demo/clips --output FOLDER"),
    ("annotate --input demo/clips", "the following arguments are required: --output"),
    ("annotate --input --output {out}", "argument --input: expected at least one argument"),
    ("annotate --inptu demo/clips --output {out}", "unrecognised flag --inptu; did you mean --input?"),
    ("annotate --inputs demo/clips --output {out}", "unrecognised flag --inputs; did you mean --input?"),
    ("annotate -i demo/clips -o {out}", "there is no flag -i: use --input"),
    ("annotate --input-dir demo/clips --output {out}", "there is no flag --input-dir: use --input"),
    ("annotate --input demo/clips --output-dir {out}", "there is no flag --output-dir: use --output"),
    ("annotate --input demo/clips --output ''", "got '', wanted a path or URI; an empty variable?"),
    (f"{_RUN} --num_frames 8", "unrecognised flag --num_frames; did you mean --num-frames?"),
    (f"{_RUN} --num-frames 0", "argument --num-frames: got '0', wanted a whole number of at least 1"),
    (f"{_RUN} --num-frames 8.5", "argument --num-frames: got '8.5', wanted a whole number of at least 1"),
    (f"{_RUN} --num-frames many", "argument --num-frames: got 'many', wanted a whole number of at least 1"),
    (f"{_RUN} --frames 8", "there is no flag --frames: use --num-frames"),
    (f"{_RUN} --fps -1", "argument --fps: got '-1', wanted a number above 0"),
    (f"{_RUN} --max-failed-fraction 5%", "argument --max-failed-fraction: got '5%', wanted a fraction between 0 and 1"),
    (f"{_RUN} --batch-size 8", "there is no flag --batch-size: clips are batched as they come"),
    (f"{_RUN} --resume", "there is no flag --resume: rerun the same command to resume"),
    (f"{_RUN} --prompt 'What happens?'", "there is no flag --prompt: prompts stand in a recipe, a YAML file"),
    (f"{_RUN} --gpus 2", "there is no flag --gpus: a worker uses one GPU"),
    (f"{_RUN} --device gpu", "argument --device: got 'gpu', wanted cuda, the number of a GPU as in cuda:1, cpu"),
    (f"{_RUN} --dtype fp16", "argument --dtype: invalid choice: 'fp16' (choose from"),
    (f"{_RUN} --load-in-4bit", "there is no flag --load-in-4bit: weights are not quantized"),
    (f"{_RUN} --temperature 0.7", "there is no flag --temperature: the model answers greedily"),
    (f"{_RUN} --dry-run", "there is no flag --dry-run: `plan` shows what would be done"),
    (f"{_RUN} --format json", "there is no flag --format: tables are Parquet"),
    (f"{_RUN} --hf-token abc", "there is no flag --hf-token: set HF_TOKEN in the environment"),
    (f"{_RUN} --storage-options anon=true", "argument --storage-options: wanted a JSON object"),
    (f"{_RUN} --storage-options @nowhere.json", "argument --storage-options: cannot read 'nowhere.json'"),
    (f"{_RUN} --window-columns start", "argument --window-columns: got 'start', wanted two columns"),
    (f"{_RUN} --overwrite --retry-failed", "argument --retry-failed: not allowed with argument --overwrite"),
    ("publish", "the following arguments are required: --output"),
    ("publish {out}", "got '{out}', wanted a flag: --output {out}"),
    ("publish --input demo/clips", "--input is a flag of annotate, not of publish, which has"),
    ("ask", "the following arguments are required: VIDEO"),
    ("ask demo/clips/01_left.mp4 What happens", "got 'happens' after the question, wanted one question: put it in"),
    ("ask --video demo/clips/01_left.mp4", "there is no flag --video: the video comes first: ask a.mp4"),
    ("ask demo/clips/01_left.mp4 --prompt 'What?'", "there is no flag --prompt: the question stands after the video"),
    ("ask demo/clips/01_left.mp4 --recipe levels", "--recipe is a flag of annotate, not of ask, which has"),
]  # fmt: skip
_REFUSED_BY_A_LOOK = [
    (f"{_RUN} --recipe detaild", "no recipe 'detaild'; did you mean detailed? Wanted one of captions, detailed"),
    (f"{_RUN} --recipe my_recipe.yaml", "no recipe 'my_recipe.yaml': wanted one of captions, detailed, full"),
    (f"{_RUN} --recipe demo/checkpoint/config.json", "demo/checkpoint/config.json"),
    ("annotate --input demo/clps --model demo/checkpoint --output {out}", "'demo/clps' does not exist: --input takes"),
    ("annotate --input 'demo/*.avi' --model demo/checkpoint --output {out}", "'demo/*.avi'"),
    ("annotate --input README.md --model demo/checkpoint --output {out}", "README.md"),
    ("annotate --input s4://bucket/a.tar --model demo/checkpoint --output {out}", "s4"),
    ("annotate --input demo/clips --model ./demo/checkpont --output {out}", "no folder './demo/checkpont'; wanted"),
    ("annotate --input demo/clips --model demo/clips --output {out}", "demo/clips"),
    ("annotate --input demo/clips --model llava-video --output {out}", "no folder 'llava-video'; wanted a folder"),
    (f"{_RUN} --split-seconds 0.1", "windows of 0.1 s (--split-seconds), wanted at least 1 s"),
    (f"{_RUN} --runner FlnkRunner", "--runner FlnkRunner: Unexpected pipeline runner: FlnkRunner"),
    (f"{_RUN} --num-frames 80000", "--num-frames 80000: a clip has a prompt of"),
    (f"{_RUN} --reuse-from {{out}}/earlier", "--reuse-from takes the --output of an earlier run"),
    (f"{_RUN} --direct_running_mode=multi_processing", "loads one model per process and hangs"),
    (f"{_RUN} --max-bundle-sise 3", "unrecognised flags, neither ours nor Beam's: --max-bundle-sise 3"),
    ("plan --input demo/clps", "'demo/clps' does not exist: --input takes files, folders and globs"),
    ("publish --output {out}", "no run in {out}: `annotate` starts one, `publish` builds its tables"),
    ("ask nowhere.mp4", "no video at 'nowhere.mp4'"),
    ("ask README.md", "'README.md' cannot be decoded: not a readable video"),
    pytest.param(f"{_RUN} --device cuda", "--device cuda: no NVIDIA driver is installed", marks=_NO_GPU),
    pytest.param("ask demo/clips/01_left.mp4 --device cuda:1", "--device cuda:1: no NVIDIA driver", marks=_NO_GPU),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "answer"), [*_REFUSED_BY_THE_PARSER, *_REFUSED_BY_A_LOOK])
def test_a_wrong_command_is_answered_in_one_line(typed, answer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = tmp_path / "out"
    status, said = _answer_of(shlex.split(typed.format(out=out)), capsys)
    assert status in (1, 2)
    assert [re.match(r"framescribe( \w+)?: ", line) is not None for line in said] == [True]
    assert answer.format(out=out) in said[0]
    assert not out.exists()


def _answer_of(arguments, capsys):
    """Returns the exit status, and the lines without the usage that stands before them."""
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    return status, re.sub(r"\Ausage: .*\n(?: +.*\n)*", "", capsys.readouterr().err).splitlines()


@pytest.mark.parametrize(
    "typed", ["anotate", f"{_RUN} --batch-size 8", f"{_RUN} --recipe detaild", "publish --output {out}", "ask no.mp4"]
)
def test_a_wrong_command_is_answered_in_less_than_two_seconds_of_cpu_time(typed, tmp_path):
    arguments = shlex.split(typed.format(out=tmp_path / "out"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "run_pipeline.py", *arguments], cwd=ROOT, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (1, 2)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_command_that_is_meant_works_from_another_folder(tmp_path):
    video = write(tmp_path / "a.mp4", (ROOT / "demo/clips/01_left.mp4").read_bytes())
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "ask", video, "--num-frames", "8", "--device", "cpu"]
    command += ["--model", str(ROOT / "demo/checkpoint")]
    described = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (described.returncode, described.stdout) == (0, "A yellow square moves left on a white background.\n")
