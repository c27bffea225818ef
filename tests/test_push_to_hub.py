"""`export --push-to-hub` against a stand-in of the hub on this machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from framescribe.publish.publish import publish
from framescribe.storage.output import open_output
from run_pipeline import main
from tests.support.hub_fixtures import TOKEN, HubStandIn, hub_stand_in
from tests.support.output_fixtures import RUN_RECORD, commit, make_annotation, make_units, start_run
from tests.support.run_fixtures import ROOT

REPO = "somebody/clips"


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    start_run(open_output(str(output)), RUN_RECORD, make_units("unit-0"))
    commit(str(output), "unit-0", [make_annotation(f"clip-{number}") for number in range(3)])
    publish(str(output))
    return output


@pytest.fixture
def hub():
    with hub_stand_in() as server:
        yield server


def push(
    hub: HubStandIn, output: Path, target: Path, *flags: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Exports with the token in the environment, and looks for it in everything that was said and written."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    home = {"HF_HOME": str(target.parent / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    command = [sys.executable, "run_pipeline.py", "export", str(output), "--format", "hf", "--no-videos"]
    done = subprocess.run(
        [*command, "--to", str(target), *flags],
        cwd=ROOT,
        env={**inherited, **home, **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    written = b"".join(path.read_bytes() for path in target.parent.rglob("*") if path.is_file())
    assert TOKEN not in done.stdout + done.stderr + written.decode("utf-8", "replace")
    return done


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_arrives_whole_in_a_new_private_repository_and_a_second_one_uploads_nothing(hub, output, tmp_path):
    first = push(hub, output, tmp_path / "first", "--push-to-hub", REPO)
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith(f"uploaded to {hub.url}/datasets/{REPO}\n")
    exported = read_folder(tmp_path / "first")
    assert {**exported, ".gitattributes": b""} == hub.repos[REPO]
    assert hub.is_private == {REPO: True}
    again = push(hub, output, tmp_path / "again", "--push-to-hub", REPO)
    assert again.returncode == 0, again.stderr
    assert again.stdout.endswith(f"nothing new for {hub.url}/datasets/{REPO}\n")
    assert hub.commits == [sorted(exported)]


def test_large_files_arrive_by_lfs_and_are_not_put_there_twice(hub, output, tmp_path):
    hub.lfs_suffix = ".parquet"
    flags = ("--push-to-hub", REPO, "--public")
    first = push(hub, output, tmp_path / "first", *flags, HF_HUB_DISABLE_XET="1")
    assert first.returncode == 0, first.stderr
    assert {**read_folder(tmp_path / "first"), ".gitattributes": b""} == hub.repos[REPO]
    assert hub.is_private == {REPO: False}
    assert sorted(hub.stored.values()) == sorted(path.read_bytes() for path in (tmp_path / "first").rglob("*.parquet"))
    again = push(hub, output, tmp_path / "again", *flags, HF_HUB_DISABLE_XET="1")
    assert "nothing new for" in again.stdout
    assert len(hub.commits) == 1


def test_a_failed_upload_leaves_the_export_and_names_the_command_that_uploads_it(hub, output, tmp_path):
    hub.is_full = True
    target = tmp_path / "an export"
    failed = push(hub, output, target, "--push-to-hub", REPO)
    assert failed.returncode == 1
    said = failed.stderr.splitlines()[-1]
    assert said.startswith(f"framescribe export: cannot upload {target} to {REPO}: ")
    assert "storage limit reached, said to ***" in said
    command = said.partition("this uploads it: ")[2]
    assert hub.commits == []
    hub.is_full = False
    hf = Path(sys.executable).with_name("hf")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    arguments = [str(hf), *shlex.split(command)[1:]]
    subprocess.run(arguments, env=environment, check=True, capture_output=True, timeout=280)
    assert {**read_folder(target), ".gitattributes": b""} == hub.repos[REPO]


@pytest.fixture
def push_here(hub, output, tmp_path, monkeypatch, capsys):
    """Exports in this process, which has read the client's variables already."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*flags: str, target: Path = tmp_path / "export") -> tuple[int, str, str]:
        status = main(["export", str(output), "--format", "hf", "--no-videos", "--to", str(target), *flags])
        said = capsys.readouterr()
        assert TOKEN not in said.out + said.err
        return status, said.out, said.err

    return run


def test_files_of_another_export_stay_and_are_named(hub, push_here):
    hub.add(REPO)
    hub.repos[REPO] |= {"qa/test-00000.parquet": b"old"}
    status, said, _ = push_here("--push-to-hub", REPO)
    assert status == 0
    assert hub.repos[REPO]["qa/test-00000.parquet"] == b"old"
    assert "that are not of this export: 1, for example qa/test-00000.parquet" in said


@pytest.mark.parametrize(
    ("repo", "answer"),
    [
        ("clips", "--push-to-hub clips: wanted NAMESPACE/NAME, such as my-name/my-dataset"),
        ("a/b/c", "--push-to-hub a/b/c: wanted NAMESPACE/NAME, such as my-name/my-dataset"),
        ("somebody/-clips", "'somebody/-clips'. Choose another name"),
        ("others/clips", "no write access for ***"),
        ("somebody/open", "there already and public, wanted a private one: add --public"),
    ],
)
def test_a_repository_that_cannot_be_used_is_refused_before_anything_is_written(hub, push_here, tmp_path, repo, answer):
    hub.add("others/clips")
    hub.readonly = {"others/clips"}
    hub.add("somebody/open", is_private=False)
    assert_refused(push_here("--push-to-hub", repo), answer, tmp_path)


def test_a_start_without_a_token_is_refused_before_anything_is_written(push_here, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    answer = "found no token of the hub, wanted one that may write there: set HF_TOKEN"
    assert_refused(push_here("--push-to-hub", REPO), answer, tmp_path)


def test_a_token_that_the_hub_does_not_know_is_refused_before_anything_is_written(push_here, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert_refused(push_here("--push-to-hub", REPO), "the hub refused (HfHubHTTPError: ", tmp_path)


def test_a_hub_that_cannot_be_reached_is_said_before_anything_is_written(push_here, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert_refused(push_here("--push-to-hub", REPO), "the hub refused (ConnectError: ", tmp_path)


def test_offline_mode_is_said_before_anything_is_written(push_here, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(push_here("--push-to-hub", REPO), "the hub refused (OfflineModeIsEnabled: ", tmp_path)


def test_public_alone_is_refused(push_here, tmp_path):
    assert_refused(push_here("--public"), "got --public alone, wanted --push-to-hub NAMESPACE/NAME", tmp_path)


def test_no_repository_is_made_for_an_export_that_is_refused(hub, output, push_here, tmp_path):
    refused = push_here("--push-to-hub", REPO, target=output / "inside")
    assert_refused(refused, "lies inside of the run's own output", tmp_path)
    assert hub.repos == {}


def assert_refused(done: tuple[int, str, str], answer: str, folder: Path) -> None:
    status, _, said = done
    assert (status, len(said.splitlines())) == (1, 1), said
    assert said.startswith("framescribe export: ")
    assert answer in said
    assert not (folder / "export").exists()
