"""Answers of an earlier run are found for the same clip with the same frames, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from framescribe.storage.journal import DamagedRunError, commit_part
from framescribe.storage.output import open_output, part_name
from schemas.part_rows import build_part
from schemas.records import KeptCompletion, SampledClip
from tests.support.output_fixtures import RUN, make_annotation, make_failed, memory_output
from transforms.answer_reuse import EarlierAnswers, OtherDtypeError, ReusableRun, check_same_dtype

KEPT = (KeptCompletion(b"a" * 16, (1, 2), "stop", 7), KeptCompletion(b"b" * 16, (3,), "length", 8))


@pytest.fixture
def output():
    name = memory_output()
    for unit_id in ("one", "two"):
        clips = [replace(make_annotation(f"{unit_id}-{n}", unit_id), completions=KEPT[: n + 1]) for n in range(2)]
        part = build_part(unit_id, [*clips, make_failed("bad", unit_id)], RUN)
        commit_part(open_output(name), unit_id, part, RUN.fingerprint)
    return name


def clip(clip_id: str, unit_id: str = "one", frames_digest: str = "d1" * 32) -> SampledClip:
    made = make_annotation(clip_id, unit_id)
    return SampledClip(made.ref, replace(made.sampling, frames_digest=frames_digest), np.zeros((1, 1, 1, 3), np.uint8))


def test_the_completions_of_a_clip_are_found_by_the_digests_of_their_questions(output):
    answers = EarlierAnswers(ReusableRun(output, RUN.fingerprint), RUN.dtype)
    assert answers.find(clip("one-1")) == {b"a" * 16: KEPT[0], b"b" * 16: KEPT[1]}
    assert answers.find(clip("two-0", "two")) == {b"a" * 16: KEPT[0]}


@pytest.mark.parametrize(
    "asked",
    [clip("one-1", frames_digest="e2" * 32), clip("bad"), clip("new"), clip("one-1", "two"), clip("one-1", "unknown")],
    ids=["other frames", "failed then", "new clip", "other unit", "new unit"],
)
def test_a_clip_that_is_not_the_same_has_no_answers(output, asked):
    assert EarlierAnswers(ReusableRun(output, RUN.fingerprint), RUN.dtype).find(asked) == {}


def test_the_parts_of_the_last_units_are_read_once(output):
    answers = EarlierAnswers(ReusableRun(output, RUN.fingerprint), RUN.dtype)
    answers.find(clip("one-1"))
    open_output(output).remove(part_name("one"))
    answers.find(clip("two-1", "two"))
    assert answers.find(clip("one-1")) != {}


def test_no_more_than_a_few_parts_are_kept_and_the_oldest_goes_first(output):
    answers = EarlierAnswers(ReusableRun(output, RUN.fingerprint), RUN.dtype)
    others = (clip("new", f"unknown-{number}") for number in range(255))
    for asked in (clip("one-1"), clip("two-1", "two"), *others):
        answers.find(asked)
    for unit_id in ("one", "two"):
        open_output(output).remove(part_name(unit_id))
    assert (answers.find(clip("two-1", "two")) != {}, answers.find(clip("one-1"))) == (True, {})


def test_a_part_of_other_settings_than_the_run_stops(output):
    with pytest.raises(DamagedRunError, match=r"settings 'f00d', but the run there has 'beef'.*--reuse-from"):
        EarlierAnswers(ReusableRun(output, "beef"), RUN.dtype).find(clip("one-1"))


def test_answers_of_another_number_format_stop_with_what_to_do(output):
    assert EarlierAnswers(ReusableRun(output, RUN.fingerprint), "float32").find(clip("new")) == {}
    with pytest.raises(OtherDtypeError):
        EarlierAnswers(ReusableRun(output, RUN.fingerprint), "float32").find(clip("one-1"))
    with pytest.raises(OtherDtypeError, match=r"computed in bfloat16, this worker computes in float32.*--dtype bfloat"):
        check_same_dtype("bfloat16", "float32")
