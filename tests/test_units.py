"""Planning: which units there are, and what stops a run before it starts."""

from __future__ import annotations

import json
import re

import pytest

from framescribe.storage.errors import InputError
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.records import InputKind
from tests.support.shards_fixtures import ids_of, make_tar, read_all, webdataset_members, write


def manifest_of(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_inputs_of_every_kind_are_planned_together_and_always_the_same(tmp_path):
    write(tmp_path / "v" / "a.mp4", b"x")
    write(tmp_path / "s" / "1.tar", make_tar(webdataset_members(3)))
    manifest = write(tmp_path / "a" / "m.jsonl", manifest_of({"video": "../v/a.mp4", "clip_id": "one"}))
    inputs = [manifest, str(tmp_path / "v"), str(tmp_path / "s" / "*.tar")]
    units = plan_units(inputs)
    assert [unit.kind for unit in units] == [InputKind.MANIFEST, InputKind.TAR, InputKind.FILES]
    assert plan_units(inputs) == units == plan_units(inputs[::-1])


def test_units_are_bounded_in_clips_and_in_bytes(tmp_path):
    shard = write(tmp_path / "1.tar", make_tar([(f"{n}.mp4", b"x" * 1000) for n in range(10)]))
    assert [unit.stop - unit.start for unit in plan_units([shard], UnitConfig(max_clips=4))] == [4, 4, 2]
    assert [unit.stop - unit.start for unit in plan_units([shard], UnitConfig(max_bytes=3500))] == [3, 3, 3, 1]
    assert [unit.stop - unit.start for unit in plan_units([shard], UnitConfig(max_bytes=10))] == [1] * 10


def test_files_carry_their_uris_and_ids_in_the_unit(tmp_path):
    for name in "abc":
        write(tmp_path / "v" / f"{name}.mp4", b"xx")
    first, second = plan_units([str(tmp_path / "v")], UnitConfig(max_clips=2))
    assert (first.clip_ids, first.size_bytes) == (("v/a", "v/b"), 4)
    assert second.files == (str(tmp_path / "v" / "c.mp4"),)


def test_unit_ids_are_fit_for_file_names_whatever_the_shard_is_called(tmp_path):
    names = ["Träume & Söhne?.tar", "x" * 200 + ".tar", "…….tar", "-rf.tar"]
    for name in names:
        write(tmp_path / "s" / name, make_tar([("a.mp4", b"x")]))
    ids = [unit.unit_id for unit in plan_units([str(tmp_path / "s")])]
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}", unit_id) for unit_id in ids)
    assert len(set(ids)) == 4


def test_a_unit_whose_clips_changed_has_another_id(tmp_path):
    for name in "ac":
        write(tmp_path / "v" / f"{name}.mp4", b"x")
    before = plan_units([str(tmp_path / "v")], UnitConfig(max_clips=2))
    write(tmp_path / "v" / "b.mp4", b"x")
    after = plan_units([str(tmp_path / "v")], UnitConfig(max_clips=2))
    assert not {unit.unit_id for unit in before} & {unit.unit_id for unit in after}


def test_a_video_of_another_size_is_another_unit(tmp_path):
    write(tmp_path / "v" / "a.mp4", b"x")
    (before,) = plan_units([str(tmp_path / "v")])
    write(tmp_path / "v" / "a.mp4", b"xy")
    (after,) = plan_units([str(tmp_path / "v")])
    assert before.unit_id != after.unit_id


def test_more_shards_leave_the_units_of_the_others_as_they_were(tmp_path):
    write(tmp_path / "s" / "b.tar", make_tar(webdataset_members(5)))
    before = plan_units([str(tmp_path / "s")], UnitConfig(max_clips=2))
    write(tmp_path / "s" / "a.tar", make_tar(webdataset_members(5)))
    after = plan_units([str(tmp_path / "s")], UnitConfig(max_clips=2))
    assert {unit.unit_id for unit in before} < {unit.unit_id for unit in after}


def test_an_id_that_comes_twice_in_a_manifest_is_an_error_with_both_lines(tmp_path):
    write(tmp_path / "a.mp4", b"x")
    manifest = write(tmp_path / "m.jsonl", manifest_of({"video": "a.mp4"}, {"video": "b.mp4"}, {"video": "a.mp4"}))
    with pytest.raises(InputError, match=r"duplicate clip id '.*/m/a': .*m\.jsonl:1 and .*m\.jsonl:3; "):
        plan_units([manifest])


def test_an_id_that_comes_twice_across_shards_is_an_error_with_both_places(tmp_path):
    shard = write(tmp_path / "set" / "s.tar", make_tar([("0.mp4", b"x"), ("1.mp4", b"y")]))
    write(tmp_path / "a" / "z.mp4", b"x")
    manifest = write(tmp_path / "a" / "m.jsonl", manifest_of({"video": "z.mp4", "clip_id": "set/s/1"}))
    with pytest.raises(InputError, match=r"duplicate clip id 'set/s/1': .*m\.jsonl:1 and .*s\.tar: 1\.mp4"):
        plan_units([shard, manifest])


def test_one_key_twice_in_a_shard_is_an_error_with_both_members(tmp_path):
    shard = write(tmp_path / "s.tar", make_tar([("a.mp4", b"x"), ("b.mp4", b"x"), ("a.webm", b"x")]))
    with pytest.raises(InputError, match=r"s\.tar: a\.mp4 and .*s\.tar: a\.webm"):
        plan_units([shard])


def test_every_broken_shard_is_named_at_once(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "s" / f"{name}.tar", b"rubbish" * 200)
    with pytest.raises(InputError, match=r"a\.tar(.|\n)*b\.tar"):
        plan_units([str(tmp_path / "s")])


def test_a_long_manifest_is_cut_into_units_without_a_gap(tmp_path):
    write(tmp_path / "a.mp4", b"x")
    rows = ({"video": "a.mp4", "clip_id": n} for n in range(20_000))
    manifest = write(tmp_path / "m.jsonl", manifest_of(*rows))
    units = plan_units([manifest], UnitConfig(max_clips=64))
    assert len(units) == 313
    assert sum(unit.stop - unit.start for unit in units) == 20_000


def test_all_clips_of_all_units_have_different_ids(tmp_path):
    for number in range(3):
        write(tmp_path / "s" / f"{number}.tar", make_tar(webdataset_members(20)))
    clips = read_all(plan_units([str(tmp_path / "s")], UnitConfig(max_clips=7)))
    assert len(clips) == len(set(ids_of(clips))) == 60


@pytest.mark.parametrize("settings", [{"max_clips": 0}, {"max_bytes": -1}])
def test_a_unit_without_room_is_refused(settings):
    with pytest.raises(ValueError, match="must be at least 1, got"):
        UnitConfig(**settings)
