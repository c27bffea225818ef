"""Inputs whose contents change under the same name and size, between two starts or while a run is at work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framescribe.shards.videos import find_versions
from framescribe.storage.access import Store, input_version
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import ShardChanged
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from run_pipeline import main
from tests.support.run_fixtures import (
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    make_shard,
    read_tables,
    start_run,
    tiny_clip,
)
from tests.support.shards_fixtures import make_tar, read_all, write
from tests.support.talking_engine import TalkingEngine


def change(path, content: bytes) -> None:
    """Gives a file other contents of the same size, a moment later."""
    path = Path(path)
    assert path.stat().st_size == len(content)
    then = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(then, then + 1_000_000))


def touch(path) -> None:
    then = Path(path).stat().st_mtime_ns
    os.utime(path, ns=(then, then + 1_000_000))


def padded(number: int, size: int = 4096) -> bytes:
    """Returns a tiny clip with a box of nothing behind it: all have one size."""
    video = tiny_clip(number)
    rest = size - len(video)
    return video + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8)


def run(folder, inputs, *flags) -> int:
    arguments = annotate_arguments(folder, [str(one) for one in inputs], folder / "out", "--canary-every", "0", *flags)
    return annotate_with(TalkingEngine(checkpoint_revision()), arguments)


def digests(folder) -> dict[str, str]:
    return {str(row["clip_id"]): str(row["frames_digest"]) for row in read_tables(folder / "out")["clips"]}


@pytest.fixture
def videos(tmp_path):
    for number in range(5):
        write(tmp_path / "videos" / f"{number}.mp4", padded(number))
    return tmp_path / "videos"


def test_a_video_that_changed_under_a_finished_unit_is_refused_and_named_and_nothing_is_changed(
    tmp_path, videos, capsys
):
    assert run(tmp_path, [videos]) == 0
    before = digests(tmp_path)
    change(videos / "1.mp4", padded(3))
    assert run(tmp_path, [videos]) == 1
    said = capsys.readouterr().err
    assert f"1 input changed since then, under the same name and size: {videos}/1.mp4 (mtime " in said
    assert "--changed-inputs keep" in said
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert digests(tmp_path) == before


def test_changed_inputs_that_are_kept_stay_as_they_are_and_are_not_asked_for_again(tmp_path, videos):
    run(tmp_path, [videos])
    before = digests(tmp_path)
    change(videos / "1.mp4", padded(3))
    assert run(tmp_path, [videos], "--changed-inputs", "keep") == 0
    assert digests(tmp_path) == before
    assert run(tmp_path, [videos]) == 0


def test_changed_inputs_that_are_done_again_have_the_rows_of_a_new_run(tmp_path, videos, capsys):
    run(tmp_path, [videos])
    before = digests(tmp_path)
    change(videos / "1.mp4", padded(3))
    assert run(tmp_path, [videos], "--changed-inputs", "redo") == 0
    said = capsys.readouterr().err
    assert "1 finished unit of changed inputs: done again" in said
    assert "answers: 2 taken from an earlier run, for 2 clips; 1 asked" in said
    assert digests(tmp_path) == {**before, "videos/1": before["videos/3"]}
    assert list((tmp_path / "out" / "_framescribe" / "set_aside").rglob("*.parquet")) == []
    assert run(tmp_path, [videos]) == 0


def test_a_tar_that_was_swapped_between_a_kill_and_the_next_start_is_refused(tmp_path, capsys):
    shard = write(tmp_path / "s.tar", make_tar([(f"{n}.mp4", padded(n % 2)) for n in range(6)]))
    run(tmp_path, [shard])
    parts = sorted((tmp_path / "out" / "_framescribe" / "parts").glob("*.parquet"))
    parts[-1].unlink()  # as if the run had been killed before its last unit
    change(shard, make_tar([(f"{n}.mp4", padded(2 + n % 2)) for n in range(6)]))
    assert run(tmp_path, [shard]) == 1
    assert f"{shard} (mtime " in capsys.readouterr().err
    assert run(tmp_path, [shard], "--changed-inputs", "redo") == 0
    assert len(set(digests(tmp_path).values())) == 2
    assert {*digests(tmp_path).values()} == {*_digests_of(tmp_path / "fresh", shard).values()}


def _digests_of(folder, shard):
    folder.mkdir()
    run(folder, [shard])
    return digests(folder)


def test_a_touched_shard_that_is_not_begun_is_no_reason_to_refuse(tmp_path):
    first, second = make_shard(tmp_path / "s" / "a.tar", 3), make_shard(tmp_path / "s" / "b.tar", 3)
    run(tmp_path, [first, second])
    for part in (tmp_path / "out" / "_framescribe" / "parts").glob("b-*.parquet"):
        part.unlink()
    touch(second)
    assert run(tmp_path, [first, second]) == 0


def test_a_run_that_is_killed_while_it_does_changed_inputs_again_goes_on_with_the_answers_that_were_there(
    tmp_path, videos, capsys
):
    """With a real model; the second start is a process that dies as it begins its work."""
    arguments = annotate_arguments(tmp_path, [str(videos)], tmp_path / "out", "--canary-every", "0")
    assert main(arguments) == 0
    before = read_tables(tmp_path / "out")["captions"]
    touch(videos / "1.mp4")
    killed = start_run([*arguments, "--changed-inputs", "redo"])
    for line in killed.stderr or ():
        if "done again" in line:
            break
    killed.kill()
    killed.communicate()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "answers: 3 taken from an earlier run, for 3 clips; 0 asked" in capsys.readouterr().err
    assert read_tables(tmp_path / "out")["captions"] == before


def test_a_store_tells_other_contents_by_etag_generation_or_time():
    assert input_version({"generation": "17", "etag": "CAE="}) == "generation 17"
    assert input_version({"ETag": '"abc"', "LastModified": 1}) == input_version({"etag": "abc"}) == "etag abc"
    assert input_version({"ETag": 'W/"abc"', "Last-Modified": "Tue"}) == "mtime Tue"
    assert input_version({"mtime": 1.5, "created": 2.0}) == "mtime 1.500000"
    assert input_version({"size": 3}) == ""


@pytest.mark.parametrize("kind", ["tar", "parquet", "mp4"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_changes_between_planning_and_reading_stops_the_run(tmp_path, kind, place):
    def content(letter: bytes) -> bytes:
        if kind == "mp4":
            return letter
        if kind == "tar":
            return make_tar([("a.mp4", letter)])
        pq.write_table(pa.table({"video": [letter]}), tmp_path / "made.parquet")
        return (tmp_path / "made.parquet").read_bytes()

    name = write(tmp_path / "set" / f"a.{kind}", content(b"x"))
    fs = fsspec.filesystem("memory")
    uri = name if place == "local" else f"memory:/{name}"
    if place == "memory":
        fs.pipe_file(name, content(b"x"))
    for place_named in (uri, uri.rpartition("/")[0]):
        units = plan_units([place_named], UnitConfig())
        assert [clip.video for clip in read_all(units)]
    change(name, content(b"y"))
    if place == "memory":
        fs.pipe_file(name, content(b"y"))
    with pytest.raises(ShardChanged, match=r"changed after the work was planned \(mtime .* -> mtime "):
        read_all(units)


def test_a_link_to_a_video_has_the_version_of_the_video(tmp_path):
    video = write(tmp_path / "blobs" / "1234", b"video")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.mp4").symlink_to(video)
    (unit,) = plan_units([str(tmp_path / "set")])
    touch(video)
    (touched,) = plan_units([str(tmp_path / "set")])
    assert unit.unit_id == touched.unit_id
    assert unit.versions != touched.versions
    assert read_all([touched])[0].video == tmp_path / "set" / "a.mp4"


def test_another_label_in_a_table_beside_finished_videos_is_a_changed_input(tmp_path, videos, capsys):
    write(videos / "metadata.csv", "file_name,label\n0.mp4,cat\n")
    run(tmp_path, [videos])
    write(videos / "metadata.csv", "file_name,label\n0.mp4,dog\n")
    assert run(tmp_path, [videos]) == 1
    assert "0.mp4 (mtime" in capsys.readouterr().err
    assert run(tmp_path, [videos], "--changed-inputs", "redo") == 0
    assert '{"label": "dog"}' in {row["metadata"] for row in read_tables(tmp_path / "out")["clips"]}


def test_a_folder_that_was_copied_elsewhere_is_a_changed_input_and_one_that_was_moved_is_not(tmp_path, videos, capsys):
    run(tmp_path, [videos])
    moved = tmp_path / "elsewhere" / "videos"
    moved.parent.mkdir()
    videos.rename(moved)
    assert run(tmp_path, [moved]) == 0
    copied = tmp_path / "copied" / "videos"
    shutil.copytree(moved, copied, copy_function=shutil.copy)
    for path in copied.iterdir():
        touch(path)
    assert run(tmp_path, [copied]) == 1
    assert f"{copied}/0.mp4 ({moved}/0.mp4 mtime " in capsys.readouterr().err
    assert run(tmp_path, [copied], "--changed-inputs", "keep") == 0


def test_an_input_named_by_another_folder_than_before_is_not_annotated_twice(tmp_path, capsys):
    make_shard(tmp_path / "a" / "b" / "s.tar", 2)
    write(tmp_path / "a" / "b" / "v.mp4", padded(0))
    assert run(tmp_path, [tmp_path / "a" / "b"]) == 0
    before = digests(tmp_path)
    assert run(tmp_path, [tmp_path / "a"]) == 1
    assert f"b/v.mp4 is in {tmp_path / 'out'} already, as part of 'b'" in capsys.readouterr().err
    assert digests(tmp_path) == before


def test_the_version_of_a_missing_file_is_none_of_our_business(tmp_path):
    store = Store()
    assert store.describe(store.locate(write(tmp_path / "a.mp4", b"x")), "")[0] == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_video_that_a_row_names_and_that_changed_under_a_finished_unit_is_refused_or_done_again(
    tmp_path, videos, capsys, kind
):
    rows = [{"video": f"videos/{number}.mp4", "clip_id": str(number)} for number in (0, 1, 1, 2)]
    rows[2] |= {"clip_id": "again"}
    table = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    assert run(tmp_path, [table]) == 0
    before = digests(tmp_path)
    assert run(tmp_path, [table]) == 0
    change(videos / "1.mp4", padded(3))
    capsys.readouterr()
    assert run(tmp_path, [table]) == 1
    assert (
        f"1 input changed since then, under the same name and size: {videos}/1.mp4 (mtime " in capsys.readouterr().err
    )
    assert run(tmp_path, [table], "--changed-inputs", "keep") == 0
    assert digests(tmp_path) == before
    assert run(tmp_path, [table], "--changed-inputs", "redo") == 0
    after = digests(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"1", "again"}
    assert run(tmp_path, [table]) == 0


def test_versions_are_asked_of_local_videos_and_stores_but_of_no_web_server(videos):
    store = fsspec.filesystem("memory")
    uris = [f"memory://changed/{number:03d}.mp4" for number in range(100)]
    for uri in uris:
        store.pipe_file(uri, b"1")
    local = [str(path) for path in sorted(videos.iterdir())]
    gone = [str(videos / "gone.mp4"), "memory://changed/gone.mp4", "http://127.0.0.1:9/a.mp4"]
    reader = Store(config=ReadConfig(trusted_hosts=("memory://changed",)))
    found = find_versions(reader, [*local, *uris, *gone], "memory://out")
    assert {*local} <= found.keys() <= {*local, *uris}
    assert 60 <= len(found) - len(local) <= 64
    store.rm("changed", recursive=True)
