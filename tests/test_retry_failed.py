"""Failed clips are tried again by themselves, and too many of them stop a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from framescribe.llava_video.errors import ClipTooLarge
from framescribe.storage.journal import list_done_units
from framescribe.storage.output import open_output
from run_pipeline import main
from tests.support.run_fixtures import (
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    find_hidden,
    make_shard,
    read_tables,
)
from tests.support.stub_engine import StubEngine


class FullEngine(StubEngine):
    """Has no room for clips whose id ends in one of some numbers."""

    def __init__(self, *too_large: str) -> None:
        super().__init__(checkpoint_revision())
        self._too_large = too_large
        self.asked: list[str] = []
        self.tokenizer = SimpleNamespace(decode=lambda token_ids: " ".join(map(str, token_ids)))

    def answer(self, future, completion):
        self.asked.append(completion.clip_id)
        if completion.clip_id.endswith(self._too_large):
            future.set_exception(ClipTooLarge("no room for the clip"))
        else:
            future.set_result(completion)


class LookingEngine(StubEngine):
    """Notes at every clip whether the output says that it is finished."""

    def __init__(self, output: Path) -> None:
        super().__init__(checkpoint_revision())
        self._output = output
        self.found_success: list[bool] = []

    def answer(self, future, completion):
        self.found_success.append((self._output / "_SUCCESS").exists())
        future.set_result(completion)


@pytest.fixture
def shard(tmp_path):
    return make_shard(tmp_path / "shards" / "a.tar", 7)


def run(engine: StubEngine, folder: Path, shard: str, *flags: str) -> tuple[int, dict[str, list[dict[str, object]]]]:
    arguments = annotate_arguments(folder, [shard], folder / "out", "--canary-every", "0", *flags)
    return annotate_with(engine, arguments), read_tables(folder / "out")


def ids(rows):
    return [row["clip_id"] for row in rows]


def test_while_failed_clips_are_tried_again_the_run_does_not_look_finished(tmp_path, shard):
    run(FullEngine("1", "5"), tmp_path, shard)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    looking = LookingEngine(tmp_path / "out")
    run(looking, tmp_path, shard, "--retry-failed")
    assert looking.found_success == [False, False]
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_only_the_failed_clips_are_asked_again_and_every_clip_has_one_row(tmp_path, shard):
    undisturbed = run(FullEngine("nothing"), tmp_path / "undisturbed", shard)[1]
    _, before = run(FullEngine("1", "5"), tmp_path, shard)
    again = FullEngine("nothing")
    _, after = run(again, tmp_path, shard, "--retry-failed")
    assert ids(before["failures"]) == ["shards/a/00001", "shards/a/00005"]
    assert sorted(again.asked) == ["shards/a/00001", "shards/a/00005"]
    assert after == undisturbed
    assert find_hidden(tmp_path / "out") == []


def test_a_clip_that_fails_again_stays_a_failure(tmp_path, shard, capsys):
    run(FullEngine("1", "5"), tmp_path, shard)
    assert "why clips failed: 2 x too large for the device" in capsys.readouterr().out
    _, after = run(FullEngine("5"), tmp_path, shard, "--retry-failed")
    assert ids(after["failures"]) == ["shards/a/00005"]
    assert len(after["clips"]) == 6


def test_without_the_flag_failed_clips_are_left_as_they_are(tmp_path, shard):
    run(FullEngine("1"), tmp_path, shard)
    again = FullEngine("nothing")
    run(again, tmp_path, shard)
    assert again.asked == []


def test_with_nothing_failed_nothing_is_done_again(tmp_path, shard):
    run(FullEngine("nothing"), tmp_path, shard)
    again = FullEngine("nothing")
    assert run(again, tmp_path, shard, "--retry-failed")[0] == 0
    assert again.asked == []


def test_a_retry_that_cuts_other_units_asks_what_failed_and_says_that_the_others_are_written_again(
    tmp_path, shard, capsys
):
    run(FullEngine("1"), tmp_path, shard)
    assert "written again" not in capsys.readouterr().err
    again = FullEngine("nothing")
    run(again, tmp_path, shard, "--retry-failed", "--clips-per-unit", "2")
    assert len(again.asked) == 1
    assert (
        "warning: up to 6 clips of those done before are written again, with the answers that are there"
        in capsys.readouterr().err
    )


def test_a_unit_that_was_never_done_is_done_by_a_retry_too(tmp_path, shard):
    run(FullEngine("1"), tmp_path, shard)
    next((tmp_path / "out" / "_framescribe" / "parts").glob("*.parquet")).unlink()
    _, after = run(FullEngine("nothing"), tmp_path, shard, "--retry-failed")
    assert len(after["clips"]) == 7


def test_a_run_with_too_many_failures_ends_without_success_and_says_what_failed_most(tmp_path, shard, capsys):
    status, tables = run(FullEngine("1", "5"), tmp_path, shard, "--max-failed-fraction", "0.2")
    assert status == 1
    assert "2 of 7 clips failed (2 x too large for the device)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert len(tables["failures"]) == 2


def test_a_run_of_which_every_clip_failed_is_no_success_until_it_is_published_by_hand(tmp_path, shard, capsys):
    every = tuple("0123456789")
    status, tables = run(FullEngine(*every), tmp_path, shard)
    assert (status, len(tables["failures"])) == (1, 7)
    assert "none of 7 clips was annotated (7 x too large for the device). The tables are" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert run(FullEngine(*every), tmp_path, shard)[0] == 1
    assert main(["publish", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_run_of_which_every_clip_but_one_failed_is_a_success_by_default(tmp_path, shard):
    assert run(FullEngine(*"123456789"), tmp_path, shard)[0] == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_retry_that_mends_a_run_with_too_many_failures_finishes_it(tmp_path, shard):
    run(FullEngine("1", "5"), tmp_path, shard, "--max-failed-fraction", "0.2")
    status, _ = run(FullEngine("nothing"), tmp_path, shard, "--max-failed-fraction", "0.2", "--retry-failed")
    assert status == 0
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text())["num_annotated"] == 7


def test_a_worker_that_fails_clip_after_clip_stops_long_before_the_end(tmp_path, capsys):
    shard = make_shard(tmp_path / "shards" / "b.tar", 240)
    arguments = annotate_arguments(
        tmp_path, [shard], tmp_path / "out", "--max-failed-fraction", "0.1", "--clips-per-unit=10"
    )
    status = annotate_with(
        FullEngine("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"), [*arguments, "--canary-every=0"]
    )
    said = capsys.readouterr().err
    assert status == 1
    assert "100 of 100 clips failed (100 x too large for the device (annotate))" in said
    assert len(list_done_units(open_output(str(tmp_path / "out")))) == 9
