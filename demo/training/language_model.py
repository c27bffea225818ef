"""Qwen2 in a form for training: many questions behind one video, each seeing the video and itself alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, LAYERS, HEADS, INNER = 128, 6, 4, 320
HEAD_SIZE = WIDTH // HEADS
ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Prefix:
    """Embedded tokens [B, P, D] that all questions of a clip share, padded on the right.

    `lengths` int64 [B] are without padding; the video, where there is one, begins at token `video_start`.
    """

    embedded: torch.Tensor
    lengths: torch.Tensor
    video_start: int = 0


class Attention(nn.Module):
    """Attention with as many key heads as query heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def split(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns rotated queries, rotated keys and values, each [..., heads, tokens, head size]."""
        queries, keys, values = (
            projection(x).unflatten(-1, (HEADS, HEAD_SIZE)).transpose(-2, -3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(queries, angles), rotate(keys, angles), values

    def join(self, heads: torch.Tensor) -> torch.Tensor:
        """Joins heads [..., H, N, E] to [..., N, D]."""
        return self.o_proj(heads.transpose(-2, -3).flatten(-2))


class FeedForward(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [..., D] to [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer over a prefix and blocks of questions."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), FeedForward()
        self.input_layernorm = nn.RMSNorm(WIDTH, NORM_EPSILON)
        self.post_attention_layernorm = nn.RMSNorm(WIDTH, NORM_EPSILON)

    def forward(self, streams: list[torch.Tensor], angles: list, masks: list[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the prefix [B, P, D] (first stream) and blocks [B, Q, L, D]; `masks` are for the blocks alone."""
        parts = [self.self_attn.split(self.input_layernorm(x), angle) for x, angle in zip(streams, angles, strict=True)]
        queries, prefix_keys, prefix_values = parts[0]
        mixed = [F.scaled_dot_product_attention(queries, prefix_keys, prefix_values, is_causal=True)]
        for (queries, keys, values), mask in zip(parts[1:], masks, strict=True):
            mixed.append(_attend(queries, _before(prefix_keys, keys), _before(prefix_values, values), mask))
        added = [x + self.self_attn.join(heads) for x, heads in zip(streams, mixed, strict=True)]
        return [x + self.mlp(self.post_attention_layernorm(x)) for x in added]


class LanguageModel(nn.Module):
    """The checkpoint's language model, with its tensor names below `model.`."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, NORM_EPSILON)
        self.lm_head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.image_newline = nn.Parameter(torch.randn(WIDTH) * 0.3)
        nn.init.normal_(self.embed_tokens.weight, std=0.3)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        for layer in self.layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)

    def forward(
        self, prefix: Prefix, blocks: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Runs blocks of question ids int64 [B, Q, L] behind the prefix.

        Returns:
            The normed hidden states of each block [B, Q, L, D], and after each layer those of the prefix [B, P, D]
            and of the blocks.
        """
        longest = prefix.embedded.shape[1]
        streams = [prefix.embedded, *(self.embed_tokens(ids) for ids in blocks)]
        angles = [rope_angles(torch.arange(longest)[None, None])]
        angles += [rope_angles(_positions(prefix.lengths, ids.shape[2])) for ids in blocks]
        masks = [_block_mask(prefix.lengths, longest, ids.shape[1:]) for ids in blocks]
        seen = []
        for layer in self.layers:
            streams = layer(streams, angles, masks)
            seen.append(streams)
        return [self.norm(x) for x in streams[1:]], seen


def rope_angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosines and sines [..., tokens, head size] at these positions."""
    speeds = ROPE_THETA ** (-torch.arange(0, HEAD_SIZE, 2).float() / HEAD_SIZE)
    angles = (positions[..., None].float() * speeds).repeat(*(1,) * positions.ndim, 2)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns queries or keys [..., tokens, head size] to their positions."""
    first, second = x.chunk(2, dim=-1)
    return x * angles[0] + torch.cat((-second, first), dim=-1) * angles[1]


def _positions(lengths: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return (lengths[:, None] + torch.arange(num_tokens))[:, None, None]  # [B, 1, 1, L]


def _block_mask(lengths: torch.Tensor, longest: int, shape: torch.Size) -> torch.Tensor:
    """Returns what each question token may see, bool [B * Q, 1, L, P + L]."""
    num_questions, num_tokens = shape
    prefix = (torch.arange(longest) < lengths[:, None])[:, None, None, None].expand(
        -1, num_questions, 1, num_tokens, -1
    )
    own = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril().expand(*prefix.shape[:4], -1)
    return torch.cat((prefix, own), dim=-1).flatten(0, 1)


def _before(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Puts a clip's prefix [B, heads, P, d] before each of its questions [B, Q, heads, L, d]."""
    return torch.cat((prefix[:, None].expand(-1, own.shape[1], -1, -1, -1), own), dim=3)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.flatten(0, 1) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(0, queries.shape[:2])
