"""Rows and files as people have them: columns by name, frame numbers, lists of windows, lists and archives."""

from __future__ import annotations

import gzip
import json

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_from_disk
from pyarrow import feather

from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, NoInputFound
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.records import FailedClip
from tests.support.run_fixtures import ROOT
from tests.support.shards_fixtures import ids_of, make_tar, read_all, write
from tests.test_dataset_layouts import run_process, write_lines, write_rows


@pytest.fixture
def folder(tmp_path):
    """A folder `set` with three files called videos."""
    for name in "abc":
        write(tmp_path / "set" / f"{name}.mp4", name)
    return tmp_path / "set"


def windows_of(clips):
    return [(clip.ref.start_s, clip.ref.end_s) for clip in clips]


# Columns by name

KINDS = ["jsonl", "csv", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_panda_70m_give_one_clip_for_each_window_in_a_cell(folder, kind):
    config = ReadConfig(video_column="url", columns=(("clip_id", "videoID"), ("windows", "timestamp")))
    timestamps = "[['0:00:01.500', '0:00:02.000'], ['0:00:03.000', '0:01:04.250']]"
    rows = pd.DataFrame({"videoID": ["x", "y"], "url": ["a.mp4", "b.mp4"], "timestamp": [timestamps, None]})
    write_rows[kind](rows, folder / f"m.{kind}")
    units = plan_units([str(folder / f"m.{kind}")], read=config)
    clips = read_all(units, config)
    assert ids_of(clips) == ["x@1.5-2", "x@3-64.25", "y"]
    assert windows_of(clips) == [(1.5, 2.0), (3.0, 64.25), (None, None)]
    assert [clip.video for clip in clips] == [folder / "a.mp4", folder / "a.mp4", folder / "b.mp4"]
    assert json.loads(clips[0].ref.metadata) == {"timestamp": timestamps}


def test_lists_of_arrow_are_windows_and_units_may_end_between_those_of_a_row(folder):
    table = pa.table({"path": ["a.mp4", "b.mp4"], "timestamps": [[[0.0, 1.0], [1.0, 2.0], [2.0, 3.5]], [[4.0, 5.0]]]})
    pq.write_table(table, folder / "m.parquet")
    config = ReadConfig(columns=(("windows", "timestamps"),))
    units = plan_units([str(folder / "m.parquet")], UnitConfig(max_clips=2), read=config)
    clips = read_all(units, config)
    assert [unit.stop - unit.start for unit in units] == [2, 2]
    assert windows_of(clips) == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.5), (4.0, 5.0)]
    assert [clip.ref.member for clip in clips] == ["row 0", "row 0", "row 0", "row 1"]


def test_the_windows_of_a_row_of_a_manifest_stay_in_one_unit(folder):
    rows = [{"video": f"{name}.mp4", "w": [[0, 1], [1, 2], [2, 3]]} for name in "abc"]
    config = ReadConfig(columns=(("windows", "w"),))
    units = plan_units([write_lines(folder / "m.jsonl", *rows)], UnitConfig(max_clips=2), read=config)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 3), (3, 6), (6, 9)]
    assert len(set(ids_of(read_all(units, config)))) == 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps", ["rate", "25"])
def test_frame_numbers_are_converted_with_the_rate_that_is_known(folder, kind, fps):
    rows = pd.DataFrame({"video": ["a.mp4"], "first": [50], "last": [100], "rate": [25.0]})
    write_rows[kind](rows, folder / f"m.{kind}")
    config = ReadConfig(columns=(("start_frame", "first"), ("end_frame", "last"), ("fps", fps)))
    (clip,) = read_all(plan_units([str(folder / f"m.{kind}")], read=config), config)
    assert (clip.ref.start_s, clip.ref.end_s) == (2.0, 4.0)
    assert clip.ref.clip_id.endswith("@2-4")


@pytest.mark.parametrize("kind", KINDS)
def test_frame_numbers_without_a_rate_are_refused_with_what_to_do(folder, kind):
    rows = pd.DataFrame({"video": ["a.mp4"], "first": [50], "last": [100]})
    write_rows[kind](rows, folder / f"m.{kind}")
    config = ReadConfig(columns=(("start_frame", "first"), ("end_frame", "last")))
    with pytest.raises(InputError, match=r"frame numbers, but no frame rate: .*fps=25"):
        plan_units([str(folder / f"m.{kind}")], read=config)


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ([[0, 1, 2]], "wanted windows such as"),
        ("__import__('os')", "wanted windows such as"),
        ("[" * 5000, "wanted windows such as"),
        ([["x", 3]], "wanted seconds"),
        ([[3, 2]], "is empty"),
        ([[0, 1]] * 1001, "at most 1000"),
        (7, "wanted windows such as"),
    ],
)
def test_a_cell_that_holds_no_windows_is_named_with_its_line(folder, cell, wanted):
    manifest = write_lines(folder / "m.jsonl", {"video": "b.mp4", "w": None}, {"video": "a.mp4", "w": cell})
    with pytest.raises(InputError, match=rf"m\.jsonl:2: .*{wanted}"):
        plan_units([manifest], read=ReadConfig(columns=(("windows", "w"),)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_named(folder, kind):
    write_rows[kind](pd.DataFrame({"video": ["a.mp4"]}), folder / f"m.{kind}")
    with pytest.raises(InputError, match=r"no column 'key' \(--columns"):
        plan_units([str(folder / f"m.{kind}")], read=ReadConfig(columns=(("clip_id", "key"),)))


def test_times_of_day_in_parquet_are_windows(folder):
    times = pa.array([3_500], pa.time32("ms"))
    pq.write_table(pa.table({"video": ["a.mp4"], "start_s": times}), folder / "m.parquet")
    assert windows_of(read_all(plan_units([str(folder / "m.parquet")]))) == [(3.5, None)]


# Where videos are


@pytest.mark.parametrize("kind", KINDS)
def test_relative_names_begin_at_the_video_root(folder, tmp_path, kind):
    write_rows[kind](pd.DataFrame({"video": ["a.mp4"]}), tmp_path / f"m.{kind}")
    config = ReadConfig(video_root=str(folder))
    (clip,) = read_all(plan_units([str(tmp_path / f"m.{kind}")], read=config), config)
    assert clip.video == folder / "a.mp4"


def test_rows_of_a_store_name_local_videos_below_the_video_root_and_no_others(folder):
    rows = [{"video": "a.mp4"}, {"video": "../secret.mp4"}, {"video": str(folder.parent / "secret.mp4")}]
    write(folder.parent / "secret.mp4", "secret")
    fsspec.filesystem("memory").pipe("/box/m.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    config = ReadConfig(video_root=str(folder))
    clip, *failed = read_all(plan_units(["memory://box/m.jsonl"], read=config), config)
    assert clip.video == folder / "a.mp4"
    assert [one.reason for one in failed if isinstance(one, FailedClip)] == ["address not allowed"] * 2


def test_another_video_root_makes_other_units(folder):
    manifest = write_lines(folder / "m.jsonl", {"video": "a.mp4"})
    (first,) = plan_units([manifest])
    (second,) = plan_units([manifest], read=ReadConfig(video_root=str(folder)))
    assert first.unit_id != second.unit_id


def test_the_command_line_takes_columns_and_a_video_root(tmp_path):
    rows = pd.DataFrame({"name": ["blue.mp4"], "from": ["00:00:00.500"], "to": ["00:00:01.500"], "key": ["one"]})
    rows.to_csv(tmp_path / "m.csv", index=False)
    (video, *_) = sorted((ROOT / "demo" / "clips").glob("*.mp4"))
    write(tmp_path / "videos" / "blue.mp4", video.read_bytes())
    columns = ("--columns", "video=name,start_s=from,end_s=to,clip_id=key", "--video-root", tmp_path / "videos")
    planned = run_process("plan", "--input", tmp_path / "m.csv", *columns)
    assert planned.returncode == 0, planned.stderr
    assert "1 clip in 1 unit" in planned.stderr
    twice = run_process("plan", "--input", tmp_path / "m.csv", *columns, "--video-column", "name")
    assert twice.returncode == 1
    assert "give it once" in twice.stderr


# Compressed manifests, lists and ranges


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == "gz":
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_compressed_manifest_has_the_clips_and_units_of_the_plain_one(folder, kind, suffix, place):
    comma = {"csv": ",", "tsv": "\t"}.get(kind)
    lines = [f"video{comma}note", *(f"{name}.mp4{comma}n" for name in "abc")] if comma else []
    lines = lines or [json.dumps({"video": f"{name}.mp4", "note": "n"}) for name in "abc"]
    content = ("\n".join(lines) + "\n").encode()
    plain, packed = f"m.{kind}", f"m.{kind}.{suffix}"
    write(folder / "plain" / plain, content)
    store = fsspec.filesystem("memory")
    store.pipe(f"/packed/{packed}", compress(content, suffix))
    write(folder / "packed" / packed, compress(content, suffix))
    config = ReadConfig(video_root=str(folder))
    at = str(folder / "packed" / packed) if place == "local" else f"memory://packed/{packed}"
    units = plan_units([at], UnitConfig(max_clips=2), read=config)
    wanted = plan_units([str(folder / "plain" / plain)], UnitConfig(max_clips=2), read=config)
    bounds = [(unit.start, unit.stop, unit.byte_start, unit.byte_stop) for unit in units]
    assert bounds == [(unit.start, unit.stop, unit.byte_start, unit.byte_stop) for unit in wanted]
    clips = read_all(units, config)
    assert ids_of(clips) == ["packed/m/a", "packed/m/b", "packed/m/c"]
    assert [clip.video for clip in clips] == [folder / f"{name}.mp4" for name in "abc"]


def test_a_damaged_compressed_manifest_is_an_error(folder):
    whole = gzip.compress(b'{"video": "a.mp4"}\n' * 1000)
    with pytest.raises(InputError, match=r"m\.jsonl\.gz is damaged after"):
        plan_units([write(folder / "m.jsonl.gz", whole[:-20])])


def test_a_manifest_that_grows_without_end_is_refused(folder):
    bomb = gzip.compress(b" " * (80 << 20))
    with pytest.raises(InputError, match=r"decompresses to over|is longer than"):
        plan_units([write(folder / "m.jsonl.gz", bomb)])


def test_a_list_has_one_address_per_line(folder):
    listed = write(folder / "list.txt", f"a.mp4\n\n{folder}/b.mp4\r\n  c.mp4")
    clips = read_all(plan_units([listed], UnitConfig(max_clips=2)))
    assert [clip.video for clip in clips] == [folder / f"{name}.mp4" for name in "abc"]
    assert ids_of(clips)[0] == "set/list/a"


def test_lists_in_folders_are_not_read(folder):
    write(folder / "readme.txt", "a.mp4")
    write(folder / "list.json", '[{"video": "a.mp4"}]')
    assert ids_of(read_all(plan_units([str(folder)]))) == ["set/a", "set/b", "set/c"]


def test_ranges_in_braces_name_every_shard(tmp_path):
    for number in range(12):
        write(tmp_path / "set" / f"{number:03d}.mp4", str(number))
    clips = read_all(plan_units([str(tmp_path / "set" / "{000..010}.mp4")]))
    assert ids_of(clips) == [f"set/{number:03d}" for number in range(11)]
    with pytest.raises(NoInputFound, match=r"012\.mp4' does not exist"):
        plan_units([str(tmp_path / "set" / "{010..012}.mp4")])


@pytest.mark.parametrize("uri", ["a{5..1}.tar", "a{0..999999}.tar", "{0..999}/{0..999}.tar"])
def test_a_range_of_none_or_too_many_is_refused(uri):
    with pytest.raises(InputError, match="addresses, wanted 1 to 100000"):
        plan_units([uri])


def test_a_list_of_llava_video_178k_gives_one_clip_per_video_with_its_conversations(folder):
    turns = [{"from": "human", "value": '<image>\nWhat? ]} "é" \\'}, {"from": "gpt", "value": "{[ 一"}]
    rows = [{"id": f"n{name}", "conversations": turns, "data_source": "x", "video": f"{name}.mp4"} for name in "abc"]
    listed = write(folder / "178k.json", "\ufeff" + json.dumps(rows, indent=1, ensure_ascii=False))
    units = plan_units([listed], UnitConfig(max_clips=2))
    clips = read_all(units)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 2), (2, 3)]
    assert ids_of(clips) == ["set/178k/a", "set/178k/b", "set/178k/c"]
    assert json.loads(clips[2].ref.metadata) == {"id": "nc", "conversations": turns, "data_source": "x"}
    assert [clip.video for clip in clips] == [folder / f"{name}.mp4" for name in "abc"]


def test_a_long_list_is_read_in_pieces(folder):
    rows = [{"video": "a.mp4", "clip_id": number, "text": "é" * 5000} for number in range(2000)]
    listed = write(folder / "long.json", json.dumps(rows, ensure_ascii=False))
    units = plan_units([listed], UnitConfig(max_clips=500))
    assert [unit.num_clips for unit in units] == [500] * 4
    assert ids_of(read_all(units[3:])) == [str(number) for number in range(1500, 2000)]


def test_objects_one_behind_the_other_are_read_where_a_file_is_called_json(folder):
    listed = write(folder / "m.json", '{"video": "a.mp4"}\n{"video": "b.mp4"}\n')
    assert ids_of(read_all(plan_units([listed]))) == ["set/m/a", "set/m/b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"video": "a.mp4"},\n 7]', r"m\.json:2: wanted a JSON object, got '7'"),
        ('[{"video": "a.mp4"},\n{"video": }]', r"m\.json:2: no JSON of up to"),
        ('[{"video": "a.mp4"}', r"m\.json ends in the middle of its list"),
        (
            '[{"video": "a.mp4", "x": "' + "y" * (2 << 20) + '"}]',
            r"m\.json:1: the line is longer than|no JSON of up to",
        ),
        ("[" * 100_000, r"m\.json:1: no JSON"),
        ("[]", r"m\.json has no rows"),
        (
            '{"videos": [{"video_id": "video0"}], "sentences": []}',
            r"m\.json:1: no column 'video': .*'videos, sentences'",
        ),
    ],
)
def test_what_is_no_list_of_rows_is_named_with_its_line(folder, text, said):
    with pytest.raises(InputError, match=said):
        plan_units([write(folder / "m.json", text)])


@pytest.mark.parametrize("suffix", ["tar.zst", "tzst"])
def test_a_tar_compressed_with_zstandard_is_a_shard(tmp_path, suffix):
    content = make_tar([("0.json", b'{"n": 1}'), ("0.mp4", b"zero"), ("1.mp4", b"one" * 100_000)])
    half = len(content) // 2  # in two frames, as parallel writers make them
    packed = compress(content[:half], "zst") + compress(content[half:], "zst")
    clips = read_all(plan_units([write(tmp_path / "set" / f"s.{suffix}", packed)]))
    assert ids_of(clips) == ["set/s/0", "set/s/1"]
    assert [clip.video for clip in clips] == [b"zero", b"one" * 100_000]
    with pytest.raises(InputError, match=r"damaged|truncated"):
        plan_units([write(tmp_path / "set" / f"cut.{suffix}", packed[:-30])])


# What stays refused, and the conversions that the page on inputs names


def test_what_save_to_disk_wrote_is_an_input_after_the_conversion_of_the_page(tmp_path):
    videos = Dataset.from_dict({"video": [b"one", b"two"], "label": ["x", "y"]})
    videos.save_to_disk(tmp_path / "saved")
    with pytest.raises(NoInputFound, match=r"holds no video and no shard; .*arrow"):
        plan_units([str(tmp_path / "saved")])
    load_from_disk(str(tmp_path / "saved")).to_parquet(tmp_path / "clips.parquet")
    assert [clip.video for clip in read_all(plan_units([str(tmp_path / "clips.parquet")]))] == [b"one", b"two"]


def test_a_feather_file_is_an_input_after_the_conversion_of_the_page(tmp_path):
    feather.write_feather(pa.table({"video": [b"one"]}), tmp_path / "x.arrow")
    with pytest.raises(InputError, match=r"cannot read .*x\.arrow"):
        plan_units([str(tmp_path / "x.arrow")])
    pq.write_table(feather.read_table(tmp_path / "x.arrow"), tmp_path / "x.parquet")
    assert [clip.video for clip in read_all(plan_units([str(tmp_path / "x.parquet")]))] == [b"one"]
