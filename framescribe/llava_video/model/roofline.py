"""How much arithmetic and memory traffic a clip needs at least, after its shapes (2 operations per multiply-add), and
what the engine as it is makes of it on a modelled GPU.

`plan` and `python -m benchmarks.simulate` use the same figures. Nobody has compared them with a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from framescribe.llava_video.model.config import ModelConfig

# Measured on an H200: dense bfloat16 products and reading memory. An H100 multiplies as fast and reads at 3.35e12 by
# its data sheet. Other GPUs: pass your own.
H200_FLOPS, H200_BYTES_PER_S, H100_BYTES_PER_S = 790e12, 4.3e12, 3.35e12


# Of the engine as it is, for 64 frames of the 7B model: elementwise kernels of vision and prefill, the wait between
# them, kernels of a step and of a start, bytes moved beyond those needed, the host's part of a step, a capture.
VISION_S, PREFILL_S, WAIT_S = 0.013, 0.057, 0.012
STEP_KERNELS, START_KERNELS, MOVED, HOST_S, CAPTURE_S = 2174, 2600, 1.6, 1.4e-3, 0.025
MODELLED_FRAMES, MODELLED_PREFIX_TOKENS = 64, 13_654
LEAST_START_TOKENS, MAX_ROWS, PREFIX_FRACTION = 1024, 256, 0.75


@dataclass(frozen=True, slots=True)
class Gpu:
    """A modelled GPU; rates are those that products of these shapes reach, not peaks.

    Attributes:
        kv_bytes: memory for keys and values.
        launch_s: one kernel of a replayed step, start to start; eager_s: of one that is launched by itself.
    """

    bytes_per_s: float
    kv_bytes: float
    language_flops: float = 670e12
    vision_flops: float = 520e12
    launch_s: float = 1.5e-6
    eager_s: float = 6e-6


@dataclass(frozen=True, slots=True)
class ClipLoad:
    """What a clip has for the model in the mean.

    Attributes:
        num_frames: unique ones, which alone are encoded.
        num_prefix_tokens: of the prompt before its questions.
        num_prompts: with their `num_question_tokens` and `num_answer_tokens` in all.
        longest_tokens: of the longest chain of answers that wait for each other: a clip is open as long as it takes.
    """

    num_frames: float
    num_prefix_tokens: float
    num_prompts: float
    num_question_tokens: float
    num_answer_tokens: float
    longest_tokens: float


@dataclass(frozen=True, slots=True)
class ClipSeconds:
    """Modelled seconds of one GPU per clip, by phase."""

    vision: float
    prefill: float
    questions: float
    decode: float

    @property
    def total(self) -> float:
        """All phases, one after the other as the engine's thread has them."""
        return self.vision + self.prefill + self.questions + self.decode


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


def model_seconds(work: ClipWork, load: ClipLoad, gpu: Gpu, num_ahead: int) -> ClipSeconds:
    """Models what a clip takes in a long run with `num_ahead` clips open at once, whose questions fill a batch.

    Args:
        work: of a clip with the frames and prefix tokens of `load`.
    """
    num_open = max(1.0, min(num_ahead, PREFIX_FRACTION * gpu.kv_bytes / max(1.0, work.prefix_bytes)))
    num_rows = min(MAX_ROWS, num_open * max(1.0, load.num_answer_tokens / max(1.0, load.longest_tokens)))
    per_prompt = max(1.0, load.num_prompts)
    suffix = num_rows * (load.num_question_tokens + load.num_answer_tokens / 2) / per_prompt
    moved = work.step_bytes(min(num_open, num_rows), suffix) - work.weight_bytes
    step_s = (work.weight_bytes + MOVED * moved) / gpu.bytes_per_s + STEP_KERNELS * gpu.launch_s + HOST_S
    num_starts = load.num_question_tokens / LEAST_START_TOKENS
    computed_s = load.num_question_tokens * work.question_token_flops / gpu.language_flops
    return ClipSeconds(
        vision=work.vision_flops / gpu.vision_flops + VISION_S * load.num_frames / MODELLED_FRAMES + WAIT_S,
        prefill=work.prefill_flops / gpu.language_flops + PREFILL_S * load.num_prefix_tokens / MODELLED_PREFIX_TOKENS,
        questions=max(computed_s, num_starts * START_KERNELS * gpu.eager_s),
        decode=step_s * load.num_answer_tokens / num_rows,
    )


def _count_vision(config: ModelConfig, num_frames: int) -> float:
    tower, width = config.tower, config.language.hidden_size
    patches = tower.grid_size**2
    layer = 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size
    attention = 2 * 2 * patches**2 * tower.hidden_size
    per_frame = (tower.num_hidden_layers - 1) * (2 * layer * patches + attention)
    projector = 2 * patches * (tower.hidden_size * width + width * width)
    return num_frames * (per_frame + projector)
