"""The scheduler's decisions, without a model."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from framescribe.llava_video.attention.kv_cache import PAGE_TOKENS, PrefixKV
from framescribe.llava_video.engine.generation import GenerationConfig
from framescribe.llava_video.engine.oom_recovery import evict_half, recover_prefill
from framescribe.llava_video.engine.scheduler import Limits, Scheduler, num_pages_for
from framescribe.llava_video.engine.tasks import QuestionTask, VideoTask
from framescribe.llava_video.model.prompts import VideoPrefix

PREFIX = PrefixKV([], [])


def _video(order: int, num_tokens: int = 100) -> VideoTask:
    text = VideoPrefix((), ())
    return VideoTask(order, f"clip-{order}", "", None, np.empty(0, np.int64), text, num_tokens)


def _question(video: VideoTask, num_tokens: int = 10, max_new_tokens: int = 20) -> QuestionTask:
    generation = GenerationConfig(max_new_tokens=max_new_tokens)
    return QuestionTask(video, [0] * num_tokens, generation, 1.0, Future())


def _scheduler(prefix_tokens: int = 250, num_pages: int = 8, max_rows: int = 4) -> Scheduler:
    return Scheduler(Limits(prefix_tokens, num_pages, max_rows, prefill_tokens=200))


def _open(scheduler: Scheduler, *videos: VideoTask) -> None:
    for video in videos:
        scheduler.add_video(video)
        scheduler.add_question(_question(video))


def _prefill(videos: list[VideoTask]) -> None:
    for video in videos:
        video.prefix = PREFIX


def test_a_video_without_a_question_is_not_prefilled() -> None:
    scheduler = _scheduler()
    scheduler.add_video(_video(0))
    assert scheduler.next_videos() == []


def test_videos_are_prefilled_in_order_within_the_budget_of_prefix_tokens() -> None:
    scheduler = _scheduler(prefix_tokens=250)
    videos = [_video(order) for order in range(3)]
    _open(scheduler, *reversed(videos))
    assert scheduler.next_videos() == videos[:2]
    assert scheduler.used_prefix_tokens == 200


def test_a_large_old_video_is_not_overtaken_by_a_small_young_one() -> None:
    scheduler = _scheduler(prefix_tokens=250)
    first, large, small = _video(0, 100), _video(1, 200), _video(2, 50)
    _open(scheduler, first, large, small)
    assert scheduler.next_videos() == [first]


def test_one_video_with_more_tokens_than_a_step_prefills_is_prefilled_alone() -> None:
    scheduler = _scheduler(prefix_tokens=1000)
    large, small = _video(0, 500), _video(1, 50)
    _open(scheduler, large, small)
    assert scheduler.next_videos() == [large]


def test_a_closed_video_gives_its_budget_back_once_its_last_question_is_done() -> None:
    scheduler = _scheduler()
    video = _video(0)
    _open(scheduler, video)
    _prefill(scheduler.next_videos())
    (question,) = scheduler.next_questions()
    scheduler.close_video(video)
    held = scheduler.used_prefix_tokens
    scheduler.finish(question)
    assert (held, scheduler.used_prefix_tokens) == (100, 0)


def test_an_open_video_keeps_its_prefix_for_questions_that_come_later() -> None:
    scheduler = _scheduler()
    video = _video(0)
    _open(scheduler, video)
    _prefill(scheduler.next_videos())
    scheduler.finish(scheduler.next_questions()[0])
    scheduler.add_question(_question(video))
    assert scheduler.next_videos() == []
    assert len(scheduler.next_questions()) == 1


def test_a_question_starts_only_when_all_pages_it_can_need_are_free() -> None:
    scheduler = _scheduler(num_pages=3)
    video = _video(0)
    scheduler.add_video(video)
    questions = [_question(video, 1, PAGE_TOKENS) for _ in range(2)]  # two pages each
    for question in questions:
        scheduler.add_question(question)
    _prefill(scheduler.next_videos())
    assert scheduler.next_questions() == questions[:1]
    scheduler.finish(questions[0])
    assert scheduler.next_questions() == questions[1:]


def test_no_two_running_questions_share_a_row_or_a_page() -> None:
    scheduler = _scheduler(num_pages=8)
    video = _video(0)
    _open(scheduler, video)
    for _ in range(3):
        scheduler.add_question(_question(video))
    _prefill(scheduler.next_videos())
    started = scheduler.next_questions()
    pages = [page for question in started for page in question.pages]
    assert len(set(pages)) == len(pages) == 4
    assert len({question.row for question in started}) == 4


def test_running_questions_are_sorted_by_video_so_that_each_prefix_is_read_once() -> None:
    scheduler = _scheduler(prefix_tokens=1000, num_pages=100, max_rows=10)
    first, second = _video(0, 50), _video(1, 50)
    _open(scheduler, first, second)
    _prefill(scheduler.next_videos())
    scheduler.next_questions()
    scheduler.add_question(_question(first))
    scheduler.next_questions()
    assert [question.video.order for question in scheduler.running] == [0, 0, 1]


def test_videos_that_run_out_of_memory_together_are_tried_one_by_one() -> None:
    scheduler = _scheduler()
    videos = [_video(0), _video(1, 90)]
    _open(scheduler, *videos)
    assert recover_prefill(scheduler, scheduler.next_videos(), _nothing_to_give) == []
    assert (scheduler.limits.prefix_tokens, scheduler.used_prefix_tokens) == (250, 0)
    assert scheduler.next_videos() == videos[:1]


def test_a_video_that_runs_out_of_memory_beside_others_waits_until_they_are_closed() -> None:
    scheduler = _scheduler(prefix_tokens=400)
    first, second = _video(0), _video(1)
    _open(scheduler, first)
    _prefill(scheduler.next_videos())
    scheduler.finish(scheduler.next_questions()[0])
    _open(scheduler, second)
    assert recover_prefill(scheduler, scheduler.next_videos(), _nothing_to_give) == []
    assert (scheduler.limits.prefix_tokens, scheduler.used_prefix_tokens) == (300, 100)
    assert scheduler.next_videos() == []
    scheduler.close_video(first)
    assert scheduler.next_videos() == [second]


def test_a_video_waits_for_no_budget_once_it_is_alone() -> None:
    scheduler = _scheduler(prefix_tokens=250)
    video = _video(0, 150)
    _open(scheduler, video)
    scheduler.lower_limits(prefix_tokens=50)
    assert scheduler.next_videos() == [video]


def test_a_video_alone_gets_what_the_pool_can_give_and_fails_when_it_has_nothing_more() -> None:
    scheduler = _scheduler(prefix_tokens=400)
    video, remaining = _video(0), iter([300, 225, None])
    wanted: list[int] = []

    def shrink(num_tokens: int) -> int | None:
        wanted.append(num_tokens)
        return next(remaining)

    _open(scheduler, video)
    questions = list(video.waiting)
    failed = [recover_prefill(scheduler, scheduler.next_videos(), shrink) for _ in range(4)]
    assert failed == [[], [], [], questions]
    assert wanted == [225, 225, 168]
    assert (scheduler.limits.prefix_tokens, scheduler.most_prefix_tokens, scheduler.used_prefix_tokens) == (225, 225, 0)


def _nothing_to_give(num_tokens: int) -> int | None:  # of a runner without a pool
    return None


def test_running_out_of_memory_while_decoding_sends_the_younger_half_back() -> None:
    scheduler = _scheduler(prefix_tokens=1000, num_pages=100)
    videos = [_video(order, 50) for order in range(4)]
    _open(scheduler, *videos)
    _prefill(scheduler.next_videos())
    for question in scheduler.next_questions():
        question.generated.append(1)
    assert evict_half(scheduler) == []
    assert [question.video.order for question in scheduler.running] == [0, 1]
    assert [len(video.waiting) for video in videos] == [0, 0, 1, 1]
    assert scheduler.next_questions() == []


@pytest.mark.parametrize(("num_started", "start_tokens", "num_rows"), [(0, 20, 4), (1, 15, 4), (3, 4096, 3)])
def test_running_out_of_memory_in_a_start_sends_back_all_that_were_starting(
    num_started: int, start_tokens: int, num_rows: int
) -> None:
    scheduler = _scheduler(prefix_tokens=1000, num_pages=100)
    videos = [_video(order, 50) for order in range(4)]
    _open(scheduler, *videos)
    _prefill(scheduler.next_videos())
    started = scheduler.next_questions()[4 - num_started :]  # whatever their age
    for question in started:
        question.generated.append(1)
    assert evict_half(scheduler) == []
    limits = scheduler.limits
    assert (scheduler.running, limits.start_tokens, limits.max_rows) == (started, start_tokens, num_rows)


def test_a_question_alone_is_tried_once_more_with_empty_caches_and_then_fails() -> None:
    scheduler = _scheduler()
    video = _video(0)
    _open(scheduler, video)
    _prefill(scheduler.next_videos())
    (question,) = scheduler.next_questions()
    assert (evict_half(scheduler), scheduler.running) == ([], [])
    assert scheduler.next_questions() == evict_half(scheduler) == [question]


def test_questions_start_up_to_a_number_of_tokens_and_a_longer_one_alone() -> None:
    scheduler = Scheduler(Limits(1000, 100, 10, prefill_tokens=200, start_tokens=50))
    video = _video(0)
    scheduler.add_video(video)
    questions = [_question(video, num_tokens) for num_tokens in (30, 20, 1, 70, 10)]
    for question in questions:
        scheduler.add_question(question)
    _prefill(scheduler.next_videos())
    starts = [scheduler.next_questions() for _ in range(4)]
    assert starts == [questions[:2], questions[2:3], questions[3:4], questions[4:]]


def test_questions_wait_for_company_while_others_run_but_not_for_ever() -> None:
    scheduler = Scheduler(Limits(1000, 100, 10, prefill_tokens=200, least_start_tokens=50))
    video = _video(0)
    scheduler.add_video(video)
    alone, second, third = (_question(video, num_tokens) for num_tokens in (10, 30, 20))
    scheduler.add_question(alone)
    _prefill(scheduler.next_videos())
    starts = [scheduler.next_questions()]
    scheduler.add_question(second)
    starts.append(scheduler.next_questions())
    scheduler.add_question(third)
    starts.append(scheduler.next_questions())
    last = _question(video, 1)
    scheduler.add_question(last)
    while starts[-1] != [last] and len(starts) < 40:
        starts.append(scheduler.next_questions())
    assert starts[:3] == [[alone], [], [second, third]]
    assert len(starts) == 3 + 17


def test_lowered_limits_rise_to_what_was_planned_once_memory_suffices() -> None:
    scheduler = _scheduler(prefix_tokens=400)
    planned = scheduler.limits
    scheduler.lower_limits(max_rows=1, prefix_tokens=100, start_tokens=7, prefill_tokens=50)
    steps = []
    while scheduler.limits != planned:
        steps.append(_count_steps_to_a_rise(scheduler))
    assert (steps[0], len(steps) < 20) == (64, True)


def test_limits_rise_later_after_every_fault_and_never_beyond_a_shrunken_pool() -> None:
    scheduler = _scheduler(prefix_tokens=400)
    scheduler.most_prefix_tokens = 250
    scheduler.lower_limits(prefix_tokens=240)
    waits = [_count_steps_to_a_rise(scheduler)]
    assert scheduler.limits.prefix_tokens == 250
    for _ in range(2):
        scheduler.lower_limits(prefix_tokens=100)
        scheduler.lower_limits(prefix_tokens=100)
        waits.append(_count_steps_to_a_rise(scheduler))
    assert waits == [64, 128, 512]


def _count_steps_to_a_rise(scheduler: Scheduler) -> int:
    limits = scheduler.limits
    for number in range(1, 5000):
        scheduler.count_step()
        if scheduler.limits != limits:
            return number
    raise AssertionError("no rise")


def test_a_question_sent_back_starts_again_from_its_beginning() -> None:
    scheduler = _scheduler()
    video = _video(0)
    _open(scheduler, video)
    _prefill(scheduler.next_videos())
    (question,) = scheduler.next_questions()
    question.generated.extend([1, 2, 3])
    scheduler.preempt([question])
    assert scheduler.next_questions() == [question]
    assert question.generated == []


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(1, 1), (PAGE_TOKENS, 1), (PAGE_TOKENS + 1, 2)])
def test_pages_are_counted_up(num_tokens: int, num_pages: int) -> None:
    assert num_pages_for(num_tokens) == num_pages
