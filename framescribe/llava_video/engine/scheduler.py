"""Decides which videos are prefilled and which questions run; knows neither the model nor threads.

A video waits until a question of it waits and its prefix fits the budget of prefix tokens; then it holds that budget
until it is closed, so that later questions find the prefix. A video that is alone need not fit: what was promised may
have shrunk since it came. A question waits until its video is prefilled and a row and all pages it can come to need are
free; so whatever runs can always finish. An answer to be scored takes a row for one step, and no pages. Older videos go
first, and a video or question that does not fit is never overtaken by younger ones of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from framescribe.llava_video.attention.kv_cache import PAGE_TOKENS
from framescribe.llava_video.engine.tasks import QuestionTask, VideoTask

_MOST_HELD = 16
"""Steps that questions wait for company, a quarter of a second on a GPU."""

_RECOVERING = ("prefix_tokens", "max_rows", "prefill_tokens", "start_tokens")
_RECOVERY_STEPS, _MOST_RECOVERY_STEPS = 32, 4096
"""Steps without a fault before limits rise; after each fault twice as many: a shortage that stays costs little."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits at once.

    Attributes:
        prefix_tokens: tokens of all prefilled prefixes.
        num_pages: pages for questions and answers.
        max_rows: questions that run.
        prefill_tokens: prefix tokens prefilled between two decoding steps, unless one video alone has more.
        start_tokens: question tokens started between two decoding steps, unless one question alone has more.
        least_start_tokens: while others run, questions wait some steps for more, until they have so many tokens.
        prefix_unit: prefixes take memory in multiples of so many tokens.
    """

    prefix_tokens: int
    num_pages: int
    max_rows: int
    prefill_tokens: int
    start_tokens: int = 4096
    least_start_tokens: int = 0
    prefix_unit: int = 1

    def tokens_held(self, video: VideoTask) -> int:
        """Returns the prefix tokens that a video takes from the budget."""
        return -(-video.num_tokens // self.prefix_unit) * self.prefix_unit


class Scheduler:
    """The waiting and running tasks, and what is free.

    Attributes:
        limits: what is promised; shrinks when memory runs out, and recovers.
        most_prefix_tokens: what a video may have that is alone; shrinks only with the pool.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = self._planned = limits
        self._steps_to_recovery, self._recovery_steps = 0, _RECOVERY_STEPS
        self.most_prefix_tokens = limits.prefix_tokens
        self.videos: list[VideoTask] = []
        self.running: list[QuestionTask] = []
        self._used_prefix_tokens = 0
        self._free_pages = list(range(limits.num_pages))[::-1]  # low pages first
        self._free_rows = list(range(limits.max_rows))
        self._num_held = 0

    @property
    def used_prefix_tokens(self) -> int:
        """Prefix tokens held by prefilled videos."""
        return self._used_prefix_tokens

    @property
    def num_free_pages(self) -> int:
        """Pages that no question holds."""
        return len(self._free_pages)

    @property
    def has_work(self) -> bool:
        """Whether any question waits or runs."""
        return bool(self.running) or any(video.waiting for video in self.videos)

    @property
    def has_unprefilled(self) -> bool:
        """Whether a video with a waiting question has no prefix yet."""
        return any(video.prefix is None and video.waiting for video in self.videos)

    def add_video(self, video: VideoTask) -> None:
        """Queues a video; it is prefilled once a question to it waits, unless it has its prefix already."""
        self.videos.append(video)
        self.videos.sort(key=lambda task: task.order)

    @property
    def largest_prefix(self) -> int:
        """Prefix tokens that the largest open video takes."""
        return max((self.limits.tokens_held(video) for video in self.videos), default=0)

    def lower_limits(self, **limits: int) -> None:
        """Promises less from now on; what runs stays. The sooner after a rise, the longer until the next."""
        self.limits = replace(self.limits, **limits)
        self._recovery_steps = min(2 * self._recovery_steps, _MOST_RECOVERY_STEPS)
        self._steps_to_recovery = self._recovery_steps

    def count_step(self) -> None:
        """Counts a step that memory sufficed for; after enough of them, what was lowered rises by a half."""
        self._steps_to_recovery -= 1
        if self._steps_to_recovery > 0 or self.limits == self._most_limits():
            return
        self._steps_to_recovery = self._recovery_steps
        most = self._most_limits()
        raised = {name: _raise(getattr(self.limits, name), getattr(most, name)) for name in _RECOVERING}
        self.limits = replace(self.limits, **raised)
        if self.limits == most:
            self._recovery_steps = _RECOVERY_STEPS

    def _most_limits(self) -> Limits:
        return replace(self._planned, prefix_tokens=min(self._planned.prefix_tokens, self.most_prefix_tokens))

    def can_run(self, question: QuestionTask) -> bool:
        """Whether a question and its video fit when they are alone."""
        fits = question.video.prefix is not None or self.limits.tokens_held(question.video) <= self.most_prefix_tokens
        return fits and num_pages_for(question.max_tokens) <= self.limits.num_pages

    def add_question(self, question: QuestionTask) -> None:
        """Queues a question to its video."""
        question.video.waiting.append(question)

    def close_video(self, video: VideoTask) -> list[QuestionTask]:
        """Frees a video once its running questions are done; returns the waiting ones, which will never run."""
        video.is_closed = True
        dropped, video.waiting = video.waiting, []
        self._free_if_idle(video)
        return dropped

    def next_videos(self) -> list[VideoTask]:
        """Takes the videos to prefill now; their budget is reserved."""
        chosen: list[VideoTask] = []
        num_tokens = 0
        for video in self.videos:
            if video.prefix is not None or not video.waiting:
                continue
            held = self.limits.tokens_held(video)
            budget = 0 if video.needs_all else self.limits.prefix_tokens
            fits_budget = not self._used_prefix_tokens or self._used_prefix_tokens + held <= budget
            fits_step = not chosen or num_tokens + video.num_tokens <= self.limits.prefill_tokens
            if not (fits_budget and fits_step):
                break
            chosen.append(video)
            num_tokens += video.num_tokens
            self._used_prefix_tokens += held
        return chosen

    def requeue(self, videos: list[VideoTask]) -> None:
        """Undoes `next_videos` for videos that could not be prefilled after all."""
        self._used_prefix_tokens -= sum(map(self.limits.tokens_held, videos))

    def next_questions(self) -> list[QuestionTask]:
        """Takes the questions that start now, with a row and pages each, sorted by video."""
        chosen: list[QuestionTask] = []
        num_tokens = 0
        if self._waits_for_more():
            return chosen
        for video in self.videos:
            while video.prefix is not None and video.waiting:
                question = video.waiting[0]
                num_pages = num_pages_for(question.max_tokens)
                num_tokens += len(question.token_ids)
                fits_start = not chosen or num_tokens <= self.limits.start_tokens
                fits_rows = len(self.running) < self.limits.max_rows and num_pages <= len(self._free_pages)
                if not (fits_start and fits_rows):
                    return chosen
                self._start(question, num_pages)
                chosen.append(question)
        return chosen

    def _waits_for_more(self) -> bool:
        """Whether too little waits for a start to pay, which on a GPU takes as long for one question as for many."""
        ready = [question for video in self.videos if video.prefix is not None for question in video.waiting]
        has_enough = sum(len(question.token_ids) for question in ready) >= self.limits.least_start_tokens
        if not (ready and self.running) or has_enough or self._num_held >= _MOST_HELD:
            self._num_held = 0
            return False
        self._num_held += 1
        return True

    def finish(self, question: QuestionTask) -> None:
        """Takes a question out of the running batch and frees its row and pages."""
        self.running.remove(question)
        self._free_rows.append(question.row)
        self._free_pages.extend(question.pages)
        question.row, question.pages = -1, ()
        question.video.num_running -= 1
        self._free_if_idle(question.video)

    def preempt(self, questions: list[QuestionTask]) -> None:
        """Returns running questions to the front of the queue, to be answered from their beginning again."""
        for question in reversed(questions):
            was_closed, question.video.is_closed = question.video.is_closed, False
            self.finish(question)
            question.video.is_closed = was_closed
            question.generated, question.scores = [], []
            question.video.waiting.insert(0, question)

    def _start(self, question: QuestionTask, num_pages: int) -> None:
        question.video.waiting.pop(0)
        question.video.num_running += 1
        question.row = self._free_rows.pop()
        question.pages = tuple(self._free_pages.pop() for _ in range(num_pages))
        self.running.append(question)
        self.running.sort(key=lambda task: task.video.order)

    def _free_if_idle(self, video: VideoTask) -> None:
        if not video.is_closed or video.num_running or video.waiting or video not in self.videos:
            return
        self.videos.remove(video)
        if video.prefix is not None:
            self._used_prefix_tokens -= self.limits.tokens_held(video)
            video.prefix.release()
            video.prefix = None


def _raise(lowered: int, most: int) -> int:
    return min(most, lowered + max(1, lowered // 2))


def num_pages_for(num_tokens: int) -> int:
    """Returns how many pages hold that many suffix tokens."""
    return -(-num_tokens // PAGE_TOKENS)
