"""The engine: one thread owns the model, any number of threads ask.

All clips in flight share the running batch (continuous batching), all questions of a clip share its prefilled prefix.
`docs/engine.md` explains how with one picture.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType

import numpy as np

from framescribe.digests import digest_frames
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.generation import Completion, GenerationConfig, Score
from framescribe.llava_video.engine.memory import (
    choose_device,
    choose_dtype,
    choose_layer_devices,
    is_compiled,
    name_device,
    plan_memory,
)
from framescribe.llava_video.engine.proof import prove_fast_paths
from framescribe.llava_video.engine.runner import ModelRunner
from framescribe.llava_video.engine.scheduler import Scheduler
from framescribe.llava_video.engine.stats import EngineStats
from framescribe.llava_video.engine.tasks import QuestionTask, StopRule, VideoTask, read_generation_defaults
from framescribe.llava_video.engine.thread import EngineThread
from framescribe.llava_video.errors import EngineClosed, PromptTooLong
from framescribe.llava_video.model.checkpoint import Checkpoint, find_checkpoint
from framescribe.llava_video.model.config import read_model_config
from framescribe.llava_video.model.model import LlavaVideoModel, check_faster_video, load_model
from framescribe.llava_video.model.prompts import PromptTokenizer, VideoPrefix
from framescribe.llava_video.model.vision import find_unique_frames, resize_frames
from framescribe.llava_video.model.weights import read_weights


class Engine:
    """A loaded model that answers questions about videos, many at once.

    Attributes:
        checkpoint: where the model came from and its revision.
        model: the model itself, for those who want its intermediate results.
        device_name: which device computes, for example `NVIDIA H100 80GB HBM3` or `cpu (AVX2)`.
        attention_path: which code attends, which fast paths are in use, and which did not prove themselves.
        stats: running totals; read from any thread.
        thread: what runs the model, with its runner and scheduler: to be measured, not to be changed.
        generation_defaults: what the checkpoint says about generation.
    """

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, model: LlavaVideoModel, tokenizer: PromptTokenizer
    ) -> None:
        self.config, self.checkpoint, self.model = config, checkpoint, model
        self.stats = EngineStats()
        self.tokenizer = tokenizer
        self.generation_defaults = read_generation_defaults(checkpoint)
        memory = plan_memory(config, model)
        self.device_name = name_device(model.device)
        runner = ModelRunner(
            model,
            memory.pages,
            memory.limits.max_rows,
            memory.vision_batch_frames,
            config.attn_implementation,
            memory.pool,
            is_compiled=is_compiled(config, model.language.layer_devices),
        )
        prove_fast_paths(runner, memory.limits)
        self.attention_path = runner.attention_path
        self._orders = itertools.count()
        self._text_only = self._make_text_task()
        runner.prefill_text(self._text_only)
        scheduler = Scheduler(memory.limits)
        scheduler.add_video(self._text_only)
        rule = StopRule(self.generation_defaults.eos_token_ids)
        self.thread = EngineThread(runner, scheduler, rule, self.tokenizer, self.stats)
        self._closed = threading.Event()

    @classmethod
    def load(cls, config: EngineConfig) -> Engine:
        """Loads a checkpoint and starts the engine's thread.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or not implemented; the message says what to do.
        """
        checkpoint = find_checkpoint(config.model, config.revision, config.storage_options)
        model_config = read_model_config(checkpoint, config.config_overrides)
        tokenizer = PromptTokenizer(checkpoint, config.prompt_layout)
        device = choose_device(config.device)
        num_ids = min(tokenizer.num_ids + model_config.adds_im_patch_token, model_config.language.vocab_size)
        devices = choose_layer_devices(config.device_map, device, model_config.language.num_hidden_layers)
        dtype = choose_dtype(config.dtype, device)
        check_faster_video(checkpoint, model_config)
        read = partial(read_weights, checkpoint)
        model = load_model(read, model_config, num_ids, devices, dtype, config.attn_implementation)
        return cls(config, checkpoint, model, tokenizer)

    def open(
        self,
        frames: np.ndarray,
        timestamps_s: Sequence[float],
        duration_s: float,
        *,
        clip_id: str = "",
        on_encoded: Callable[[], None] | None = None,
    ) -> Video:
        """Takes a clip in; it is encoded and prefilled once, when its first question's turn comes.

        It holds memory from then until it is closed. Where more clips are open than fit, the later ones are answered
        once earlier ones are closed: close each when its answers are there, not all at the end.

        Args:
            frames: uint8 [T, H, W, 3] RGB; resized as the reference does unless they have the model's size.
            timestamps_s: [T] seconds of each frame, as the prompt states them.
            duration_s: seconds the clip lasts, as the prompt states it.
            clip_id: goes into every completion.
            on_encoded: called from the engine's thread once the frames are no longer held, or never will be needed.

        Raises:
            ValueError: frames and times do not fit together.
            PromptTooLong: the frames alone exceed the model's context.
        """
        _check_frames(frames, timestamps_s)
        unique, frame_order = find_unique_frames(resize_frames(frames, self.model.config.tower.image_size))
        text = self.tokenizer.video_prefix(timestamps_s, duration_s)
        num_tokens = len(text.before_video) + self.model.num_video_tokens(len(frames)) + len(text.after_video)
        self._check_length(num_tokens, 0, 1)
        task = VideoTask(
            order=next(self._orders),
            clip_id=clip_id,
            frames_digest=digest_frames(frames),
            frames=unique,
            frame_order=frame_order,
            text=text,
            num_tokens=num_tokens,
            on_encoded=on_encoded,
        )
        self.thread.add_video(task)
        return Video(self, task)

    def ask(self, question: str, generation: GenerationConfig | None = None) -> Future[Completion]:
        """Asks without a video: the prompt holds the system text and the question only."""
        return self._ask(self._text_only, self.tokenizer.text_question(question), generation)

    def score(self, question: str, answer: str) -> Future[Score]:
        """Finds out how likely an answer is without a video; as `Video.score`."""
        return self._score(self._text_only, self.tokenizer.text_question(question), answer)

    def score_choices(self, question: str, choices: Sequence[str]) -> Future[Score]:
        """Finds out how likely each choice is without a video; as `Video.score_choices`."""
        return self._score_choices(self._text_only, self.tokenizer.text_question(question), choices)

    def close(self) -> None:
        """Stops the thread; unanswered questions raise `EngineClosed`. The memory goes with the last reference."""
        self._closed.set()
        self.thread.stop()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self,
        video: VideoTask,
        token_ids: list[int],
        generation: GenerationConfig | None,
        forced: tuple[int, ...] = (),
    ) -> Future[Completion]:
        generation = generation or GenerationConfig()
        self._check_length(video.num_tokens, len(token_ids), generation.max_new_tokens)
        penalty = generation.repetition_penalty
        resolved = self.generation_defaults.repetition_penalty if penalty is None else penalty
        future: Future[Completion] = Future()
        self._send(QuestionTask(video, token_ids, generation, resolved, future, forced=forced))
        return future

    def _score(self, video: VideoTask, question_ids: list[int], answer: str) -> Future[Score]:
        answer_ids = self.tokenizer.answer(answer)
        if not answer_ids:
            raise ValueError("the answer is empty; wanted one with at least one token")
        return self._find_logprobs(video, question_ids + answer_ids[:-1], tuple((one,) for one in answer_ids))

    def _score_choices(self, video: VideoTask, question_ids: list[int], choices: Sequence[str]) -> Future[Score]:
        first_ids = tuple(next(iter(self.tokenizer.answer(choice)), -1) for choice in choices)
        if not first_ids or -1 in first_ids or len(set(first_ids)) < len(first_ids):
            raise ValueError(f"the choices are {list(choices)}, wanted some that begin with different tokens")
        return self._find_logprobs(video, question_ids, (first_ids,))

    def _find_logprobs(
        self, video: VideoTask, token_ids: list[int], wanted: tuple[tuple[int, ...], ...]
    ) -> Future[Score]:
        future: Future[Score] = Future()
        task = QuestionTask(video, token_ids, GenerationConfig(1), 1.0, future, wanted=wanted)
        self._check_length(video.num_tokens, len(token_ids) - len(wanted) + 1, len(wanted))
        self._send(task)
        return future

    def _send(self, question: QuestionTask) -> None:
        if self._closed.is_set():
            raise EngineClosed("the engine is closed; load another to ask")
        self.thread.add_question(question)

    def _check_length(self, num_prefix: int, num_question: int, num_new: int) -> None:
        limit = self.model.config.max_length
        if num_prefix + num_question + num_new > limit:
            raise PromptTooLong(
                f"video and system text have {num_prefix} tokens, the question {num_question}, the answer up to "
                f"{num_new}: {num_prefix + num_question + num_new} in all, over the model's {limit}. "
                "Use fewer frames or a smaller max_new_tokens; prompts are never truncated"
            )

    def _make_text_task(self) -> VideoTask:
        """Returns the system text that all questions without a video share."""
        ids = tuple(self.tokenizer.text_prefix())
        nothing = np.empty(0, dtype=np.int64)
        return VideoTask(next(self._orders), "", "", None, nothing, VideoPrefix(ids, ()), len(ids))


class Video:
    """An open clip: ask it anything, any number of times, from any thread; close it when done."""

    def __init__(self, engine: Engine, task: VideoTask) -> None:
        self._engine, self._task = engine, task

    @property
    def frames_digest(self) -> str:
        """SHA-256 of the frames as they were given; every completion carries it."""
        return self._task.frames_digest

    def ask(self, question: str, generation: GenerationConfig | None = None) -> Future[Completion]:
        """Asks one question; cancelling the future takes it out of the batch.

        Raises:
            PromptTooLong: prompt and answer would not fit the model's context.
            EngineClosed: the video or the engine was closed.
        """
        return self._engine._ask(self._task, self._read_question(question), generation)

    def score(self, question: str, answer: str) -> Future[Score]:
        """Finds out how likely the model would give an answer, by teacher forcing: one prefill, no decoding.

        The end of the turn is not scored. Question and answer run on top of the clip's prefix, with those of other
        clips; nothing of them is kept. Several hundred may wait at once.

        Returns:
            The log-probability of each of the answer's tokens.

        Raises:
            ValueError: the answer is empty.
            PromptTooLong, EngineClosed: as `ask`.
        """
        return self._engine._score(self._task, self._read_question(question), answer)

    def score_choices(self, question: str, choices: Sequence[str]) -> Future[Score]:
        """Finds out how likely each choice, such as the letters A to D, is to come right after a question.

        Returns:
            The log-probability of the first token of each choice, in their order; they are not made to add up to one.

        Raises:
            ValueError: there is no choice, an empty one, or two that begin with the same token.
            PromptTooLong, EngineClosed: as `ask`.
        """
        return self._engine._score_choices(self._task, self._read_question(question), choices)

    def force(self, question: str, answer_ids: Sequence[int]) -> Future[Completion]:
        """Gives an answer as it is told: the very steps of `ask`, but each goes on with the given id.

        So fast paths are compared with a reference, token by token; `score` is the fast way to log-probabilities.

        Returns:
            A completion of these ids, up to the first that ends a turn, with `scores`.

        Raises:
            PromptTooLong, EngineClosed: as `ask`.
        """
        generation, token_ids = GenerationConfig(len(answer_ids)), self._read_question(question)
        return self._engine._ask(self._task, token_ids, generation, tuple(answer_ids))

    def close(self) -> None:
        """Frees the clip's keys and values once its running questions are answered; waiting ones are cancelled."""
        self._engine.thread.close_video(self._task)

    def _read_question(self, question: str) -> list[int]:
        if self._task.is_closed:
            raise EngineClosed("the video is closed; open it again to ask")
        return self._engine.tokenizer.video_question(question)

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_frames(frames: np.ndarray, timestamps_s: Sequence[float]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, wanted uint8 [T, H, W, 3] with T at least 1")
    if len(timestamps_s) != len(frames):
        raise ValueError(f"got {len(frames)} frames and {len(timestamps_s)} timestamps, wanted one for each frame")
