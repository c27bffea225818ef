"""Cutting long videos into windows."""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from framescribe.shards.naming import clean_id
from framescribe.shards.reading import split_clip
from framescribe.shards.videos import FetchedOnce, FetchedVideo
from framescribe.storage.errors import InputError, VideoUnreadable
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.records import Clip, ClipRef
from tests.support.shards_fixtures import FlakyFileSystem, read_all


def clip(start_s=None, end_s=None, clip_id="set/a"):
    return Clip(ClipRef(clip_id, "unit", "a.mp4", start_s=start_s, end_s=end_s), b"video")


def windows(clips):
    return [(part.ref.clip_id, part.ref.start_s, part.ref.end_s) for part in clips]


def test_a_long_video_becomes_windows_that_follow_each_other():
    parts = split_clip(clip(), duration_s=75.5, split_s=30)
    assert windows(parts) == [("set/a@0-30", 0, 30), ("set/a@30-60", 30, 60), ("set/a@60-75.5", 60, 75.5)]
    assert all(part.video is parts[0].video for part in parts)


def test_a_rest_under_a_second_goes_to_the_window_before_it():
    assert windows(split_clip(clip(), 60.9, 30)) == [("set/a@0-30", 0, 30), ("set/a@30-60.9", 30, 60.9)]
    assert len(split_clip(clip(), 61.0, 30)) == 3


@pytest.mark.parametrize("duration_s", [5.0, 30.0, 30.9, 0.0, float("nan"), float("inf"), 1e12])
def test_a_video_that_needs_no_cut_or_has_no_credible_length_stays_whole(duration_s):
    whole = clip()
    assert split_clip(whole, duration_s, 30) == [whole]


def test_a_window_is_cut_within_its_bounds():
    parts = split_clip(clip(10, 50, "set/a@10-50"), duration_s=100, split_s=20)
    assert windows(parts) == [("set/a@10-30", 10, 30), ("set/a@30-50", 30, 50)]
    assert windows(split_clip(clip(80, None, "own"), 100, 10)) == [("own@80-90", 80, 90), ("own@90-100", 90, 100)]


@pytest.mark.parametrize("split_s", [0.99, 0.01, 0.0, -1.0, float("nan")])
def test_windows_shorter_than_a_second_are_refused(split_s):
    with pytest.raises(InputError, match=r"\(--split-seconds\), wanted at least 1 s"):
        split_clip(clip(), 2.0, split_s)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [("set/a", "set/a"), ("Ünï/日本", "Ünï/日本"), ("a b", "a b")],
)
def test_a_plain_id_is_left_as_it_is(raw, cleaned):
    assert clean_id(raw) == cleaned


@pytest.mark.parametrize(
    "raw", ["../a", "/a", "a//b", "a\x1b[0m", "a\nb", "a\u202eb", "x" * 500, "", "\ud800", "./a", " a"]
)
def test_any_other_id_is_made_harmless_and_keeps_a_hash_of_what_it_was(raw):
    cleaned = clean_id(raw)
    assert cleaned.isprintable()
    assert 0 < len(cleaned) <= 240
    assert ".." not in cleaned.split("/")
    assert not cleaned.startswith("/")
    assert cleaned != clean_id(raw + "x")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_windows_of_one_remote_video_are_one_download_per_unit(kind, tmp_path):
    FlakyFileSystem.reset()
    rows = pd.DataFrame([{"video": f"{'ab'[n % 2]}.mp4", "start_s": n, "end_s": n + 1} for n in range(60)])
    if kind == "parquet":
        rows.to_parquet(tmp_path / "m")
    else:
        rows.to_json(tmp_path / "m", orient="records", lines=True)
    manifest = (tmp_path / "m").read_bytes()
    FlakyFileSystem().pipe({f"flaky://s/m.{kind}": manifest, "flaky://s/a.mp4": b"one", "flaky://s/b.mp4": b"two"})
    units = plan_units([f"flaky://s/m.{kind}"], UnitConfig(max_clips=30))
    FlakyFileSystem.reads.clear()
    clips = read_all(units)
    assert [clip.video for clip in clips] == [b"one", b"two"] * 30
    assert FlakyFileSystem.reads.count((None, None)) == 2 * 2


def test_a_video_is_let_go_of_with_its_last_row_and_one_that_is_gone_is_asked_for_once():
    asked: list[str] = []

    def fetch(uri: str) -> FetchedVideo:
        asked.append(uri)
        if uri.endswith("gone"):
            raise VideoUnreadable("video not found", uri)
        return FetchedVideo(bytes(bytearray(uri.encode())))

    videos = FetchedOnce(fetch, ["a", "b", "a", "gone", "gone"], "s3://bucket")
    first = videos.fetch("s3://bucket/a").content
    assert videos.fetch("s3://bucket/a").content is first
    assert sys.getrefcount(first) == 2  # of this name, and of the call: nobody keeps it any more
    videos.fetch("s3://bucket/b")
    for _ in range(2):
        with pytest.raises(VideoUnreadable):
            videos.fetch("s3://bucket/gone")
    assert asked == ["s3://bucket/a", "s3://bucket/b", "s3://bucket/gone"]


def test_videos_that_are_too_much_to_keep_are_fetched_again(monkeypatch):
    monkeypatch.setattr("framescribe.shards.videos.MAX_KEPT_BYTES", 5)
    asked: list[str] = []

    def fetch(uri: str) -> FetchedVideo:
        asked.append(uri[-1])
        return FetchedVideo(b"1234")

    videos = FetchedOnce(fetch, ["a", "b", "a", "b"], "s3://bucket")
    for name in "abab":
        assert videos.fetch(f"s3://bucket/{name}").content == b"1234"
    assert asked == ["a", "b", "b"]
