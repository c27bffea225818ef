"""How much arithmetic and memory traffic a clip needs at least, after its shapes (2 operations a multiply-add)."""

from __future__ import annotations

from dataclasses import dataclass

from framescribe.llava_video.model.config import ModelConfig

# Measured on an H200: dense bfloat16 products and reading memory. An H100 multiplies as fast and reads at 3.35e12 by
# its data sheet. Other GPUs: pass your own.
H200_FLOPS, H200_BYTES_PER_S, H100_BYTES_PER_S = 790e12, 4.3e12, 3.35e12


@dataclass(frozen=True, slots=True)
class ClipWork:
    """Operations of one clip's vision, prefill and questions, and the bytes that decoding reads.

    Attributes:
        question_token_flops: of one question token on top of the prefix.
        weight_bytes: read once a decoding step, whatever the number of rows.
        prefix_bytes: keys and values of the prefix, read once per step in which the clip has rows.
        token_bytes: keys and values of one token; a row reads those of its own question and answer.
    """

    vision_flops: float
    prefill_flops: float
    question_token_flops: float
    weight_bytes: float
    prefix_bytes: float
    token_bytes: float

    def step_bytes(self, num_clips: float, num_suffix_tokens: float) -> float:
        """Returns what a step over the rows of so many clips must read; suffix tokens are those of all rows."""
        return self.weight_bytes + num_clips * self.prefix_bytes + num_suffix_tokens * self.token_bytes

    def bound_s(
        self, flops: float, bytes_per_s: float, num_question_tokens: float, steps_per_clip: float, bytes_per_step: float
    ) -> float:
        """Returns the least seconds per clip: vision, prefill and questions at full rate, then its part of the steps.

        Args:
            num_question_tokens: of all its questions.
            steps_per_clip: decoding steps of a run over its clips.
            bytes_per_step: as `step_bytes` has them.
        """
        questions = self.question_token_flops * num_question_tokens
        return (
            self.vision_flops + self.prefill_flops + questions
        ) / flops + bytes_per_step / bytes_per_s * steps_per_clip


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
    # A question token sees the whole prefix; its logits are computed for the last one only.
    question = language.num_hidden_layers * (2 * layer + 2 * 2 * num_prefix_tokens * language.hidden_size)
    token_bytes = 2 * 2 * language.num_hidden_layers * kv_width
    return ClipWork(
        vision_flops=_count_vision(config, num_frames),
        prefill_flops=prefill,
        question_token_flops=question,
        weight_bytes=weight_bytes,
        prefix_bytes=token_bytes * num_prefix_tokens,
        token_bytes=token_bytes,
    )


def _count_vision(config: ModelConfig, num_frames: int) -> float:
    tower, width = config.tower, config.language.hidden_size
    patches = tower.grid_size**2
    layer = 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size
    attention = 2 * 2 * patches**2 * tower.hidden_size
    per_frame = (tower.num_hidden_layers - 1) * (2 * layer * patches + attention)
    projector = 2 * patches * (tower.hidden_size * width + width * width)
    return num_frames * (per_frame + projector)
