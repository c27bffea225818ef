"""The thread that owns the model: it takes videos and questions in, steps, and hands answers out.

A question ends with its answer, with an error that says what to do, or with notice that it was cancelled.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress

from framescribe.llava_video.attention.kv_cache import PAGE_TOKENS
from framescribe.llava_video.engine.generation import Completion, FinishReason, Score
from framescribe.llava_video.engine.oom_recovery import evict_half, is_memory_fault, recover_prefill
from framescribe.llava_video.engine.runner import ModelRunner
from framescribe.llava_video.engine.scheduler import Scheduler
from framescribe.llava_video.engine.stats import EngineStats
from framescribe.llava_video.engine.tasks import QuestionTask, StopRule, VideoTask
from framescribe.llava_video.errors import ClipTooLarge, EngineBroken, EngineClosed
from framescribe.llava_video.model.prompts import PromptTokenizer

IDLE_S = 0.05

MOST_IDLE = 12_000
"""Ten minutes. Counted, not timed: in a process that was stopped, those who will close their clips were stopped too."""

_SWITCH_S = 5e-4
"""Python lets a busy thread keep the interpreter for 5 ms at a time, as long as a whole step of decoding takes."""


class EngineThread:
    """Runs the engine's loop; every public method may be called from any thread.

    Attributes:
        runner, scheduler: what computes, and what decides what is next; only the thread itself may use them.
    """

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, rule: StopRule, tokenizer: PromptTokenizer, stats: EngineStats
    ) -> None:
        self.runner, self.scheduler, self._rule = runner, scheduler, rule
        self._tokenizer, self._stats = tokenizer, stats
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._has_ended = False
        self._cause: BaseException | None = None
        self._num_idle = 0
        # Each step asks for the interpreter some times, and waits this long where another thread is busy in it.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        self._thread = threading.Thread(target=self._run, name="llava-video-engine", daemon=True)
        self._thread.start()

    def add_video(self, video: VideoTask) -> None:
        """Queues a video."""
        self.send(lambda: self.scheduler.add_video(video))

    def add_question(self, question: QuestionTask) -> None:
        """Queues a question; its future gets the answer or the reason why there is none.

        Raises:
            EngineBroken: the device failed earlier.
            EngineClosed: the engine was closed.
        """
        self.send(lambda: self._admit(question))

    def close_video(self, video: VideoTask) -> None:
        """Frees a video when its running questions are done."""
        video.is_closed = True
        with self._lock:
            if not self._has_ended:
                self._inbox.put(lambda: self._close_video(video))

    def stop(self) -> None:
        """Ends the thread; questions not yet answered raise `EngineClosed`."""
        self._stopping.set()
        self._inbox.put(lambda: None)
        self._thread.join()

    def send(self, command: Callable[[], None]) -> None:
        """Runs a command on this thread, between two steps.

        Raises:
            as `add_question`.
        """
        with self._lock:
            if self._has_ended:
                raise describe_end(self._cause)
            self._inbox.put(command)

    def _run(self) -> None:
        try:
            self.runner.bind_thread()
            while not self._stopping.is_set():
                self._read_inbox()
                if self._step():
                    self._num_idle = 0
                elif self.scheduler.has_work:
                    self._wait_for_memory()
        finally:
            # Whatever ends the loop is no single clip's fault: a lost device, or a bug. Nobody may wait for ever.
            self._cause = sys.exc_info()[1]
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._has_ended = True
        while not self._inbox.empty():
            self._inbox.get()()
        waiting = [question for video in self.scheduler.videos for question in video.waiting]
        give_error([*self.scheduler.running, *waiting], describe_end(self._cause))
        for video in self.scheduler.videos:
            video.release_frames()

    def _read_inbox(self) -> None:
        if not self.scheduler.has_work:
            with self._stats.timed("waiting_s"):
                self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _step(self) -> bool:
        """Prefills, starts and decodes what can be; returns whether anything could."""
        with self._stats.kept_waiting():
            self._drop_cancelled()
            videos = self.scheduler.next_videos()
        if videos:
            self._prefill(videos)
        elif self.scheduler.has_unprefilled:
            self._stats.memory_waits += 1
        questions = self.scheduler.next_questions()
        if questions:
            self._start(questions)
        has_moved = bool(videos or questions or self.scheduler.running)
        if self.scheduler.running:
            self._decode()
        return has_moved

    def _wait_for_memory(self) -> None:
        """Waits for a clip to be closed; when none is for minutes, fails one that waits, or all might wait for ever."""
        self._num_idle += 1
        with self._stats.timed("waiting_s"), suppress(queue.Empty):
            self._inbox.get(timeout=IDLE_S)()
        stuck = next((video for video in self.scheduler.videos if video.prefix is None and video.waiting), None)
        if stuck is not None and self._num_idle > MOST_IDLE:
            failed, stuck.waiting, self._num_idle = stuck.waiting, [], 0
            give_error(failed, ClipTooLarge(describe_wait(self.scheduler, IDLE_S * MOST_IDLE)))

    def _prefill(self, videos: list[VideoTask]) -> None:
        seen = [video for video in videos if video.frames is not None]
        try:
            with self._stats.timed("encode_s"):
                encoded = self.runner.encode_videos(seen) if seen else []
            tokens = dict(zip(map(id, seen), encoded, strict=True))
            for video in videos:
                with self._stats.timed("prefill_s"):
                    video.prefix = self.runner.prefill(video, tokens.get(id(video)))
                self._count_prefill(video)
            return
        except RuntimeError as error:
            fault = self._read_fault(error)
        # Not in the handler: there the error still holds all tensors of the step.
        self._undo_fault()
        give_error(recover_prefill(self.scheduler, videos, self.runner.shrink_prefixes), fault)

    def _count_prefill(self, video: VideoTask) -> None:
        assert video.prefix is not None, "just prefilled"
        self._stats.prefilled_prefixes += 1
        self._stats.prefilled_tokens += video.num_tokens
        self._stats.hold_prefix(video.prefix.size_bytes)
        if video.frames is not None:
            self._stats.encoded_clips += 1
            self._stats.encoded_frames += len(video.frames)
        video.release_frames()

    def _start(self, questions: list[QuestionTask]) -> None:
        chosen = self._run_rows(self.runner.start, "question_s", questions)
        if chosen is None:
            return
        self._stats.questions += len(questions)
        self._stats.question_tokens += sum(len(question.token_ids) for question in questions)
        for question in [question for question in questions if question.wanted]:
            self._finish(question)
            self._stats.scores += 1
            give_answer(question, read_score(question))
        self._extend([question for question in questions if not question.wanted], chosen)

    def _decode(self) -> None:
        rows = list(self.scheduler.running)
        chosen = self._run_rows(self.runner.decode, "decode_s", rows)
        if chosen is None:
            return
        self._stats.decode_steps += 1
        self.scheduler.count_step()
        self._extend(rows, chosen)

    def _run_rows(
        self, step: Callable[[list[QuestionTask]], list[int]], timer: str, rows: list[QuestionTask]
    ) -> list[int] | None:
        """Runs a step over rows; returns None where memory ran out and the step was undone."""
        try:
            with self._stats.timed(timer):
                return step(rows)
        except RuntimeError as error:
            fault = self._read_fault(error)
        self._undo_fault()
        failed = evict_half(self.scheduler)
        for question in failed:
            self._finish(question)
        give_error(failed, fault)
        return None

    def _read_fault(self, error: RuntimeError) -> ClipTooLarge:
        """Returns what a clip that is alone fails with; whatever is not about memory is raised again."""
        if not is_memory_fault(error):
            raise error
        return ClipTooLarge(f"out of memory with nothing beside it: {error}")

    def _undo_fault(self) -> None:
        self._stats.oom_recoveries += 1
        self.runner.release_cached()

    def _extend(self, questions: list[QuestionTask], chosen: list[int]) -> None:
        self._stats.generated_tokens += len(chosen)
        with self._stats.kept_waiting():
            for question, token_id in zip(questions, chosen, strict=True):
                question.generated.append(token_id)
                reason = self._rule.finish_reason(question)
                if reason is not None:
                    self._finish(question)
                    give_answer(question, self._complete(question, reason))

    def _complete(self, question: QuestionTask, reason: FinishReason) -> Completion:
        return Completion(
            text=self._tokenizer.decode(question.generated),
            token_ids=tuple(question.generated),
            finish_reason=reason,
            num_prompt_tokens=question.num_prompt_tokens,
            clip_id=question.video.clip_id,
            frames_digest=question.video.frames_digest,
            scores=tuple(question.scores),
        )

    def _admit(self, question: QuestionTask) -> None:
        """Queues a question, or refuses it at once when it can never run."""
        if question.video.is_closed:
            give_error([question], EngineClosed("the video was closed before the question was answered"))
        elif self.scheduler.can_run(question):
            self.scheduler.add_question(question)
        else:
            give_error([question], ClipTooLarge(describe_size(question, self.scheduler)))

    def _finish(self, question: QuestionTask) -> None:
        prefix = question.video.prefix
        self.scheduler.finish(question)
        if prefix is not None and question.video.prefix is None:
            self._stats.hold_prefix(-prefix.size_bytes)

    def _close_video(self, video: VideoTask) -> None:
        prefix = video.prefix
        for question in self.scheduler.close_video(video):
            question.future.cancel()
            end_cancelled(question)
        if prefix is not None and video.prefix is None:
            self._stats.hold_prefix(-prefix.size_bytes)
        video.release_frames()

    def _drop_cancelled(self) -> None:
        for question in [q for q in self.scheduler.running if q.future.cancelled()]:
            self._finish(question)
            end_cancelled(question)
        for video in list(self.scheduler.videos):
            for question in [q for q in video.waiting if q.future.cancelled()]:
                video.waiting.remove(question)
                end_cancelled(question)
            if video.is_closed and not video.waiting:
                self._close_video(video)


def read_score(question: QuestionTask) -> Score:
    """Returns the log-probabilities that a start has left with its question."""
    return Score(
        token_ids=tuple(token_id for ids in question.wanted for token_id in ids),
        logprobs=tuple(question.logprobs),
        num_prompt_tokens=question.num_prompt_tokens,
        clip_id=question.video.clip_id,
        frames_digest=question.video.frames_digest,
    )


def give_answer(question: QuestionTask, answer: Completion | Score) -> None:
    """Hands an answer out, unless the question was cancelled meanwhile."""
    try:
        question.future.set_result(answer)
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
        "when its answers are there, or give a larger kv_budget_bytes (--kv-cache-gib)"
    )


def describe_size(question: QuestionTask, scheduler: Scheduler) -> str:
    """Returns why a question can never run."""
    num_free = scheduler.limits.num_pages * PAGE_TOKENS
    return (
        f"the clip's prefix has {question.video.num_tokens} tokens, {scheduler.most_prefix_tokens} fit the memory for "
        f"keys and values, question and answer up to {question.max_tokens} of {num_free}; use fewer frames, a smaller "
        "max_new_tokens, or a larger kv_budget_bytes (--kv-cache-gib)"
    )
