"""Reading units inside the pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to

from framescribe.decoding.config import SamplingConfig
from framescribe.storage.errors import ShardChanged
from framescribe.storage.journal import commit_part
from framescribe.storage.output import open_output, part_name
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.part_rows import build_part
from schemas.records import Clip, FailedClip, UnitEnd
from tests.support.decoding_fixtures import make_video
from tests.support.output_fixtures import RUN, commit, make_annotation, make_failed, make_ref, memory_output
from tests.support.shards_fixtures import QUICK, make_tar, webdataset_members, write
from transforms.read_clips import KeepAnnotated, ReadClips, ReadClipsConfig, ReadClipsFn
from transforms.worker import Worker, WorkerConfig


@pytest.fixture
def shard(tmp_path):
    return write(tmp_path / "s" / "a.tar", make_tar([*webdataset_members(3), ("0003.mp4", b"")]))


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def describe(element: Clip | FailedClip | UnitEnd) -> tuple[str, str]:
    return type(element).__name__, "" if isinstance(element, UnitEnd) else element.ref.clip_id


def read(units):
    return [element for unit in units for element in ReadClipsFn(ReadClipsConfig(QUICK)).process(unit)]


def read_in_seconds(unit, worker):
    """Reads a unit whose videos are cut into windows of a second."""
    config = ReadClipsConfig(QUICK, 1.0, SamplingConfig(max_frames=4), WorkerConfig(num_decoder_processes=1))
    return list(ReadClipsFn(config, worker).process(unit))


def test_a_unit_gives_its_clips_one_by_one_and_then_its_end(shard):
    (unit,) = plan_units([shard])
    elements = read([unit])
    assert [describe(element) for element in elements] == [
        ("Clip", "s/a/0000"),
        ("Clip", "s/a/0001"),
        ("Clip", "s/a/0002"),
        ("FailedClip", "s/a/0003"),
        ("UnitEnd", ""),
    ]
    assert elements[-1] == UnitEnd(unit.unit_id, 4)


def test_every_record_carries_the_id_of_its_unit(shard):
    units = plan_units([shard], UnitConfig(max_clips=2))
    clips = [element for element in read(units) if not isinstance(element, UnitEnd)]
    assert [clip.ref.unit_id for clip in clips] == [units[0].unit_id] * 2 + [units[1].unit_id] * 2


def test_long_videos_are_cut_and_the_end_of_the_unit_counts_the_windows(tmp_path, worker):
    (tmp_path / "s").mkdir()
    (unit,) = plan_units([str(make_video(tmp_path / "s" / "a.mp4", num_frames=23, rate=10))])
    *windows, end = read_in_seconds(unit, worker)
    assert [clip.ref.clip_id for clip in windows] == ["s/a@0-1", "s/a@1-2.3"]
    assert end.num_clips == 2


def test_a_video_whose_length_cannot_be_told_stays_whole(tmp_path, worker):
    (unit,) = plan_units([write(tmp_path / "s" / "a.mp4", b"video")])
    clip, end = read_in_seconds(unit, worker)
    assert (clip.ref.clip_id, end.num_clips) == ("s/a", 1)


def test_a_unit_that_cannot_be_read_has_no_end(tmp_path, shard):
    units = plan_units([shard])
    write(tmp_path / "s" / "a.tar", make_tar(webdataset_members(9)))
    seen = []
    with pytest.raises(ShardChanged):
        seen.extend(ReadClipsFn(ReadClipsConfig(QUICK)).process(units[0]))
    assert not any(isinstance(element, UnitEnd) for element in seen)


def test_units_are_read_in_a_pipeline_and_counted(shard):
    units = plan_units([shard], UnitConfig(max_clips=2))
    pipeline = beam.Pipeline("FnApiRunner")
    read_back = pipeline | beam.Create(units) | beam.Reshuffle() | ReadClips(ReadClipsConfig(QUICK))
    expected = [
        *(("Clip", f"s/a/000{n}") for n in range(3)),
        ("FailedClip", "s/a/0003"),
        ("UnitEnd", ""),
        ("UnitEnd", ""),
    ]
    assert_that(read_back | beam.Map(describe), equal_to(expected))
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace("framescribe"))["counters"]
    counted = {counter.key.metric.name: counter.committed for counter in counters}
    del counted["read_milliseconds"]
    assert counted == {"clips_read": 3, "clips_unreadable": 1, "bytes_read": 6003}


def keep(step: KeepAnnotated, *elements):
    return [kept for element in elements for kept in step.process(element)]


def test_annotations_of_a_part_are_kept_and_the_end_of_its_unit_says_which_part_that_was():
    output = memory_output()
    commit(output, "one", [make_annotation("a", "one"), make_failed("b", "one")])
    step = KeepAnnotated(output)
    step.setup()
    step.start_bundle()
    a, b, c = (Clip(make_ref(clip_id, unit_id), b"") for clip_id, unit_id in (("a", "one"), ("b", "one"), ("a", "two")))
    version = open_output(output).version(part_name("one"))
    assert keep(step, a, b, UnitEnd("one", 2)) == [make_annotation("a", "one"), b, UnitEnd("one", 2, version)]
    assert keep(step, c, UnitEnd("two", 1)) == [c, UnitEnd("two", 1)]


def test_a_part_that_was_written_again_is_read_again_in_the_next_bundle():
    output = memory_output()
    step = KeepAnnotated(output)
    step.setup()
    step.start_bundle()
    clip = Clip(make_ref("a", "one"), b"")
    assert keep(step, clip) == [clip]
    commit(output, "one", [make_annotation("a", "one")])
    step.start_bundle()
    assert keep(step, clip) == [make_annotation("a", "one")]


def test_a_part_that_another_writes_while_it_is_read_is_not_replaced(monkeypatch):
    output = memory_output()
    commit(output, "one", [make_failed("a", "one")])
    store = open_output(output)
    seen = store.version(part_name("one"))
    step = KeepAnnotated(output)
    step.setup()
    step.start_bundle()
    part = build_part("one", [make_annotation("a", "one")], RUN)

    def read_while_another_writes(*arguments):
        assert commit_part(store, "one", part, RUN.fingerprint, replaces=store.version(part_name("one")))
        return {}

    monkeypatch.setattr("transforms.read_clips.read_annotated", read_while_another_writes)
    assert keep(step, UnitEnd("one", 1)) == [UnitEnd("one", 1, seen)]
