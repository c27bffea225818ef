"""What the scheduler does after the device ran out of memory: undo the step, promise less, go on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llava_video.scheduler import Scheduler
from llava_video.tasks import QuestionTask, VideoTask

_log = logging.getLogger(__name__)

_KEPT_SHARE = 0.75
"""Of the prefix budget after each fault: a shortage that passes costs little, one that stays is met in a few steps."""


def recover_prefill(
    scheduler: Scheduler, videos: list[VideoTask], shrink_pool: Callable[[int], int | None]
) -> list[QuestionTask]:
    """Puts videos back that could not be prefilled, to be tried one by one, then alone, then with a smaller pool.

    Args:
        shrink_pool: gives memory of the pool back while nobody uses it; takes the tokens that must remain, returns
            those that do, or None when there is nothing to give.

    Returns:
        The questions to fail: those of a video that was alone and got all there is.
    """
    undone = [video for video in videos if video.prefix is None]
    scheduler.put_back(undone)
    wanted = int(scheduler.limits.prefix_tokens * _KEPT_SHARE)
    if len(videos) > 1:
        _lower(scheduler, prefill_tokens=max(video.num_tokens for video in undone))
        return []
    (video,) = undone
    if scheduler.used_prefix_tokens:
        video.needs_all = True
        _lower(scheduler, prefix_tokens=max(wanted, scheduler.used_prefix_tokens))
        return []
    remaining = shrink_pool(max(wanted, scheduler.largest_prefix))
    if remaining is not None:
        scheduler.most_prefix_tokens = remaining
        _lower(scheduler, prefix_tokens=remaining)
        return []
    failed, video.waiting = video.waiting, []
    return failed


def evict_half(scheduler: Scheduler) -> list[QuestionTask]:
    """Sends running questions back, to be asked again later, and allows as many fewer rows.

    Those that were just being started go, or, where all are under way, the younger half.

    Returns:
        The questions to fail, still among the running ones: the one that was alone.
    """
    running = list(scheduler.running)
    if len(running) == 1:
        return running
    started = [question for question in running if question.generated]
    kept = len(running) // 2 if len(started) == len(running) else len(started)
    scheduler.send_back([question for question in running if question not in started[:kept]])
    _lower(scheduler, max_rows=max(kept, len(running) // 2))
    return []


def _lower(scheduler: Scheduler, **limits: int) -> None:
    scheduler.lower_limits(**limits)
    _log.warning("out of memory: the engine goes on with %s", limits)
