"""Checkpoints in a store: what is fetched, what its revision depends on, and what its name keeps to itself."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from framescribe.llava_video.errors import CheckpointError
from framescribe.llava_video.model.checkpoint import WHOLE_CHECKPOINT, Checkpoint, find_checkpoint
from tests.support.run_fixtures import CHECKPOINT

_MEBIBYTE = 1 << 20


class SignedFileSystem(MemoryFileSystem):
    """A store whose addresses may carry a signature, as those of https:// do."""

    protocol = "signed"
    store: dict = {}  # noqa: RUF012  # as in its parent
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        path = path.removeprefix("signed://").partition("?")[0]
        return "/" + path.rpartition("@")[2].strip("/")


fsspec.register_implementation("signed", SignedFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model() -> str:
    """A checkpoint of two files in memory, the weights three MiB of zeros."""
    uri = f"memory://{uuid.uuid4().hex}"
    store(uri, "config.json", b"{}")
    store(uri, "model.safetensors", bytes(3 * _MEBIBYTE))
    store(uri, "modeling_evil.py", b"raise SystemExit")
    store(uri, "pytorch_model.bin", b"pickle")
    return uri


def store(uri: str, name: str, content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"{uri}/{name}", content)


def read(found: Checkpoint, name: str) -> bytes:
    return (found.folder / name).read_bytes()


def test_only_configuration_and_weights_are_fetched(model):
    assert sorted(path.name for path in find_checkpoint(model).folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_revision_is_the_same_whatever_is_fetched_and_fetching_again_copies_nothing(model):
    first = find_checkpoint(model, files=("config.json",))
    again = find_checkpoint(model, files=WHOLE_CHECKPOINT)
    written = (again.folder / "model.safetensors").stat().st_mtime_ns
    assert first.revision == again.revision == find_checkpoint(model).revision
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("place", [0, _MEBIBYTE - 1, 2 * _MEBIBYTE, 3 * _MEBIBYTE - 1])
def test_weights_that_differ_near_either_end_are_another_revision_and_are_fetched(model, place):
    before = find_checkpoint(model)
    changed = bytearray(3 * _MEBIBYTE)
    changed[place] = 1
    store(model, "model.safetensors", bytes(changed))
    after = find_checkpoint(model)
    assert after.revision != before.revision
    assert read(after, "model.safetensors") == changed


def test_a_download_that_was_cut_short_is_done_again(model):
    found = find_checkpoint(model)
    (found.folder / "model.safetensors").write_bytes(b"half")
    assert read(find_checkpoint(model), "model.safetensors") == bytes(3 * _MEBIBYTE)


def test_a_renamed_weight_file_is_another_revision(model):
    before = find_checkpoint(model)
    fsspec.filesystem("memory").mv(f"{model}/model.safetensors", f"{model}/weights.safetensors")
    assert find_checkpoint(model).revision != before.revision


def test_a_store_and_a_folder_of_the_same_files_are_one_revision(tmp_path):
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))
    uri = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(f"{folder}/", f"{uri}/", recursive=True)
    assert find_checkpoint(uri).revision == find_checkpoint(str(folder)).revision


def test_neither_a_signature_nor_a_password_stands_in_a_checkpoints_name():
    SignedFileSystem().pipe_file("signed://bucket/model/config.json", b"{}")
    found = find_checkpoint("signed://user:secret@bucket/model?X-Amz-Signature=abc&expires=1")
    assert found.name == "signed://bucket/model"


@pytest.mark.parametrize(
    ("content", "says"), [(b"[1]", "holds a list, wanted an object"), (b"{", "is not JSON"), (None, "no config.json")]
)
def test_a_configuration_that_is_none_is_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        Checkpoint("mine", tmp_path, "0").read_json("config.json")


def test_a_configuration_is_read_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert Checkpoint("mine", tmp_path, "0").read_json("config.json") == {"a": 1}


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "model", "a/b/c", "~/model"])
def test_a_name_that_is_neither_folder_nor_address_nor_hub_id_is_refused(name):
    with pytest.raises(CheckpointError, match="wanted a folder, a URI"):
        find_checkpoint(name)


def test_a_store_without_a_checkpoint_is_named():
    with pytest.raises(CheckpointError, match="no checkpoint files at 'memory://nothing-here'"):
        find_checkpoint("memory://nothing-here")
