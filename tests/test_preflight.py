"""What cannot work is refused in one line, before the old run is removed and before anything is written."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from framescribe.llava_video.engine.memory import find_device
from framescribe.storage.journal import record_start
from framescribe.storage.output import open_output
from run_pipeline import main
from tests.support.output_fixtures import RUN_RECORD, commit, make_annotation
from tests.support.run_fixtures import CHECKPOINT, annotate_arguments, make_shard
from tests.support.shards_fixtures import write

_NO_DATAFLOW = (
    find_spec("google") is None
    or find_spec("google.cloud") is None
    or find_spec("google.cloud.dataflow_v1beta3") is None
)
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def old_run(tmp_path):
    """An output that holds a run."""
    output = tmp_path / "out"
    commit(str(output), "one", [make_annotation("a", "one")])
    record_start(open_output(str(output)), RUN_RECORD, None)
    return output


def refused(output: Path, *flags: str) -> bool:
    """Starts over the old run, and returns whether it was refused with that run untouched."""
    before = sorted(output.rglob("*"))
    shard = make_shard(output.parent / "shards" / "a.tar", 1)
    status = main(annotate_arguments(output.parent, [shard], output, "--overwrite", *flags))
    return status == 1 and sorted(output.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--device", "cuda"], "--device cuda: .*sees no GPU; use device 'cpu'", marks=NO_GPU),
        (["--attn-implementation", "flash_attention_2"], "flash_attention_2 needs a GPU, the device is cpu: use sdpa"),
        (["--runner", "Foo"], "--runner Foo: Unexpected pipeline runner: Foo. Valid values are DataflowRunner"),
        (["--runner", "our.own.Runner"], "--runner our.own.Runner: No module named 'our'"),
        (["--kv-cache-gib", "0.0001"], r"--kv-cache-gib 0.0001: 4 frames have \d+ tokens and more.* give 0\.00\d or"),
        (["--kv-cache-gib", "1e-12"], "--kv-cache-gib 0: 4 frames have"),
        (
            ["--num-frames", "9000"],
            r"--num-frames 9000: a clip has a prompt of \d+ tokens.*context of 32768.* --num-frames \d+,",
        ),
        (["--model", "demo/checkpiont"], "no folder 'demo/checkpiont', and the Hugging Face hub gives no model"),
        (["--model", "./checkpiont"], "no folder './checkpiont'; wanted a folder"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_old_run_is_removed(
    old_run, flags, message, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(old_run, *flags)
    assert re.fullmatch(f"framescribe annotate: .*{message}.*\n", capsys.readouterr().err)


_DETAILED = (Path(__file__).parents[1] / "framescribe" / "recipes" / "detailed.yaml").read_text()
_TOO_LONG = "very long " * 17_000


@pytest.mark.parametrize(
    ("text", "longer", "prompt_id"),
    [
        ("prompt: Please describe this video in detail.", f"prompt: {_TOO_LONG}", "detailed_caption"),
        ("{question}\n    Answer in a few words.", f"{{question}} {_TOO_LONG}", "score"),
        ("Causal: why something happens, or what it leads to.", f"Causal: {_TOO_LONG}", "open_ended"),
    ],
    ids=["caption", "score", "definition of a type"],
)
def test_a_prompt_that_no_clip_has_room_for_is_refused_at_the_start(old_run, tmp_path, capsys, text, longer, prompt_id):
    assert text in _DETAILED
    recipe = write(tmp_path / "long.yaml", _DETAILED.replace(text, longer))
    assert refused(old_run, "--recipe", recipe)
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"framescribe annotate: the recipe 'detailed': the prompt '{prompt_id}' has \d{{5}} tokens and more.*\n", said
    )


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_refused(old_run, capsys, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)  # the driver
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert refused(old_run, "--device", "cuda", "--attn-implementation", "flash_attention_2")
    assert "needs the package flash-attn: pip install 'framescribe[flash]', or use sdpa" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_refused(old_run, tmp_path, missing, capsys):
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    (checkpoint / missing).unlink()
    assert refused(old_run, "--model", str(checkpoint))
    wanted = "no weights" if missing.endswith(".safetensors") else f"no {missing}"
    assert wanted in capsys.readouterr().err


def test_weights_that_are_cut_short_are_refused(old_run, tmp_path, capsys):
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(900_000)
    assert refused(old_run, "--model", str(checkpoint))
    assert "model.safetensors is damaged or cut short at 900000 bytes" in capsys.readouterr().err


def test_an_index_that_names_weights_that_are_not_there_is_refused(old_run, tmp_path, capsys):
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "2.safetensors"}}')
    assert refused(old_run, "--model", str(checkpoint))
    assert "names ['2.safetensors']; wanted safetensors files beside it" in capsys.readouterr().err


def test_a_model_of_the_hub_whose_weights_cannot_be_fetched_is_refused(old_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached, revision = tmp_path / "hub" / "models--org--tiny", "abc" + 37 * "0"
    shutil.copytree(CHECKPOINT, cached / "snapshots" / revision, ignore=shutil.ignore_patterns("*.safetensors"))
    write(cached / "refs" / "main", revision.encode())
    assert refused(old_run, "--model", "org/tiny")
    assert f"snapshots/{revision} holds no weights; wanted *.safetensors" in capsys.readouterr().err


def test_few_enough_frames_for_the_context_are_few_enough_for_the_check(tmp_path, capsys):
    shard = make_shard(tmp_path / "shards" / "a.tar", 1)
    main(annotate_arguments(tmp_path, [shard], tmp_path / "out", "--num-frames", "9000"))
    fitting = int(capsys.readouterr().err.rpartition("about --num-frames ")[2].partition(",")[0])
    arguments = annotate_arguments(tmp_path, ["nowhere"], tmp_path / "out", "--num-frames", str(fitting - 2))
    assert main(arguments) == 1
    assert "'nowhere' does not exist" in capsys.readouterr().err


def test_frames_a_second_may_stay_far_below_the_most_frames(tmp_path, capsys):
    main(annotate_arguments(tmp_path, ["nowhere"], tmp_path / "out", "--num-frames", "9000", "--fps", "1"))
    assert "'nowhere' does not exist" in capsys.readouterr().err


def test_a_gpu_by_a_number_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device is 'cuda:2', but PyTorch sees 2 GPUs, cuda:0 to cuda:1"):
        find_device("cuda:2")


@pytest.mark.parametrize("flag", ["--dry_run=True", "--template_location=gs://bucket/template"])
def test_flags_that_only_describe_a_pipeline_are_refused_where_it_would_run_all_the_same(old_run, flag, capsys):
    assert refused(old_run, flag)
    assert capsys.readouterr().err == (
        "framescribe annotate: --runner DirectRunner: --dry_run and --template_location are flags of DataflowRunner "
        "alone\n"
    )


@pytest.mark.skipif(_NO_DATAFLOW, reason="needs apache-beam[gcp]")
def test_a_dry_run_of_dataflow_ends_well_and_says_that_nothing_is_annotated(tmp_path, capsys):
    shard = make_shard(tmp_path / "shards" / "a.tar", 1)
    flags = ("--runner=DataflowRunner", "--project=my-project", "--region=us-central1", "--no_auth", "--dry_run=True")
    places = ("--temp_location=gs://bucket/temp", "--staging_location=gs://bucket/staging", "--sdk_location=container")
    assert main(annotate_arguments(tmp_path, [shard], tmp_path / "out", *flags, *places)) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        "--dry_run: the pipeline was built and not submitted. The plan is written, nothing is annotated yet; when it "
        f"has run, `publish --output {tmp_path}/out` builds the tables"
    )


@pytest.mark.skipif(_NO_DATAFLOW, reason="needs apache-beam[gcp]")
def test_flags_that_a_runner_refuses_are_one_line(old_run, capsys):
    assert refused(old_run, "--runner=DataflowRunner", "--project=p", "--region=us-central1")
    assert re.fullmatch(
        "framescribe annotate: --runner DataflowRunner: Pipeline has validations errors: .*Invalid Project ID .*\n",
        capsys.readouterr().err,
    )
