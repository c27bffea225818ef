"""Stages 2 and 3: the language model learns to answer, from ideal visual tokens and then from the tower's own."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from demo.training.batches import IGNORED, Block, Encoder, Mix, ask_about, ask_text_only, pack_block
from demo.training.language import DrawClips, Guides, answer_losses, build_prefix, build_short_prefix, text_prefix
from demo.training.language_model import LanguageModel
from demo.training.optimizer import Optimizers, learning_rate_factor
from demo.training.tokenizer import train_tokenizer

# Seeing first: short prompts and answers, three times as many clips per second. Then everything that recipes send.
SEEING = Mix(4, short=5, choices=1, wrong=0, typed=0, segment_every=0, text_only_every=8, full_prompts=False)
ANSWERING = Mix(3, short=4, choices=3, wrong=1, typed=2, segment_every=1, text_only_every=1, full_prompts=True)
MEASURED = Mix(16, short=4, choices=4, wrong=1, typed=2, segment_every=1, text_only_every=1, full_prompts=True)
TEXT_WEIGHT = 1.0
SAVE_EVERY_S = 240
HELD_OUT_SEED = 90_000_000


class Training:
    """A language model under training, with all that going on after an interruption needs."""

    def __init__(self, draw_clips: DrawClips, mix: Mix, seed: int, guide_weight: float) -> None:
        torch.manual_seed(seed)
        tokenizer = train_tokenizer(0)
        self.encoder, self.draw_clips, self.mix = Encoder(tokenizer), draw_clips, mix
        self.model, self.guides = LanguageModel(tokenizer.get_vocab_size()), Guides()
        self.optimizers, self.guide_weight = build_optimizers(self.model, self.guides), guide_weight
        self.seed, self.num_steps = seed, 0
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.rng = np.random.default_rng([seed, self.rank])

    def load(self, path: Path) -> None:
        """Goes on from a saved state, with other clips than so far."""
        state = torch.load(path)
        for name in ("model", "guides", "optimizers"):
            getattr(self, name).load_state_dict(state[name])
        self.num_steps = state["step"]
        self.rng = np.random.default_rng([self.seed, self.num_steps, self.rank])

    def save(self, path: Path) -> None:
        """Writes everything but the random state."""
        state = {name: getattr(self, name).state_dict() for name in ("model", "guides", "optimizers")}
        torch.save(state | {"step": self.num_steps}, path)

    def step(self, rate_factor: float) -> np.ndarray:
        """Learns from one batch; returns the losses of answers, guides and text-only answers."""
        clips = self.draw_clips(self.rng, self.mix.clips)
        asked = ask_about(clips.scenes, self.mix, self.rng, self._is_due(self.mix.segment_every))
        blocks = [pack_block(self.encoder, rows) for rows in asked]
        build = build_prefix if self.mix.full_prompts else build_short_prefix
        prefix = build(self.model, self.encoder, clips)
        hidden, seen = self.model(prefix, [block.ids for block in blocks])
        answer_loss = answer_losses(self.model, hidden, blocks)
        guide_loss = self.guides.loss(seen, prefix, clips, blocks)
        (answer_loss + self.guide_weight * guide_loss).backward()
        text_loss = self._learn_text_only() if self._is_due(self.mix.text_only_every) else np.nan
        if dist.is_initialized():
            share_gradients([*self.model.parameters(), *self.guides.parameters()])
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizers.step(rate_factor)
        self.num_steps += 1
        return np.array([answer_loss.item(), guide_loss.item(), text_loss])

    def _is_due(self, every: int) -> bool:
        return every > 0 and (self.num_steps + self.rank) % every == 0

    def _learn_text_only(self) -> float:
        blocks = [pack_block(self.encoder, rows) for rows in ask_text_only(self.rng, 1, 2, 9)]
        hidden, _ = self.model(text_prefix(self.model, self.encoder), [block.ids for block in blocks])
        loss = answer_losses(self.model, hidden, blocks)
        (TEXT_WEIGHT * loss).backward()
        return loss.item()

    @torch.no_grad()
    def measure(self, num_rounds: int = 1) -> str:
        """Returns the fraction of right answers by kind on clips drawn with a seed that training never uses."""
        rng = np.random.default_rng(HELD_OUT_SEED)
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for _ in range(num_rounds):
            clips = self.draw_clips(rng, MEASURED.clips)
            blocks = [
                pack_block(self.encoder, rows) for rows in ask_about(clips.scenes, MEASURED, rng, with_segments=True)
            ]
            hidden, _ = self.model(build_prefix(self.model, self.encoder, clips), [block.ids for block in blocks])
            count_right(self.model, hidden, blocks, counts)
            texts = [pack_block(self.encoder, rows) for rows in ask_text_only(rng, 4, 4, 8)]
            hidden, _ = self.model(text_prefix(self.model, self.encoder), [block.ids for block in texts])
            count_right(self.model, hidden, texts, counts)
        return " ".join(f"{kind} {right / asked:.2f}" for kind, (right, asked) in sorted(counts.items()))


def build_optimizers(model: LanguageModel, guides: Guides) -> Optimizers:
    """Gives the matrices of the layers to Muon and the rest to Adam."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    kept = {id(p) for p in matrices}
    others = [p for p in [*model.parameters(), *guides.parameters()] if id(p) not in kept]
    return Optimizers(matrices, others, 0.01, 2e-3)


def share_gradients(parameters: list[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes that train together."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


def count_right(
    model: LanguageModel, hidden: list[torch.Tensor], blocks: list[Block], counts: dict[str, list[int]]
) -> None:
    """Adds 1 for every answer whose every token is the most likely one: what greedy decoding would write."""
    for states, block in zip(hidden, blocks, strict=True):
        right = ((model.lm_head(states).argmax(-1) == block.targets) | (block.targets == IGNORED)).all(2)
        for row, kinds in zip(right.tolist(), block.kinds, strict=True):
            for good, kind in zip(row, kinds, strict=True):
                counts[kind][0] += good
                counts[kind][1] += 1


def train_language(
    path: Path,
    draw_clips: DrawClips,
    mix: Mix,
    num_steps: int,
    seed: int,
    decay_from: float,
    guide_weight: float = 0.3,
    start: Path | None = None,
    peak_rate: float = 1.0,
) -> None:
    """Takes so many more steps from `start`, or from `path` itself, and writes `path` every few minutes."""
    training = Training(draw_clips, mix, seed, guide_weight)
    if (start or path).exists():
        training.load(start or path)
    if dist.is_initialized():
        dist.barrier()  # nobody may write before all have read
    started_s = saved_s = time.time()
    losses = []
    for step in range(1, num_steps + 1):
        losses.append(training.step(peak_rate * learning_rate_factor(step / num_steps, decay_from=decay_from)))
        if training.rank == 0 and step % 50 == 0:
            means = "answers {:.3f} guides {:.3f} text {:.3f}".format(*np.nanmean(losses[-50:], axis=0))
            print(f"{time.time() - started_s:.0f} s, step {training.num_steps}: {means}", flush=True)
        if training.rank == 0 and (time.time() - saved_s > SAVE_EVERY_S or step == num_steps):
            saved_s = time.time()
            training.save(path)
            print(f"  {training.measure()}", flush=True)
    if dist.is_initialized():
        dist.barrier()
