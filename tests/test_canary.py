"""Swapped, confused and blind answers stop the run before anything of the unit is written."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from framescribe.storage.journal import list_done_units
from framescribe.storage.output import open_output
from tests.support.run_fixtures import annotate_arguments, annotate_with, checkpoint_revision, make_shard
from tests.support.stub_engine import BlindEngine, ConfusedEngine, StubEngine, SwappingEngine
from transforms.canary import Canary, CanaryAnswer, CanaryFailed, check_same_answers
from transforms.worker import RunningEngine

ONE, TWO = CanaryAnswer(((1, 2, 3), (9,)), True), CanaryAnswer(((1, 5, 6), (9,)), False)


@pytest.fixture
def shard(tmp_path):
    return make_shard(tmp_path / "shards" / "a.tar", 6)


def run(engine, tmp_path, shard, *flags):
    """Returns what is committed once the run has ended, and its exit status or what it raised."""
    arguments = annotate_arguments(tmp_path, [shard], tmp_path / "out", "--direct_num_workers=1", *flags)
    try:
        status = str(annotate_with(engine, arguments))
    except RuntimeError as error:
        status = str(error)
    return list_done_units(open_output(str(tmp_path / "out"))), status


def test_an_engine_that_answers_right_finishes(tmp_path, shard):
    done, status = run(StubEngine(checkpoint_revision()), tmp_path, shard, "--canary-every", "2")
    assert (len(done), status) == (2, "0")


def test_two_swapped_answers_stop_the_run_and_nothing_of_their_unit_is_committed(tmp_path, shard, capsys):
    done, status = run(SwappingEngine(checkpoint_revision()), tmp_path, shard, "--canary-every", "0")
    assert done == []
    assert "no answer can be trusted" in status + capsys.readouterr().err


def test_right_labels_on_wrong_answers_are_found_by_the_canary_and_nothing_after_is_committed(tmp_path, shard, capsys):
    done, status = run(
        ConfusedEngine(checkpoint_revision()), tmp_path, shard, "--canary-every", "3", "--prefetch-clips", "1"
    )
    assert [unit.partition("-")[2][-13:] for unit in done] == ["000000-000003"]
    assert "is not answered as at the start" in status + capsys.readouterr().err


def test_a_model_that_does_not_see_its_videos_is_stopped_at_the_first_clip(tmp_path, shard, capsys):
    done, status = run(BlindEngine(checkpoint_revision()), tmp_path, shard)
    assert done == []
    assert "does not see its videos" in status + capsys.readouterr().err


def test_answers_that_are_the_same_pass():
    check_same_answers((ONE, TWO), (ONE, TWO), is_exact=True)


def test_one_other_token_is_too_many_where_answers_are_exact():
    with pytest.raises(CanaryFailed, match="1 square"):
        check_same_answers((ONE, TWO), (CanaryAnswer(((1, 2, 4), (9,)), True), TWO), is_exact=True)


def test_where_answers_are_not_exact_some_tokens_may_differ():
    check_same_answers((ONE, TWO), (CanaryAnswer(((1, 2, 4), (8,)), True), TWO), is_exact=False)


def test_where_answers_are_not_exact_swapped_ones_are_found():
    with pytest.raises(CanaryFailed):
        check_same_answers((ONE, TWO), (TWO, ONE), is_exact=False)


def test_where_answers_are_not_exact_nonsense_is_found():
    with pytest.raises(CanaryFailed):
        check_same_answers((ONE, TWO), (CanaryAnswer(((7, 7, 7), (7,)), True), TWO), is_exact=False)


def test_a_count_that_was_right_must_stay_right():
    with pytest.raises(CanaryFailed):
        check_same_answers((ONE, TWO), (CanaryAnswer(ONE.token_ids, False), TWO), is_exact=False)


class OnceConfused(StubEngine):
    """Answers its second check wrongly, and every other one rightly."""

    def answer(self, future, completion):
        wrong = 4 < self.stats.questions <= 8
        future.set_result(replace(completion, token_ids=(1, 1, 1), text="no") if wrong else completion)


def test_after_a_check_that_failed_no_clip_passes_and_nothing_is_asked_any_more():
    engine = OnceConfused(checkpoint_revision())

    async def pass_clips() -> list[str]:
        canary = Canary(engine, is_exact=True)
        return [await _try(canary) for _ in range(4)]

    assert asyncio.run(pass_clips()) == ["passed", "failed", "failed", "failed"]
    assert engine.stats.questions == 8


async def _try(canary: Canary) -> str:
    try:
        await canary.pass_clip(every=1)
    except CanaryFailed:
        return "failed"
    return "passed"


def pass_clips(canary: Canary, num_clips: int, every: int) -> None:
    async def run() -> None:
        for _ in range(num_clips):
            await canary.pass_clip(every)

    asyncio.run(run())


class CountingClips(StubEngine):
    """Counts the clips that are open."""

    num_open = 0

    def open(self, *arguments, **settings):
        video = super().open(*arguments, **settings)
        self.num_open += 1
        video.close = self.close_clip
        return video

    def close_clip(self):
        self.num_open -= 1


def test_both_clips_are_asked_at_the_first_clip_and_at_every_so_many_after_it_and_hold_no_memory():
    engine = CountingClips(checkpoint_revision())
    pass_clips(Canary(engine, is_exact=True), num_clips=7, every=3)
    assert (engine.stats.encoded_clips, engine.num_open) == (3 * 2, 0)
    pass_clips(Canary(engine, is_exact=True), num_clips=7, every=0)
    assert engine.stats.encoded_clips == 3 * 2


class Drifting(StubEngine):
    """Ends its answers of every check but the first with another token, as other sums in a batch do."""

    def answer(self, future, completion):
        drifted = (*completion.token_ids[:-1], -1) if self.stats.questions > 4 else completion.token_ids
        future.set_result(replace(completion, token_ids=drifted))


@pytest.mark.parametrize(
    ("device", "dtype", "may_drift"), [("cpu", "float32", False), ("cpu", "bfloat16", True), ("cuda", "float32", True)]
)
def test_answers_must_be_the_same_to_the_last_token_where_the_device_computes_them_so(device, dtype, may_drift):
    engine = Drifting(checkpoint_revision())
    engine.model = SimpleNamespace(
        device=SimpleNamespace(type=device), language=SimpleNamespace(dtype=f"torch.{dtype}")
    )
    canary = RunningEngine(engine).canary
    with nullcontext() if may_drift else pytest.raises(CanaryFailed):
        pass_clips(canary, num_clips=2, every=1)


class Slow(StubEngine):
    """Answers when it is told to."""

    def __init__(self, revision):
        super().__init__(revision)
        self.waiting: list[tuple[Future, object]] = []

    def answer(self, future, completion):
        self.waiting.append((future, completion))


def test_a_clip_that_is_cancelled_while_it_waits_for_a_check_leaves_the_check_to_the_others():
    engine = Slow(checkpoint_revision())

    async def run() -> None:
        canary = Canary(engine, is_exact=True)
        cancelled, other = (asyncio.ensure_future(canary.pass_clip(2)) for _ in range(2))
        while len(engine.waiting) < 4:
            await asyncio.sleep(0.001)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        for future, completion in engine.waiting:
            future.set_result(completion)
        await other

    asyncio.run(run())
