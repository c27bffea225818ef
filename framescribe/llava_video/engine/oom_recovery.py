"""What the scheduler does after the device ran out of memory: undo the step, promise less, go on."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import torch

from framescribe.llava_video.engine.scheduler import Scheduler
from framescribe.llava_video.engine.tasks import QuestionTask, VideoTask

_log = logging.getLogger(__name__)

_KEPT_SHARE = 0.75
"""Of the prefix budget after each fault: a shortage that passes costs little, one that stays is met in a few steps."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|(?:HOST|DEVICE)_ALLOCATION_FAILED",
    re.IGNORECASE,
)
"""What PyTorch's allocators, CUDA itself, cuBLAS and cuDNN say; only the first has an exception class of its own."""


def is_memory_fault(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, which leaves the device as it was; any other may have broken it."""
    return isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def recover_prefill(
    scheduler: Scheduler, videos: list[VideoTask], shrink_pool: Callable[[int], int | None]
) -> list[QuestionTask]:
    """Puts videos back that could not be prefilled, to be tried one by one, then alone, then with a smaller pool.

    Args:
        shrink_pool: gives memory of the pool back while nobody uses it; takes the tokens that must remain, returns
            those that do, or None when there is nothing to give.

    Returns:
        The questions to fail: those of a video that was alone twice and got all there is. Before the second time
        PyTorch's caches were emptied, which is what cuBLAS, cuDNN and CUDA itself may have lacked.
    """
    undone = [video for video in videos if video.prefix is None]
    scheduler.requeue(undone)
    wanted = int(scheduler.limits.prefix_tokens * _KEPT_SHARE)
    if len(videos) > 1:
        _lower(scheduler, prefill_tokens=max(video.num_tokens for video in undone))
        return []
    (video,) = undone
    if scheduler.used_prefix_tokens or not video.needs_all:
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

    Those that were just being started go, or, where all are under way, the younger half. Several that were being
    started together are started in smaller groups before rows are given up.

    Returns:
        The questions to fail, still among the running ones: the one that was alone twice.
    """
    running = list(scheduler.running)
    if len(running) == 1 and running[0].needs_all:
        return running
    if len(running) == 1:
        running[0].needs_all = True
        scheduler.preempt(running)
        return []
    started = [question for question in running if question.generated]
    starting = [question for question in running if not question.generated]
    kept = len(started) if starting else len(running) // 2
    scheduler.preempt([question for question in running if question not in started[:kept]])
    if len(starting) > 1:
        _lower(scheduler, start_tokens=sum(len(question.token_ids) for question in starting) // 2)
    else:
        _lower(scheduler, max_rows=kept)
    return []


def _lower(scheduler: Scheduler, **limits: int) -> None:
    scheduler.lower_limits(**limits)
    _log.warning("out of memory: the engine goes on with %s", limits)
