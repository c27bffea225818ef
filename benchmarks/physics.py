"""How much arithmetic and memory traffic a clip needs at least, after its shapes (2 operations a multiply-add)."""

from __future__ import annotations

from dataclasses import dataclass

from llava_video.model_config import ModelConfig

# Measured on an H200: dense bfloat16 products and reading memory. Other GPUs: pass your own; an H100 multiplies as fast
# and reads at 3.35e12 by its data sheet.
H200_FLOPS, H200_BYTES_PER_S = 790e12, 4.3e12


@dataclass(frozen=True, slots=True)
class ClipWork:
    """Operations of one clip's vision and prefill, and the bytes that one decoding step of the weights reads."""

    vision_flops: float
    prefill_flops: float
    weight_bytes: float

    def bound_s(self, flops: float, bytes_per_s: float, steps_per_clip: float) -> float:
        """Returns the least seconds a clip takes: vision and prefill at full rate, then its share of decoding steps."""
        decode_s = self.weight_bytes / bytes_per_s * steps_per_clip
        return (self.vision_flops + self.prefill_flops) / flops + decode_s


def count_clip_work(config: ModelConfig, num_frames: int, num_prefix_tokens: int, num_ids: int) -> ClipWork:
    """Counts the work of a clip with that many unique frames and prompt tokens before the questions."""
    language = config.language
    kv_width = language.num_key_value_heads * language.head_dim
    layer = 2 * language.hidden_size * (language.hidden_size + kv_width) + 3 * language.hidden_size * (
        language.intermediate_size
    )
    attention = 2 * 2 * num_prefix_tokens**2 / 2 * language.hidden_size  # causal: half of the square
    # Of the last layer a prefix needs keys and values only.
    last = 2 * 2 * language.hidden_size * kv_width * num_prefix_tokens
    prefill = (language.num_hidden_layers - 1) * (2 * layer * num_prefix_tokens + attention) + last
    weight_bytes = 2 * (language.num_hidden_layers * layer + num_ids * language.hidden_size)
    return ClipWork(_count_vision(config, num_frames), prefill, weight_bytes)


def _count_vision(config: ModelConfig, num_frames: int) -> float:
    tower, width = config.tower, config.language.hidden_size
    patches = tower.grid_size**2
    layer = 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size
    attention = 2 * 2 * patches**2 * tower.hidden_size
    per_frame = (tower.num_hidden_layers - 1) * (2 * layer * patches + attention)
    projector = 2 * patches * (tower.hidden_size * width + width * width)
    return num_frames * (per_frame + projector)
