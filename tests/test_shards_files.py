"""Folders, globs and single files, and the ids their clips and shards are given."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import fsspec
import pytest

from framescribe.shards.kinds import COMPRESSED_TAR_EXTENSIONS, MANIFEST_EXTENSIONS
from framescribe.storage.errors import InputError, NoInputFound
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from tests.support.shards_fixtures import ids_of, make_tar, read_all, write


@pytest.fixture
def videos(tmp_path):
    """A folder `videos` with files that are clips and files that are not."""
    for name in ("b.mp4", "a.MOV", "sub/c.webm", "sub/notes.txt", ".hidden/d.mp4", "._b.mp4", "manifest.jsonl"):
        write(tmp_path / "videos" / name, name)
    return tmp_path / "videos"


def test_a_folder_gives_every_video_below_it_in_order(videos):
    clips = read_all(plan_units([str(videos)]))
    assert ids_of(clips) == ["videos/a", "videos/b", "videos/sub/c"]
    assert [clip.video for clip in clips] == [videos / "a.MOV", videos / "b.mp4", videos / "sub/c.webm"]
    assert [clip.ref.source for clip in clips] == [str(clip.video) for clip in clips]


def test_a_glob_gives_the_videos_it_matches_and_ids_from_its_fixed_part(videos):
    assert ids_of(read_all(plan_units([f"{videos}/*/*.webm"]))) == ["videos/sub/c"]
    assert ids_of(read_all(plan_units([f"{videos}/s*"]))) == ["videos/sub/c"]


def test_a_link_to_a_folder_is_not_followed_and_named(videos, tmp_path, caplog):
    write(tmp_path / "elsewhere" / "d.mp4", "d")
    (videos / "link").symlink_to(tmp_path / "elsewhere")
    assert ids_of(read_all(plan_units([str(videos)]))) == ["videos/a", "videos/b", "videos/sub/c"]
    assert f"{videos}/link is a link to a folder and is not followed" in caplog.text


def test_a_folder_below_that_may_not_be_listed_is_an_error(videos, monkeypatch):
    original = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"cannot list .*sub: Permission denied; it may hold videos"):
        plan_units([str(videos)])


def test_a_single_file_is_named_after_its_folder(videos):
    assert ids_of(read_all(plan_units([f"{videos}/b.mp4"]))) == ["videos/b"]


def test_a_name_that_looks_like_a_glob_is_taken_literally_where_it_exists(videos):
    write(videos / "take [1].mp4", b"x")
    assert ids_of(read_all(plan_units([f"{videos}/take [1].mp4"]))) == ["videos/take [1]"]


def test_a_file_named_by_two_inputs_is_one_clip(videos):
    assert ids_of(read_all(plan_units([str(videos), f"{videos}/b.mp4", f"{videos}/*.mp4"]))).count("videos/b") == 1


def test_files_that_differ_in_extension_alone_keep_it_in_their_ids(tmp_path):
    for name in ("a.mp4", "a.webm", "b.mp4"):
        write(tmp_path / "v" / name, b"x")
    assert ids_of(read_all(plan_units([str(tmp_path / "v")]))) == ["v/a.mp4", "v/a.webm", "v/b"]


def test_ids_and_units_are_the_same_wherever_the_folder_lies(tmp_path):
    for parent in ("here", "there/deeper"):
        write(tmp_path / parent / "set" / "a.mp4", b"x")
        write(tmp_path / parent / "set" / "s.tar", make_tar([("0.mp4", b"x")]))
    here, there = plan_units([str(tmp_path / "here/set")]), plan_units([str(tmp_path / "there/deeper/set")])
    fs = fsspec.filesystem("memory")
    fs.pipe({"/bucket/set/a.mp4": b"x", "/bucket/set/s.tar": make_tar([("0.mp4", b"x")])})
    remote = plan_units(["memory://bucket/set"])
    assert [unit.unit_id for unit in here] == [unit.unit_id for unit in there] == [unit.unit_id for unit in remote]
    assert ids_of(read_all(here)) == ids_of(read_all(remote)) == ["set/a", "set/s/0"]


def test_shards_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    for parent in ("train/shards", "test/shards"):
        write(tmp_path / parent / "0.tar", make_tar([("a.mp4", b"x")]))
    units = plan_units([str(tmp_path / "train/shards/*.tar"), str(tmp_path / "test/shards/*.tar")])
    assert ids_of(read_all(units)) == ["test/shards/0/a", "train/shards/0/a"]
    assert len({unit.unit_id for unit in units}) == 2


def test_two_stores_with_the_same_folders_are_refused(tmp_path):
    fsspec.filesystem("memory").pipe_file("/same/a.mp4", b"x")
    fsspec.filesystem("flaky").pipe_file("flaky://same/a.mp4", b"x")
    with pytest.raises(InputError, match="would give the same clip ids"):
        plan_units(["memory://same/*.mp4", "flaky://same/*.mp4"])


def test_a_shard_and_its_compressed_twin_keep_their_extensions(tmp_path):
    write(tmp_path / "s" / "0.tar", make_tar([("a.mp4", b"x")]))
    write(tmp_path / "s" / "0.tar.gz", make_tar([("a.mp4", b"x")], "w:gz"))
    assert ids_of(read_all(plan_units([str(tmp_path / "s")]))) == ["s/0.tar/a", "s/0.tar.gz/a"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("nosuch", "'.*nosuch' does not exist"),
        ("*.tar", "no video or shard matches '.*tar'"),
        ("docs", "'.*docs' holds no video and no shard; seen: 'readme.md'"),
        ("docs/*", "no video or shard matches '.*'; seen: 'readme.md'"),
        ("lists", "holds no video and no shard; seen: 'm.csv'; wanted .*; a manifest is read when --input names the f"),
        (
            "l*",
            "no video or shard matches '.*'; seen: .*'m.csv'; wanted .*; a manifest is read when --input names the f",
        ),
    ],
)
def test_input_that_is_not_there_is_an_error_that_says_what_was_seen(tmp_path, pattern, said):
    write(tmp_path / "docs" / "readme.md", b"x")
    write(tmp_path / "lists" / "m.csv", "video\na.mp4\n")
    with pytest.raises(NoInputFound, match=said):
        plan_units([str(tmp_path / pattern)])


def test_the_page_on_inputs_names_every_suffix_of_shards_and_manifests():
    page = (Path(__file__).parent.parent / "docs" / "inputs.md").read_text()
    suffixes = {".tar", ".parquet", *MANIFEST_EXTENSIONS, *COMPRESSED_TAR_EXTENSIONS}
    assert {suffix for suffix in suffixes if f"`{suffix}`" not in page} == set()


def test_a_file_of_another_kind_is_an_error_that_says_which_are_read(tmp_path):
    with pytest.raises(InputError, match=r"readme\.md': wanted \.tar"):
        plan_units([write(tmp_path / "readme.md", b"x")])


def test_an_unknown_protocol_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot open 'nosuch://bucket/x': Protocol not known"):
        plan_units(["nosuch://bucket/x"])


def test_a_file_that_vanishes_after_planning_fails_alone(videos):
    units = plan_units([str(videos)])
    (videos / "b.mp4").unlink()
    first, gone, last = read_all(units)
    assert gone.reason == "video not found"
    assert (first.ref.clip_id, last.ref.clip_id) == ("videos/a", "videos/sub/c")


def test_a_pipe_that_poses_as_a_video_fails_and_is_not_waited_for(tmp_path):
    (tmp_path / "v").mkdir()
    os.mkfifo(tmp_path / "v" / "endless.mp4")
    (clip,) = read_all(plan_units([str(tmp_path / "v")]))
    assert clip.reason == "video not found"
    assert "no regular file" in clip.message


def test_remote_files_are_given_as_bytes():
    fsspec.filesystem("memory").pipe({"/remote/v/a.mp4": b"one", "/remote/v/b.mp4": b"two"})
    units = plan_units(["memory://remote/v"], UnitConfig(max_clips=1))
    assert [clip.video for clip in read_all(units)] == [b"one", b"two"]
    assert [clip.ref.source for clip in read_all(units)] == ["memory:///remote/v/a.mp4", "memory:///remote/v/b.mp4"]


def test_a_name_with_two_colons_is_a_name(tmp_path):
    video = write(tmp_path / "v" / "a::b.mp4", b"x")
    (clip,) = read_all(plan_units([video]))
    assert (clip.ref.clip_id, str(clip.video)) == ("v/a::b", video)


def test_terminal_escapes_in_names_reach_neither_ids_nor_messages(tmp_path):
    video = tmp_path / "v" / "a\x1b[31m.mp4"
    units = plan_units([write(video, b"x")])
    video.unlink()
    (failed,) = read_all(units)
    assert "\x1b" not in failed.ref.clip_id + failed.message
    with pytest.raises(NoInputFound) as raised:
        plan_units([str(video)])
    assert "\x1b" not in str(raised.value)
