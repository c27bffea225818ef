"""What `plan` says a run will take, and how that compares with what it took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from demo.video_files import FPS, encode_frames
from framescribe.decoding.config import VideoHeader
from framescribe.llava_video.model.roofline import ClipLoad, count_clip_work, model_seconds
from framescribe.recipes import load_recipe
from framescribe.recipes.loading import SHIPPED
from pipeline.cost import RELEASED_7B
from pipeline.expected import expect_asks
from pipeline.machines import SHIPPED_MACHINES, read_machines
from pipeline.plan_report import describe_tiers
from pipeline.survey import Survey, SurveyedClip
from run_pipeline import main
from tests.support.run_fixtures import (
    ROOT,
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    make_shard,
    tiny_clip,
)
from tests.support.shards_fixtures import make_tar, write
from tests.support.talking_engine import TalkingEngine

DEMO = ("--model", str(ROOT / "demo" / "checkpoint"), "--num-frames", "8", "--canary-every", "0")
CLIPS = str(ROOT / "demo" / "clips" / "*.mp4")
SOUND = SurveyedClip(VideoHeader(10.0, 1280, 720, "h264", 25.0), (10.0,))
BROKEN = SurveyedClip(None, (), "no video stream")


def plan(capsys, *arguments) -> dict:
    """Returns what `plan --json` says."""
    capsys.readouterr()
    assert main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_prompts_of_a_recipe_are_counted_between_the_fewest_and_the_most_that_it_asks(name):
    recipe = load_recipe(name)
    count = recipe.count_prompts(30.0)
    assert count.fewest <= expect_asks(recipe, 30.0).num_prompts <= count.most


def test_tokens_of_questions_are_counted_by_the_tokenizer_that_is_given():
    asks = expect_asks(load_recipe("captions"), 30.0, lambda question: 1000)
    assert (asks.num_prompts, asks.num_question_tokens) == (2, 2000)


def test_the_modelled_time_of_the_recipe_full_is_that_of_the_simulated_scheduler():
    gpus = {machine.gpu: machine.model_gpu(14.1e9) for machine in read_machines()}
    load = ClipLoad(64, 13_654, 77, 5_080, 1_600, 330)
    work = count_clip_work(RELEASED_7B, 64, 13_654, 151_646)
    rates = {gpu: 1 / model_seconds(work, load, gpus[gpu], 48).total for gpu in ("H100", "H200")}
    assert rates["H100"] == pytest.approx(1.19, rel=0.15)  # `python -m benchmarks.simulate --clips 300`
    assert rates["H200"] == pytest.approx(1.25, rel=0.15)


def test_inputs_are_described_by_their_headers_and_what_will_fail_is_told_with_its_reason(tmp_path, capsys):
    members = [(f"{number}.mp4", tiny_clip(number)) for number in range(3)]
    shard = write(tmp_path / "s.tar", make_tar([*members, ("bad.mp4", b"no video" * 50)]))
    said = plan(capsys, "--input", shard)
    survey = said["survey"]
    assert (said["num_clips"], survey["clips_looked_at"], survey["will_fail"]["value"]) == (4, 4, 1)
    assert survey["reasons"] == {"not a readable video": 1}
    assert (survey["sizes"], survey["codecs"]) == ({"128x128": 1.0}, {"h264": 1.0})
    assert 0 < survey["hours"]["value"] < 0.01


def test_of_many_clips_a_sample_is_looked_at_and_the_rest_is_told_with_an_interval():
    survey = Survey((SOUND,) * 190 + (BROKEN,) * 10, num_listed=10_000)
    failures = survey.failures()
    assert failures.value == 500
    assert (round(failures.low), round(failures.high)) == (274, 896)  # Wilson's interval of 10 in 200
    hours = survey.total(lambda clip: sum(clip.windows_s) / 3600)
    assert hours.low < hours.value < hours.high
    assert survey.reasons() == {"no video stream": 10}


def test_of_few_clips_all_are_looked_at_and_nothing_is_guessed():
    failures = Survey((SOUND,) * 9 + (BROKEN,), num_listed=10).failures()
    assert (failures.low, failures.value, failures.high) == (1, 1, 1)


def test_clips_longer_than_the_model_was_trained_on_are_counted_and_told_how_to_be_cut(tmp_path, capsys):
    black = np.broadcast_to(np.uint8(0), (200 * FPS, 128, 128, 3))
    video = write(tmp_path / "v" / "long.mp4", encode_frames(black, preset="ultrafast"))
    short = write(tmp_path / "v" / "short.mp4", tiny_clip(0))
    assert plan(capsys, "--input", video, short)["survey"]["longer_than_trained"]["value"] == 1
    assert main(["plan", "--input", video, short]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("long "))
    assert line.startswith("long       1 longer than 180 s")
    advice = line[line.index("--split-seconds") :].split()[:2]
    assert main(["plan", "--input", video, short, *advice]) == 0
    assert "longer than 180 s" not in capsys.readouterr().err


@pytest.mark.parametrize(("length_s", "num_long"), [(179.9, 0), (180.0, 0), (180.9, 0), (181.0, 1), (86_400.0, 1)])
def test_a_clip_counts_as_long_where_the_advised_flag_would_cut_it(length_s, num_long):
    clip = SurveyedClip(VideoHeader(length_s, 1280, 720, "h264", 25.0), (length_s,))
    assert Survey((clip, BROKEN, SOUND), num_listed=3).long_clips().value == num_long


def test_people_are_told_in_aligned_lines_that_it_is_modelled(tmp_path, capsys):
    shard = make_shard(tmp_path / "s.tar", num_clips=3)
    assert main(["plan", "--input", shard]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split("\t")[1:2] == ["3 clips"]
    assert "clips      3" in said.err
    assert "will fail  0" in said.err
    assert "Modelled, not measured on a GPU: lmms-lab/LLaVA-Video-7B-Qwen2, by its published shapes." in said.err
    assert "the shipped ones are examples" in said.err
    head, *tiers = said.err[said.err.index("per clip, 64 frames") :].splitlines()[:4]
    assert {len(line.removesuffix("  <- this run")) for line in tiers} == {len(head)}


def test_the_configuration_is_read_where_a_model_is_named_and_its_weights_are_not(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        shutil.copy(ROOT / "demo" / "checkpoint" / name, tmp_path / "model")
    shard = make_shard(tmp_path / "s.tar", num_clips=3)
    own = plan(capsys, "--input", shard, "--model", str(tmp_path / "model"), "--num-frames", "8")
    released = plan(capsys, "--input", shard, "--num-frames", "8")
    prefix = [said["tiers"][0]["load"]["num_prefix_tokens"] for said in (own, released)]
    assert prefix[0] < prefix[1] / 5
    assert own["model_bytes"] < released["model_bytes"] / 100


def test_prices_and_machines_are_the_users_own(tmp_path, capsys):
    table = SHIPPED_MACHINES.read_text().replace("price_per_hour: 3.50", "price_per_hour: 7.00\n    currency: EUR")
    shard = make_shard(tmp_path / "s.tar", num_clips=3)
    shipped = plan(capsys, "--input", shard)["machines"][0]
    own = plan(capsys, "--input", shard, "--machines", write(tmp_path / "own.yaml", table))["machines"][0]
    assert own["cost"] == pytest.approx(2 * shipped["cost"])
    assert own["machine"]["currency"] == "EUR"


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ("machines: []", "names no machine"),
        ("machines: 3", "machines"),
        ("- a\n- b", "wanted a table such as"),
        ("machines:\n  - name: [", "not valid YAML"),
        ("machines:\n  - name: x\n    gpus: -1", "machines.0"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path, capsys, table, wanted):
    file = write(tmp_path / "own.yaml", table)
    assert main(["plan", "--input", make_shard(tmp_path / "s.tar", 1), "--machines", file]) == 1
    said = capsys.readouterr().err
    assert wanted in said
    assert len([line for line in said.splitlines() if line.startswith("framescribe plan: ")]) == 1


def test_a_table_that_is_not_there_is_named(tmp_path, capsys):
    shard = make_shard(tmp_path / "s.tar", 1)
    assert main(["plan", "--input", shard, "--machines", str(tmp_path / "none.yaml")]) == 1
    assert f"no table of machines at '{tmp_path / 'none.yaml'}'" in capsys.readouterr().err


def test_a_model_that_does_not_fit_a_gpu_is_said_to(tmp_path, capsys):
    table = SHIPPED_MACHINES.read_text().replace("memory_gb_per_gpu: 80", "memory_gb_per_gpu: 16")
    file = write(tmp_path / "own.yaml", table)
    assert main(["plan", "--input", make_shard(tmp_path / "s.tar", 1), "--machines", file]) == 0
    assert "the model's weights do not fit one of its GPUs" in capsys.readouterr().err


def test_decoding_is_the_limit_where_a_machine_has_few_cores_for_large_videos():
    from framescribe.decoding.config import SamplingConfig
    from pipeline.cost import Basis, count_tier, price

    large = SurveyedClip(VideoHeader(60.0, 3840, 2160, "hevc", 30.0), (60.0,))
    basis = Basis(RELEASED_7B, SamplingConfig(), survey=Survey((large,), 1))
    costs = [price(basis, count_tier(basis, load_recipe("captions")), one, 1000, 0, 48) for one in read_machines()]
    assert {one.limit for one in costs} == {"decoding"}
    assert all(one.cores_per_gpu > one.machine.cpu_cores / one.machine.gpus for one in costs)


def test_what_is_done_and_windows_are_counted(tmp_path, capsys):
    inputs = ["--input", *sorted(str(path) for path in (ROOT / "demo" / "clips").glob("0*.mp4"))]
    out, split = str(tmp_path / "out"), ("--split-seconds", "1", "--clips-per-unit", "3")
    first = inputs[:4]
    arguments = annotate_arguments(tmp_path, first[1:], out, *split, "--canary-every", "0")
    assert annotate_with(TalkingEngine(checkpoint_revision()), arguments) == 0
    num_windows = (
        len(json.loads((tmp_path / "out" / "_SUCCESS").read_text())["tables"])
        and json.loads((tmp_path / "out" / "_SUCCESS").read_text())["num_clips"]
    )
    flags = [one for one in arguments[arguments.index("--recipe") :] if one]
    whole = plan(capsys, *first, *flags)
    rest = plan(capsys, *first, "--output", out, *flags)
    assert whole["num_todo"] == num_windows
    assert (rest["num_done"], rest["num_todo"]) == (num_windows, 0)


@pytest.fixture(scope="module")
def looked(tmp_path_factory) -> Path:
    """A sample of half of the demo's clips, annotated by the demo's model."""
    output = tmp_path_factory.mktemp("looked") / "out"
    assert main(["annotate", "--input", CLIPS, "--output", str(output), *DEMO, "--device", "cpu", "--sample", "6"]) == 0
    return output


def test_a_limited_run_calibrates_tokens_within_a_tenth_and_what_came_stands_beside_it(looked, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(looked, output)
    said = plan(capsys, "--input", CLIPS, "--output", str(output), *DEMO)
    assert main(["annotate", "--input", CLIPS, "--output", str(output), *DEMO, "--device", "cpu"]) == 0
    record = json.loads((output / "_framescribe" / "run.json").read_text())
    predicted = record["predicted"]
    assert predicted["num_tokens"]["actual"] == pytest.approx(predicted["num_tokens"]["predicted"], rel=0.1)
    (own,) = (tier for tier in said["tiers"] if tier["recipe"] == "detailed")
    assert own["tokens_per_clip"] * predicted["num_clips"]["actual"] == pytest.approx(
        predicted["num_tokens"]["actual"], rel=0.1
    )
    assert {"num_prompts", "num_tokens", "seconds"} <= predicted.keys()
    assert "predicted -> actual: " in capsys.readouterr().err


def test_another_run_calibrates_where_it_is_named(looked, capsys):
    said = plan(capsys, "--input", CLIPS, "--calibrate-from", str(looked), *DEMO)
    assert said["measured"]["num_clips"] == 6
    assert said["same_machine_s"] > 0
    modelled = plan(capsys, "--input", CLIPS, *DEMO)
    assert modelled["measured"] is None


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [(["--recipe", "captions"], "another recipe"), (["--num-frames", "4"], "other frames")],
)
def test_a_run_of_other_settings_calibrates_nothing(looked, capsys, flags, wanted):
    assert main(["plan", "--input", CLIPS, "--calibrate-from", str(looked), *DEMO, *flags]) == 1
    assert f"tells nothing of this run, since it had {wanted}" in capsys.readouterr().err


def test_a_place_without_a_run_calibrates_nothing(tmp_path, capsys):
    assert main(["plan", "--input", CLIPS, "--calibrate-from", str(tmp_path)]) == 1
    assert "--calibrate-from takes the --output of an earlier run" in capsys.readouterr().err


def test_a_run_on_a_machine_of_the_table_is_priced_beside_what_was_predicted(looked, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(looked, output)
    table = SHIPPED_MACHINES.read_text().replace("gpu: H200", "gpu: cpu")
    arguments = ["annotate", "--input", CLIPS, "--output", str(output), *DEMO, "--device", "cpu"]
    assert main([*arguments, "--machines", write(tmp_path / "own.yaml", table)]) == 0
    cost = json.loads((output / "_framescribe" / "run.json").read_text())["predicted"]["cost"]
    assert min(cost.values()) > 0


def test_the_page_on_cost_holds_the_table_that_the_command_prints():
    assert describe_tiers() in (ROOT / "docs" / "cost.md").read_text()
