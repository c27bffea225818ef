"""WebDataset tar shards: what becomes a clip, how it is read, and what a broken or hostile archive cannot do."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from framescribe.shards.tar_stream import iterate_members
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, ShardChanged
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.records import FailedClip, Stage
from tests.support.shards_fixtures import FlakyFileSystem, ids_of, make_tar, read_all, webdataset_members, write


@pytest.fixture
def store():
    FlakyFileSystem.reset()
    return FlakyFileSystem()


def metadata_of(clip):
    return json.loads(clip.ref.metadata)


def test_each_video_is_a_clip_with_its_sidecar_as_metadata(tmp_path):
    shard = write(tmp_path / "shards" / "000.tar", make_tar(webdataset_members(3)))
    clips = read_all(plan_units([shard]))
    assert ids_of(clips) == ["shards/000/0000", "shards/000/0001", "shards/000/0002"]
    assert [clip.video for clip in clips] == [bytes([n]) * (2000 + n) for n in range(3)]
    assert [metadata_of(clip) for clip in clips] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert [clip.ref.member for clip in clips] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    assert {clip.ref.source for clip in clips} == {shard}


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")]
)
def test_a_compressed_shard_gives_the_clips_of_the_plain_one_as_one_unit(tmp_path, suffix, mode):
    plain = write(tmp_path / "a" / "s.tar", make_tar(webdataset_members(9)))
    compressed = write(tmp_path / "b" / f"s.{suffix}", make_tar(webdataset_members(9), mode))
    units = plan_units([compressed], UnitConfig(max_clips=2))
    assert len(units) == 1
    assert [clip.video for clip in read_all(units)] == [clip.video for clip in read_all(plan_units([plain]))]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read_in_both_formats(tmp_path, tar_format):
    name = "folder/" * 40 + "ein-kätzchen-" + "x" * 120
    shard = write(
        tmp_path / "s.tar", make_tar([(f"{name}.mp4", b"video"), (f"{name}.txt", b"a cat")], tar_format=tar_format)
    )
    (clip,) = read_all(plan_units([shard]))
    assert clip.ref.member == f"{name}.mp4"
    assert metadata_of(clip) == {"txt": "a cat"}
    assert len(clip.ref.clip_id) <= 240


def test_a_name_with_further_dots_keeps_what_tells_it_from_its_neighbours(tmp_path):
    members = [("2023.01.30.mp4", b"one"), ("2023.01.30.json", b'{"day": 30}'), ("2023.01.31.mp4", b"two")]
    clips = read_all(plan_units([write(tmp_path / "s" / "a.tar", make_tar(members))]))
    assert ids_of(clips) == ["s/a/2023.01.30", "s/a/2023.01.31"]
    assert [metadata_of(clip) for clip in clips] == [{"day": 30}, {}]


def test_a_sidecar_under_the_bare_key_belongs_to_every_video_of_the_key(tmp_path):
    members = [("7.front.mp4", b"front"), ("7.json", b'{"car": 7}'), ("7.rear.mp4", b"rear")]
    clips = read_all(plan_units([write(tmp_path / "s" / "a.tar", make_tar(members))]))
    assert ids_of(clips) == ["s/a/7.front", "s/a/7.rear"]
    assert [metadata_of(clip) for clip in clips] == [{"car": 7}, {"car": 7}]


def test_units_follow_each_other_without_gap_or_overlap_and_keep_keys_whole(tmp_path):
    shard = write(tmp_path / "s.tar", make_tar(webdataset_members(10)))
    units = plan_units([shard], UnitConfig(max_clips=4))
    assert [(unit.start, unit.stop) for unit in units] == [(0, 4), (4, 8), (8, 10)]
    assert [unit.byte_start for unit in units[1:]] == [unit.byte_stop for unit in units[:-1]]
    assert len(set(ids_of(read_all(units)))) == 10


def test_a_unit_is_read_with_one_ranged_read_of_exactly_its_bytes(store):
    store.pipe_file("flaky://s/a.tar", make_tar(webdataset_members(6)))
    units = plan_units(["flaky://s/a.tar"], UnitConfig(max_clips=3))
    FlakyFileSystem.reads.clear()
    clips = read_all(units[1:])
    assert FlakyFileSystem.reads == [(units[1].byte_start, units[1].byte_stop)]
    assert ids_of(clips) == ["s/a/0003", "s/a/0004", "s/a/0005"]


def test_planning_a_plain_shard_reads_its_headers_and_not_its_videos(store):
    store.pipe_file("flaky://s/a.tar", make_tar(webdataset_members(5, video_bytes=2_000_000)))
    plan_units(["flaky://s/a.tar"])
    assert sum(stop - start for start, stop in FlakyFileSystem.reads) < 1_000_000


def test_archives_appended_with_cat_lose_no_clip(tmp_path):
    first, second = make_tar([("a.mp4", b"one")]), make_tar([("b.mp4", b"two")])
    clips = read_all(plan_units([write(tmp_path / "s" / "x.tar", first + second)]))
    assert ids_of(clips) == ["s/x/a", "s/x/b"]


def test_hidden_files_and_folders_are_no_clips(tmp_path):
    members = [("._a.mp4", b"attributes"), ("__MACOSX/a.mp4", b"attributes"), ("a.mp4", b"video"), ("notes.md", b"x")]
    assert len(read_all(plan_units([write(tmp_path / "s.tar", make_tar(members))]))) == 1


def test_member_names_that_look_like_paths_stay_names(tmp_path):
    members = [("../../etc/passwd.mp4", b"one"), ("/root/.ssh/id.mp4", b"two"), ("a\x1b[31mb.mp4", b"three")]
    clips = read_all(plan_units([write(tmp_path / "s" / "x.tar", make_tar(members))]))
    assert [clip.video for clip in clips] == [b"one", b"two", b"three"]
    assert not any(".." in clip.ref.clip_id or "\x1b" in clip.ref.clip_id + clip.ref.member for clip in clips)
    assert len(set(ids_of(clips))) == 3


def test_names_that_are_no_utf8_give_different_printable_ids(tmp_path):
    members = [("caf\udce9.mp4", b"one"), ("caf\udce8.mp4", b"two")]
    shard = write(tmp_path / "s.tar", make_tar(members, tar_format=tarfile.GNU_FORMAT))
    clips = read_all(plan_units([shard]))
    assert len(set(ids_of(clips))) == 2
    assert all(clip.ref.clip_id.isprintable() and clip.ref.member == "caf_.mp4" for clip in clips)


@pytest.mark.parametrize(
    ("kind", "said"), [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link"), (tarfile.CHRTYPE, "device")]
)
def test_links_and_devices_fail_and_are_never_followed(tmp_path, kind, said):
    secret = write(tmp_path / "secret.mp4", b"secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        header = tarfile.TarInfo("a.mp4")
        header.type, header.linkname = kind, secret
        archive.addfile(header)
    (clip,) = read_all(plan_units([write(tmp_path / "s" / "x.tar", buffer.getvalue())]))
    assert isinstance(clip, FailedClip)
    assert (clip.stage, clip.reason) == (Stage.READ, "not a regular file")
    assert said in clip.message


def test_a_video_over_the_limit_and_an_empty_one_fail_and_their_neighbour_is_read(tmp_path):
    shard = write(tmp_path / "s.tar", make_tar([("a.mp4", b"x" * 5000), ("b.mp4", b"fine"), ("c.mp4", b"")]))
    large, fine, empty = read_all(plan_units([shard]), ReadConfig(max_video_bytes=4999))
    assert (large.reason, empty.reason) == ("video too large", "empty file")
    assert fine.video == b"fine"


def test_a_damaged_sidecar_is_kept_as_text_and_an_oversized_one_is_left_out(tmp_path):
    members = [("a.json", b'{"half":'), ("a.mp4", b"x"), ("b.json", b'{"k": "' + b"y" * 5000 + b'"}'), ("b.mp4", b"x")]
    shard = write(tmp_path / "s.tar", make_tar(members))
    damaged, oversized = read_all(plan_units([shard]), ReadConfig(max_sidecar_bytes=1000))
    assert metadata_of(damaged) == {"json": '{"half":'}
    assert "5009 bytes" in metadata_of(oversized)["json"]


def test_a_declared_size_beyond_the_archive_is_an_error_that_names_the_shard(tmp_path):
    content = bytearray(make_tar([("a.mp4", b"x" * 600)]))
    header = tarfile.TarInfo("a.mp4")
    header.size = 1 << 50
    content[:512] = header.tobuf(tarfile.GNU_FORMAT)
    shard = write(tmp_path / "big.tar", bytes(content))
    with pytest.raises(InputError, match=r"big\.tar ends before byte .* truncated"):
        plan_units([shard])


@pytest.mark.parametrize("kept", [700, 1500, 2500])
def test_a_truncated_shard_is_an_error_at_planning(tmp_path, kept):
    shard = write(tmp_path / "cut.tar", make_tar([("a.mp4", b"x" * 1000), ("b.mp4", b"y" * 1000)])[:kept])
    with pytest.raises(InputError, match=r"cut\.tar"):
        plan_units([shard])


def test_a_truncated_compressed_shard_is_an_error_at_planning(tmp_path):
    members = [(f"{n}.mp4", bytes(range(256)) * 40) for n in range(20)]
    shard = write(tmp_path / "cut.tar.gz", make_tar(members, "w:gz")[:-200])
    with pytest.raises(InputError, match=r"cut\.tar\.gz is damaged"):
        plan_units([shard])


def test_a_decompression_bomb_is_stopped_long_before_it_is_unpacked(tmp_path):
    bomb = write(tmp_path / "bomb.tar.gz", make_tar([("a.mp4", bytes(100 << 20))], "w:gz"))
    with pytest.raises(InputError, match="no shard of videos"):
        plan_units([bomb])


def test_a_file_that_is_no_tar_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"fake\.tar: no tar header at byte 0"):
        plan_units([write(tmp_path / "fake.tar", b"<html>not found</html>" * 100)])


def test_a_shard_without_videos_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"x\.tar holds no video"):
        plan_units([write(tmp_path / "x.tar", make_tar([("a.json", b"{}"), ("b.jpg", b"x")]))])


def test_a_sidecar_apart_from_its_video_is_an_error_that_says_how_to_pack_the_shard(tmp_path):
    members = [("a.json", b"{}"), ("b.json", b"{}"), ("a.mp4", b"x"), ("b.mp4", b"x")]
    with pytest.raises(InputError, match=r"lies apart from its video.*--sort=name"):
        plan_units([write(tmp_path / "x.tar", make_tar(members))])


def test_a_shard_rewritten_after_planning_stops_the_run_before_a_clip_of_it_is_read(tmp_path):
    path = tmp_path / "s.tar"
    write(path, make_tar(webdataset_members(4)))
    units = plan_units([str(path)])
    write(path, make_tar([("new.mp4", b"new"), *webdataset_members(4)]))
    with pytest.raises(ShardChanged, match="changed after the work was planned"):
        read_all(units)


def test_a_compressed_shard_rewritten_after_planning_stops_the_run_before_its_unit_ends(tmp_path):
    path = tmp_path / "s.tar.gz"
    write(path, make_tar(webdataset_members(4), "w:gz"))
    units = plan_units([str(path)])
    write(path, make_tar(webdataset_members(5), "w:gz"))
    with pytest.raises(ShardChanged):
        read_all(units)


def test_a_shard_crowded_with_empty_members_is_planned_in_seconds(tmp_path):
    header = make_tar([("0.mp4", b"")])[:512]
    crowded = write(tmp_path / "crowd.tar", b"".join(_rename(header, f"{n:06d}.mp4") for n in range(20_000)))
    units = plan_units([crowded], UnitConfig(max_clips=1000))
    assert len(units) == 20


def _rename(header: bytes, name: str) -> bytes:
    renamed = name.encode().ljust(100, b"\0") + header[100:148] + b" " * 8 + header[156:]
    return renamed[:148] + f"{sum(renamed):06o}\0 ".encode() + renamed[156:]


def members_of(content: bytes) -> list[str]:
    return [member.name for member in iterate_members(io.BytesIO(content), "x.tar", 0, None)]


def test_a_name_in_two_fields_of_a_ustar_header_is_put_together():
    name = f"{'folder/' * 15}{'n' * 80}.mp4"
    assert members_of(make_tar([(name, b"0"), ("b.mp4", b"1")], tar_format=tarfile.USTAR_FORMAT)) == [name, "b.mp4"]


def test_the_field_of_the_prefix_is_no_name_in_a_header_that_is_not_ustar():
    header = bytearray(tarfile.TarInfo("a.mp4").tobuf(tarfile.GNU_FORMAT))
    header[345:350] = b"times"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    assert members_of(bytes(header) + bytes(1024)) == ["a.mp4"]


@pytest.mark.parametrize(("size", "is_sound"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_an_extension_header_of_more_than_a_mebibyte_is_no_sound_archive(size, is_sound):
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, size
    content = long_name.tobuf(tarfile.GNU_FORMAT) + b"a.mp4".ljust(size + -size % 512, b"\0") + make_tar([("b", b"1")])
    if is_sound:
        assert members_of(content) == ["a.mp4"]
    else:
        with pytest.raises(InputError, match="over the limits"):
            members_of(content)


@pytest.mark.parametrize(
    ("kind", "records", "unusual"),
    [
        (b"0", b"", None),
        (b"Z", b"", "member of unknown type"),
        (b"0", b"22 GNU.sparse.major=1\n", "sparse file"),
        (b"2", b"", "symbolic link"),
    ],
)
def test_a_member_that_is_no_regular_file_is_called_what_it_is(kind, records, unusual):
    extension = tarfile.TarInfo("pax")
    extension.type, extension.size = tarfile.XHDTYPE, len(records)
    before = extension.tobuf(tarfile.GNU_FORMAT) + records.ljust(512, b"\0") if records else b""
    member = tarfile.TarInfo("a.mp4")
    member.type = kind
    content = before + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (found,) = iterate_members(io.BytesIO(content), "x.tar", 0, None)
    assert (found.name, found.unusual) == ("a.mp4", unusual)


def test_a_link_has_no_content_whatever_size_its_header_gives():
    link = tarfile.TarInfo("a.mp4")
    link.type, link.linkname, link.size = tarfile.SYMTYPE, "b.mp4", 7
    header = bytearray(link.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"00000000007\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    members = iterate_members(io.BytesIO(bytes(header) + make_tar([("b.mp4", b"1")])), "x.tar", 0, None)
    assert [(member.name, member.size) for member in members] == [("a.mp4", 0), ("b.mp4", 1)]


def test_a_name_that_ends_with_a_slash_is_a_folder_as_in_archives_before_ustar():
    content = tarfile.TarInfo("a.mp4/").tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (found,) = iterate_members(io.BytesIO(content), "x.tar", 0, None)
    assert found.unusual == "folder"


@pytest.mark.parametrize("num_continued", [0, 1, 2])
def test_the_map_of_a_sparse_file_is_skipped_however_long_it_is(num_continued):
    header = bytearray(tarfile.TarInfo("a.mp4").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482] = b"S", num_continued > 0
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    blocks = [bytes(504) + bytes([number < num_continued]) + bytes(7) for number in range(1, num_continued + 1)]
    content = bytes(header) + b"".join(blocks) + make_tar([("b.mp4", b"1")])
    sparse, after = iterate_members(io.BytesIO(content), "x.tar", 0, None)
    assert (sparse.unusual, sparse.data_start) == ("sparse file", 512 * (1 + num_continued))
    assert after.name == "b.mp4"


def test_a_name_that_fills_its_field_ends_there():
    name = f"{'n' * 96}.mp4"
    assert members_of(make_tar([(name, b"0")], tar_format=tarfile.USTAR_FORMAT)) == [name]
