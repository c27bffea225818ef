"""What `config.json` says about the model; importable without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from framescribe.llava_video.errors import CheckpointError
from framescribe.llava_video.model.checkpoint import Checkpoint

POOL_MODES = ("average", "max", "bilinear")
NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")
PATCH_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")
MODEL_TYPES = ("llava", "llava_qwen", "qwen2")
# The stride of video pooling is fixed in the reference, whatever mm_spatial_pool_stride says.
POOL_STRIDE = 2


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Geometry of the SigLIP tower; the defaults are so400m-patch14-384, which the released checkpoints use.

    Attributes:
        num_hidden_layers: layers of the full tower; features leave before the last, which no checkpoint holds.
    """

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 14

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def grid_size(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """Geometry of the Qwen2 language model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything of `config.json` that changes what the model computes."""

    tower: TowerConfig
    language: LanguageConfig
    pool_mode: str
    newline_position: str
    patch_merge_type: str
    max_length: int
    adds_im_patch_token: bool
    add_faster_video: bool
    faster_token_stride: int

    @property
    def needs_newline(self) -> bool:
        """Whether the learnt newline embedding is part of the video tokens."""
        if self.patch_merge_type == "flat" or self.newline_position == "no_token":
            return False
        return self.newline_position != "one_token" or "unpad" in self.patch_merge_type

    def num_video_tokens(self, num_frames: int) -> int:
        """Returns how many tokens `num_frames` frames become (at the normal stride: faster video needs fewer)."""
        side = pooled_side(self.tower.grid_size, POOL_STRIDE, self.pool_mode)
        tokens = num_frames * side * side
        if not self.needs_newline:
            return tokens
        return tokens + {"grid": num_frames * side, "frame": num_frames, "one_token": 1}[self.newline_position]


def pooled_side(grid_size: int, stride: int, pool_mode: str) -> int:
    """Returns the side of a pooled grid: bilinear rounds up, average and max drop the odd last row and column."""
    return math.ceil(grid_size / stride) if pool_mode == "bilinear" else grid_size // stride


def read_model_config(checkpoint: Checkpoint, overrides: Mapping[str, object] | None = None) -> ModelConfig:
    """Reads and checks `config.json`, with `overrides` put over its own `mm_*` keys.

    Raises:
        CheckpointError: a value that is not implemented, naming what is; or a missing key.
    """
    content = checkpoint.read_json("config.json")
    unknown = sorted(key for key in overrides or {} if not (key.startswith("mm_") or key in content))
    if unknown:
        raise CheckpointError(
            f"config_overrides names {unknown}: wanted keys of config.json, such as mm_spatial_pool_mode"
        )
    try:
        return _parse({**content, **(overrides or {})})
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.name}: {error}") from None


def _parse(content: Mapping[str, Any]) -> ModelConfig:
    _choice(content, "model_type", MODEL_TYPES, "llava")
    _choice(content, "mm_projector_type", ("mlp2x_gelu",), "linear")
    if "siglip" not in str(content.get("mm_vision_tower", "")).lower():
        raise CheckpointError(f"mm_vision_tower is {content.get('mm_vision_tower')!r}; implemented: SigLIP towers")
    for key in ("use_sliding_window", "mm_use_im_start_end"):
        if content.get(key):
            raise CheckpointError(f"{key} is {content[key]!r}; implemented: false")
    config = ModelConfig(
        tower=_parse_tower(content),
        language=_parse_language(content),
        pool_mode=_choice(content, "mm_spatial_pool_mode", POOL_MODES, None),
        newline_position=_choice(content, "mm_newline_position", NEWLINE_POSITIONS, "one_token"),
        patch_merge_type=_choice(content, "mm_patch_merge_type", PATCH_MERGE_TYPES, "flat"),
        max_length=int(content.get("tokenizer_model_max_length", 32768)),
        adds_im_patch_token=bool(content.get("mm_use_im_patch_token", True)),
        add_faster_video=bool(content.get("add_faster_video", False)),
        faster_token_stride=int(content.get("faster_token_stride", 10)),
    )
    if config.needs_newline and "unpad" not in config.patch_merge_type:
        raise CheckpointError(
            f"mm_newline_position {config.newline_position!r} needs the newline embedding, which mm_patch_merge_type "
            f"{config.patch_merge_type!r} has not; use spatial_unpad, or one_token or no_token"
        )
    if config.add_faster_video and config.newline_position != "grid":
        raise CheckpointError(
            f"add_faster_video with mm_newline_position {config.newline_position!r}; implemented: grid"
        )
    return config


def _parse_tower(content: Mapping[str, Any]) -> TowerConfig:
    vision = content.get("vision_config") or {}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    tower = TowerConfig(**{name: int(vision[name]) for name in names if name in vision})
    declared = content.get("mm_hidden_size", tower.hidden_size)
    if declared != tower.hidden_size:
        raise CheckpointError(
            f"mm_hidden_size is {declared}, but the vision tower's hidden size is {tower.hidden_size}"
        )
    return tower


def _parse_language(content: Mapping[str, Any]) -> LanguageConfig:
    activation = content.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"hidden_act is {activation!r}; implemented: silu")
    try:
        language = LanguageConfig(
            hidden_size=content["hidden_size"],
            intermediate_size=content["intermediate_size"],
            num_hidden_layers=content["num_hidden_layers"],
            num_attention_heads=content["num_attention_heads"],
            num_key_value_heads=content.get("num_key_value_heads", content["num_attention_heads"]),
            vocab_size=content["vocab_size"],
            rope_theta=float(content.get("rope_theta", 1e6)),
            rms_norm_eps=float(content.get("rms_norm_eps", 1e-6)),
            max_position_embeddings=content.get("max_position_embeddings", 32768),
            tie_word_embeddings=bool(content.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json has no {error.args[0]!r}; is this a LLaVA-Video checkpoint?") from None
    if language.hidden_size % language.num_attention_heads:
        raise CheckpointError(
            f"hidden_size {language.hidden_size} is no multiple of num_attention_heads {language.num_attention_heads}"
        )
    return language


def _choice(content: Mapping[str, Any], key: str, implemented: tuple[str, ...], default: str | None) -> str:
    value = content.get(key, default)
    if value not in implemented:
        seen = "missing" if value is None else re.sub(r"\s+", " ", repr(value))
        raise CheckpointError(f"{key} is {seen}; implemented: {', '.join(implemented)}")
    return str(value)
