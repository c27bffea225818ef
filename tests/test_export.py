"""`framescribe export`: a real run over files, a tar and a Parquet file, read back in every format."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml

from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.sample import sample_frames
from framescribe.digests import digest_frames
from run_pipeline import main
from tests.support.run_fixtures import ROOT, read_tables
from tests.support.shards_fixtures import make_tar, write

CLIPS = ROOT / "demo" / "clips"
LETTER_ONLY = "Please respond with only the letter of the correct answer."
LETTER_AND_OPTION = "Please provide your answer by stating the letter followed by the full option."


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run_pipeline.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    video = {name: (CLIPS / f"{name}.mp4").read_bytes() for name in ("03_up", "07_turns", "09_left")}
    tar = write(folder / "packed.tar", make_tar([("a/up.mp4", video["03_up"]), ("v1.2.turns.mp4", video["07_turns"])]))
    pq.write_table(pa.table({"video": [video["09_left"]]}), folder / "rows.parquet")
    return [str(CLIPS / "01_left.mp4"), str(CLIPS / "05_grows.mp4"), tar, str(folder / "rows.parquet")]


@pytest.fixture(scope="module")
def output(tmp_path_factory, inputs) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    small = ("--num-frames", "4", "--split-seconds", "3", "--device", "cpu", "--kv-cache-gib", "0.3")
    done = run("annotate", "--input", *inputs, "--model", "demo/checkpoint", "--output", output, *small)
    assert done.returncode == 0, done.stderr
    return output


def export(output: Path, to: Path, form: str, *flags: str) -> None:
    assert main(["export", str(output), "--format", form, "--to", str(to), *flags]) == 0


def read_records(folder: Path, kind: str) -> list[dict]:
    return [one for path in sorted(folder.glob(f"*{kind}*.json")) for one in json.loads(path.read_text())]


def digest_tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def llava(tmp_path_factory, output) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "data"
    export(output, folder, "llava", "--validation", "0.4", "--seed", "8")
    return folder


def test_llava_has_one_image_mark_in_the_first_human_turn_and_none_elsewhere(llava):
    records = [*read_records(llava, "cap_"), *read_records(llava, "oe_"), *read_records(llava, "mc_")]
    turns = [turn for record in records for turn in record["conversations"]]
    first = [record["conversations"][0] for record in records]
    assert all(turn["from"] == "human" and turn["value"].startswith("<image>\n") for turn in first)
    assert sum(turn["value"].count("<image>") for turn in turns) == len(records) > 0


def test_llava_names_each_video_by_a_relative_path_to_a_file_that_is_there(llava):
    videos = {record["video"] for record in read_records(llava, "processed")}
    assert all((llava / video).is_file() and not Path(video).is_absolute() for video in videos)
    assert {str(path.relative_to(llava)) for path in llava.rglob("videos/*/*")} == videos


def test_llava_yaml_names_lists_beside_it(llava):
    for split in ("train", "validation"):
        listed = yaml.safe_load((llava / f"{split}.yaml").read_text())["datasets"]
        assert {one["sampling_strategy"] for one in listed} == {"all"}
        assert all(isinstance(json.loads((llava / one["json_path"]).read_text()), list) for one in listed)


def test_llava_answers_in_the_form_that_the_closing_line_asks_for(llava):
    turns = [record["conversations"] for record in read_records(llava, "mc_")]
    asked = [(pair[0]["value"], pair[1]["value"]) for t in turns for pair in zip(t[::2], t[1::2], strict=True)]
    lines = Counter(question.rpartition("\n")[2] for question, _ in asked)
    assert set(lines) == {LETTER_ONLY, LETTER_AND_OPTION}
    assert all(len(answer) == 2 for question, answer in asked if question.endswith(LETTER_ONLY))
    full = [(question, answer) for question, answer in asked if question.endswith(LETTER_AND_OPTION)]
    assert all(answer.removesuffix(".") in question.split("\n") for question, answer in full)


def test_right_letters_are_balanced_in_each_split(llava):
    for path in llava.glob("*_mc_*.json"):
        turns = [turn for record in json.loads(path.read_text()) for turn in record["conversations"]]
        letters = Counter(turn["value"][0] for turn in turns if turn["from"] == "gpt")
        assert max(letters[letter] for letter in "ABCD") - min(letters[letter] for letter in "ABCD") <= 1


def test_the_right_answer_stays_right_when_its_letter_changes(llava, output):
    truth = {(row["clip_id"], row["question"]): row["answer"] for row in read_tables(output)["qa"]}
    for record in read_records(llava, "mc_"):
        for asked, answer in zip(record["conversations"][::2], record["conversations"][1::2], strict=True):
            lines = asked["value"].removeprefix("<image>\n").split("\n")
            chosen = next(line[3:] for line in lines[1:] if line.startswith(answer["value"][0] + ". "))
            assert chosen == truth[record["id"], lines[0]]


def test_clips_of_one_video_are_in_one_split(llava):
    splits = {}
    for path in llava.glob("*_processed.json"):
        for record in json.loads(path.read_text()):
            splits.setdefault(record["id"].partition("@")[0], set()).add(path.name.partition("_")[0])
    assert all(len(names) == 1 for names in splits.values())
    assert set.union(*splits.values()) == {"train", "validation"}


def test_requests_for_captions_vary_and_no_time_is_stated(llava):
    requests = [record["conversations"][0]["value"] for record in read_records(llava, "cap_")]
    assert len(set(requests)) > 2
    assert not any("second" in request or "frames" in request for request in requests)


def test_every_row_is_exported_or_left_out_for_a_reason(llava, output):
    counts = json.loads((llava / "export.json").read_text())["counts"]
    tables = read_tables(output)
    turns = [record["conversations"] for record in read_records(llava, "processed")]
    assert counts["num_rows"] == len(tables["captions"]) + len(tables["qa"])
    assert counts["num_exported"] == sum(map(len, turns)) // 2
    assert counts["num_exported"] + sum(counts["left_out"].values()) == counts["num_rows"]


def test_a_second_export_is_byte_equal(llava, output, tmp_path):
    export(output, tmp_path / "again", "llava", "--validation", "0.4", "--seed", "8")
    assert digest_tree(tmp_path / "again") == digest_tree(llava)


@pytest.mark.parametrize("form", ["llava", "messages", "hf", "webdataset"])
def test_nothing_of_the_machine_is_in_an_export(output, inputs, tmp_path, form):
    export(output, tmp_path / "export", form)
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file() and path.suffix != ".mp4"]
    contents = b"".join(path.read_bytes() for path in files)
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "export").rglob("*.parquet")]
    words = contents.decode("utf-8", "replace") + repr([{**r, "images": None} for rows in tables for r in rows])
    assert not [place for place in (str(ROOT), str(tmp_path), str(Path(inputs[2]).parent)) if place in words]


def test_a_cut_video_shows_the_frames_that_the_model_saw(llava, output):
    videos = {record["id"]: record["video"] for record in read_records(llava, "cap_")}
    whole = [row for row in read_tables(output)["clips"] if row["start_s"] is None]
    cut = [row for row in read_tables(output)["clips"] if row["start_s"] is not None]
    sampling = SamplingConfig(max_frames=4)
    for row in whole:
        assert digest_frames(sample_frames(llava / videos[row["clip_id"]], sampling).stack()) == row["frames_digest"]
    for row in cut:
        sampled = sample_frames(llava / videos[row["clip_id"]], sampling)
        assert sampled.timestamps_s == pytest.approx(row["timestamps_s"], abs=1e-3)
        assert sampled.duration_s == pytest.approx(row["duration_s"], abs=0.13)
    assert len(cut) > 3


def test_messages_load_with_the_frames_as_images_and_no_marks_in_the_texts(output, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    export(output, tmp_path / "chats", "messages", "--max-frames", "3", "--max-side", "64")
    loaded = load_dataset(tmp_path, "chats")["train"]
    assert len(loaded) == len(read_tables(output)["clips"])
    chat = loaded[0]
    assert [image.size for image in chat["images"]] == [(64, 64)] * 3
    assert [turn["role"] for turn in chat["messages"][:2]] == ["user", "assistant"]
    assert not any("<image" in turn["content"] for row in loaded for turn in row["messages"])


def test_hf_opens_with_its_configs_and_splits(output, tmp_path):
    export(output, tmp_path / "hf", "hf", "--validation", "0.4", "--seed", "8")
    captions, questions = load_dataset(tmp_path, "hf", "captions"), load_dataset(tmp_path, "hf", "qa")
    assert set(captions) == set(questions) == {"train", "validation"}
    assert captions["train"].unique("clip_id") != captions["validation"].unique("clip_id")
    assert all((tmp_path / "hf" / video).is_file() for video in captions["train"]["video"])
    card = yaml.safe_load((tmp_path / "hf" / "README.md").read_text().split("---")[1])
    assert card["task_categories"]
    assert card["language"] == ["en"]


def test_webdataset_has_keys_without_dots_and_the_exact_clip_id_in_the_json(output, tmp_path):
    export(output, tmp_path / "wds", "webdataset", "--clips-per-shard", "4")
    members, clip_ids = [], []
    for path in sorted((tmp_path / "wds").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members += tar.getnames()
            clip_ids += [json.load(tar.extractfile(name))["clip_id"] for name in tar.getnames() if "json" in name]
    assert all(name.count(".") == 1 for name in members)
    keys = Counter(name.partition(".")[0] for name in members)
    assert set(keys.values()) == {2}
    assert clip_ids == [row["clip_id"] for row in read_tables(output)["clips"]]
    assert any("v1.2.turns" in clip_id for clip_id in clip_ids)


def test_webdataset_loads_with_webdataset(output, tmp_path):
    export(output, tmp_path / "wds", "webdataset")
    shards = [str(path) for path in (tmp_path / "wds").glob("*.tar")]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["json"]["clip_id"] for sample in samples] == [row["clip_id"] for row in read_tables(output)["clips"]]
    assert all(sample["mp4"][4:8] == b"ftyp" for sample in samples)


def test_webdataset_loads_with_datasets(output, tmp_path):
    export(output, tmp_path / "wds", "webdataset")
    loaded = load_dataset(tmp_path, "wds", streaming=True)["train"].cast_column("mp4", datasets.Video(decode=False))
    assert [row["json"]["clip_id"] for row in loaded] == [row["clip_id"] for row in read_tables(output)["clips"]]


def test_filters_leave_out_what_they_say(output, tmp_path):
    flags = ("--no-videos", "--only-consistent", "--types", "open_ended", "Count")
    export(output, tmp_path / "few", "hf", *flags)
    (rows,) = [pq.read_table(path).to_pylist() for path in (tmp_path / "few").rglob("*.parquet")]
    wanted = [
        row
        for row in read_tables(output)["qa"]
        if row["kind"] == "open_ended" and row["question_type"] == "Count" and row["status"] == "ok"
        if math.exp(row["answer_logprob"] / row["num_answer_tokens"]) >= 0.5
    ]
    assert [(row["clip_id"], row["question"]) for row in rows] == [(r["clip_id"], r["question"]) for r in wanted]
    assert not (tmp_path / "few" / "videos").exists()


def test_a_folder_that_is_there_is_not_written_to(output, tmp_path):
    write(tmp_path / "full" / "mine.txt", b"mine")
    done = run("export", output, "--format", "hf", "--to", tmp_path / "full", "--no-videos")
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert digest_tree(tmp_path).keys() == {"full/mine.txt"}


def test_a_type_that_no_row_has_is_an_error_that_names_those_there_are(output, tmp_path):
    done = run("export", output, "--format", "hf", "--to", tmp_path / "new", "--types", "Cuont")
    assert done.returncode == 1
    assert "'Cuont'" in done.stderr
    assert "there are: Attribute Change, " in done.stderr
    assert not list(tmp_path.iterdir())


def load_dataset(tmp_path: Path, name: str, *arguments: str, **options):
    return datasets.load_dataset(str(tmp_path / name), *arguments, cache_dir=str(tmp_path / "cache"), **options)
