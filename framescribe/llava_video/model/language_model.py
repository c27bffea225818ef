"""Runs Qwen2's layers over packed tokens, with the attention left to the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from framescribe.llava_video.model.config import LanguageConfig
from framescribe.llava_video.model.elementwise import Elementwise

# Attention of one layer: its index, queries [N, H, E], keys and values [N, K, E] of the new tokens; returns [N, H, E],
# in the model's dtype or in float32. None ends the run, where nothing but keys and values was wanted.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]


class LanguageModel:
    """The weights of a `Qwen2ForCausalLM`, run layer by layer over tokens of any number of sequences at once.

    Everything but attention treats tokens alone, so tokens of many rows are packed into one [N, D] without padding.
    Layers may lie on several devices; hidden states move along.

    Attributes:
        elementwise: what runs between the matrix products, plain or compiled.
    """

    def __init__(self, module: nn.Module, config: LanguageConfig, layer_devices: Sequence[torch.device]) -> None:
        self.module = module
        self.model, self._lm_head = module.model, module.lm_head
        self._config = config
        self.elementwise = Elementwise()
        self.layer_devices = list(layer_devices)
        self.num_ids = self._lm_head.weight.shape[0]
        self.dtype: torch.dtype = self._lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where embeddings are looked up and inputs are wanted."""
        return self.model.embed_tokens.weight.device

    def embed(self, token_ids: Tensor) -> Tensor:
        """Looks up embeddings, [N] to [N, D]."""
        return self.model.embed_tokens(token_ids)

    def forward(self, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Runs all layers and the final norm over embeddings [N, D] at `positions` [N]."""
        cos, sin = self._rotary(positions)
        update: Tensor | None = None  # what the layer before adds to the hidden states
        for index, (layer, device) in enumerate(zip(self.model.layers, self.layer_devices, strict=True)):
            if hidden.device != device:
                hidden, cos, sin = hidden.to(device), cos.to(device), sin.to(device)
                update = update if update is None else update.to(device)
            hidden, normed = self._add(hidden, update, layer.input_layernorm)
            attended = attend(index, *self._project(layer.self_attn, normed, cos, sin))
            if attended is None:
                return hidden
            update = layer.self_attn.o_proj(attended.flatten(1).to(self.dtype))
            hidden, normed = self._add(hidden, update, layer.post_attention_layernorm)
            update = layer.mlp.down_proj(self.elementwise.gate(layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed)))
        return self._add(hidden, update, self.model.norm)[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns float32 logits [R, V] of final hidden states [R, D]; V is the tokenizer's length."""
        return self._lm_head(hidden).float()

    def _add(self, hidden: Tensor, update: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Adds an update, if there is one, and normalises: [N, D] both."""
        if update is None:
            return hidden, self.elementwise.normalise(hidden, norm.weight, self._config.rms_norm_eps)
        return self.elementwise.add_and_normalise(hidden, update, norm.weight, self._config.rms_norm_eps)

    def _project(self, block: nn.Module, normed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a layer's queries [N, H, E], keys and values [N, K, E]."""
        queries, keys, values = (
            projection(normed).unflatten(-1, (-1, self._config.head_dim))
            for projection in (block.q_proj, block.k_proj, block.v_proj)
        )
        return *self.elementwise.rotate(queries, keys, cos, sin), values

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines [N, 1, E] of plain one-dimensional rotary positions (the reference forces them)."""
        half = torch.arange(0, self._config.head_dim, 2, dtype=torch.float32, device=positions.device)
        frequencies = 1.0 / (self._config.rope_theta ** (half / self._config.head_dim))
        angles = positions.float()[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)
