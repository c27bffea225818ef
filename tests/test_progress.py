"""The progress of a run: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.progress import ProgressBar
from schemas.records import InputKind, WorkUnit
from storage.layout import part_name
from storage.output_store import OutputStore


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


def test_a_log_file_is_told_now_and_then_that_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OutputStore(LocalFileSystem(auto_mkdir=True), str(tmp_path))
    monkeypatch.setattr("pipeline.progress.loaded_engines", list)
    monkeypatch.setattr("pipeline.progress.time.monotonic", map(float, range(100)).__next__)
    bar = ProgressBar(store, [_unit(0)], "loading the model")
    bar.end()  # no pauses
    looks = iter([True] * 40)
    bar.watch(lambda: next(looks, False))
    # At 0 s, and 5, 10 and 20 s after the line before.
    assert capsys.readouterr().err.splitlines() == ["annotated 0 of 4 clips, loading the model"] * 4
