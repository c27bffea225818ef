"""Arbitrary bytes as shards and manifests: no hang, no crash, no exception but the documented ones.

`FRAMESCRIBE_FUZZ_EXAMPLES=20000 pytest tests/test_fuzz_inputs.py` looks longer (`make fuzz`).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from framescribe.shards.naming import clean_id
from framescribe.shards.rows import dump_metadata, merge_sidecars
from framescribe.shards.tar_stream import iterate_members
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, NoInputFound
from framescribe.storage.retries import RetryPolicy
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from schemas.records import Clip, FailedClip
from tests.support.shards_fixtures import FlakyFileSystem, make_tar, read_all

LIMITS = ReadConfig(max_video_bytes=10_000, max_sidecar_bytes=2_000, retries=RetryPolicy(max_attempts=1))
fuzzed = settings(
    max_examples=int(os.environ.get("FRAMESCRIBE_FUZZ_EXAMPLES", "60")),
    deadline=2000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
names = st.one_of(
    st.sampled_from(
        ["a.mp4", "a.json", "a.txt", "./b.webm", "../c.mp4", "/d.mp4", "e.f.mp4", "._g.mp4", "h", "i/", ".mp4"]
    ),
    st.text(min_size=1, max_size=150).map(lambda name: name.replace("\0", "0")),
)
contents = st.one_of(st.binary(max_size=1500), st.sampled_from([b"{}", b'{"a": [NaN]}', b"[" * 2000, b'"\\ud800"']))
members = st.lists(st.tuples(names, contents), max_size=8)
edits = st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), max_size=6)


def edited(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """Overwrites bytes of a sound file; nearer to what breaks readers than noise is."""
    damaged = bytearray(content)
    for position, replacement in changes:
        damaged[position : position + len(replacement)] = replacement
    return bytes(damaged)


def plan_and_read(name: str, content: bytes) -> list[Clip | FailedClip]:
    """Plans and reads what a store holds; an input error ends it, and any other exception goes through."""
    FlakyFileSystem.reset()
    FlakyFileSystem().pipe_file(f"flaky://s/{name}", content)
    try:
        units = plan_units([f"flaky://s/{name}"], UnitConfig(max_clips=3), read=LIMITS)
        return read_all(units, LIMITS)
    except (InputError, NoInputFound):
        return []


def is_harmless(text: str) -> bool:
    return not {"Cc", "Cf", "Cs", "Zl", "Zp"} & {unicodedata.category(character) for character in text}


def check(clips: list[Clip | FailedClip]) -> None:
    assert len({clip.ref.clip_id for clip in clips}) == len(clips)
    for clip in clips:
        assert is_harmless(clip.ref.clip_id + clip.ref.source + str(clip.ref.member) + clip.ref.metadata)
        assert is_harmless(getattr(clip, "message", ""))
        assert not {"..", ""} & set(clip.ref.clip_id.split("/"))
        assert isinstance(json.loads(clip.ref.metadata), dict)


def check_videos(clips: list[Clip | FailedClip], content: bytes) -> None:
    """What is handed on as a video stands in the file, and no byte of it in two videos."""
    videos = [bytes(clip.video) for clip in clips if isinstance(clip, Clip)]
    assert all(video in content for video in videos)
    assert sum(map(len, videos)) <= len(content)


@fuzzed
@given(
    members,
    edits,
    st.integers(0, 3000),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_no_damage_to_a_tar_does_more_than_an_input_error(files, changes, cut, tar_format):
    try:
        whole = make_tar(files, tar_format=tar_format)
    except ValueError:  # this format has no room for the name
        whole = make_tar(files)
    damaged = edited(whole, changes)[: len(whole) - cut]
    clips = plan_and_read("x.tar", damaged)
    check(clips)
    check_videos(clips, damaged)


@fuzzed
@given(st.binary(max_size=3000))
@example(b"\0" * 1024)
@example(tarfile.TarInfo("a.mp4").tobuf()[:124] + b"\xff" * 12 + tarfile.TarInfo("a.mp4").tobuf()[136:])
def test_no_bytes_posing_as_a_tar_do_more_than_an_input_error(content):
    clips = plan_and_read("x.tar", content)
    check(clips)
    check_videos(clips, content)


@fuzzed
@given(members, edits, st.sampled_from(["gz", "bz2", "xz"]))
def test_no_damage_to_a_compressed_tar_does_more_than_an_input_error(files, changes, compression):
    check(plan_and_read(f"x.tar.{compression}", edited(make_tar(files, f"w:{compression}"), changes)))


@fuzzed
@given(members, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_a_sound_tar_is_read_as_pythons_own_reader_does(files, tar_format):
    content = make_tar(files, tar_format=tar_format)
    ours = [
        (member.name.rstrip("/"), member.data_start, member.size)
        for member in iterate_members(io.BytesIO(content), "x", 0, None)
    ]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        theirs = [(member.name.rstrip("/"), member.offset_data, member.size) for member in archive]
    assert ours == theirs


@fuzzed
@given(st.lists(st.binary(min_size=1, max_size=900), min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 4000))
def test_videos_before_the_damage_are_read_as_they_were_or_the_shard_is_refused(videos, place, where):
    whole = make_tar([(f"{number}.mp4", video) for number, video in enumerate(videos)])
    damaged = bytearray(whole)
    position = min(where, len(whole) - 1)
    damaged[position] ^= 1 << place
    clips = plan_and_read("x.tar", bytes(damaged))
    first_touched = next((n for n, stop in enumerate(stops_of(whole)) if position < stop), len(videos))
    read = [clip.video if isinstance(clip, Clip) else None for clip in clips]
    assert read[:first_touched] in ([], videos[:first_touched])
    assert len(clips) <= len(videos)


def stops_of(content: bytes) -> list[int]:
    """Where each member of a sound archive ends."""
    return [member.stop for member in iterate_members(io.BytesIO(content), "x", 0, None)]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {"video": st.text() | json_values},
    optional={"clip_id": json_values, "start_s": json_values, "end_s": json_values, "x": json_values},
)
manifest_lines = st.lists(
    st.one_of(rows.map(lambda row: json.dumps(row).encode()), st.binary(max_size=200)), max_size=6
).map(b"\n".join)


@fuzzed
@given(manifest_lines, edits)
@pytest.mark.parametrize("name", ["m.jsonl", "m.ndjson"])
def test_no_json_manifest_does_more_than_an_input_error(name, content, changes):
    check(plan_and_read(name, edited(content, changes)))


@fuzzed
@given(st.one_of(st.text(alphabet=',"\n\r\tav0.', max_size=200).map(str.encode), st.binary(max_size=200)))
@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
def test_no_csv_manifest_does_more_than_an_input_error(name, content):
    check(plan_and_read(name, content))
    check(plan_and_read(name, b"video,start_s,clip_id\n".replace(b",", b"\t" if name == "m.tsv" else b",") + content))


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(["json", "txt", "info.json"]),
        st.binary() | json_values.map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_sidecar_becomes_one_line_of_json(sidecars):
    text = dump_metadata(merge_sidecars(sidecars))
    assert is_harmless(text)
    assert isinstance(json.loads(text), dict)


@fuzzed
@given(st.integers(0, 700), st.binary(min_size=1, max_size=4), st.integers(0, 700))
def test_no_damage_to_a_parquet_shard_does_more_than_an_input_error(position, replacement, cut):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"video": [b"one", b"two"], "clip_id": ["a", "b"], "start_s": [0.0, 1.0]}), buffer)
    whole = buffer.getvalue()
    kept = len(whole) if cut < 600 else cut
    check(plan_and_read("x.parquet", edited(whole, [(position, replacement)])[:kept]))


@fuzzed
@given(st.text(max_size=400), st.text(max_size=400))
def test_different_ids_stay_different_when_they_are_cleaned(one, other):
    assert (clean_id(one) == clean_id(other)) == (one == other)
