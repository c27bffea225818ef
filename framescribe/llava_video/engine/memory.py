"""Which device and dtype the model takes, and how the device's memory is divided among keys and values."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from framescribe.llava_video.attention.kernels import choose_kernel, choose_paged
from framescribe.llava_video.attention.kv_cache import (
    CHUNK_TOKENS,
    PAGE_TOKENS,
    PrefixPool,
    SuffixPages,
    bytes_per_token,
)
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.scheduler import Limits
from framescribe.llava_video.model.config import LanguageConfig
from framescribe.llava_video.model.model import LlavaVideoModel

# Left free on a GPU: a 14k-token prefill of the 7B needs about 3 GB, a tower batch of 64 frames 2 GB, CUDA graphs 2 GB.
_ACTIVATION_BYTES = 12 << 30

# Questions and answers are short beside a video's 13k tokens; a quarter of the budget holds 100 and more rows.
_SUFFIX_SHARE = 0.25

_CPU_SHARE, _CPU_MOST_BYTES = 0.3, 8 << 30

# Rows wait while clips are prefilled. A GPU decodes for many rows in the time of one, so clips join it several at once.
_PREFILL_TOKENS = {"cuda": 65536, "cpu": 16384}

# Launching a start's kernels takes a GPU's host as long as computing a thousand tokens; on a CPU nothing is gained.
_LEAST_START_TOKENS = {"cuda": 1024, "cpu": 0}

_VISION_BATCH_FRAMES = {"cuda": 64, "cpu": 8}


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the engine allocates and what its scheduler may promise."""

    limits: Limits
    pages: SuffixPages
    pool: PrefixPool | None
    vision_batch_frames: int


def plan_memory(config: EngineConfig, model: LlavaVideoModel) -> MemoryPlan:
    """Divides the memory for keys and values between prefixes and the pages of questions and answers."""
    language, devices, dtype = model.config.language, model.language.layer_devices, model.language.dtype
    heads, width = language.num_key_value_heads, language.head_dim
    per_token = bytes_per_token(language.num_hidden_layers, heads, width, dtype)
    budget = config.kv_budget_bytes or _free_bytes(devices)
    num_pages = max(int(budget * _SUFFIX_SHARE) // per_token // PAGE_TOKENS, 1)
    pages = SuffixPages(num_pages, heads, width, devices, dtype)
    limits = Limits(
        prefix_tokens=int(budget * (1 - _SUFFIX_SHARE)) // per_token,
        num_pages=num_pages,
        max_rows=config.max_rows,
        prefill_tokens=_PREFILL_TOKENS[model.device.type],
        least_start_tokens=_LEAST_START_TOKENS[model.device.type],
    )
    pool = None
    if _decodes_statically(config, devices):
        limits = replace(limits, prefix_unit=CHUNK_TOKENS)
        num_chunks = max(1, limits.prefix_tokens // CHUNK_TOKENS)
        kernel = choose_kernel(devices[0], dtype, width)
        paged = choose_paged(devices[0], dtype, width)
        pool = PrefixPool(num_chunks, CHUNK_TOKENS, heads, width, devices, dtype, kernel, paged)
    return MemoryPlan(limits, pages, pool, config.vision_batch_frames or _VISION_BATCH_FRAMES[model.device.type])


def least_kv_bytes(language: LanguageConfig, dtype: torch.dtype, num_prefix: int, num_suffix: int) -> int:
    """Returns the smallest budget that holds one clip's prefix, and a question and answer to it."""
    per_token = bytes_per_token(language.num_hidden_layers, language.num_key_value_heads, language.head_dim, dtype)
    prefix, suffix = (-(-num // unit) * unit for num, unit in ((num_prefix, CHUNK_TOKENS), (num_suffix, PAGE_TOKENS)))
    return math.ceil(per_token * max(prefix / (1 - _SUFFIX_SHARE), suffix / _SUFFIX_SHARE))


def choose_device(name: str) -> torch.device:
    """Returns the device that was asked for, a GPU by its number; `auto` is a GPU where there is one.

    Raises:
        ValueError: it is not there.
    """
    device = find_device(name)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def find_device(name: str) -> torch.device:
    """Returns the device without touching it: a GPU that was asked for without a number may still be any of them.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise ValueError(f"device is {name!r}, wanted auto, cpu, cuda, or the number of a GPU as in cuda:1")
    if device.type == "cpu":
        return device
    num_gpus = torch.cuda.device_count()
    if not num_gpus:
        raise ValueError(f"device is {name!r}, but PyTorch {torch.__version__} sees no GPU; use device 'cpu'")
    if device.index is not None and device.index >= num_gpus:
        raise ValueError(f"device is {name!r}, but PyTorch sees {num_gpus} GPUs, cuda:0 to cuda:{num_gpus - 1}")
    return device


def choose_layer_devices(device_map: str | None, device: torch.device, num_layers: int) -> list[torch.device]:
    """Returns a device for each language layer: one for all, or equal runs of layers over all visible GPUs."""
    num_gpus = torch.cuda.device_count() if device_map == "auto" and device.type == "cuda" else 1
    if num_gpus == 1:
        return [device] * num_layers
    return [torch.device("cuda", index * num_gpus // num_layers) for index in range(num_layers)]


def is_compiled(config: EngineConfig, devices: Sequence[torch.device]) -> bool:
    """Whether elementwise work is compiled: as was asked for, else on one GPU."""
    if config.compile is None:
        return devices[0].type == "cuda" and len(set(devices)) == 1
    return config.compile


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that was asked for; `auto` is bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def name_device(device: torch.device) -> str:
    """Returns a name of the kind of device, the same in every process of the machine."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).name)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"


def name_gpus() -> list[str]:
    """Returns a name for each visible GPU that is the same in every process of the machine: its UUID."""
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def _decodes_statically(config: EngineConfig, devices: Sequence[torch.device]) -> bool:
    on_one = len(set(devices)) == 1
    if config.static_decode and not on_one:
        raise ValueError("static_decode is True over several GPUs, wanted one: leave it at None")
    return devices[0].type == "cuda" and on_one if config.static_decode is None else config.static_decode


def _free_bytes(devices: Sequence[torch.device]) -> int:
    if devices[0].type == "cpu":
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(int(available * _CPU_SHARE), _CPU_MOST_BYTES)
    # Layers are spread evenly, so the fullest GPU sets the pace for all.
    distinct = set(devices)
    least = min(torch.cuda.mem_get_info(device)[0] for device in distinct)
    return max(least - _ACTIVATION_BYTES, least // 4) * len(distinct)
