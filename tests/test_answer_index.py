"""The index of an earlier run: every clip is found in the part that has it, whatever the units, in bounded pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from framescribe.publish.publish import publish
from framescribe.shards.naming import hash_video_id
from framescribe.storage.journal import record_start
from framescribe.storage.output import ANSWER_INDEX_FOLDER, open_output
from framescribe.storage.plan import add_to_plan
from schemas.records import InputKind, WorkUnit
from tests.support.output_fixtures import RUN, RUN_RECORD, commit, make_annotation, make_failed, memory_output
from transforms.answer_index import AnswerIndexReader, list_answered, write_answer_index

NUM_CLIPS = 40


def cut(clip_ids: Sequence[str], size: int, name: str) -> list[WorkUnit]:
    starts = range(0, len(clip_ids), size)
    return [
        WorkUnit(f"{name}-{start:03d}", InputKind.TAR, "s3://b/s.tar", "s", start, min(start + size, len(clip_ids)), 9)
        for start in starts
    ]


def commit_units(output: str, clip_ids: Sequence[str], units: Sequence[WorkUnit]) -> None:
    for unit in units:
        clips = [make_annotation(one, unit.unit_id) for one in clip_ids[unit.start : unit.stop]]
        commit(output, unit.unit_id, [*clips, make_failed(f"failed in {unit.unit_id}", unit.unit_id)])


@pytest.mark.parametrize("is_published", [True, False])
def test_each_clip_is_found_in_the_unit_that_has_it_and_in_no_other(is_published):
    earlier, now = memory_output(), open_output(memory_output())
    then = [f"s/{number:03d}" for number in range(NUM_CLIPS)]
    clip_ids = [*then[::-3], "s/new", "failed in old-000", "s/037@0-30", "s/037@30-60.5"]
    old_units, new_units = cut(then, 7, "old"), cut(clip_ids, 4, "new")
    commit_units(earlier, then, old_units)
    if is_published:
        record_start(open_output(earlier), RUN_RECORD, None)
        add_to_plan(open_output(earlier), old_units[:4])
        publish(earlier)
    answered = list_answered(open_output(earlier), [unit.unit_id for unit in old_units], RUN.fingerprint)
    hashes = np.array([hash_video_id(clip_id) for clip_id in clip_ids], np.uint64)
    assert answered.contains(hashes).tolist() == [clip_id.partition("@")[0] in then for clip_id in clip_ids]
    index = write_answer_index(now, answered, new_units, hashes, clips_per_file=8)
    assert index.first_units == ("new-000", "new-008", "new-016")
    assert len(now.list_files(ANSWER_INDEX_FOLDER)) == 3
    reader = AnswerIndexReader(now, index)
    found = {
        clip_id: reader.find(unit.unit_id, clip_id)
        for unit in [*new_units[::2], *new_units[1::2]]
        for clip_id in clip_ids[unit.start : unit.stop]
    }
    place_of = {clip_id: [f"old-{number // 7 * 7:03d}"] for number, clip_id in enumerate(then)}
    assert found == {clip_id: place_of.get(clip_id, []) for clip_id in clip_ids}


def test_windows_are_found_by_their_own_ids_under_units_that_name_the_whole_video():
    earlier, now = memory_output(), open_output(memory_output())
    then = ["s/a@0-2", "s/a@2-4", "s/b@0-2", "s/a@4-6"]
    commit_units(earlier, then, cut(then, 1, "old"))
    answered = list_answered(open_output(earlier), [f"old-{number:03d}" for number in range(4)], RUN.fingerprint)
    (unit,) = cut(["s/a"], 1, "new")
    index = write_answer_index(now, answered, [unit], np.array([hash_video_id("s/a")], np.uint64))
    reader = AnswerIndexReader(now, index)
    assert [reader.find("new-000", f"s/a@{window}") for window in ("0-2", "2-4", "4-6", "6-8")] == [
        ["old-000"], ["old-001"], ["old-003"], [],
    ]  # fmt: skip


def test_a_clip_in_two_units_is_looked_for_in_both_and_an_index_that_is_gone_knows_nothing():
    earlier, now = memory_output(), open_output(memory_output())
    for name in ("one", "two"):
        commit(earlier, name, [make_annotation("s/a", name)])
    answered = list_answered(open_output(earlier), ["one", "two"], RUN.fingerprint)
    (unit,) = cut(["s/a"], 1, "new")
    index = write_answer_index(now, answered, [unit], np.array([hash_video_id("s/a")], np.uint64))
    assert AnswerIndexReader(now, index).find("new-000", "s/a") == ["one", "two"]
    assert AnswerIndexReader(open_output(memory_output()), index).find("new-000", "s/a") == []
