"""Answers about units that are under way are written, joined and removed with their unit's part."""

from __future__ import annotations

from framescribe.storage.journal import record_start
from framescribe.storage.output import SET_ASIDE_FOLDER, open_output
from schemas.part_rows import build_part
from schemas.records import KeptCompletion
from tests.support.output_fixtures import RUN, RUN_RECORD, make_annotation, memory_output
from transforms.answer_reuse import EarlierAnswers, ReusableRun
from transforms.keep_answers import AnswerKeeper, AnswerStore


class _Memory:
    """What a clip was answered so far."""

    def __init__(self, *answers: int) -> None:
        self.completions = tuple(KeptCompletion(bytes([one] * 16), (one,), "stop", 3) for one in answers)


def _begin(keeper, store, clip_id, *answers):
    clip = make_annotation(clip_id, "one")
    keeper.open(AnswerStore(store, RUN.fingerprint, lambda unit_id, clips: build_part(unit_id, clips, RUN)))
    keeper.begin(clip.ref, clip.sampling, _Memory(*answers))
    assert keeper.flush(30)


def test_answers_are_kept_beside_those_of_a_killed_start_and_go_with_their_unit():
    output = memory_output()
    store = open_output(output)
    record_start(store, RUN_RECORD, instead_of=None)
    _begin(AnswerKeeper(), store, "a", 1, 2)
    keeper = AnswerKeeper()
    _begin(keeper, store, "a", 2, 3)
    assert keeper.num_answers == 3
    aside = EarlierAnswers(ReusableRun(f"{output}/{SET_ASIDE_FOLDER}", RUN.fingerprint), RUN.dtype)
    clip = make_annotation("a", "one")
    assert {one[0] for one in aside.find(clip)} == {1, 2, 3}
    keeper.end("one")
    assert keeper.num_answers == 0
    assert store.list_files(f"{SET_ASIDE_FOLDER}/_framescribe/parts") == []


def test_answers_that_are_not_to_be_trusted_are_removed_and_written_no_more():
    store = open_output(memory_output())
    record_start(store, RUN_RECORD, instead_of=None)
    keeper = AnswerKeeper()
    _begin(keeper, store, "a", 1, 2)
    assert store.list_files(f"{SET_ASIDE_FOLDER}/_framescribe/parts")
    keeper.discard()
    assert keeper.flush(30)
    assert keeper.num_answers == 0
    assert store.list_files(f"{SET_ASIDE_FOLDER}/_framescribe/parts") == []
