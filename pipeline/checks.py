"""What can be seen to be wrong with a start in its first seconds, before anything is removed or written.

Keeps what a run reads apart from what it writes and removes.

Checks that the answers of an earlier run may stand in the rows of this one.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from framescribe.llava_video.model.checkpoint import Checkpoint, find_checkpoint, find_weight_files
from framescribe.llava_video.model.config import ModelConfig
from framescribe.llava_video.model.prompts import PromptTokenizer
from framescribe.storage.access import Store
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.errors import InputError
from framescribe.storage.journal import OtherRunError, RunRecord, list_done_units, read_run
from framescribe.storage.output import JOURNAL_FOLDER, PLAN_FOLDER, OutputStore, open_output
from framescribe.storage.redaction import strip_credentials
from pipeline.config import RunConfig
from pipeline.start import describe_difference
from schemas.records import WorkUnit
from schemas.tables import TABLES
from transforms.answer_reuse import ReusableRun
from transforms.worker import WORKER

if TYPE_CHECKING:
    import torch

_WITHOUT_FRAMES = {("levels", "summary"), ("levels", "video")}  # asked about texts
_PLACEHOLDER = re.compile(r"\{\w+\}")


class CannotStart(ValueError):
    """The run cannot work with these settings on this machine; nothing was removed or written."""


def check_prompts(config: RunConfig, checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Checks that the recipe's prompts and answers fit the model's context beside a clip of so many frames.

    Raises:
        CannotStart: it does not, however short times and questions are.
        CheckpointError: the tokenizer or the generation's settings are missing or damaged.
    """
    checkpoint.read_json("generation_config.json")
    num_prefix, num_frames = _count_prefix_tokens(config, checkpoint, model), config.sampling.max_frames
    tokenizer = PromptTokenizer(checkpoint, config.engine.prompt_layout)
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


def prepare_model(config: RunConfig, model: ModelConfig) -> str:
    """Checks that this process can load the model, and returns the dtype that it will compute in.

    A model on the hub or in a store is brought to local disk for it; one that is loaded already needs no files.

    Raises:
        CannotStart: no such GPU, no flash attention, or too little memory for keys and values.
        CheckpointError: weights are missing, damaged or cut short, or cannot be fetched.
    """
    from framescribe.llava_video.engine.memory import choose_dtype, find_device

    engine = config.engine
    try:
        device = find_device(engine.device)
    except ValueError as error:
        raise CannotStart(f"--device {engine.device}: {error}") from None
    dtype = choose_dtype(engine.dtype, device)
    if engine.attn_implementation == "flash_attention_2":
        _check_flash_attention(device)
    if not WORKER.has_engine(engine):
        checkpoint = find_checkpoint(engine.model, engine.revision, engine.storage_options)
        find_weight_files(checkpoint)
        if engine.kv_budget_bytes is not None:
            _check_memory(engine.kv_budget_bytes, config, checkpoint, model, dtype)
    return str(dtype).removeprefix("torch.")


def _check_flash_attention(device: torch.device) -> None:
    if device.type != "cuda":
        raise CannotStart(f"--attn-implementation flash_attention_2 needs a GPU, the device is {device}: use sdpa")
    if find_spec("flash_attn") is None:
        raise CannotStart(
            "--attn-implementation flash_attention_2 needs the package flash-attn: pip install 'framescribe[flash]', "
            "or use sdpa"
        )


def _check_memory(
    budget_bytes: int, config: RunConfig, checkpoint: Checkpoint, model: ModelConfig, dtype: torch.dtype
) -> None:
    from framescribe.llava_video.engine.memory import least_kv_bytes

    num_prefix, longest = _count_prefix_tokens(config, checkpoint, model), _longest_answer(config)
    needed = least_kv_bytes(model.language, dtype, num_prefix, longest)
    if budget_bytes < needed:
        raise CannotStart(
            f"--kv-cache-gib {budget_bytes / 2**30:.3g}: {config.sampling.max_frames} frames have {num_prefix} "
            f"tokens and more, an answer up to {longest}; give {math.ceil(needed / 2**20) / 2**10:.3f} or more, or "
            "fewer --num-frames"
        )


def _count_prefix_tokens(config: RunConfig, checkpoint: Checkpoint, model: ModelConfig) -> int:
    """Returns the fewest tokens that a clip's prompt has before the question; 0 where clips may have fewer frames."""
    tokenizer = PromptTokenizer(checkpoint, config.engine.prompt_layout)
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
            yield _Prompt(prompt["id"], _PLACEHOLDER.sub("", text), prompt["max_new_tokens"], has_frames)


def _longest_answer(config: RunConfig) -> int:
    return max(_find_limits(config.recipe.to_dict()), default=0)


def _find_limits(settings: Mapping[str, Any]) -> Iterator[int]:  # Any: JSON values
    for name, value in settings.items():
        if name == "max_new_tokens":
            yield value
        elif isinstance(value, Mapping):
            yield from _find_limits(value)


_MAGIC = re.compile(r"[*?\[]")


def check_inputs_apart(inputs: Sequence[str], reader: Store, output: OutputStore) -> None:
    """Checks that no input lies in a folder that the run writes to, and that none would list what the run wrote.

    The second holds from the first start on: later ones would take the tables for inputs.

    Raises:
        InputError: an input and the output are not apart.
    """
    for uri in inputs:
        location = reader.locate(uri)
        if type(location.fs) is type(output.file_system):
            _check_apart(strip_credentials(uri), _real_path(location.fs, location.path), output)


def _check_apart(shown: str, path: str, output: OutputStore) -> None:
    root = _real_path(output.file_system, output.root)
    magic = _MAGIC.search(path)
    fixed = posixpath.dirname(path[: magic.start()]) if magic else path
    for folder in (*TABLES, JOURNAL_FOLDER):
        if f"{root}/{folder}" in _with_parents(fixed):
            raise InputError(
                f"the input {shown!r} lies in {output.address(folder)}, which this run writes to: choose another "
                "--output"
            )
    written = [f"{root}/{folder}/{folder}-00000-of-00001.parquet" for folder in TABLES]
    if any(_takes_in(path, one) for one in (*written, f"{root}/{PLAN_FOLDER}/000000.parquet")):
        raise InputError(
            f"the input {shown!r} would take in the tables that are written to {output.address('')}: choose an "
            "--output outside of it, or say more closely which files are inputs, for example 'folder/*.mp4'"
        )


def _takes_in(pattern: str, path: str) -> bool:
    """Whether an input means a file, by its own name or by that of a folder above it."""
    places = _with_parents(path)
    return pattern in places or any(map(re.compile(glob_translate(pattern)).match, places))


def _with_parents(path: str) -> list[str]:
    return [path.rstrip("/"), *map(str, PurePosixPath(path).parents)]


def _real_path(file_system: AbstractFileSystem, path: str) -> str:
    return os.path.realpath(path) if isinstance(file_system, LocalFileSystem) else path.rstrip("/")


def find_earlier_run(
    earlier: str, storage_options: StorageOptions, output: OutputStore, run: RunRecord, units: Sequence[WorkUnit]
) -> tuple[ReusableRun, int]:
    """Returns the run whose answers may be taken, and how many of this run's units it has a part of.

    Args:
        earlier: output folder or URI of that run; nothing is written there.
        output, run, units: of this run.

    Raises:
        FileNotFoundError: no run was started there.
        OtherRunError: it is this run's own output, its model or frames were others, or it has none of the units.
    """
    store = open_output(earlier, storage_options)
    _check_other_folder(store, output)
    recorded = read_run(store)
    if recorded is None:
        raise FileNotFoundError(f"no run in {store.address('')}: --reuse-from takes the --output of an earlier run")
    _check_same_answers(store, recorded, run)
    num_units = len({unit.unit_id for unit in units} & {*list_done_units(store)})
    if not num_units:
        raise OtherRunError(
            f"{store.address('')} has none of the {len(units)} units of this run, so no answer of it can be taken: "
            "give the same --input and --clips-per-unit as then, or leave out --reuse-from to ask everything"
        )
    return ReusableRun(str(store.local_path or earlier), recorded.fingerprint, storage_options), num_units


def describe_run(earlier: ReusableRun) -> dict[str, str]:
    """Returns what run.json shall say about the run that answers are taken from."""
    address = open_output(earlier.output, earlier.storage_options).address("")
    return {"output": address, "fingerprint": earlier.fingerprint}


def _check_other_folder(store: OutputStore, output: OutputStore) -> None:
    if _identity(store) == _identity(output):
        raise OtherRunError(
            f"--reuse-from and --output are the same folder, {store.address('')}: the earlier rows stay as they are, "
            "choose another --output for the new ones"
        )


def _identity(store: OutputStore) -> str:
    return store.address("") if store.local_path is None else str(store.local_path.resolve())


def _check_same_answers(store: OutputStore, recorded: RunRecord, run: RunRecord) -> None:
    """Everything but the recipe must be the same: which questions are, each of them tells by itself."""
    either_auto = "auto" in (_dtype(recorded), _dtype(run))  # what it came to, the workers see
    then, now = (_without_recipe(one, drop_dtype=either_auto) for one in (recorded, run))
    if _as_json(then.settings) != _as_json(now.settings):
        raise OtherRunError(
            f"no answer of {store.address('')} can be taken, since other things than the recipe differ (there -> now):"
            + "".join(f"\n  {line}" for line in describe_difference(then, now))
            + "\nGive the same settings as then, or leave out --reuse-from to ask everything."
        )


def _dtype(run: RunRecord) -> object:
    return run.settings.get("model", {}).get("dtype")


def _without_recipe(run: RunRecord, *, drop_dtype: bool) -> RunRecord:
    settings = {name: value for name, value in run.settings.items() if name != "recipe"}
    if drop_dtype:
        settings["model"] = {name: value for name, value in settings.get("model", {}).items() if name != "dtype"}
    return replace(run, settings=settings, prompts={})


def _as_json(settings: Mapping[str, Any]) -> str:  # Any: the settings of other modules
    return json.dumps(settings, sort_keys=True, default=str)
