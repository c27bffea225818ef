"""The progress of a run: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from framescribe.storage.output import OutputStore, part_name
from framescribe.storage.retries import RetryPolicy
from pipeline.progress import ProgressBar, show_progress
from schemas.records import InputKind, WorkUnit
from transforms.worker import Worker


def _unit(number: int) -> WorkUnit:
    return WorkUnit(f"unit-{number}", InputKind.TAR, "a.tar", "a", number * 4, number * 4 + 4, 100)


def test_a_log_file_gets_one_line_each_time_the_number_moves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = OutputStore(LocalFileSystem(auto_mkdir=True), str(tmp_path))
    bar = ProgressBar(store, [_unit(0), _unit(1)])
    looks = iter([True, True, False])
    bar.end()  # no pauses

    def is_running() -> bool:
        goes_on = next(looks)
        if not goes_on:
            store.put(part_name("unit-1"), b"")
        return goes_on

    bar.watch(is_running)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.split(",")[0] for line in lines] == ["annotated 0 of 8 clips", "annotated 4 of 8 clips"]


class CountingFileSystem(LocalFileSystem):
    """Counts how often it is asked for a listing, and refuses all of them on demand."""

    num_listings = 0
    refuses = False

    def ls(self, path: str, detail: bool = False, **kwargs: object) -> list[object]:
        self.num_listings += 1
        if self.refuses:
            raise PermissionError("not today")
        return super().ls(path, detail=detail, **kwargs)


def _watch_for_s(seconds: int, bar: ProgressBar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows a run of so many seconds, by a clock that goes on half a second each time the bar is drawn."""
    times = iter(range(2 * seconds))
    now = [0.0]

    def is_running() -> bool:
        now[0] = next(times, 2 * seconds) / 2
        return now[0] < seconds

    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now[0])
    bar.end()  # no pauses
    bar.watch(is_running)


@pytest.mark.parametrize(("seconds", "most"), [(10, 6), (60, 31), (600, 140), (24 * 3600, 1700)])
def test_a_store_is_asked_every_two_seconds_at_most_and_less_as_time_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, most: int
) -> None:
    files = CountingFileSystem(auto_mkdir=True, skip_instance_cache=True)
    (tmp_path / "_framescribe" / "parts").mkdir(parents=True)
    _watch_for_s(seconds, ProgressBar(OutputStore(files, str(tmp_path)), [_unit(0)], worker=Worker()), monkeypatch)
    assert most * 3 / 4 < files.num_listings <= most


def test_progress_that_may_not_list_the_parts_does_not_stop_the_run(tmp_path: Path) -> None:
    files = CountingFileSystem(auto_mkdir=True, skip_instance_cache=True)
    files.refuses = True
    with show_progress(OutputStore(files, str(tmp_path), RetryPolicy(max_attempts=1)), [_unit(0)]):
        pass
    assert files.num_listings > 0


def test_a_log_file_is_told_now_and_then_that_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutputStore(LocalFileSystem(auto_mkdir=True), str(tmp_path))
    _watch_for_s(39, ProgressBar(store, [_unit(0)], "loading the model", Worker()), monkeypatch)
    # At 0 s, and 5, 10 and 20 s after the line before.
    assert capsys.readouterr().err.splitlines() == ["annotated 0 of 4 clips, loading the model"] * 4
