"""Trains the demo checkpoint from scratch: `python -m demo.training.train --out DIR`.

1. The tower and the projector learn to write the facts of single frames into every patch (perception.pt).
2. The language model learns to answer from visual tokens as a perfect tower would give them (language.pt).
3. It goes on with encoded clips as the finished tower sees them (seen_clips.pkl, tuned.pt).
4. Everything is written as a LLaVA-Video checkpoint in bf16 (checkpoint/).

The language model's stages can run on several processes, as
`torchrun --nproc-per-node 3 -m demo.training.train` starts them.
Stages 1 and 2 do not need each other and can run at the same time, one core each (`--stage`). A stage whose file
exists is not run again, but for the language model's, which go on from it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

from demo.training.checkpoint_files import write_checkpoint
from demo.training.language import ideal_clips
from demo.training.language_model import LanguageModel
from demo.training.language_training import ANSWERING, SEEING, train_language
from demo.training.perception import Perception, train_perception
from demo.training.seen_clips import keep_clips
from demo.training.tokenizer import train_tokenizer

STAGES = ("perception", "language", "tuning", "checkpoint")
TOKENIZER_SEED, PERCEPTION_SEED, LANGUAGE_SEED, CLIPS_SEED, TUNING_SEED = 0, 1, 2, 3, 4


def run_stage(stage: str, given: argparse.Namespace) -> None:
    """Runs one stage in the folder `given.out`."""
    out: Path = given.out
    if stage == "perception" and not (out / "perception.pt").exists():
        train_perception(out, given.perception_steps, PERCEPTION_SEED)
    if stage == "language":
        train_language(out / "language.pt", ideal_clips, SEEING, given.seeing_steps, LANGUAGE_SEED, decay_from=1.0)
    if stage == "tuning":
        clips = keep_clips(load_perception(out), out / "seen_clips.pkl", given.clips, CLIPS_SEED)
        start = out / ("tuned.pt" if (out / "tuned.pt").exists() else "language.pt")
        steps, decay_from, peak_rate = given.tuning_steps, given.decay_from, given.peak_rate
        train_language(out / "tuned.pt", clips.draw, ANSWERING, steps, TUNING_SEED, decay_from, 0.3, start, peak_rate)
    if stage == "checkpoint":
        tokenizer = train_tokenizer(TOKENIZER_SEED)
        tuned = out / "tuned.pt" if (out / "tuned.pt").exists() else out / "language.pt"
        language = LanguageModel(tokenizer.get_vocab_size())
        language.load_state_dict(torch.load(tuned)["model"])
        write_checkpoint(out / "checkpoint", load_perception(out), language, tokenizer)


def load_perception(out: Path) -> Perception:
    """Reads the finished tower and projector."""
    perception = Perception()
    perception.load_state_dict(torch.load(out / "perception.pt"))
    return perception.eval()


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for training states and the checkpoint")
    parser.add_argument("--stage", choices=STAGES, help="only this stage; all of them without")
    parser.add_argument("--perception-steps", type=int, default=2000)
    parser.add_argument("--seeing-steps", type=int, default=800, help="steps of stage 2")
    parser.add_argument("--tuning-steps", type=int, default=7000, help="steps of stage 3")
    parser.add_argument("--decay-from", type=float, default=0.6, help="fraction of stage 3 after which its rate falls")
    parser.add_argument(
        "--peak-rate", type=float, default=1.0, help="of stage 3's learning rate; less for a last touch"
    )
    parser.add_argument("--clips", type=int, default=5000, help="encoded clips that stage 3 learns from")
    return parser.parse_args()


def main() -> None:
    """Runs one stage or all of them."""
    given = parse_arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    for stage in [given.stage] if given.stage else STAGES:
        run_stage(stage, given)


if __name__ == "__main__":
    main()
