"""Data sets as people have them: what is taken, what is left out, and what is refused rather than ignored."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value, Video, load_dataset

from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, NoInputFound
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from tests.support.run_fixtures import ROOT
from tests.support.shards_fixtures import FlakyFileSystem, ids_of, make_tar, read_all, write


def metadata_of(clips):
    return [json.loads(clip.ref.metadata) for clip in clips]


def write_lines(path, *rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


write_rows = {
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "parquet": lambda rows, path: rows.to_parquet(path),
}


@pytest.fixture
def folder(tmp_path):
    """A folder `set` with three files called videos."""
    for name in "abc":
        write(tmp_path / "set" / f"{name}.mp4", name)
    return tmp_path / "set"


# Windows under other names


@pytest.mark.parametrize(
    "columns",
    [
        {"start": 3, "end": 5},
        {"start_frame": 30, "end_frame": 50},
        {"startTime": 3.0, "endTime": 5.0},
        {"begin_sec": 3},
        {"timestamp": [[0, 3]]},
        {"segment": [0.5, 3]},
        {"start time": 3, "end time": 5},
        {"clip_start": "00:00:03.000", "clip_end": "00:00:05.000"},
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_that_look_like_windows_are_refused_with_what_to_do(folder, columns, kind):
    rows = pd.DataFrame([{"video": "a.mp4", **columns}])
    write_rows[kind](rows, folder / f"m.{kind}")
    name = next(iter(columns))
    with pytest.raises(InputError, match=rf"m\.{kind}.*: '{name}'.* looks like the window .* --window-columns none"):
        plan_units([str(folder / f"m.{kind}")])


@pytest.mark.parametrize("name", ["restart", "friend", "trending", "start_page", "end_user", "weekend", "start_place"])
def test_columns_that_only_sound_like_windows_are_metadata(folder, name):
    (clip,) = read_all(plan_units([write_lines(folder / "m.jsonl", {"video": "a.mp4", name: "x"})]))
    assert metadata_of([clip]) == [{name: "x"}]


def test_beside_start_s_and_end_s_other_times_are_metadata(folder):
    row = {"video": "a.mp4", "start_s": 1, "end_s": 2, "start_frame": 30, "timestamp": "2026-11-24"}
    (clip,) = read_all(plan_units([write_lines(folder / "m.jsonl", row)]))
    assert (clip.ref.start_s, clip.ref.end_s) == (1.0, 2.0)
    assert metadata_of([clip]) == [{"start_frame": 30, "timestamp": "2026-11-24"}]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_two_named_columns_are_the_window_in_seconds_or_as_a_clock_shows_them(folder, kind):
    rows = pd.DataFrame({"video": ["a.mp4", "b.mp4"], "from": ["0:00:01.500", "2"], "to": ["0:01:02", "3.5"]})
    write_rows[kind](rows, folder / f"m.{kind}")
    config = ReadConfig(window_columns=("from", "to"))
    first, second = read_all(plan_units([str(folder / f"m.{kind}")], read=config), config)
    assert (first.ref.start_s, first.ref.end_s, first.ref.metadata) == (1.5, 62.0, "{}")
    assert (second.ref.start_s, second.ref.end_s) == (2.0, 3.5)
    assert first.ref.clip_id.endswith("@1.5-62")


def test_without_windows_by_order_every_video_is_whole_and_the_columns_are_metadata(folder):
    config = ReadConfig(window_columns=())
    manifest = write_lines(folder / "m.jsonl", {"video": "a.mp4", "start_s": 1, "end": 9})
    (clip,) = read_all(plan_units([manifest], read=config), config)
    assert (clip.ref.start_s, clip.ref.end_s, metadata_of([clip])) == (None, None, [{"start_s": 1, "end": 9}])


@pytest.mark.parametrize(("name", "text"), [("m.csv", "video,start\na.mp4,1\n"), ("m.jsonl", '{"video": "a.mp4"}\n')])
def test_a_window_column_that_is_not_there_is_an_error(folder, name, text):
    with pytest.raises(InputError, match=r"no column 'ennd'|no column 'start' and 'ennd'"):
        plan_units([write(folder / name, text)], read=ReadConfig(window_columns=("start", "ennd")))


def test_other_columns_for_the_window_make_other_units(folder):
    manifest = write_lines(folder / "m.jsonl", {"video": "a.mp4", "clip_id": "one", "a": 1, "b": 2, "c": 3, "d": 4})
    (first,) = plan_units([manifest], read=ReadConfig(window_columns=("a", "b")))
    (second,) = plan_units([manifest], read=ReadConfig(window_columns=("c", "d")))
    assert first.unit_id != second.unit_id


# The column of the videos


@pytest.mark.parametrize(("name", "comma"), [("m.csv", ","), ("m.tsv", "\t"), ("m.jsonl", None)])
def test_the_named_video_column_is_honoured_in_manifests(folder, name, comma):
    text = f"video{comma}file_name\nA title{comma}a.mp4\n" if comma else '{"video": "A title", "file_name": "a.mp4"}'
    config = ReadConfig(video_column="file_name")
    (clip,) = read_all(plan_units([write(folder / name, text)], read=config), config)
    assert (clip.video, clip.ref.clip_id) == (folder / "a.mp4", "set/m/a")
    assert metadata_of([clip]) == [{"video": "A title"}]


def test_bytes_go_before_texts_and_pictures_before_nothing(folder):
    table = pa.table({"path": ["nowhere.mp4"], "clip": [b"one"], "thumbnail": [b"jpeg"], "clip_embedding": [b"floats"]})
    pq.write_table(table, folder / "m.parquet")
    (clip,) = read_all(plan_units([str(folder / "m.parquet")]))
    assert (clip.video, metadata_of([clip])) == (b"one", [{"path": "nowhere.mp4"}])


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_every_arrow_type_name_videos(folder, kind):
    pq.write_table(pa.table({"path": pa.array(["a.mp4", "b.mp4"]).cast(kind)}), folder / "m.parquet")
    clips = read_all(plan_units([str(folder / "m.parquet")]))
    assert [clip.video for clip in clips] == [folder / "a.mp4", folder / "b.mp4"]


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary(), pa.binary(3)])
def test_bytes_of_every_arrow_type_are_videos(folder, kind):
    pq.write_table(pa.table({"clip": pa.array([b"one", b"two"]).cast(kind)}), folder / "m.parquet")
    assert [clip.video for clip in read_all(plan_units([str(folder / "m.parquet")]))] == [b"one", b"two"]


# Nested columns


def test_nested_columns_are_metadata_as_finevideo_has_them(folder):
    about = {
        "content_metadata": {"title": "A cat", "scenes": [{"n": 1, "mood": "calm"}]},
        "youtube_categories": ["Pets"],
    }
    rows = Dataset.from_list([{"mp4": b"one", "json": about}, {"mp4": b"two", "json": about}])
    rows.to_parquet(str(folder / "m.parquet"))
    clips = read_all(plan_units([str(folder / "m.parquet")]))
    assert [clip.video for clip in clips] == [b"one", b"two"]
    assert metadata_of(clips) == [{"json": about}] * 2


def test_videos_as_hugging_face_writes_them_keep_their_names_and_no_other_bytes(folder):
    rows = {
        "video": [{"bytes": b"one", "path": "cat.mp4"}],
        "label": ["cat"],
        "poster": [{"bytes": b"j", "path": "p.jpg"}],
    }
    features = Features({"video": Video(), "label": Value("string")})
    about = Features({**features, "poster": {"bytes": Value("binary"), "path": Value("string")}})
    pq.write_table(pa.table(rows, schema=about.arrow_schema), folder / "m.parquet")
    (clip,) = read_all(plan_units([str(folder / "m.parquet")]))
    assert clip.video == b"one"
    assert metadata_of([clip]) == [{"video": {"path": "cat.mp4"}, "label": "cat", "poster": {"path": "p.jpg"}}]


# Videos that are not where the rows say


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_manifest_of_which_no_video_is_there_is_an_error_while_planning(folder, kind):
    rows = pd.DataFrame({"video": [f"elsewhere/{number}.mp4" for number in range(30)]})
    write_rows[kind](rows, folder / f"m.{kind}")
    with pytest.raises(InputError, match=rf"m\.{kind}: none of 12 videos .* '.*/set/elsewhere/0\.mp4': relative paths"):
        plan_units([str(folder / f"m.{kind}")])


def test_a_manifest_of_which_some_videos_are_there_is_planned_with_a_warning(folder, caplog):
    rows = ({"video": f"{name}.mp4"} for name in "abcde")
    assert len(plan_units([write_lines(folder / "m.jsonl", *rows)], UnitConfig(max_clips=5))) == 1
    assert "2 of 5 videos that were looked for are not there" in caplog.text


def test_a_store_that_does_not_answer_while_planning_is_left_to_the_reading(folder):
    FlakyFileSystem.reset()
    units = plan_units([write_lines(folder / "m.jsonl", {"video": "http://127.0.0.1:9/a.mp4"})])
    assert len(units) == 1


def test_every_video_of_a_long_manifest_need_not_be_there(folder):
    rows = ({"video": "a.mp4" if number % 50 == 0 else "gone.mp4", "clip_id": number} for number in range(1000))
    assert len(ids_of(read_all(plan_units([write_lines(folder / "m.jsonl", *rows)])))) == 1000


# Folders that hold more than videos


def shard_of(*names):
    members = [(f"{name}.{suffix}", f"{name}.{suffix}".encode()) for name in names for suffix in ("json", "mp4")]
    return make_tar([(name, b"{}" if name.endswith("json") else content) for name, content in members])


def test_a_folder_of_video2dataset_gives_each_video_once(folder, caplog):
    for number, names in enumerate((("00", "01"), ("10", "11"))):
        write(folder / "out" / f"0000{number}.tar", shard_of(*names))
        rows = pd.DataFrame(
            {"key": names, "url": ["http://127.0.0.1:9/a.mp4"] * 2, "caption": ["x"] * 2, "status": "ok"}
        )
        rows.to_parquet(folder / "out" / f"0000{number}.parquet")
        write(folder / "out" / f"0000{number}_stats.json", "{}")
    expected = ["out/00000/00", "out/00000/01", "out/00001/10", "out/00001/11"]
    assert ids_of(read_all(plan_units([str(folder / "out")]))) == expected
    assert ids_of(read_all(plan_units([str(folder / "out" / "*")]))) == expected
    assert ids_of(read_all(plan_units([str(folder / "out" / "*.tar")]))) == expected
    said = "00000.parquet, .*00001.parquet: the addresses in its column 'url' are read only where --input names the"
    assert re.search(said, caplog.text)
    assert "2 .json" in caplog.text


def test_files_of_video2dataset_beside_their_table_are_one_clip_each(folder, caplog):
    pd.DataFrame({"key": ["a"], "url": ["http://127.0.0.1:9/a.mp4"]}).to_parquet(folder / "0.parquet")
    write(folder / "a.json", "{}")
    write(folder / "a.txt", "a caption")
    assert ids_of(read_all(plan_units([str(folder)]))) == ["set/a", "set/b", "set/c"]
    assert "1 .json, 1 .txt" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_beside_the_videos_as_videofolder_has_it_is_joined(folder, kind, caplog):
    write(folder / "test" / "d.mp4", "d")
    rows = pd.DataFrame(
        {"file_name": ["a.mp4", "test/d.mp4", "gone.mp4"], "label": ["cat", "dog", "hen"], "n": ["1"] * 3}
    )
    write_rows[kind](rows, folder / f"metadata.{kind}")
    clips = read_all(plan_units([str(folder)], UnitConfig(max_clips=3)))
    assert ids_of(clips) == ["set/a", "set/b", "set/c", "set/test/d"]
    assert metadata_of(clips) == [{"label": "cat", "n": "1"}, {}, {}, {"label": "dog", "n": "1"}]
    assert not caplog.records


def test_a_videofolder_of_the_datasets_library_has_its_own_metadata_joined(folder):
    write(folder / "metadata.csv", "file_name,label\na.mp4,cat\nb.mp4,dog\nc.mp4,hen\n")
    theirs = load_dataset("videofolder", data_dir=str(folder), split="train", drop_metadata=False)
    theirs = theirs.cast_column("video", Video(decode=False))
    labels = {row["video"]["path"].rpartition("/")[2]: row["label"] for row in theirs}
    clips = read_all(plan_units([str(folder)]))
    assert {clip.video.name: json.loads(clip.ref.metadata)["label"] for clip in clips} == labels
    assert len(labels) == 3


@pytest.mark.parametrize("column", ["video", "path", "filename", "file"])
def test_tables_below_a_folder_name_files_relative_to_their_own(folder, column):
    write(folder / "sub" / "d.mp4", "d")
    write_lines(folder / "sub" / "about.jsonl", {column: "d.mp4", "title": "D"}, {column: "../a.mp4", "title": "A"})
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), f"/joined-{column}/set", recursive=True)
    for place in (str(folder), f"memory://joined-{column}/set"):
        clips = read_all(plan_units([place]))
        assert metadata_of(clips) == [{"title": "A"}, {}, {}, {"title": "D"}]


def test_a_table_of_paths_beside_its_videos_names_them_once_and_as_an_input_of_its_own_too(folder):
    pq.write_table(pa.table({"video": ["a.mp4", "b.mp4"], "label": ["x", "y"]}), folder / "m.parquet")
    assert ids_of(read_all(plan_units([str(folder)]))) == ["set/a", "set/b", "set/c"]
    assert ids_of(read_all(plan_units([str(folder / "m.parquet")]))) == ["set/m/000000", "set/m/000001"]
    assert ids_of(read_all(plan_units([str(folder / "*.parquet")]))) == ["set/m/000000", "set/m/000001"]


def test_hugging_faces_structs_that_hold_paths_alone_are_addresses_too(folder, caplog):
    rows = Dataset.from_dict({"video": ["a.mp4", "b.mp4"], "label": ["cat", "dog"]}).cast_column("video", Video())
    pq.write_table(rows.data.table, folder / "m.parquet")
    assert pq.read_schema(folder / "m.parquet").field("video").type == Video().pa_type
    clips = read_all(plan_units([str(folder)]))
    assert ids_of(clips) == ["set/a", "set/b", "set/c"]
    assert metadata_of(clips) == [{"label": "cat"}, {"label": "dog"}, {}]
    named = read_all(plan_units([str(folder / "m.parquet")]))
    assert [clip.video for clip in named] == [folder / "a.mp4", folder / "b.mp4"]
    write(folder.parent / "elsewhere" / "m.parquet", (folder / "m.parquet").read_bytes())
    with pytest.raises(NoInputFound, match="the addresses in its column 'video' are read only where --input names"):
        plan_units([str(folder.parent / "elsewhere")])
    with pytest.raises(InputError, match="none of 2 videos that were looked for is there"):
        plan_units([str(folder.parent / "elsewhere" / "m.parquet")])


def test_a_table_with_several_rows_for_a_video_is_left_out_and_named(folder, caplog):
    write_lines(folder / "captions.jsonl", {"video": "a.mp4", "text": "x"}, {"video": "a.mp4", "text": "y"})
    assert metadata_of(read_all(plan_units([str(folder)]))) == [{}, {}, {}]
    assert re.search(r"left out: .*/captions\.jsonl: several of its rows name 'a\.mp4': --input must name", caplog.text)


def test_windows_in_a_table_that_is_only_joined_are_not_passed_over_in_silence(folder, caplog):
    write(folder / "metadata.csv", "file_name,start,end\na.mp4,3,5\n")
    clips = read_all(plan_units([str(folder)]))
    assert metadata_of(clips) == [{"start": "3", "end": "5"}, {}, {}]
    assert re.search(r"metadata\.csv: 'end', 'start' would be a window .* annotated whole", caplog.text)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.binary()])
def test_embeddings_and_tars_of_pictures_beside_videos_are_left_out_and_named(folder, kind, caplog):
    embeddings = pa.array([[1.0, 2.0]] if kind != pa.binary() else [b"12345678"], kind)
    pq.write_table(pa.table({"id": ["a"], "embedding": embeddings}), folder / "embeddings.parquet")
    write(folder / "pictures.tar", make_tar([("a.jpg", b"x"), ("a.json", b"{}")]))
    write(folder / "pictures.tar.gz", make_tar([("a.jpg", b"x")], "w:gz"))
    assert ids_of(read_all(plan_units([str(folder)]))) == ["set/a", "set/b", "set/c"]
    for name in ("embeddings.parquet", "pictures.tar", "pictures.tar.gz"):
        assert f"{folder}/{name}" in caplog.text


def test_what_holds_no_videos_is_an_error_where_it_is_named_and_where_there_is_nothing_else(tmp_path):
    write(tmp_path / "s" / "pictures.tar", make_tar([("a.jpg", b"x")]))
    pd.DataFrame({"id": [1]}).to_parquet(tmp_path / "s" / "ids.parquet")
    for one in ("pictures.tar", "ids.parquet", "*.tar", "*.parquet"):
        with pytest.raises(InputError):
            plan_units([str(tmp_path / "s" / one)])
    with pytest.raises(NoInputFound, match=r"nothing to annotate: .*ids\.parquet.*pictures\.tar holds no video"):
        plan_units([str(tmp_path / "s")])


def test_a_damaged_shard_in_a_folder_is_an_error_and_not_left_out(folder):
    write(folder / "bad.tar", b"rubbish" * 200)
    write(folder / "bad.parquet", b"rubbish" * 200)
    with pytest.raises(InputError, match=r"bad\.parquet(.|\n)*bad\.tar"):
        plan_units([str(folder)])


def test_a_damaged_table_beside_videos_is_left_out_and_named(folder, caplog):
    write(folder / "m.jsonl", '{"video": "a.mp4"}\n{broken\n')
    assert len(read_all(plan_units([str(folder)]))) == 3
    assert re.search(r"left out: .*m\.jsonl: line 2: no JSON object", caplog.text)


def test_a_folder_as_hugging_face_hosts_it_gives_every_row_once(folder):
    rows = Dataset.from_dict({"clip": [b"one", b"two"], "label": ["x", "y"]})
    (folder / "repo" / "data").mkdir(parents=True)
    rows.to_parquet(str(folder / "repo" / "data" / "train-00000-of-00001.parquet"))
    write(folder / "repo" / "README.md", "card")
    clips = read_all(plan_units([str(folder / "repo")]))
    assert ids_of(clips) == [f"repo/data/train-00000-of-00001/00000{number}" for number in range(2)]


def test_a_folder_that_spark_wrote_and_an_input_names_is_read_for_its_addresses(folder):
    (folder / "clips.parquet").mkdir()
    pq.write_table(pa.table({"path": ["../a.mp4"]}), folder / "clips.parquet" / "part-0.parquet")
    (clip,) = read_all(plan_units([str(folder / "clips.parquet")]))
    assert clip.video == folder / "a.mp4"


def test_gif_files_are_named_as_skipped_in_folders_and_read_where_they_are_named(folder, caplog):
    write(folder / "a.gif", "preview")
    assert ids_of(read_all(plan_units([str(folder)]))) == ["set/a", "set/b", "set/c"]
    assert f"not read below {folder}: 1 .gif" in caplog.text
    assert ids_of(read_all(plan_units([str(folder / "a.gif")]))) == ["set/a"]
    assert ids_of(read_all(plan_units([str(folder / "*.gif")]))) == ["set/a"]


def test_dv_and_video_are_suffixes_of_videos_in_folders_and_shards(folder):
    write(folder / "d.dv", "d")
    write(folder / "e.video", "e")
    write(folder / "s.tar", make_tar([("0.video", b"0"), ("1.dv", b"1"), ("2.gif", b"2")]))
    assert ids_of(read_all(plan_units([str(folder)]))) == [
        "set/a",
        "set/b",
        "set/c",
        "set/d",
        "set/e",
        "set/s/0",
        "set/s/1",
    ]


# The command line, as a process


def run_process(*arguments):
    command = [sys.executable, "run_pipeline.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("given", ["clips.zip", "*.zip", "."])
def test_an_archive_of_videos_is_refused_with_the_command_that_unpacks_it(tmp_path, given):
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("a.mp4", b"x")
    planned = run_process("plan", "--input", tmp_path / given)
    assert planned.returncode != 0
    assert "a .zip is not read: `unzip FILE.zip -d FOLDER`" in planned.stderr
    assert "docs/inputs.md" in planned.stderr
    assert "Traceback" not in planned.stderr


def test_the_command_line_names_what_it_leaves_out(folder):
    write(folder / "00000.tar", shard_of("x", "y"))
    pd.DataFrame({"url": ["http://127.0.0.1:9/a.mp4"]}).to_parquet(folder / "00000.parquet")
    write(folder / "notes.zip", b"x")
    planned = run_process("plan", "--input", folder)
    assert planned.returncode == 0, planned.stderr
    assert "5 clips in 2 units" in planned.stderr
    assert f"left out: {folder}/00000.parquet: the addresses in its column 'url'" in planned.stderr
    assert f"not read below {folder}: 1 .zip" in planned.stderr


def test_a_run_whose_videos_are_not_there_ends_before_a_model_is_loaded(folder):
    manifest = write_lines(folder / "m.jsonl", *({"video": f"video_folder/{number}.mp4"} for number in range(12)))
    arguments = ("--input", manifest, "--output", folder.parent / "out", "--model", ROOT / "demo" / "checkpoint")
    ended = run_process("annotate", *arguments, "--recipe", "model_card", "--device", "cpu")
    assert ended.returncode == 1
    (line,) = ended.stderr.strip().splitlines()
    assert "none of 12 videos that were looked for is there" in line
    assert not (folder.parent / "out").exists()
