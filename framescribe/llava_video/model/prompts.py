"""Prompt layouts and their token ids, exactly as the reference builds them; importable without torch.

The shared beginning of a clip's prompts (system text, video, time instruction) is one list of ids, and each question
another, so that the beginning is prefilled once. They may be tokenized apart because Qwen2's pre-tokenizer always
splits before the full stop that ends the time instruction (`...this video` | `.\\n`), whatever the question is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from framescribe.llava_video.errors import CheckpointError
from framescribe.llava_video.model.checkpoint import Checkpoint

_SYSTEM = "You are a helpful assistant."
_BEFORE_TIME = {"model_card": "", "demo": "\n", "training": "\n"}
# The training data's questions begin with the newline that followed "<image>".
_BEFORE_QUESTION = {"model_card": "\n", "demo": "\n", "training": "\n\n"}


@dataclass(frozen=True, slots=True)
class VideoPrefix:
    """The ids before and after the video tokens that all questions of a clip begin with."""

    before_video: tuple[int, ...]
    after_video: tuple[int, ...]


def write_time_instruction(timestamps_s: Sequence[float], duration_s: float) -> str:
    """Returns the sentence that tells the model the clip's length and its frames' times."""
    times = ",".join(f"{time_s:.2f}s" for time_s in timestamps_s)
    return (
        f"The video lasts for {duration_s:.2f} seconds, and {len(timestamps_s)} frames are uniformly sampled from it. "
        f"These frames are located at {times}.Please answer the following questions related to this video."
    )


class PromptTokenizer:
    """Turns questions into ids in the ChatML form of Qwen2, in which text is never structure.

    Special tokens are placed by name; all text passes a copy of the tokenizer that knows no special tokens, so that
    `<|im_end|>` or `<image>` inside a question stays the characters it is made of.
    """

    def __init__(self, checkpoint: Checkpoint, layout: str = "model_card") -> None:
        content = checkpoint.read_json("tokenizer.json")
        self._decoder = Tokenizer.from_str(json.dumps(content))
        self._text = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
        self._layout = layout
        self._im_start, self._im_end = (self._special_id(name, checkpoint) for name in ("<|im_start|>", "<|im_end|>"))
        self.num_ids = self._decoder.get_vocab_size(with_added_tokens=True)

    def video_prefix(self, timestamps_s: Sequence[float], duration_s: float) -> VideoPrefix:
        """Returns the ids around the video, up to and without the full stop of the time instruction."""
        instruction = write_time_instruction(timestamps_s, duration_s)
        return VideoPrefix(
            before_video=(*self.text_prefix(), *self._encode("\n")),
            after_video=tuple(self._encode(_BEFORE_TIME[self._layout] + instruction.removesuffix("."))),
        )

    def video_question(self, question: str) -> list[int]:
        """Returns the ids that follow a clip's `video_prefix`."""
        return self._encode("." + _BEFORE_QUESTION[self._layout] + question) + self._turn_to_assistant()

    def text_prefix(self) -> list[int]:
        """Returns the ids that every prompt begins with: the system turn and the word `user`."""
        system = [self._im_start, *self._encode(f"system\n{_SYSTEM}"), self._im_end, *self._encode("\n")]
        return [*system, self._im_start, *self._encode("user")]

    def text_question(self, question: str) -> list[int]:
        """Returns the ids that follow `text_prefix` for a question without a video."""
        return self._encode("\n" + question) + self._turn_to_assistant()

    def answer(self, text: str) -> list[int]:
        """Returns the ids of an answer as they follow a question, without the end of the turn."""
        return self._encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of generated ids without special tokens, stripped."""
        return self._decoder.decode(list(token_ids), skip_special_tokens=True).strip()

    def _turn_to_assistant(self) -> list[int]:
        return [self._im_end, *self._encode("\n"), self._im_start, *self._encode("assistant\n")]

    def _encode(self, text: str) -> list[int]:
        return self._text.encode(text, add_special_tokens=False).ids

    def _special_id(self, name: str, checkpoint: Checkpoint) -> int:
        token_id = self._decoder.token_to_id(name)
        if token_id is None:
            raise CheckpointError(f"{checkpoint.name}: tokenizer.json has no {name}; wanted a Qwen2 (ChatML) tokenizer")
        return token_id
