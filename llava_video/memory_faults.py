"""What the scheduler does after the device ran out of memory: undo the step, promise less, go on."""

from __future__ import annotations

import logging
from dataclasses import replace

from llava_video.scheduler import Scheduler
from llava_video.tasks import QuestionTask, VideoTask

_log = logging.getLogger(__name__)


def recover_prefill(scheduler: Scheduler, videos: list[VideoTask]) -> list[QuestionTask]:
    """Puts videos back that could not be prefilled and lowers the budget to what was held without them.

    Returns:
        The questions to fail: those of a video that was alone and still did not fit.
    """
    undone = [video for video in videos if video.prefix is None]
    scheduler.put_back(undone)
    held = scheduler.used_prefix_tokens
    if held:
        _shrink(scheduler, prefix_tokens=held)
        return []
    if len(undone) > 1:
        _shrink(scheduler, prefill_tokens=max(video.num_tokens for video in undone))
        return []
    failed = [question for video in undone for question in video.waiting]
    for video in undone:
        video.waiting = []
    return failed


def evict_half(scheduler: Scheduler) -> list[QuestionTask]:
    """Sends the younger half of the running questions back to be asked again later, and allows as many fewer rows.

    Returns:
        The questions to fail: the one that was alone.
    """
    running = list(scheduler.running)
    if len(running) == 1:
        scheduler.finish(running[0])
        return running
    scheduler.send_back(running[len(running) // 2 :])
    scheduler.retire_rows(len(running) // 2)
    _log.warning("out of memory: %d questions at once instead of %d", len(running) // 2, len(running))
    return []


def _shrink(scheduler: Scheduler, **limits: int) -> None:
    scheduler.limits = replace(scheduler.limits, **limits)
    _log.warning("out of memory: the engine goes on with %s", limits)
