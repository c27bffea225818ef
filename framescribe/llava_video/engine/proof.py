"""The fast paths of an engine prove themselves when it is loaded, on its own weights.

The same short answers are scored with everything plain, then with one fast path more each time: fused attention,
compiled elementwise work, replayed graphs. What fails or disagrees with the plain path is switched off for good, said
in the log and in the engine's `attention_path`. It takes some seconds; where there is nothing fast, none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from framescribe.llava_video.engine.generation import Completion, GenerationConfig
from framescribe.llava_video.engine.runner import FastPath, ModelRunner
from framescribe.llava_video.engine.scheduler import Limits, num_pages_for
from framescribe.llava_video.engine.tasks import QuestionTask, VideoTask
from framescribe.llava_video.model.prompts import VideoPrefix

_log = logging.getLogger(__name__)

# Mean difference of log-probabilities: rounding to bfloat16 gives some hundredths, a wrong kernel one and more.
_MOST_DIFFERENT = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
# Difference of the tower's features, relative to their size.
_MOST_RELATIVE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# More than one chunk of the pool, and answers long enough for a step to be captured and replayed.
_PREFIX_TOKENS, _QUESTION_TOKENS, _ANSWER_TOKENS = 1100, (5, 20, 40), 12
_TOWER_FRAMES = 2


def prove_fast_paths(runner: ModelRunner, limits: Limits) -> None:
    """Switches every fast path of a runner off that fails or disagrees; to be called before anything holds memory."""
    paths = [path for path in FastPath if path in runner.fast_paths]
    if not paths:
        return
    device = runner.model.device
    for path in paths:
        runner.switch(path, on=False)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        scores, features = _score(runner, limits), _encode(runner)
        for path in paths:
            reason = _reason_against(path, runner, limits, scores, features)
            if reason is None:
                _log.info("%s: agrees with the plain path on these weights", path.value)
            else:
                runner.switch(path, on=False)
                runner.unproven.append(path)
                _log.warning("%s: not used, the plain path is: %s", path.value, reason)


def _reason_against(
    path: FastPath, runner: ModelRunner, limits: Limits, scores: Tensor, features: Tensor
) -> str | None:
    """Switches a path on and returns why it may not stay so."""
    dtype, num_replays = runner.model.language.dtype, runner.num_replays
    try:
        runner.switch(path, on=True)
        if path is FastPath.TOWER:
            difference = float((_encode(runner) - features).norm() / features.norm())
            limit, what = _MOST_RELATIVE[dtype], "features of frames, relative to their size"
        else:
            difference = float((_score(runner, limits) - scores).abs().mean())
            limit, what = _MOST_DIFFERENT[dtype], "log-probabilities"
    except (RuntimeError, TypeError, AttributeError) as error:  # what a kernel that does not fit this GPU raises
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    if not difference <= limit:  # NaN is no agreement either
        return f"{what} differ by {difference:.2g}, rounding explains {limit:.2g}"
    if path is FastPath.GRAPHS and runner.num_replays == num_replays:
        return "no step could be captured"
    return None


def _encode(runner: ModelRunner) -> Tensor:
    """Returns the video tokens of drawn frames."""
    size, order = runner.model.config.tower.image_size, np.arange(_TOWER_FRAMES)
    frames = np.random.default_rng(0).integers(0, 256, (_TOWER_FRAMES, size, size, 3), dtype=np.uint8)
    (tokens,) = runner.encode_videos([VideoTask(0, "", "", frames, order, VideoPrefix((), ()), 0)])
    return tokens.float()


def _score(runner: ModelRunner, limits: Limits) -> Tensor:
    """Returns the log-probabilities of drawn answers, by prefilling a drawn prefix, starting questions and decoding."""
    rng, num_ids = np.random.default_rng(0), runner.model.language.num_ids
    num_prefix = min(_PREFIX_TOKENS, max(limits.prefix_tokens // limits.prefix_unit, 1) * limits.prefix_unit)
    text = VideoPrefix(tuple(rng.integers(0, num_ids, num_prefix).tolist()), ())
    video = VideoTask(0, "", "", None, np.empty(0, dtype=np.int64), text, num_prefix)
    questions = _draw_questions(video, rng, num_ids, limits)
    if not questions:
        return torch.tensor([torch.nan])  # not even one fits, so nothing can be proved
    video.prefix = runner.prefill(video, None)
    try:
        for step in (runner.start, *[runner.decode] * (_ANSWER_TOKENS - 1)):
            for question, token_id in zip(questions, step(questions), strict=True):
                question.generated.append(token_id)
    finally:
        video.prefix.release()
    return torch.tensor([score.logprob for question in questions for score in question.scores])


def _draw_questions(video: VideoTask, rng: np.random.Generator, num_ids: int, limits: Limits) -> Sequence[QuestionTask]:
    """Draws as many questions as there are rows and pages for, with the answers that they are given."""
    questions: list[QuestionTask] = []
    free = 0
    for row, length in enumerate(_QUESTION_TOKENS[: limits.max_rows]):
        asked, answer = (rng.integers(0, num_ids, number).tolist() for number in (length, _ANSWER_TOKENS))
        future: Future[Completion] = Future()
        question = QuestionTask(video, asked, GenerationConfig(_ANSWER_TOKENS), 1.0, future, row, forced=tuple(answer))
        question.pages = tuple(range(free, free + num_pages_for(question.max_tokens)))
        free += len(question.pages)
        if free <= limits.num_pages:
            questions.append(question)
    return questions
