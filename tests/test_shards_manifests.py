"""Manifests: JSON Lines and CSV rows that name videos, windows of them and metadata."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, ShardChanged, StoreRefused
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.records import FailedClip
from tests.support.shards_fixtures import FlakyFileSystem, ids_of, read_all, write


@pytest.fixture
def folder(tmp_path):
    """A folder `set` with three videos and room for a manifest."""
    for name in ("clips/a.mp4", "clips/b.mp4", "c.mkv"):
        write(tmp_path / "set" / name, name)
    return tmp_path / "set"


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_rows_name_videos_relative_to_the_manifest_and_other_columns_are_metadata(folder):
    manifest = write(
        folder / "m.jsonl", lines({"video": "clips/a.mp4", "label": "cat", "views": 3}, {"video": "./c.mkv"})
    )
    clips = read_all(plan_units([manifest]))
    assert ids_of(clips) == ["set/m/clips/a", "set/m/c"]
    assert [clip.video for clip in clips] == [folder / "clips/a.mp4", folder / "c.mkv"]
    assert [json.loads(clip.ref.metadata) for clip in clips] == [{"label": "cat", "views": 3}, {}]


def test_rows_are_counted_from_1_as_lines_are_in_every_unit(folder):
    manifest = write(folder / "m.csv", "video\nclips/a.mp4\n\nclips/b.mp4\nc.mkv\n")
    clips = read_all(plan_units([manifest], UnitConfig(max_clips=2)))
    assert [clip.ref.member for clip in clips] == ["row 1", "row 2", "row 3"]


def test_a_window_of_a_longer_video_is_a_clip(folder):
    rows = [
        {"video": "c.mkv", "start_s": 30, "end_s": 60.5},
        {"video": "c.mkv", "start_s": 90},
        {"video": "c.mkv", "end_s": 5},
    ]
    clips = read_all(plan_units([write(folder / "m.jsonl", lines(*rows))]))
    assert ids_of(clips) == ["set/m/c@30-60.5", "set/m/c@90-", "set/m/c@0-5"]
    assert [(clip.ref.start_s, clip.ref.end_s) for clip in clips] == [(30.0, 60.5), (90.0, None), (None, 5.0)]


def test_the_rows_own_clip_id_wins(folder):
    manifest = write(
        folder / "m.jsonl", lines({"video": "c.mkv", "clip_id": "mine", "end_s": 5}, {"video": "c.mkv", "clip_id": 7})
    )
    assert ids_of(read_all(plan_units([manifest]))) == ["mine", "7"]


@pytest.mark.parametrize(("name", "comma"), [("m.csv", ","), ("m.tsv", "\t")])
def test_csv_and_tsv_say_the_same_as_json_lines(folder, name, comma):
    text = comma.join(["video", "clip_id", "start_s", "end_s", "note"]) + "\n"
    text += comma.join(["clips/a.mp4", "one", "1.5", "2", '"two\nlines, ""quoted"""']) + "\r\n\n"
    text += comma.join(["clips/b.mp4", "", "", "", ""]) + "\n"
    first, second = read_all(plan_units([write(folder / name, "\ufeff" + text)], UnitConfig(max_clips=1)))
    assert (first.ref.clip_id, first.ref.start_s, first.ref.end_s) == ("one", 1.5, 2.0)
    assert json.loads(first.ref.metadata) == {"note": 'two\nlines, "quoted"'}
    assert (second.ref.clip_id, second.ref.start_s, second.video) == ("set/m/clips/b", None, folder / "clips/b.mp4")


def test_a_worker_reads_only_the_lines_of_its_unit():
    FlakyFileSystem.reset()
    rows = [{"video": f"v/{number}.mp4", "text": "x" * 1000} for number in range(100)]
    FlakyFileSystem().pipe({"flaky://s/m.jsonl": lines(*rows).encode(), "flaky://s/v/70.mp4": b"seventy"})
    FlakyFileSystem().pipe_file("flaky://s/v/0.mp4", b"zero")
    unit = plan_units(["flaky://s/m.jsonl"], UnitConfig(max_clips=1))[70]
    FlakyFileSystem.reads.clear()
    (clip,) = read_all([unit])
    assert (clip.ref.clip_id, clip.video) == ("s/m/v/70", b"seventy")
    assert FlakyFileSystem.reads == [(unit.byte_start, unit.byte_stop), (None, None)]


def test_a_missing_video_fails_alone(folder):
    manifest = write(folder / "m.jsonl", lines({"video": "gone.mp4"}, {"video": "c.mkv"}, {"video": "clips"}))
    gone, found, a_folder = read_all(plan_units([manifest]))
    assert isinstance(gone, FailedClip)
    assert (gone.reason, a_folder.reason) == ("video not found", "video not found")
    assert "gone.mp4" in gone.message
    assert found.video == folder / "c.mkv"


def test_an_empty_and_an_oversized_video_fail_with_their_reason(folder):
    write(folder / "empty.mp4", b"")
    manifest = write(folder / "m.jsonl", lines({"video": "empty.mp4"}, {"video": "clips/a.mp4"}))
    failed = read_all(plan_units([manifest]), ReadConfig(max_video_bytes=5))
    assert [clip.reason for clip in failed] == ["empty file", "video too large"]


def test_videos_in_another_store_are_read_from_there(folder):
    fsspec.filesystem("memory").pipe_file("/elsewhere/x.mp4", b"remote")
    (clip,) = read_all(plan_units([write(folder / "m.jsonl", lines({"video": "memory://elsewhere/x.mp4"}))]))
    assert (clip.ref.clip_id, clip.video) == ("set/m/elsewhere/x", b"remote")


def test_credentials_in_a_row_reach_the_store_but_no_record(folder):
    FlakyFileSystem.reset()
    FlakyFileSystem().pipe({"flaky://user:hunter2@v/1.mp4": b"x"})
    rows = [{"video": "flaky://user:hunter2@v/1.mp4"}, {"video": "flaky://user:hunter2@v/2.mp4?signature=s3cr3t"}]
    read, failed = read_all(plan_units([write(folder / "m.jsonl", lines(*rows))]))
    assert (read.video, read.ref.source) == (b"x", "flaky://v/1.mp4")
    assert not any(secret in repr(read) + repr(failed) for secret in ("hunter2", "s3cr3t"))


def test_a_manifest_in_a_remote_store_cannot_name_files_of_this_machine(folder):
    rows = [{"video": str(folder / "c.mkv")}, {"video": f"file://{folder}/clips/a.mp4"}]
    fsspec.filesystem("memory").pipe_file("/hostile/m.jsonl", lines(*rows).encode())
    clips = read_all(plan_units(["memory://hostile/m.jsonl"]))
    assert [clip.reason for clip in clips] == ["local path in a remote shard"] * 2


def test_wrong_credentials_for_every_video_of_a_unit_stop_the_run(folder):
    FlakyFileSystem.reset()
    FlakyFileSystem().pipe({"flaky://v/1.mp4": b"x", "flaky://v/2.mp4": b"x"})
    FlakyFileSystem.failures += [PermissionError("Forbidden"), PermissionError("Forbidden")]
    units = plan_units([write(folder / "m.jsonl", lines({"video": "flaky://v/1.mp4"}, {"video": "flaky://v/2.mp4"}))])
    with pytest.raises(StoreRefused, match="none of the 2 videos"):
        read_all(units)


def test_one_forbidden_video_among_others_fails_alone(folder):
    FlakyFileSystem.reset()
    FlakyFileSystem().pipe({"flaky://v/1.mp4": b"x", "flaky://v/2.mp4": b"y"})
    FlakyFileSystem.failures += [PermissionError("Forbidden")]
    units = plan_units([write(folder / "m.jsonl", lines({"video": "flaky://v/1.mp4"}, {"video": "flaky://v/2.mp4"}))])
    forbidden, fine = read_all(units)
    assert forbidden.reason == "permission denied"
    assert fine.video == b"y"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "no JSON object"),
        ("[1, 2]", "wanted a JSON object"),
        (
            '{"file": "a.mp4", "start": 1}',
            "no column 'video': .* --video-column or --columns; known are 'video', .* metadata; seen: 'file, start'",
        ),
        ('{"video": 3}', "'video' is 3"),
        ('{"video": "c.mkv", "start_s": "soon"}', "'start_s' is 'soon', wanted seconds"),
        ('{"video": "c.mkv", "start_s": -1}', "'start_s' is -1"),
        ('{"video": "c.mkv", "start_s": NaN}', "'start_s' is 'NaN'"),
        ('{"video": "c.mkv", "start_s": 9, "end_s": 9}', "the window from 9.0 s to 9.0 s is empty"),
        ('{"video": "c.mkv", "clip_id": [1]}', "'clip_id' is \\[1\\]"),
        ('{"video": "a\\u0000b"}', "no path or URI"),
        ("[" * 5000 + "]" * 5000, "nested"),
    ],
)
def test_an_unreadable_line_is_an_error_with_file_and_line(folder, line, said):
    manifest = write(folder / "m.jsonl", lines({"video": "c.mkv"}) + "\n" + line + "\n")
    with pytest.raises(InputError, match=rf"m\.jsonl:3: .*{said}"):
        plan_units([manifest])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "path,label\nc.mkv,x\n",
            r"m\.csv:1: no column 'video': .* --video-column or --columns; known are 'video', .*; seen: 'path, label'",
        ),
        ("video,x,x\nc.mkv,1,2\n", r"m\.csv:1: a column comes twice"),
        ("video,label\nc.mkv\n", r"m\.csv:2: 1 values, wanted 2"),
        ('video,label\nc.mkv,x\nc.mkv,"open\n', r"m\.csv:3: no CSV record"),
        ("video,label\nc.mkv,x\n,y\n", r"m\.csv:3: 'video' is ''"),
        ("", r"m\.csv:1: no column 'video'"),
        ("video\n", r"m\.csv has no rows"),
    ],
)
def test_an_unreadable_csv_is_an_error_with_file_and_line(folder, text, said):
    with pytest.raises(InputError, match=said):
        plan_units([write(folder / "m.csv", text)])


def test_bytes_that_are_no_text_are_an_error_with_file_and_line(folder):
    with pytest.raises(InputError, match=r"m\.jsonl:2: no JSON object"):
        plan_units([write(folder / "m.jsonl", b'{"video": "c.mkv"}\n{"video": "\xff\xfe"}\n')])
    with pytest.raises(InputError, match=r"m\.csv:2: no UTF-8 text"):
        plan_units([write(folder / "m.csv", b"video\n\xff\xfe\n")])


def test_several_unreadable_lines_are_named_at_once(folder):
    with pytest.raises(InputError, match=r"m\.jsonl:1: (.|\n)*m\.jsonl:2: "):
        plan_units([write(folder / "m.jsonl", "x\ny\n")])


def test_a_line_without_end_is_not_read_into_memory(folder):
    with pytest.raises(InputError, match="longer than 1000 bytes"):
        plan_units([write(folder / "m.jsonl", "x" * 1_000_000)], read=ReadConfig(max_sidecar_bytes=1000))


def test_a_manifest_edited_after_planning_stops_the_run(folder):
    manifest = write(folder / "m.jsonl", lines({"video": "clips/a.mp4"}, {"video": "clips/b.mp4"}))
    units = plan_units([manifest])
    write(Path(manifest), lines({"video": "clips/b.mp4"}, {"video": "clips/a.mp4"}))
    with pytest.raises(ShardChanged, match="changed after the work was planned"):
        read_all(units)


def test_metadata_with_terminal_escapes_and_lone_surrogates_becomes_clean_json(folder):
    manifest = write(folder / "m.jsonl", b'{"video": "c.mkv", "t": "\\u001b[31m\\u009b\\ud800\\u202e"}\n')
    (clip,) = read_all(plan_units([manifest]))
    assert clip.ref.metadata.isprintable()
    assert clip.ref.metadata.encode("utf-8")
    assert json.loads(clip.ref.metadata) == {"t": "\x1b[31m\x9b\ud800\u202e"}
