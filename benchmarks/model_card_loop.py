"""The model card's loop on plain transformers: every question encodes, prefills and generates by itself.

Written after the card's description with transformers' own modules and `generate`, so that it shares no code with the
engine but the weights; the tests compare the engine's answers with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from framescribe.llava_video.engine.engine import Engine
from framescribe.llava_video.model.vision import normalise_pixels, resize_frames


class ModelCardLoop:
    """Asks one question after the other, batch of one, with nothing kept in between."""

    def __init__(self, engine: Engine) -> None:
        self._model, self._tokenizer = engine.model, engine.tokenizer
        self._defaults = engine.generation_defaults
        self._language = engine.model.language.module
        # The engine computes rotary positions by itself; the module's own table was built without memory.
        rotary = Qwen2RotaryEmbedding(self._language.config)
        self._language.model.rotary_emb = rotary.to(engine.model.device)

    @torch.inference_mode()
    def ask(
        self, frames: np.ndarray, timestamps_s: Sequence[float], duration_s: float, question: str, max_new_tokens: int
    ) -> list[int]:
        """Returns the generated ids, as the card's snippet does: all frames in one tower batch, then `generate`."""
        embeddings = self.embed(frames, timestamps_s, duration_s, question)
        generated = self._language.generate(
            inputs_embeds=embeddings[None],
            attention_mask=torch.ones(1, len(embeddings), dtype=torch.long, device=embeddings.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            repetition_penalty=self._defaults.repetition_penalty,
            eos_token_id=sorted(self._defaults.eos_token_ids),
            pad_token_id=min(self._defaults.eos_token_ids),
        )
        return generated[0].tolist()

    @torch.inference_mode()
    def embed(self, frames: np.ndarray, timestamps_s: Sequence[float], duration_s: float, question: str) -> Tensor:
        """Returns the input embeddings [L, D] of a whole prompt."""
        model = self._model
        resized = torch.from_numpy(resize_frames(frames, model.config.tower.image_size)).to(model.device)
        patches = model.project(model.run_vision_tower(normalise_pixels(resized, model.language.dtype)))
        video = model.arrange_video_tokens(model.pool(patches), np.arange(len(frames)))
        text = self._tokenizer.video_prefix(timestamps_s, duration_s)
        ids = ([*text.before_video], [*text.after_video, *self._tokenizer.video_question(question)])
        before, after = (self._language.model.embed_tokens(torch.tensor(part, device=model.device)) for part in ids)
        return torch.cat([before, video, after])
