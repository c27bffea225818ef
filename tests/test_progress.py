"""The progress of a run: what it counts, what it says of speed, time left and limit, and how often it asks a store."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from framescribe.storage.output import OutputStore, part_name
from framescribe.storage.retries import RetryPolicy
from pipeline.metrics_server import write_metrics
from pipeline.run_state import RunHistory, RunState, RunSummary, TimeLeft, describe_pace, find_limit, write_rate
from pipeline.watching import PlainLines, Progress, RunReader
from schemas.records import InputKind, WorkUnit
from transforms.worker import Worker


def _unit(number: int) -> WorkUnit:
    return WorkUnit(f"unit-{number}", InputKind.TAR, "a.tar", "a", number * 4, number * 4 + 4, 100)


def _local(folder: Path) -> OutputStore:
    return OutputStore(LocalFileSystem(auto_mkdir=True), str(folder))


def _history(*num_done: int, seconds: float = 10.0, num_planned: int = 100) -> RunHistory:
    """Returns a run of which so many clips were done after each ten seconds."""
    history = RunHistory()
    for number, done in enumerate(num_done):
        history.add(RunState(number * seconds, num_planned, done, 0, 0))
    return history


def test_clips_that_are_not_committed_are_done_and_not_kept(tmp_path):
    worker = Worker()
    reader = RunReader(_local(tmp_path), [_unit(0), _unit(1)], num_before=3, worker=worker)
    for name, number in (
        ("clips_arrived", 6),
        ("clips_arrived_failed", 2),
        ("clips_annotated", 3),
        ("clips_failed", 1),
    ):
        worker.counts.add(f"framescribe.{name}", number)
    state = reader.read()
    assert (state.num_planned, state.num_done, state.num_kept, state.num_failed) == (11, 9, 7, 2)


def test_what_another_process_committed_is_found_in_the_parts(tmp_path):
    store = _local(tmp_path)
    reader = RunReader(store, [_unit(0), _unit(1)], worker=Worker())
    store.put(part_name("unit-1"), b"")
    reader.look()
    assert (reader.read().num_done, reader.read().num_kept) == (4, 4)


def test_a_unit_that_is_tried_again_is_not_done_because_of_its_earlier_part(tmp_path):
    store = _local(tmp_path)
    store.put(part_name("unit-1"), b"")
    reader = RunReader(store, [_unit(0), _unit(1)], committed_before={"unit-1"}, worker=Worker())
    reader.look()
    assert reader.read().num_done == 0


def test_of_a_job_elsewhere_only_committed_clips_are_done(tmp_path):
    reader = RunReader(_local(tmp_path), [_unit(0), _unit(1)], worker=None)
    reader.take_job_counters(
        {"framescribe.clips_arrived": 7, "framescribe.clips_annotated": 3, "framescribe.clips_failed": 1}
    )
    assert (reader.read().num_done, reader.read().num_failed) == (4, 1)


def test_windows_are_planned_as_they_are_found(tmp_path):
    worker = Worker()
    reader = RunReader(_local(tmp_path), [_unit(0)], worker=worker)
    worker.counts.add("framescribe.windows_beyond_first", 5)
    assert reader.read().num_planned == 9


def test_a_second_run_of_a_process_counts_from_nothing(tmp_path):
    worker = Worker()
    worker.counts.add("framescribe.clips_arrived", 6)
    assert RunReader(_local(tmp_path), [_unit(0)], worker=worker).read().num_done == 0


def test_an_even_pace_leaves_no_doubt_about_the_time_left():
    left = _history(*range(0, 44, 4)).estimate_left()
    assert left is not None
    assert (round(left.fewest_s), round(left.most_s or 0)) == (150, 150)
    assert str(left) == "2 min left"  # of 60 clips at 0.4/s


def test_an_uneven_pace_gives_a_range_that_holds_the_mean():
    left = _history(0, 1, 10, 12, 20, 21, 30, 38, 40).estimate_left()
    assert left is not None
    assert left.fewest_s < 60 / 0.5 < (left.most_s or 0)


def test_the_time_left_is_not_guessed_from_three_clips():
    assert _history(0, 3).estimate_left() is None


@pytest.mark.parametrize(
    ("fewest_s", "most_s", "said"),
    [
        (20, 35, "20 to 35 s left"),
        (100, 200, "100 s to 3 min left"),
        (30, None, "30 s or more left"),
        (0, 0, "0 s left"),
    ],
)
def test_time_left_in_words(fewest_s, most_s, said):
    assert str(TimeLeft(fewest_s, most_s)) == said


def _counters(**milliseconds: int) -> dict[str, int]:
    names = {"waiting": "engine.waiting", "busy": "engine.decode"}
    return {f"{names.get(name, f'framescribe.{name}')}_milliseconds": value for name, value in milliseconds.items()}


@pytest.mark.parametrize(
    ("counters", "limit"),
    [
        ({}, None),
        (_counters(waiting=10, busy=90, decode=500), "the model"),
        (_counters(waiting=60, busy=40, decode=150, decoders_idle=50), "decoding"),
        (_counters(waiting=60, busy=40, decode=20, decoders_idle=180, read=80), "the store"),
        (_counters(waiting=60, busy=40, decode=20, decoders_idle=180, commit=80), "the store"),
        (_counters(waiting=60, busy=40, decode=20, decoders_idle=180), None),
        (_counters(decode=20, decoders_idle=180, read=80), None),
    ],
)
def test_the_limit_is_told_from_measured_seconds_and_else_not_at_all(counters, limit):
    assert find_limit(counters) == limit


def test_before_the_first_clip_is_done_the_decoded_ones_are_told():
    history = _history(0)
    history.add(RunState(2.0, 100, 0, 0, 0, {"framescribe.clips_sampled": 7, "engine.generated_tokens": 80}))
    assert describe_pace(history) == "7 clips decoded, 40 tokens/s"


def test_the_last_line_is_for_people():
    assert RunSummary(55.3, 38, 0, 0, "decoding").describe(0) == (
        "38 clips in 55 s (0.7/s), limited by decoding; 0 failed"
    )
    assert RunSummary(300, 1500, 20, 3, None).describe(5) == "1,500 clips in 5 min (5.0/s); 20 done before; 5 failed"
    assert RunSummary(0, 0, 20, 0, None).describe(1) == "0 clips; 20 done before; 1 failed"


@pytest.mark.parametrize(("per_s", "said"), [(0.7, "0.7 clips/s"), (25, "25 clips/s"), (0.05, "3.0 clips/min")])
def test_a_slow_rate_is_told_per_minute(per_s, said):
    assert write_rate(per_s, "clips") == said


def test_metrics_name_the_run_and_escape_what_labels_hold():
    lines = write_metrics(_history(0, 5, 10), {"run": "f00d", "output": 'a"b\\c'}).splitlines()
    assert 'framescribe_clips_done{run="f00d",output="a\\"b\\\\c"} 10' in lines
    assert 'framescribe_clips_per_second{run="f00d",output="a\\"b\\\\c"} 0.5' in lines
    assert "# TYPE framescribe_tokens_total counter" in lines


def test_what_only_grows_is_a_counter_of_prometheus():
    history = RunHistory()
    history.add(RunState(1.0, 9, 0, 0, 0, {"framescribe.clips_read": 3, "framescribe.clips_sampled": 2}))
    lines = write_metrics(history, {}).splitlines()
    assert "# TYPE framescribe_counter_total counter" in lines
    assert 'framescribe_counter_total{name="framescribe.clips_read"} 3' in lines


def test_the_slowest_units_are_those_of_this_start_without_credentials(tmp_path):
    worker = Worker()
    units = [replace(_unit(number), shard=f"s3://key:secret@bucket/{number}.tar") for number in range(9)]
    worker.unit_times.begin("unit-8")
    worker.unit_times.end("unit-8")
    reader = RunReader(_local(tmp_path), units[:8], worker=worker)
    for unit in reversed(units[:7]):  # unit-7 does not end
        worker.unit_times.begin(unit.unit_id)
    for unit in units[:7]:
        worker.unit_times.end(unit.unit_id)
        time.sleep(0.02)
    slowest = reader.find_slowest()
    assert [unit.unit_id for unit in slowest] == [f"unit-{number}" for number in (6, 5, 4, 3, 2)]
    assert "secret" not in str(slowest)
    assert str(slowest[0]).startswith("clips 24 to 27 of s3://")
    assert RunReader(_local(tmp_path), units, worker=None).find_slowest() is None
    assert RunSummary(1, 1, 0, 0, None).to_json()["slowest_units"] is None


class CountingFileSystem(LocalFileSystem):
    """Counts how often it is asked for a listing, and refuses all of them on demand."""

    num_listings = 0
    refuses = False

    def ls(self, path: str, detail: bool = False, **kwargs: object) -> list[object]:
        self.num_listings += 1
        if self.refuses:
            raise PermissionError("not today")
        return super().ls(path, detail=detail, **kwargs)


def _watch_for_s(seconds: int, reader: RunReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows a run of so many seconds, by a clock that goes on half a second each time the state is shown."""
    times = iter(range(2 * seconds))
    now = [0.0]

    def is_running() -> bool:
        now[0] = next(times, 2 * seconds) / 2
        return now[0] < seconds

    reader.started_s = 0.0
    monkeypatch.setattr("pipeline.watching.time.monotonic", lambda: now[0])
    progress = Progress(reader, "out")
    progress.end()  # no pauses
    progress.watch(is_running, PlainLines())


@pytest.mark.parametrize(("seconds", "most"), [(10, 6), (60, 31), (600, 140), (24 * 3600, 1700)])
def test_a_store_is_asked_every_two_seconds_at_most_and_less_as_time_goes_on(tmp_path, monkeypatch, seconds, most):
    files = CountingFileSystem(auto_mkdir=True, skip_instance_cache=True)
    (tmp_path / "_framescribe" / "parts").mkdir(parents=True)
    reader = RunReader(OutputStore(files, str(tmp_path)), [_unit(0)], worker=Worker())
    _watch_for_s(seconds, reader, monkeypatch)
    assert most * 3 / 4 < files.num_listings <= most


def test_progress_that_may_not_list_the_parts_does_not_stop_the_run(tmp_path):
    files = CountingFileSystem(auto_mkdir=True, skip_instance_cache=True)
    files.refuses = True
    store = OutputStore(files, str(tmp_path), RetryPolicy(max_attempts=1))
    with Progress(RunReader(store, [_unit(0)]), "out").shown():
        pass
    assert files.num_listings > 0


def test_a_log_file_is_told_less_and_less_often_down_to_once_a_minute(tmp_path, capsys, monkeypatch):
    _watch_for_s(300, RunReader(_local(tmp_path), [_unit(0)], worker=Worker()), monkeypatch)
    # At 0, 5, 15, 35 and 75 s, and then each minute.
    assert capsys.readouterr().err.splitlines() == ["0 of 4 clips done, 0 failed; loading the model; 0 kept"] * 8
