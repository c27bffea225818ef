"""Clips of a unit gathered in any order and committed as one part."""

from __future__ import annotations

import random
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from framescribe.llava_video.engine.config import EngineConfig
from framescribe.storage.journal import list_done_units, read_part
from framescribe.storage.output import open_output
from schemas.part_rows import read_outcomes
from schemas.records import CommittedPart, FailurePolicy, TooManyFailedClipsError, UnitEnd, describe_reasons
from tests.support.output_fixtures import RUN, make_annotation, make_failed, make_unit, memory_output
from tests.support.stub_engine import StubEngine
from transforms.commit_parts import CommitParts, CommitPartsConfig, CommitPartsFn
from transforms.unit_outcomes import (
    LostClipsError,
    PendingUnit,
)
from transforms.worker import Worker


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path):
    return {"local": str(tmp_path / "out"), "memory": memory_output()}[request.param]


def run_bundle(output, elements, **settings):
    """Runs one bundle as a runner does, and returns what was committed."""
    commit = CommitPartsFn(CommitPartsConfig(output, RUN, **settings))
    commit.setup()
    commit.start_bundle()
    committed = [part for element in elements for part in commit.process(element)]
    commit.finish_bundle()
    return committed


def test_units_whose_clips_come_mixed_and_in_any_order_are_each_one_part(output):
    elements = make_unit("one", ["a", "b", "c"]) + make_unit("two", ["d", "e"])
    random.Random(0).shuffle(elements)
    assert {*run_bundle(output, elements)} == {CommittedPart("one", 2, 1), CommittedPart("two", 1, 1)}
    assert list_done_units(open_output(output)) == ["one", "two"]


def test_a_part_holds_every_clip_of_its_unit(output):
    run_bundle(output, make_unit("one", ["a", "b"]))
    part = read_part(open_output(output), "one")
    assert read_outcomes(part) == [make_annotation("a", "one"), make_failed("b", "one")]


def test_a_unit_without_clips_is_committed_too(output):
    assert run_bundle(output, [UnitEnd("empty", 0)]) == [CommittedPart("empty", 0, 0)]


def test_a_unit_executed_twice_leaves_the_same_bytes(output):
    store = open_output(output)
    run_bundle(output, make_unit("one", ["a", "b"]))
    first = store.read("_framescribe/parts/one.parquet")
    run_bundle(output, make_unit("one", ["a", "b"])[::-1])
    assert store.read("_framescribe/parts/one.parquet") == first


def test_a_clip_that_never_came_stops_the_run(output):
    with pytest.raises(LostClipsError, match="unit 'one': 1 of 2 clips came"):
        run_bundle(output, make_unit("one", ["a", "b"])[1:])
    assert list_done_units(open_output(output)) == []


def test_a_unit_whose_end_never_came_stops_the_run(output):
    with pytest.raises(LostClipsError, match="2 of an unknown number of clips"):
        run_bundle(output, make_unit("one", ["a", "b"])[:-1])


def test_a_clip_that_came_twice_stops_the_run(output):
    with pytest.raises(LostClipsError, match="'a' came twice"):
        run_bundle(output, [make_annotation("a", "one"), make_annotation("a", "one")])


def test_a_clip_more_than_the_unit_has_stops_the_run(output):
    with pytest.raises(LostClipsError, match="has 1 clips, but more came"):
        run_bundle(output, [make_annotation("a", "one"), make_annotation("b", "one"), UnitEnd("one", 1)])


def test_a_clip_after_the_unit_was_complete_stops_the_run(output):
    with pytest.raises(LostClipsError, match="after unit 'one' was complete"):
        run_bundle(output, [*make_unit("one", ["a", "b"]), make_annotation("c", "one")])


def test_a_unit_that_ends_twice_stops_the_run():
    unit = PendingUnit("one")
    unit.add(UnitEnd("one", 2))
    with pytest.raises(LostClipsError, match="ended twice"):
        unit.add(UnitEnd("one", 2))


def test_a_bundle_that_failed_leaves_nothing_to_the_next_one(output):
    commit = CommitPartsFn(CommitPartsConfig(output, RUN))
    commit.setup()
    commit.start_bundle()
    list(commit.process(make_annotation("a", "one")))
    commit.start_bundle()
    assert [part for element in make_unit("one", ["a", "b"]) for part in commit.process(element)] == [
        CommittedPart("one", 1, 1)
    ]


def test_a_unit_that_a_runner_gives_a_second_time_is_committed_after_its_bundle_began_anew(output):
    commit = CommitPartsFn(CommitPartsConfig(output, RUN))
    commit.setup()
    for _ in range(2):
        commit.start_bundle()
        assert len([part for element in make_unit("one", ["a", "b"]) for part in commit.process(element)]) == 1
        commit.finish_bundle()


def test_a_number_format_that_only_the_worker_knows_is_filled_in(output):
    worker = Worker()
    worker.use_engine(EngineConfig("any"), StubEngine("any"))
    commit = CommitPartsFn(CommitPartsConfig(output, replace(RUN, dtype="auto")), worker)
    commit.setup()
    commit.start_bundle()
    list(commit.process(UnitEnd("one", 1)))
    list(commit.process(make_annotation("a", "one")))
    assert read_part(open_output(output), "one")["dtype"].to_pylist() == ["float32"]


def test_more_failed_clips_than_allowed_stop_the_run_before_they_are_committed(output):
    failed = [make_failed(f"clip-{number}", "one") for number in range(100)]
    with pytest.raises(TooManyFailedClipsError, match="100 of 100 clips failed"):
        run_bundle(output, [*failed, UnitEnd("one", 100)], failures=FailurePolicy(0.5))
    assert list_done_units(open_output(output)) == []
    run_bundle(output, [*failed, UnitEnd("one", 100)], failures=FailurePolicy(1.0))
    assert list_done_units(open_output(output)) == ["one"]


def test_few_clips_are_no_reason_to_stop():
    FailurePolicy(0.1).check_worker(num_failed=3, num_clips=3, reasons={})


def test_a_share_that_is_just_allowed_is_no_reason_to_stop():
    FailurePolicy(0.1).check_worker(num_failed=10, num_clips=100, reasons={})


def test_a_run_of_which_every_clip_failed_is_no_success_whatever_fraction_may_fail():
    anything = FailurePolicy(1.0)
    assert (anything.allows(2, 3), anything.allows(3, 3), anything.allows(0, 0)) == (True, False, True)
    with pytest.raises(TooManyFailedClipsError, match=r"none of 3 clips was annotated \(3 x damaged\)"):
        anything.check_run(3, 3, {"damaged": 3})
    anything.check_worker(100, 100, {"damaged": 100})


@pytest.mark.parametrize("num_failed", [1, 2])
def test_success_and_exit_status_of_a_run_agree(num_failed):
    policy = FailurePolicy(0.1)
    assert policy.allows(num_failed, 10) == (num_failed == 1)
    if num_failed == 2:
        with pytest.raises(TooManyFailedClipsError, match=r"2 of 10 clips failed.*--max-failed-fraction 0\.1 allows"):
            policy.check_run(num_failed, 10, {})


def test_the_most_frequent_reasons_come_first_and_no_more_than_five():
    reasons = {"damaged": 1, "empty file": 7, "a": 2, "b": 2, "c": 2, "d": 2}
    assert describe_reasons(reasons) == "7 x empty file, 2 x a, 2 x b, 2 x c, 2 x d, ..."


def test_a_bundle_that_is_executed_twice_commits_its_units_once(tmp_path):
    twice = PipelineOptions(["--runner=FnApiRunner", "--direct_runner_bundle_repeat=1"])
    with TestPipeline(options=twice) as pipeline:
        elements = pipeline | beam.Create([make_unit("one", ["a", "b", "c"])]) | beam.FlatMap(list)
        assert_that(
            elements | CommitParts(CommitPartsConfig(str(tmp_path), RUN)), equal_to([CommittedPart("one", 2, 1)])
        )
    assert read_part(open_output(str(tmp_path)), "one").num_rows == 3


@pytest.mark.parametrize(
    ("num_before", "counted"),
    [(0, {"parts_committed": 1, "clips_annotated": 2, "clips_failed": 1}), (1, {"parts_discarded": 1})],
)
def test_in_a_pipeline_parts_and_clips_are_counted_and_those_that_came_too_late_apart(tmp_path, num_before, counted):
    for _ in range(num_before):
        run_bundle(str(tmp_path), make_unit("one", ["a", "c"]))
    pipeline = TestPipeline(runner="FnApiRunner")
    committed = pipeline | beam.Create([make_unit("one", ["a", "b", "c"])]) | beam.FlatMap(list)
    assert_that(committed | CommitParts(CommitPartsConfig(str(tmp_path), RUN)), equal_to([CommittedPart("one", 2, 1)]))
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace("framescribe"))["counters"]
    found = {counter.key.metric.name: counter.committed for counter in counters}
    del found["commit_milliseconds"]
    assert found == {"clips_arrived": 3, "clips_arrived_failed": 1, **counted}
