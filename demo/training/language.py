"""What the language model learns from: visual tokens, prompts around them, losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from demo.training.batches import (
    IGNORED,
    KNOWN_ANSWERS,
    Block,
    Encoder,
    frame_times,
    random_time_instruction,
)
from demo.training.facts import NUM_FACTS, fact_directions, frame_facts
from demo.training.language_model import WIDTH, LanguageModel, Prefix
from demo.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, random_scene

TOKENS_PER_FRAME = 4
SHORT_INSTRUCTION = ".Please answer the following questions related to this video.\n"
# Throw-away heads that name the facts of the whole clip from the prefix's last tokens after these layers.
GUIDED_LAYERS, GUIDED_TOKENS = (1, 2), 4
KNOWING_LAYERS, CHOOSING_LAYERS = (2, 3), (4,)
CLIP_FACTS = (len(BACKGROUNDS), 2, *(len(SHAPES), len(COLOURS), len(COLOURS), len(MOTIONS)) * 2)


@dataclass(frozen=True, slots=True)
class SeenClips:
    """Scenes with their visual tokens, float32 [B, T, 4, D], frame numbers [T] each, and time instructions."""

    scenes: list[Scene]
    tokens: torch.Tensor
    frames: list[np.ndarray]
    instructions: list[str]


DrawClips = Callable[[np.random.Generator, int], SeenClips]


def ideal_clips(rng: np.random.Generator, num_clips: int) -> SeenClips:
    """Draws clips as a perfect tower with a little noise would see them; nothing is rendered."""
    num_frames = int(rng.choice([6, 7, 8, 8, 8, 8, 9, 10]))
    scenes = [random_scene(rng) for _ in range(num_clips)]
    frames = [frame_times(scene, num_frames, rng) for scene in scenes]
    facts = facts_of(scenes, frames)
    facts = facts[:, :, None].repeat(TOKENS_PER_FRAME, 2)  # [B, T, 4, F]
    noise = rng.uniform(0.02, 0.2, (num_clips, 1, 1, 1))
    facts = facts + noise * (
        rng.standard_normal(facts.shape) * 0.5 + rng.standard_normal((*facts.shape[:2], 1, facts.shape[3]))
    )
    tokens = torch.from_numpy(facts.astype(np.float32)) @ torch.from_numpy(fact_directions(WIDTH))
    return SeenClips(
        scenes, tokens, frames, [random_time_instruction(s, at, rng) for s, at in zip(scenes, frames, strict=True)]
    )


def build_prefix(model: LanguageModel, encoder: Encoder, clips: SeenClips) -> Prefix:
    """Embeds system text, video tokens with a newline after each row of two, and the time instruction."""
    return _surround(model, encoder.system, clips.tokens, [encoder.encode(text + "\n") for text in clips.instructions])


def build_short_prefix(model: LanguageModel, encoder: Encoder, clips: SeenClips) -> Prefix:
    """Embeds the video tokens and the last sentence before the question: a third of the tokens."""
    return _surround(model, [], clips.tokens, [encoder.encode(SHORT_INSTRUCTION)] * len(clips.scenes))


def _surround(model: LanguageModel, before: list[int], tokens: torch.Tensor, after: list[tuple[int, ...]]) -> Prefix:
    padded = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in after], batch_first=True)
    num_clips, num_frames = tokens.shape[:2]
    rows = tokens.reshape(num_clips, num_frames, 2, 2, WIDTH)
    newlines = model.image_newline.expand(num_clips, num_frames, 2, 1, WIDTH)
    video = torch.cat((rows, newlines), dim=3).flatten(1, 3)  # [B, T * 6, D]
    system = model.embed_tokens(torch.tensor(before, dtype=torch.int64)).expand(num_clips, -1, -1)
    lengths = torch.tensor([len(before) + video.shape[1] + len(text) for text in after])
    return Prefix(torch.cat((system, video, model.embed_tokens(padded)), dim=1), lengths, len(before))


def text_prefix(model: LanguageModel, encoder: Encoder) -> Prefix:
    """Embeds what stands before a question that comes without a video."""
    ids = torch.tensor([encoder.system])
    return Prefix(model.embed_tokens(ids), torch.tensor([ids.shape[1]]))


class Guides(nn.Module):
    """Throw-away linear heads that show the language model where to look.

    From the last tokens before the question: the facts of the whole clip. From every video token: what has changed
    since the first frame. From the end of a question's line: its answer. From the end of every option's line: whether
    it is the right one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, sum(CLIP_FACTS)) for _ in GUIDED_LAYERS)
        self.changes = nn.ModuleList(nn.Linear(WIDTH, NUM_FACTS) for _ in GUIDED_LAYERS)
        self.options = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in CHOOSING_LAYERS)
        self.known = nn.ModuleList(nn.Linear(WIDTH, len(KNOWN_ANSWERS)) for _ in KNOWING_LAYERS)
        for head in [*self.heads, *self.changes, *self.options, *self.known]:
            nn.init.zeros_(head.weight)

    def loss(
        self, seen: list[list[torch.Tensor]], prefix: Prefix, clips: SeenClips, blocks: list[Block]
    ) -> torch.Tensor:
        """Returns the sum of the clip's, the changes' and the options' losses, each a mean."""
        before = [F.rms_norm(streams[0], (WIDTH,)) for streams in seen]
        loss = self._clip_loss(before, prefix.lengths, clips.scenes)
        loss = loss + self._change_loss(before, prefix.video_start, clips)
        for head, layer in zip(self.known, KNOWING_LAYERS, strict=True):
            loss = loss + 0.5 * _marked_loss(head, seen[layer][1:], [block.known for block in blocks])
        for head, layer in zip(self.options, CHOOSING_LAYERS, strict=True):
            loss = loss + 2 * _marked_loss(head, seen[layer][1:], [block.options for block in blocks])
        return loss

    def _clip_loss(self, seen: list[torch.Tensor], lengths: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        wanted = torch.tensor([clip_facts(scene) for scene in scenes])
        at = lengths[:, None] - 1 - torch.arange(GUIDED_TOKENS)
        losses = []
        for head, layer in zip(self.heads, GUIDED_LAYERS, strict=True):
            logits = head(seen[layer][torch.arange(len(scenes))[:, None], at])  # [B, k, facts]
            for column, part in enumerate(logits.split(CLIP_FACTS, dim=2)):
                target = wanted[:, column, None].expand(-1, GUIDED_TOKENS)
                losses.append(F.cross_entropy(part.flatten(0, 1), target.flatten(), ignore_index=IGNORED))
        return torch.stack(losses).nanmean()

    def _change_loss(self, seen: list[torch.Tensor], start: int, clips: SeenClips) -> torch.Tensor:
        facts = torch.from_numpy(facts_of(clips.scenes, clips.frames))
        changes = (facts - facts[:, :1]).repeat_interleave(TOKENS_PER_FRAME + 2, dim=1)  # [B, T * 6, F]
        losses = [
            (head(seen[layer][:, start : start + changes.shape[1]]) - changes).square().mean()
            for head, layer in zip(self.changes, GUIDED_LAYERS, strict=True)
        ]
        return 4 * torch.stack(losses).mean()


def _marked_loss(head: nn.Module, states: list[torch.Tensor], marks: list[torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of a head over the tokens that carry a mark."""
    marked = [mark != IGNORED for mark in marks]
    chosen = torch.cat([x[there] for x, there in zip(states, marked, strict=True)])  # [N, D]
    wanted = torch.cat([mark[there] for mark, there in zip(marks, marked, strict=True)])
    return F.cross_entropy(head(F.rms_norm(chosen, (WIDTH,))), wanted)


def facts_of(scenes: list[Scene], frames: list[np.ndarray]) -> np.ndarray:
    """Returns the facts float32 [B, T, F] of these frames of each scene."""
    return np.stack([frame_facts(scene, at / (scene.num_frames - 1)) for scene, at in zip(scenes, frames, strict=True)])


def clip_facts(scene: Scene) -> list[int]:
    """Returns the class of each of CLIP_FACTS."""
    facts = [list(BACKGROUNDS).index(scene.background), len(scene.actors) - 1]
    colours = list(COLOURS)
    for actor in scene.actors:
        facts += [SHAPES.index(actor.shape), colours.index(actor.colour), colours.index(actor.end_colour)]
        facts += [MOTIONS.index(actor.motion)]
    return facts + [IGNORED] * (len(CLIP_FACTS) - len(facts))


def answer_losses(model: LanguageModel, hidden: list[torch.Tensor], blocks: list[Block]) -> torch.Tensor:
    """Returns the summed weighted loss over answers, divided by their number."""
    total, num_answers = torch.zeros(()), 0
    for states, block in zip(hidden, blocks, strict=True):
        spoken = block.targets != IGNORED
        losses = F.cross_entropy(model.lm_head(states[spoken]), block.targets[spoken], reduction="none")
        total = total + (losses * block.weights[spoken]).sum()
        num_answers += block.ids.shape[0] * block.ids.shape[1]
    return total / num_answers
