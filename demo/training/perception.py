"""Stage 1: the SigLIP tower and the projector learn to write the facts of a frame into every patch."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from demo.training.facts import NUM_BACKGROUNDS, NUM_COLOURS, NUM_SHAPES, SLOT_SIZE, fact_directions, frame_facts
from demo.training.optimizer import Optimizers, learning_rate_factor
from demo.world import draw_frames, random_scene

IMAGE_PX, PATCH_PX = 80, 16
TOWER_WIDTH, MODEL_WIDTH = 128, 128
TOWER_LAYERS = 4
BATCH_FRAMES = 96


def tower_config() -> SiglipVisionConfig:
    """Returns the geometry of the tower as it is stored."""
    return SiglipVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=2 * TOWER_WIDTH,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        num_attention_heads=4,
        num_hidden_layers=TOWER_LAYERS,
        vision_use_head=False,
    )


class Perception(nn.Module):
    """Tower and projector; what the language model gets is the pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(tower_config())
        self.projector = nn.Sequential(
            nn.Linear(TOWER_WIDTH, MODEL_WIDTH), nn.GELU(), nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Projects normalised pixels [B, 3, S, S] to [B, P, D]."""
        seen = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]  # [B, P, C]
        return self.projector(seen)


def pool(projected: torch.Tensor) -> torch.Tensor:
    """Averages patches two by two, as `mm_spatial_pool_mode: average`: [B, P, D] to [B, p, D]."""
    side = round(projected.shape[1] ** 0.5)
    grid = projected.mT.reshape(-1, projected.shape[2], side, side)
    return nn.functional.avg_pool2d(grid, 2).flatten(2).mT


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """Resizes uint8 [T, H, W, 3] as the pipeline does and normalises to float32 [T, 3, S, S]."""
    small = [Image.fromarray(frame).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2).float() / 127.5 - 1


def through_a_codec(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds what an encoder does to a frame: JPEG loses colour resolution and fine edges as H.264 does."""
    if rng.random() < 0.2:
        return frame
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=int(rng.integers(25, 95)))
    return np.asarray(Image.open(stream))


def random_frames(rng: np.random.Generator, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws pixels [B, 3, S, S] and facts [B, F] of four frames of each of some random scenes."""
    frames, facts = [], []
    for _ in range(num_frames // 4):
        scene, fraction = random_scene(rng), rng.random(4)
        frames += [through_a_codec(frame, rng) for frame in draw_frames(scene, fraction)]
        facts.append(frame_facts(scene, fraction))
    return to_pixels(np.stack(frames)), torch.from_numpy(np.concatenate(facts))


def fact_loss(projected: torch.Tensor, facts: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Squared distance of the projected patches [B, P, D] to the facts [B, F] along their directions."""
    wanted = (facts @ directions)[:, None]  # [B, 1, D]
    return (projected - wanted).square().sum(2).mean()


def score(projected: torch.Tensor, facts: torch.Tensor, directions: torch.Tensor) -> dict[str, float]:
    """Returns the fractions of frames right by fact and the typical error of places, read from pooled tokens."""
    read = pool(projected).mean(1) @ directions.T / directions[0].square().sum()  # [B, F]
    marks = {"ground": (read[:, :NUM_BACKGROUNDS].argmax(1) == facts[:, :NUM_BACKGROUNDS].argmax(1)).float().mean()}
    marks["count"] = (read[:, NUM_BACKGROUNDS].sign() == facts[:, NUM_BACKGROUNDS]).float().mean()
    shapes, colours, errors = [], [], []
    for slot in range(2):
        at = NUM_BACKGROUNDS + 1 + slot * SLOT_SIZE
        there = facts[:, at : at + NUM_COLOURS].sum(1) > 0
        one, true = read[there, at : at + SLOT_SIZE], facts[there, at : at + SLOT_SIZE]
        colours.append(one[:, :NUM_COLOURS].argmax(1) == true[:, :NUM_COLOURS].argmax(1))
        form = slice(NUM_COLOURS, NUM_COLOURS + NUM_SHAPES)
        shapes.append(one[:, form].argmax(1) == true[:, form].argmax(1))
        errors.append((one[:, -3:] - true[:, -3:]).square())
    marks |= {"colour": torch.cat(colours).float().mean(), "shape": torch.cat(shapes).float().mean()}
    marks |= dict(zip(("x", "y", "r"), torch.cat(errors).mean(0).sqrt(), strict=True))
    return {name: round(float(value), 3) for name, value in marks.items()}


class FramePool:
    """Frames to draw batches from; a few are replaced at each step, as drawing costs as much as learning."""

    def __init__(self, rng: np.random.Generator, num_frames: int) -> None:
        self.rng = rng
        self.pixels, self.facts = random_frames(rng, num_frames)

    def batch(self, num_frames: int, num_new: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Replaces `num_new` frames and returns `num_frames` at random, pixels and facts."""
        at = torch.from_numpy(self.rng.integers(0, len(self.facts), num_new))
        self.pixels[at], self.facts[at] = random_frames(self.rng, num_new)
        chosen = torch.from_numpy(self.rng.integers(0, len(self.facts), num_frames))
        return self.pixels[chosen], self.facts[chosen]


def build_optimizers(model: Perception) -> Optimizers:
    """Gives the matrices to Muon and the rest to Adam."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n]
    patch = [p for n, p in model.named_parameters() if "patch_embedding.weight" in n]
    kept = {id(p) for p in [*matrices, *patch]}
    others = [p for p in model.parameters() if id(p) not in kept and p.requires_grad]
    # All 768 pixels of a plain patch are the same number: a full step on each would throw the patch embedding about.
    return Optimizers(matrices, others, 0.02, 1e-3, slow=(patch, 2e-4))


def train_perception(out: Path, num_steps: int, seed: int) -> None:
    """Trains and writes perception.pt, also on the way; goes on from an unfinished.pt where there is one."""
    torch.manual_seed(seed)
    model, directions = Perception(), torch.from_numpy(fact_directions(MODEL_WIDTH))
    if (out / "unfinished.pt").exists():
        model.load_state_dict(torch.load(out / "unfinished.pt"))
    optimizers = build_optimizers(model)
    held = random_frames(np.random.default_rng(10_000 + seed), 800)
    pool_of_frames = FramePool(np.random.default_rng(seed), 8_000)
    started = time.time()
    for step in range(num_steps + 1):
        pixels, facts = pool_of_frames.batch(BATCH_FRAMES, 24)
        loss = fact_loss(model(pixels), facts, directions)
        loss.backward()
        optimizers.step(learning_rate_factor(step / num_steps, decay_from=0.3))
        if step % 100 == 0:
            with torch.no_grad():
                marks = score(model(held[0]), held[1], directions)
            print(f"{time.time() - started:.0f} s, step {step}: loss {float(loss.detach()):.4f} {marks}", flush=True)
            torch.save(model.state_dict(), out / "unfinished.pt")
    (out / "unfinished.pt").replace(out / "perception.pt")


def main() -> None:
    """Runs stage 1 alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train_perception(given.out, given.steps, given.seed)


if __name__ == "__main__":
    main()
