"""When an answer ends, and what the checkpoint says about generation."""

from __future__ import annotations

from dataclasses import dataclass

from llava_video.checkpoint import Checkpoint
from llava_video.errors import CheckpointError
from llava_video.generation import FinishReason
from llava_video.loops import is_looping
from llava_video.tasks import QuestionTask


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The parts of `generation_config.json` that greedy decoding obeys."""

    eos_token_ids: frozenset[int]
    repetition_penalty: float


def read_generation_defaults(checkpoint: Checkpoint) -> GenerationDefaults:
    """Reads the ids that end an answer and the repetition penalty.

    Raises:
        CheckpointError: no end-of-sequence id is given.
    """
    content = checkpoint.read_json("generation_config.json")
    eos = content.get("eos_token_id", checkpoint.read_json("config.json").get("eos_token_id"))
    if eos is None:
        raise CheckpointError(f"{checkpoint.name}: neither generation_config.json nor config.json has eos_token_id")
    ids = eos if isinstance(eos, list) else [eos]
    return GenerationDefaults(frozenset(map(int, ids)), float(content.get("repetition_penalty", 1.0)))


@dataclass(frozen=True, slots=True)
class StopRule:
    """Decides after each token whether an answer is complete."""

    eos_token_ids: frozenset[int]

    def finish_reason(self, question: QuestionTask) -> FinishReason | None:
        """Returns why the answer ends with its last token, or None if it goes on."""
        if question.generated[-1] in self.eos_token_ids:
            return FinishReason.STOP
        if len(question.generated) >= question.generation.max_new_tokens:
            return FinishReason.LENGTH
        if question.generation.stop_loops and is_looping(question.generated):
            return FinishReason.LOOPED
        return None
