"""What a run does under other versions than it was begun with, and with outputs of an earlier FrameScribe."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framescribe.storage.journal import commit_part, read_part
from framescribe.storage.output import open_output
from pipeline.config import ROW_VERSION
from schemas.part_rows import build_part, read_outcomes, read_workers
from schemas.run_columns import (
    OtherVersionsError,
    WorkerRecord,
    describe_other_versions,
    find_versions,
)
from schemas.tables import OUTPUT_FORMAT
from tests.support.output_fixtures import RUN, make_annotation, make_failed, memory_output
from tests.support.run_fixtures import ROOT
from transforms.commit_parts import CommitPartsConfig, CommitPartsFn

OLD_OUTPUT = ROOT / "tests" / "golden" / "outputs" / "framescribe-0.1.0.tar.gz"
CLIPS = ("01_left", "02_right_up", "03_up")
_THEN = WorkerRecord({"torch": "2.12.0"}, "NVIDIA A100", "sdpa; decoding: attend_chunks_flash")
_NOW = WorkerRecord({"torch": "2.13.0"}, "NVIDIA H100", "sdpa; decoding: attend_chunks_flash")


def framescribe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a process of its own in a folder, and returns what it said."""
    command = [sys.executable, str(ROOT / "run_pipeline.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)


def annotate(folder: Path, *flags: str, output: str = "annotated") -> subprocess.CompletedProcess[str]:
    """Goes on with the run of three demo clips that the old output holds two of, or starts it."""
    what = ("--input", "clips", "--model", str(ROOT / "demo" / "checkpoint"), "--recipe", "model_card")
    how = (
        "--num-frames",
        "4",
        "--clips-per-unit",
        "2",
        "--device",
        "cpu",
        "--decoder-processes",
        "1",
        "--canary-every",
        "0",
    )
    return framescribe(folder, "annotate", *what, *how, "--output", output, *flags)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder with three clips and, in `annotated`, a run of today of which one of two units is done."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "clips").mkdir()
    for name in CLIPS:
        shutil.copy(ROOT / "demo" / "clips" / f"{name}.mp4", folder / "clips")
    write_last_part(folder)
    return folder


@pytest.fixture
def folder(begun, tmp_path) -> Path:
    """A copy of `begun` that a test may change."""
    return shutil.copytree(begun, tmp_path / "copy")


@pytest.fixture
def old(folder) -> Path:
    """Such a folder with the output of FrameScribe 0.1.0 in place of today's."""
    shutil.rmtree(folder / "annotated")
    with tarfile.open(OLD_OUTPUT) as archive:
        archive.extractall(folder / "annotated", filter="data")
    return folder


def last_part(folder: Path) -> Path:
    return max((folder / "annotated" / "_framescribe" / "parts").glob("*-000002-000003.parquet"))


def write_last_part(folder: Path) -> bytes:
    """Annotates the unit that is not done, and returns the part, which is taken away again."""
    done = annotate(folder)
    assert done.returncode == 0, done.stderr
    return last_part(folder).rename(folder / "written.parquet").read_bytes()


def change_run_file(folder: Path, change) -> None:
    path = folder / "annotated" / "_framescribe" / "run.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_not_gone_on_with_under_another_minor_version(folder):
    change_run_file(folder, lambda run: run["versions"].update(torch="0.0.9"))
    before = snapshot(folder / "annotated")
    refused = annotate(folder)
    assert refused.returncode == 1
    assert f"other versions (there -> now): torch 0.0.9 -> {find_versions()['torch']}." in refused.stderr
    assert "--allow-other-versions" in refused.stderr
    assert snapshot(folder / "annotated") == before


def test_a_run_goes_on_under_another_minor_version_where_that_is_allowed(folder):
    change_run_file(folder, lambda run: run["versions"].update(torch="0.0.9"))
    done = annotate(folder, "--allow-other-versions")
    assert (done.returncode, (folder / "annotated" / "_SUCCESS").exists()) == (0, True), done.stderr
    assert pq.read_table(folder / "annotated" / "clips")["clip_id"].to_pylist() == [f"clips/{name}" for name in CLIPS]


def test_a_package_that_is_not_installed_has_no_version_and_those_after_it_have_one(monkeypatch):
    def version_of(package: str) -> str:
        if package in ("framescribe", "decord"):
            raise PackageNotFoundError
        return "1.2.3"

    monkeypatch.setattr("schemas.run_columns.version", version_of)
    find_versions.cache_clear()
    found = find_versions()
    find_versions.cache_clear()
    assert found == dict.fromkeys(found, "1.2.3") | {"python": platform.python_version()}
    assert {"torch", "transformers", "numpy", "av"} <= found.keys()
    assert not {"framescribe", "decord"} & found.keys()


def test_another_patch_or_build_and_versions_that_nobody_recorded_are_no_other_versions():
    then = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "numpy": "1.0"}
    assert describe_other_versions(then, {"torch": "2.13.9+cu128", "framescribe": "9", "numpy": "2.0"}) == ""


def test_several_other_versions_are_all_named():
    then, now = {"framescribe": "0.1.0", "torch": "2.9.1"}, {"framescribe": "1.1.0", "torch": "2.10.0"}
    assert describe_other_versions(then, now) == "framescribe 0.1.0 -> 1.1.0, torch 2.9.1 -> 2.10.0"


def test_answers_of_another_minor_version_are_not_taken_unless_that_is_allowed(folder):
    change_run_file(folder, lambda run: run["versions"].update(transformers="0.0.9"))
    refused = annotate(folder, "--reuse-from", "annotated", output="fresh")
    assert refused.returncode == 1
    assert "transformers 0.0.9 -> " in refused.stderr
    assert not (folder / "fresh" / "_framescribe").exists()


def test_a_worker_of_another_minor_version_writes_nothing():
    step = CommitPartsFn(CommitPartsConfig(memory_output(), RUN, versions={**find_versions(), "torch": "0.0.9"}))
    with pytest.raises(OtherVersionsError, match=r"torch 0\.0\.9 -> .*--allow-other-versions"):
        step.setup()


def test_every_part_says_which_versions_device_and_attention_wrote_it_and_is_the_same_when_written_again(begun):
    before = (begun / "written.parquet").read_bytes()
    assert write_last_part(begun) == before
    (worker,) = read_workers(pq.read_schema(begun / "written.parquet"))
    assert worker["versions"] == find_versions()
    assert worker["device"].startswith("cpu (")
    assert worker["attention"] == "sdpa; decoding: paged"


def test_rows_that_are_kept_keep_the_record_of_who_wrote_them():
    output = open_output(memory_output())
    commit_part(
        output,
        "one",
        build_part("one", [make_annotation("a", "one"), make_failed("b", "one")], RUN, _THEN),
        RUN.fingerprint,
    )
    kept = read_outcomes(read_part(output, "one"))[0]
    again = build_part("one", [kept, make_annotation("b", "one")], RUN, _NOW)
    assert [worker["device"] for worker in read_workers(again.schema)] == ["NVIDIA H100", "NVIDIA A100"]


def test_a_run_of_a_newer_format_is_refused_by_its_name(folder):
    change_run_file(folder, lambda run: run.update(format=99, unheard_of=True, versions={"framescribe": "7.0.0"}))
    before = snapshot(folder / "annotated")
    for refused in (annotate(folder), framescribe(folder, "publish", "--output", "annotated")):
        assert refused.returncode == 1
        known = f"this FrameScribe reads formats up to {OUTPUT_FORMAT}"
        assert f"run.json has format 99, {known}: use FrameScribe 7.0.0" in refused.stderr
    assert snapshot(folder / "annotated") == before


def test_a_part_of_a_newer_format_is_refused_by_its_name(folder):
    (path,) = (folder / "annotated" / "_framescribe" / "parts").glob("*.parquet")
    part = pq.read_table(path)
    pq.write_table(part.replace_schema_metadata({**part.schema.metadata, b"format": b"99"}), path)
    refused = framescribe(folder, "publish", "--output", "annotated")
    assert refused.returncode == 1
    assert f"{path.name} has format 99, this FrameScribe reads formats up to {OUTPUT_FORMAT}" in refused.stderr


def test_columns_that_came_later_are_null_in_an_older_part_and_missed_in_one_of_today():
    output = open_output(memory_output())
    part = build_part("one", [make_annotation("a", "one")], RUN).drop_columns(["decoder"])
    commit_part(output, "today", part, RUN.fingerprint)
    commit_part(output, "older", part.replace_schema_metadata({"fingerprint": RUN.fingerprint}), RUN.fingerprint)
    assert "decoder" not in read_part(output, "today").column_names
    assert read_part(output, "older")["decoder"].to_pylist() == [None]
    assert read_part(output, "older", ["clip_id", "decoder"]).schema.types == [pa.string(), pa.string()]


def test_tables_of_an_output_of_version_0_1_0_are_built_today(old):
    done = framescribe(old, "publish", "--output", "annotated")
    assert done.returncode == 0, done.stderr
    (part,) = (old / "annotated" / "_framescribe" / "parts").glob("*.parquet")
    captions = pq.read_table(old / "annotated" / "captions")
    assert captions["clip_id"].to_pylist() == ["clips/01_left", "clips/02_right_up"]
    assert captions["text"].to_pylist() == [one["text"] for (one,) in pq.read_table(part)["captions"].to_pylist()]
    assert all(captions["text"].to_pylist())


def test_a_run_of_version_0_1_0_goes_on_today_or_is_refused_by_what_changed(old):
    rows_then = json.loads((old / "annotated" / "_framescribe" / "run.json").read_text())["settings"]["row_version"]
    done = annotate(old, "--allow-other-versions")
    if rows_then == ROW_VERSION:
        assert done.returncode == 0, done.stderr
        assert "1 done before" in done.stderr
        assert pq.read_table(old / "annotated" / "clips").num_rows == len(CLIPS)
    else:
        assert done.returncode == 1
        assert f"row_version: {rows_then} -> {ROW_VERSION}" in done.stderr


def test_workers_stand_in_a_part_once_each():
    kept = replace(make_annotation("a"), workers=(_NOW.to_json(), _THEN.to_json()))
    part = build_part("one", [kept, replace(kept, ref=make_annotation("b").ref)], RUN, _NOW)
    assert read_workers(part.schema) == [json.loads(_NOW.to_json()), json.loads(_THEN.to_json())]
