"""How far the engine's answers agree with the model card's loop's, token by token and in log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.model_card_loop import ModelCardLoop
from benchmarks.workload import MadeClip, Workload
from framescribe.llava_video.attention.cascade import attend_suffix, merge_attention
from framescribe.llava_video.attention.kernels import choose_kernel
from framescribe.llava_video.attention.kv_cache import CHUNK_TOKENS, PrefixPool, SuffixPages
from framescribe.llava_video.engine.engine import Engine
from framescribe.llava_video.engine.runner import ModelRunner
from framescribe.llava_video.engine.tasks import VideoTask
from framescribe.llava_video.model.vision import find_unique_frames, resize_frames

_SCORED_ANSWERS = 3


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a change of batch shape, and so of rounding, did to the answers.

    Attributes:
        identical_fraction: answers with the very same ids.
        mean_equal_prefix: fraction of an answer's ids before the first that differs.
        largest_logprob_difference: along the model card's loop's own ids, over the first answers.
    """

    answers: int
    identical_fraction: float
    mean_equal_prefix: float
    largest_logprob_difference: float


def compare_answers(
    engine: Engine, workload: Workload, expected: Sequence[list[int]], answers: Sequence[list[int]]
) -> Agreement:
    """Compares the answers of both sides; the model card's loop may have run over fewer clips."""
    pairs = list(zip(expected, answers, strict=False))
    fractions = [_equal_prefix(theirs, ours) / len(theirs) for theirs, ours in pairs]
    differences = [
        _logprob_difference(engine, workload.clips[0], question, ids)
        for (question, _), ids in zip(workload.questions[:_SCORED_ANSWERS], expected, strict=False)
    ]
    identical = sum(theirs == ours for theirs, ours in pairs) / len(pairs)
    return Agreement(len(pairs), identical, sum(fractions) / len(fractions), max(differences))


def _equal_prefix(theirs: list[int], ours: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))


@torch.inference_mode()
def _logprob_difference(engine: Engine, clip: MadeClip, question: str, ids: list[int]) -> float:
    """Returns the largest difference of the log-probabilities that both sides give to the same ids."""
    theirs, ours = _score_by_transformers(engine, clip, question, ids), _score_by_engine(engine, clip, question, ids)
    target = torch.tensor(ids, device=theirs.device)[:, None]
    return float((theirs.log_softmax(-1) - ours.log_softmax(-1)).gather(1, target).abs().max())


def _score_by_transformers(engine: Engine, clip: MadeClip, question: str, ids: list[int]) -> Tensor:
    loop = ModelCardLoop(engine)
    prompt = loop.embed(clip.frames, clip.timestamps_s, clip.duration_s, question)
    module = engine.model.language.module
    answer = module.model.embed_tokens(torch.tensor(ids[:-1], dtype=torch.long, device=prompt.device))
    output = module(inputs_embeds=torch.cat([prompt, answer])[None], logits_to_keep=len(ids))
    return output.logits[0].float()


def _score_by_engine(engine: Engine, clip: MadeClip, question: str, ids: list[int]) -> Tensor:
    """Scores with the engine's own steps: a prefilled prefix, and the rest on top of it by cascade attention."""
    language = engine.model.language
    heads, width = engine.model.config.language.num_key_value_heads, engine.model.config.language.head_dim
    pages = SuffixPages(1, heads, width, language.layer_devices, language.dtype)
    unique, order = find_unique_frames(resize_frames(clip.frames, engine.model.config.tower.image_size))
    text = engine.tokenizer.video_prefix(clip.timestamps_s, clip.duration_s)
    num_tokens = len(text.before_video) + engine.model.num_video_tokens(len(clip.frames)) + len(text.after_video)
    task = VideoTask(0, "", "", unique, np.asarray(order), text, num_tokens)
    pool = None
    if engine.model.device.type == "cuda":  # through the kernel that its decoding steps use
        kernel = choose_kernel(engine.model.device, language.dtype, width)
        num_chunks = -(-num_tokens // CHUNK_TOKENS)
        pool = PrefixPool(num_chunks, CHUNK_TOKENS, heads, width, language.layer_devices, language.dtype, kernel)
    runner = ModelRunner(engine.model, pages, 1, len(clip.frames), engine.config.attn_implementation, pool)
    prefix = runner.prefill(task, runner.encode_videos([task])[0])

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        own = attend_suffix(queries, keys, values)
        return merge_attention(*own, *prefix.attend(layer, queries))

    suffix = torch.tensor([*engine.tokenizer.video_question(question), *ids[:-1]], device=engine.model.device)
    positions = task.num_tokens + torch.arange(len(suffix), device=suffix.device)
    return language.logits(language.forward(language.embed(suffix), positions, attend)[-len(ids) :])
