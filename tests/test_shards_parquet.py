"""Parquet shards: videos or their URIs in a column, everything else metadata."""

from __future__ import annotations

import datetime as dt
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, ShardChanged
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.records import FailedClip
from tests.support.shards_fixtures import FlakyFileSystem, ids_of, read_all, write


def write_table(file, row_group_size=None, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=row_group_size)
    return str(file)


def test_a_column_of_bytes_is_found_and_other_columns_are_metadata(tmp_path):
    day = dt.date(2026, 1, 31)
    shard = write_table(
        tmp_path / "s" / "a.parquet",
        video=[b"one", b"two"],
        label=["cat", None],
        day=[day, day],
        embedding=[[1.0] * 65, [2.0] * 65],
    )
    clips = read_all(plan_units([shard]))
    assert ids_of(clips) == ["s/a/000000", "s/a/000001"]
    assert [clip.video for clip in clips] == [b"one", b"two"]
    assert json.loads(clips[0].ref.metadata) == {
        "label": "cat",
        "day": "2026-01-31",
        "embedding": "[left out: 65 numbers]",
    }
    assert [clip.ref.member for clip in clips] == ["row 0", "row 1"]


def test_a_column_of_uris_is_relative_to_the_shard(tmp_path):
    video = write(tmp_path / "s" / "v" / "a.mp4", b"video")
    shard = write_table(tmp_path / "s" / "a.parquet", path=["v/a.mp4", "v/gone.mp4", None])
    found, gone, absent = read_all(plan_units([shard]))
    assert str(found.video) == video
    assert found.ref.source == video
    assert [gone.reason, absent.reason] == ["video not found", "video not found"]


def test_the_struct_that_hugging_face_writes_holds_bytes_or_a_path(tmp_path):
    write(tmp_path / "s" / "b.mp4", b"from a file")
    videos = [{"bytes": b"inside", "path": "a.mp4"}, {"bytes": None, "path": "b.mp4"}]
    inside, beside = read_all(plan_units([write_table(tmp_path / "s" / "a.parquet", clip=videos)]))
    assert inside.video == b"inside"
    assert beside.video == tmp_path / "s" / "b.mp4"


def test_the_rows_own_clip_ids_and_windows_are_honoured(tmp_path):
    shard = write_table(
        tmp_path / "s" / "a.parquet", video=[b"1", b"2"], clip_id=["mine", None], start_s=[None, 2.0], end_s=[None, 3.5]
    )
    own, windowed = read_all(plan_units([shard]))
    assert own.ref.clip_id == "mine"
    assert (windowed.ref.clip_id, windowed.ref.start_s, windowed.ref.end_s) == ("s/a/000001@2-3.5", 2.0, 3.5)


def test_a_named_column_is_used_and_a_wrong_name_is_an_error_that_shows_the_columns(tmp_path):
    shard = write_table(tmp_path / "a.parquet", video=["a title"], payload=[b"video"])
    config = ReadConfig(video_column="payload")
    (clip,) = read_all(plan_units([shard], read=config), config)
    assert clip.video == b"video"
    with pytest.raises(InputError, match=r"no column 'nosuch' .*payload \(binary\)"):
        plan_units([shard], read=ReadConfig(video_column="nosuch"))


def test_two_columns_of_bytes_without_a_usual_name_ask_for_the_flag(tmp_path):
    with pytest.raises(InputError, match="--video-column; seen: 'x"):
        plan_units([write_table(tmp_path / "a.parquet", x=[b"1"], y=[b"2"])])


def test_units_take_whole_row_groups_where_they_fit(tmp_path):
    shard = write_table(tmp_path / "a.parquet", row_group_size=3, video=[bytes([n]) * 10 for n in range(12)])
    units = plan_units([shard], UnitConfig(max_clips=7))
    assert [(unit.start, unit.stop) for unit in units] == [(0, 6), (6, 12)]
    assert [clip.video[0] for clip in read_all(units)] == list(range(12))


def test_a_row_group_larger_than_a_unit_is_sliced(tmp_path):
    shard = write_table(tmp_path / "a.parquet", row_group_size=10, video=[bytes([n]) * 10 for n in range(15)])
    units = plan_units([shard], UnitConfig(max_clips=4))
    assert [(unit.start, unit.stop) for unit in units] == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 15)]
    assert [clip.video[0] for clip in read_all(units)] == list(range(15))


def test_a_remote_shard_is_planned_without_reading_its_videos(tmp_path):
    FlakyFileSystem.reset()
    videos = [bytes(range(256)) * 20_000 + bytes([n]) for n in range(4)]
    shard = tmp_path / "a.parquet"
    pq.write_table(pa.table({"video": videos}), shard, compression="none", row_group_size=2, use_dictionary=False)
    FlakyFileSystem().pipe_file("flaky://s/a.parquet", shard.read_bytes())
    units = plan_units(["flaky://s/a.parquet"])
    assert sum(stop - start for start, stop in FlakyFileSystem.reads) < 3_000_000
    assert [clip.video for clip in read_all(units)] == videos


def test_empty_and_oversized_videos_fail_and_their_neighbour_is_read(tmp_path):
    shard = write_table(tmp_path / "a.parquet", video=[b"", b"x" * 100, b"fine"])
    empty, large, fine = read_all(plan_units([shard]), ReadConfig(max_video_bytes=99))
    assert isinstance(empty, FailedClip)
    assert (empty.reason, large.reason, fine.video) == ("empty file", "video too large", b"fine")


def test_a_damaged_or_empty_shard_is_an_error_at_planning(tmp_path):
    whole = write_table(tmp_path / "whole.parquet", video=[b"x" * 1000])
    cut = write(tmp_path / "cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut\.parquet is no Parquet file, or is damaged"):
        plan_units([whole, cut])
    with pytest.raises(InputError, match=r"empty\.parquet has no rows"):
        plan_units([write_table(tmp_path / "empty.parquet", video=pa.array([], pa.binary()))])


def test_a_shard_rewritten_after_planning_stops_the_run(tmp_path):
    shard = write_table(tmp_path / "a.parquet", video=[b"one", b"two"])
    units = plan_units([shard])
    write_table(tmp_path / "a.parquet", video=[b"zero", b"one", b"two"])
    with pytest.raises(ShardChanged):
        read_all(units)
