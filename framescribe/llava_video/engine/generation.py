"""What may be asked of a generation, and what it returns; importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class FinishReason(str, Enum):
    """Why a completion ended."""

    STOP = "stop"  # the model wrote its end-of-turn token
    LENGTH = "length"  # max_new_tokens were written
    LOOPED = "looped"  # the loop detector saw the text repeat itself

    __str__ = str.__str__  # its value in an f-string, on every Python


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How one question is answered; the defaults are the model card's greedy decoding.

    Attributes:
        max_new_tokens: the most tokens that are generated.
        repetition_penalty: over generated tokens only; None takes the checkpoint's own value, 1.0 switches it off.
        stop_loops: end a completion that repeats itself (see `framescribe.llava_video.engine.loops`).
    """

    max_new_tokens: int = 4096
    repetition_penalty: float | None = None
    stop_loops: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be positive, got {self.repetition_penalty}")


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely the model finds one given token, before any penalty; log-probabilities are natural."""

    token_id: int
    logprob: float
    likeliest_id: int
    likeliest_logprob: float


@dataclass(frozen=True, slots=True)
class Completion:
    """The model's answer to one question.

    Attributes:
        text: decoded without special tokens, surrounding white space stripped.
        token_ids: every generated id, the end-of-turn id included when it was written.
        num_prompt_tokens: system text, video tokens, time instruction and question together.
        clip_id, frames_digest: whose keys and values the answer was computed from; empty without a video.
        scores: of each token, where they were given (`Video.force`); else empty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    clip_id: str = ""
    frames_digest: str = ""
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """How likely the model finds an answer that was given to it, or each of some choices as an answer's first token.

    Attributes:
        token_ids: of the answer, without the end of the turn; of choices the first token of each.
        logprobs: natural log-probability of each, float32, before any penalty: in an answer after the question and the
            tokens before it, of choices right after the question.
        num_prompt_tokens: system text, video tokens, time instruction and question together.
        clip_id, frames_digest: whose keys and values it was computed from; empty without a video.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    num_prompt_tokens: int
    clip_id: str = ""
    frames_digest: str = ""

    @property
    def logprob(self) -> float:
        """Log-probability of the whole answer."""
        return math.fsum(self.logprobs)
