"""A start that would push clips out of the tables, whose videos are still there, is refused."""

from __future__ import annotations

from functools import partial

import pytest

from framescribe.storage.config import ReadConfig
from framescribe.storage.retries import RetryPolicy
from run_pipeline import main
from tests.support.run_fixtures import annotate_arguments, annotate_with, checkpoint_revision, make_shard, read_tables
from tests.support.shards_fixtures import FlakyFileSystem, write
from tests.support.stub_engine import StubEngine


def _annotate(folder, inputs) -> int:
    arguments = annotate_arguments(folder, [str(one) for one in inputs], folder / "out", "--canary-every", "0")
    return annotate_with(StubEngine(checkpoint_revision()), arguments)


def _ids(folder) -> list[str]:
    tables = read_tables(folder / "out")
    return sorted(str(row["clip_id"]) for name in ("clips", "failures") for row in tables[name])


@pytest.fixture
def videos(tmp_path):
    return [write(tmp_path / "videos" / f"{name}.mp4", name) for name in "abc"]


def test_other_files_of_a_folder_do_not_take_the_place_of_the_first(tmp_path, videos, capsys):
    assert _annotate(tmp_path, videos[:2]) == 1  # made of text, they are failures, and so are all
    assert _annotate(tmp_path, videos[2:]) == 1
    assert "holds the clip 'videos/a'" in capsys.readouterr().err
    assert _ids(tmp_path) == ["videos/a", "videos/b"]
    _annotate(tmp_path, videos)
    assert _ids(tmp_path) == ["videos/a", "videos/b", "videos/c"]


def test_files_that_are_gone_may_leave_the_tables(tmp_path, videos):
    _annotate(tmp_path, [tmp_path / "videos"])
    (tmp_path / "videos" / "b.mp4").unlink()
    _annotate(tmp_path, [tmp_path / "videos"])
    assert _ids(tmp_path) == ["videos/a", "videos/c"]


def test_a_store_that_cannot_say_whether_a_file_is_there_stops_the_start(tmp_path, capsys):
    FlakyFileSystem.reset()
    FlakyFileSystem().pipe({f"flaky://set/{name}.mp4": name.encode() for name in "ab"})
    assert _annotate(tmp_path, ["flaky://set/a.mp4"]) == 1
    before = _ids(tmp_path)
    arguments = annotate_arguments(tmp_path, ["flaky://set/b.mp4"], tmp_path / "out", "--canary-every", "0")
    real = FlakyFileSystem.info

    def info(self, path, **kwargs):
        if path.endswith("a.mp4"):
            raise TimeoutError("no answer")
        return real(self, path, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlakyFileSystem, "info", info)
        patch.setattr("pipeline.commands.ReadConfig", partial(ReadConfig, retries=RetryPolicy(max_attempts=1)))
        assert main(arguments) == 1
    assert "cannot ask for the size of flaky://set/a.mp4" in capsys.readouterr().err
    assert _ids(tmp_path) == before


def test_a_shard_of_the_same_name_in_another_folder_does_not_take_the_place_of_the_first(tmp_path, capsys):
    first = make_shard(tmp_path / "monday" / "train" / "000.tar", 3)
    second = make_shard(tmp_path / "tuesday" / "train" / "000.tar", 2)
    assert _annotate(tmp_path, [first]) == 0
    before = _ids(tmp_path)
    assert main(annotate_arguments(tmp_path, [second], tmp_path / "out", "--canary-every", "0")) == 1
    assert f"of {first}, which would leave the tables" in capsys.readouterr().err
    assert _ids(tmp_path) == before
