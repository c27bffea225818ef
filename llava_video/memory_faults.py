"""What the scheduler does after the device ran out of memory: undo the step, promise less, go on."""

from __future__ import annotations

import logging
from dataclasses import replace

from llava_video.scheduler import Scheduler
from llava_video.tasks import QuestionTask, VideoTask

_log = logging.getLogger(__name__)


def recover_prefill(scheduler: Scheduler, videos: list[VideoTask]) -> list[QuestionTask]:
    """Puts videos back that could not be prefilled, to be tried one by one, then with fewer others, then alone.

    Returns:
        The questions to fail: those of a video that was alone, with no memory promised to others, and did not fit.
    """
    undone = [video for video in videos if video.prefix is None]
    scheduler.put_back(undone)
    if len(videos) > 1:
        _shrink(scheduler, prefill_tokens=max(video.num_tokens for video in undone))
        return []
    (video,) = undone
    promised = scheduler.used_prefix_tokens or scheduler.limits.tokens_held(video)
    if promised < scheduler.limits.prefix_tokens:
        _shrink(scheduler, prefix_tokens=promised)
        return []
    failed, video.waiting = video.waiting, []
    return failed


def most_prefix_tokens_wanted(scheduler: Scheduler) -> int:
    """Returns what must remain for prefixes: what is promised, and what the largest open video has."""
    held = (scheduler.limits.tokens_held(video) for video in scheduler.videos)
    return max(scheduler.limits.prefix_tokens, *held)


def evict_half(scheduler: Scheduler) -> list[QuestionTask]:
    """Sends running questions back, to be asked again later, and allows as many fewer rows.

    Those that were just being started go, or, where all are under way, the younger half.

    Returns:
        The questions to fail: the one that was alone.
    """
    running = list(scheduler.running)
    if len(running) == 1:
        scheduler.finish(running[0])
        return running
    started = [question for question in running if question.generated]
    kept = len(running) // 2 if len(started) == len(running) else len(started)
    scheduler.send_back([question for question in running if question not in started[:kept]])
    num_rows = max(kept, len(running) // 2)
    scheduler.retire_rows(num_rows)
    _log.warning("out of memory: %d questions at once instead of %d", num_rows, len(running))
    return []


def _shrink(scheduler: Scheduler, **limits: int) -> None:
    scheduler.limits = replace(scheduler.limits, **limits)
    _log.warning("out of memory: the engine goes on with %s", limits)
