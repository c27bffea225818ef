"""How a question ends: its future gets the answer, an error that says what to do, or notice of its cancellation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import InvalidStateError

from llava_video.errors import EngineBroken, EngineClosed
from llava_video.generation import Completion
from llava_video.kv_cache import PAGE_TOKENS
from llava_video.scheduler import Scheduler
from llava_video.tasks import QuestionTask


def give_answer(question: QuestionTask, completion: Completion) -> None:
    """Hands an answer out, unless the question was cancelled meanwhile."""
    try:
        question.future.set_result(completion)
    except InvalidStateError:
        end_cancelled(question)


def give_error(questions: Sequence[QuestionTask], error: Exception) -> None:
    """Hands an error out to all that were not cancelled meanwhile."""
    for question in questions:
        try:
            question.future.set_exception(error)
        except InvalidStateError:
            end_cancelled(question)


def end_cancelled(question: QuestionTask) -> None:
    """Tells `concurrent.futures.wait` of a question that was cancelled: it waits for this, not for the cancelling."""
    question.future.set_running_or_notify_cancel()


def describe_end(cause: BaseException | None) -> Exception:
    """Returns what questions get once the engine's thread has ended."""
    if cause is None:
        return EngineClosed("the engine was closed before the question was answered; load another to ask")
    return EngineBroken(f"the engine stopped, restart the process to go on: {type(cause).__name__}: {cause}")


def describe_wait(scheduler: Scheduler, waited_s: float) -> str:
    """Returns why a clip failed that waited for memory while nothing moved."""
    return (
        f"waited {waited_s:.0f} s for memory: open clips hold {scheduler.used_prefix_tokens} of "
        f"{scheduler.limits.prefix_tokens} prefix tokens, and none of them asks anything or is closed. Close each clip "
        "when its answers are there, or give a larger kv_budget_bytes (--kv-memory-gb)"
    )


def describe_size(question: QuestionTask, scheduler: Scheduler) -> str:
    """Returns why a question can never run."""
    num_free = scheduler.limits.num_pages * PAGE_TOKENS
    return (
        f"the clip's prefix has {question.video.num_tokens} tokens, {scheduler.most_prefix_tokens} fit the memory for "
        f"keys and values, question and answer up to {question.max_tokens} of {num_free}; use fewer frames, a smaller "
        "max_new_tokens, or a larger kv_budget_bytes (--kv-memory-gb)"
    )
