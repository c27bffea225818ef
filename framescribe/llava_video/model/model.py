"""LLaVA-Video: SigLIP tower, projector and Qwen2, loaded from the original checkpoint layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from framescribe.llava_video.errors import CheckpointError
from framescribe.llava_video.model.checkpoint import Checkpoint
from framescribe.llava_video.model.config import POOL_STRIDE, LanguageConfig, ModelConfig, TowerConfig
from framescribe.llava_video.model.elementwise import compile_or_plain
from framescribe.llava_video.model.language_model import LanguageModel
from framescribe.llava_video.model.vision import (
    arrange_faster_video_tokens,
    arrange_video_tokens,
    normalise_pixels,
    pool_patches,
)
from framescribe.llava_video.model.weights import ReadWeights, has_tensor

_TOWER = "model.vision_tower.vision_tower.vision_model."
_PROJECTOR = "model.mm_projector."
_NEWLINE = "model.image_newline"
_FASTER_TOKEN = "model.faster_token"


class LlavaVideoModel:
    """The whole model; stateless, so one instance serves any number of clips.

    Letters: T frames, P patches per frame, C tower width, D hidden size of the language model, V video tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        tower: nn.Module,
        projector: nn.Module,
        language: LanguageModel,
        newline: Tensor | None,
        faster_token: Tensor | None,
    ) -> None:
        self.config, self.language = config, language
        self._tower, self._projector = tower, projector
        self._newline, self._faster_token = newline, faster_token

    @property
    def device(self) -> torch.device:
        """Where frames and token ids are wanted."""
        return self.language.device

    def compile_tower(self, backend: str) -> None:
        """Runs the tower's layers compiled from now on; where that fails, plainly."""
        for layer in self._tower.encoder.layers:
            layer.forward = compile_or_plain(layer.forward, backend)

    def use_plain_tower(self) -> None:
        """Undoes `compile_tower`."""
        for layer in self._tower.encoder.layers:
            vars(layer).pop("forward", None)

    def run_vision_tower(self, pixels: Tensor) -> Tensor:
        """Runs the tower up to its last but one layer, [T, 3, S, S] to [T, P, C]."""
        embedded = self._tower.embeddings(pixels)
        # The encoder's own output: no post_layernorm, which the checkpoint stores but the model never applies.
        return self._tower.encoder(inputs_embeds=embedded).last_hidden_state

    def project(self, features: Tensor) -> Tensor:
        """Maps tower features [T, P, C] into the language model's space, [T, P, D], before pooling."""
        return self._projector(features)

    def encode_frames(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Encodes resized uint8 frames, T times [S, S, 3], in one tower batch.

        Returns:
            Pooled tokens [T, p, D]; with faster video [T, p + q, D], the slow tokens before the fast ones.
        """
        pixels = torch.from_numpy(np.stack(frames))
        if self.device.type == "cuda":
            # Pinned and asynchronous, as bytes: a quarter of what float32 pixels would move.
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return self.pool(self.project(self.run_vision_tower(normalise_pixels(pixels, self.language.dtype))))

    def pool(self, patches: Tensor) -> Tensor:
        """Pools projected patches [T, P, D] to [T, p, D]; with faster video both strides, as `encode_frames` says."""
        pooled = pool_patches(patches, self.config)
        if not self.config.add_faster_video:
            return pooled
        return torch.cat([pooled, pool_patches(patches, self.config, 2 * POOL_STRIDE)], dim=1)

    def arrange_video_tokens(self, pooled: Tensor, frame_order: np.ndarray) -> Tensor:
        """Puts pooled tokens of unique frames into a clip's order, with newlines: [V, D]."""
        pooled = pooled[torch.as_tensor(frame_order, device=pooled.device)]
        if not self.config.add_faster_video:
            return arrange_video_tokens(pooled, self._newline, self.config)
        assert self._newline is not None, "checked when the model was loaded"
        assert self._faster_token is not None, "checked when the model was loaded"
        num_slow = self._num_pooled(POOL_STRIDE)
        slow, fast = pooled[:, :num_slow], pooled[:, num_slow:]
        return arrange_faster_video_tokens(
            slow, fast, self._newline, self._faster_token, self.config.faster_token_stride
        )

    def num_video_tokens(self, num_frames: int) -> int:
        """Returns how many tokens stand for a clip of `num_frames` frames."""
        if not self.config.add_faster_video:
            return self.config.num_video_tokens(num_frames)
        num_slow_frames = -(-num_frames // self.config.faster_token_stride)
        slow, fast = (n + int(n**0.5) + 1 for n in (self._num_pooled(POOL_STRIDE), self._num_pooled(2 * POOL_STRIDE)))
        return num_slow_frames * slow + (num_frames - num_slow_frames) * fast

    def _num_pooled(self, stride: int) -> int:
        side = self.config.tower.grid_size
        pooled = -(-side // stride) if self.config.pool_mode == "bilinear" else side // stride
        return pooled * pooled


def load_model(
    read: ReadWeights,
    config: ModelConfig,
    num_ids: int,
    layer_devices: Sequence[torch.device],
    dtype: torch.dtype,
    attn_implementation: str | None,
) -> LlavaVideoModel:
    """Builds the model and fills it.

    Args:
        read: where the weights come from, such as `partial(read_weights, checkpoint)`.
        num_ids: length of the tokenizer; embeddings and logits beyond it are cut off, as the reference does.
        layer_devices: a device for each language layer; everything else lies on the first, the head on the last.

    Raises:
        CheckpointError: weights are missing, pickled or of other shapes.
    """
    with torch.device("meta"):
        tower = _build_tower(config.tower, attn_implementation)
        projector = nn.Sequential(
            nn.Linear(config.tower.hidden_size, config.language.hidden_size),
            nn.GELU(),
            nn.Linear(config.language.hidden_size, config.language.hidden_size),
        ).requires_grad_(False)
        language = _build_language(config.language)
    names = dict(_names_on_disk(tower, projector, language, config))

    def place(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(device=_device_of(name, layer_devices), dtype=dtype)

    weights = read(names, place)
    if config.language.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].to(layer_devices[-1])
    _fill(tower, weights, _TOWER)
    _fill(projector, weights, _PROJECTOR)
    _fill(language, weights, "")
    _restore_positions(tower, layer_devices[0])
    for embedding in (language.model.embed_tokens, language.lm_head):
        embedding.weight = nn.Parameter(embedding.weight[:num_ids], requires_grad=False)
    return LlavaVideoModel(
        config,
        tower,
        projector,
        LanguageModel(language, config.language, layer_devices),
        weights.get(_NEWLINE),
        weights.get(_FASTER_TOKEN),
    )


def check_faster_video(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Raises `CheckpointError` when faster video is asked for and its learnt token is missing."""
    if config.add_faster_video and not has_tensor(checkpoint, _FASTER_TOKEN):
        raise CheckpointError(
            f"{checkpoint.name}: add_faster_video is true, but the checkpoint has no {_FASTER_TOKEN}; no released one "
            'has. Set config_overrides={"add_faster_video": false}'
        )


def _build_tower(config: TowerConfig, attn_implementation: str | None) -> nn.Module:
    siglip = SiglipVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers - 1,
        num_attention_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        vision_use_head=False,
        attn_implementation=attn_implementation or "sdpa",
    )
    module = SiglipVisionModel(siglip).eval().requires_grad_(False)
    return getattr(module, "vision_model", module)  # transformers before 5 wraps the transformer once more


def _build_language(config: LanguageConfig) -> nn.Module:
    qwen2 = Qwen2Config(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(qwen2).eval().requires_grad_(False)


def _names_on_disk(
    tower: nn.Module, projector: nn.Module, language: nn.Module, config: ModelConfig
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name on disk and the shape of every tensor that the model uses."""
    for prefix, module in ((_TOWER, tower), (_PROJECTOR, projector), ("", language)):
        for name, tensor in module.state_dict().items():
            is_tied = config.language.tie_word_embeddings and name == "lm_head.weight"
            if not is_tied and not name.startswith("post_layernorm."):
                yield prefix + name, tuple(tensor.shape)
    if config.needs_newline:
        yield _NEWLINE, (config.language.hidden_size,)
    if config.add_faster_video:
        yield _FASTER_TOKEN, (config.language.hidden_size,)


def _device_of(name: str, layer_devices: Sequence[torch.device]) -> torch.device:
    if name.startswith("model.layers."):
        return layer_devices[int(name.split(".")[2])]
    return layer_devices[-1] if name in ("lm_head.weight", "model.norm.weight") else layer_devices[0]


def _fill(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    own = {name: weights[prefix + name] for name in module.state_dict() if prefix + name in weights}
    module.load_state_dict(own, strict=False, assign=True)


def _restore_positions(tower: nn.Module, device: torch.device) -> None:
    """Makes the one buffer that no checkpoint stores; it was built without memory."""
    embeddings = tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]
