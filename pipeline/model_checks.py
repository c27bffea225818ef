"""Checks that the model on hand can do what a start asks of it, before anything is removed or written."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from framescribe.llava_video.model.checkpoint import find_checkpoint, find_weight_files
from framescribe.llava_video.model.prompts import PromptTokenizer
from pipeline.config import CannotStart, RunConfig
from pipeline.runners import is_in_process
from pipeline.start import StartPlan
from transforms.worker import WORKER

_WITHOUT_FRAMES = {("levels", "summary"), ("levels", "video")}  # asked about texts
_PLACEHOLDER = re.compile(r"\{\w+\}")


def check_prompts_fit(plan: StartPlan) -> None:
    """Checks that the recipe's prompts and answers fit the model's context beside a clip of so many frames.

    Raises:
        CannotStart: it does not, however short times and questions are.
        CheckpointError: the tokenizer or the generation's settings are missing or damaged.
    """
    config, model = plan.config, plan.model
    plan.checkpoint.read_json("generation_config.json")
    num_prefix, num_frames = _count_prefix_tokens(plan), config.sampling.max_frames
    tokenizer = PromptTokenizer(plan.checkpoint, config.engine.prompt_layout)
    for prompt in _find_prompts(config.recipe.to_dict()):
        num_question = len(tokenizer.video_question(prompt.text))
        room = model.max_length - num_question - prompt.max_new_tokens
        if room < 0:
            raise CannotStart(
                f"the recipe {config.recipe.name!r}: the prompt {prompt.id!r} has {num_question} tokens and more, its "
                f"answer up to {prompt.max_new_tokens}: over the model's context of {model.max_length}, even without "
                "frames. Shorten the prompt, or give a smaller max_new_tokens"
            )
        if prompt.has_frames and num_prefix > room:
            raise CannotStart(
                f"--num-frames {num_frames}: a clip has a prompt of {num_prefix} tokens and more, and the recipe's "
                f"{prompt.id!r} {num_question} and more, with answers up to {prompt.max_new_tokens}: over the model's "
                f"context of {model.max_length}. Give at most about --num-frames {num_frames * room // num_prefix}, "
                f"or a "
                "recipe with a shorter prompt or a smaller max_new_tokens"
            )


def check_model_loads(plan: StartPlan) -> None:
    """Checks that this process can load the model, where it is this process that loads it.

    A model on the hub or in a store is brought to local disk for it; one that is loaded already needs no files.

    Raises:
        CannotStart: no such device, no flash attention, or too little memory for keys and values.
        CheckpointError: weights are missing, damaged or cut short, or cannot be fetched.
    """
    if not is_in_process(plan.request.runner):
        return  # each worker sees for itself
    engine, dtype = plan.config.engine, plan.dtype
    if engine.attn_implementation == "flash_attention_2":
        _check_flash_attention(engine.device)
    if not WORKER.has_engine(engine):
        is_folder = os.path.isabs(plan.checkpoint.name)  # with all its files already
        find_weight_files(
            plan.checkpoint if is_folder else find_checkpoint(engine.model, engine.revision, engine.storage_options)
        )
        if engine.kv_budget_bytes is not None:
            _check_memory(engine.kv_budget_bytes, dtype, plan)


def _check_flash_attention(name: str) -> None:
    from framescribe.llava_video.engine.memory import find_device

    device = find_device(name)
    if device.type != "cuda":
        raise CannotStart(f"--attn-implementation flash_attention_2 needs a GPU, the device is {device}: use sdpa")
    if find_spec("flash_attn") is None:
        raise CannotStart(
            "--attn-implementation flash_attention_2 needs the package flash-attn: pip install 'framescribe[flash]', "
            "or use sdpa"
        )


def _check_memory(budget_bytes: int, dtype: str, plan: StartPlan) -> None:
    import torch

    from framescribe.llava_video.engine.memory import least_kv_bytes

    config = plan.config
    num_prefix, longest = _count_prefix_tokens(plan), _longest_answer(config)
    needed = least_kv_bytes(plan.model.language, getattr(torch, dtype), num_prefix, longest)
    if budget_bytes < needed:
        raise CannotStart(
            f"--kv-cache-gib {budget_bytes / 2**30:.3g}: {config.sampling.max_frames} frames have {num_prefix} "
            f"tokens and more, an answer up to {longest}; give {math.ceil(needed / 2**20) / 2**10:.3f} or more, or "
            "fewer --num-frames"
        )


def _count_prefix_tokens(plan: StartPlan) -> int:
    """Returns the fewest tokens that a clip's prompt has before the question; 0 where clips may have fewer frames."""
    config, model = plan.config, plan.model
    tokenizer = PromptTokenizer(plan.checkpoint, config.engine.prompt_layout)
    if config.sampling.fps is not None or model.add_faster_video:
        return 0
    num_frames = config.sampling.max_frames
    prefix = tokenizer.video_prefix([0.0] * num_frames, 0.0)
    return len(prefix.before_video) + model.num_video_tokens(num_frames) + len(prefix.after_video)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt of a recipe as short as it can get: what is filled in for each clip is left out."""

    id: str
    text: str
    max_new_tokens: int
    has_frames: bool


def _find_prompts(settings: Mapping[str, Any]) -> Iterator[_Prompt]:  # Any: JSON values
    """Yields the prompts of a recipe; one that is asked for each of several types, with each of them."""
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            continue
        prompt = value["prompt"] if isinstance(value.get("prompt"), Mapping) else value
        if not isinstance(prompt.get("prompt"), str):
            continue
        for one in value.get("types") or [{"name": "", "definition": ""}]:
            text = prompt["prompt"].replace("{type}", one["name"]).replace("{definition}", one["definition"])
            has_frames = (settings["recipe"], key) not in _WITHOUT_FRAMES
            yield _Prompt(prompt["id"], _PLACEHOLDER.sub("", text), prompt.get("max_new_tokens", 1), has_frames)


def _longest_answer(config: RunConfig) -> int:
    return max(_find_limits(config.recipe.to_dict()), default=0)


def _find_limits(settings: Mapping[str, Any]) -> Iterator[int]:  # Any: JSON values
    for name, value in settings.items():
        if name == "max_new_tokens":
            yield value
        elif isinstance(value, Mapping):
            yield from _find_limits(value)
