"""What is said of flags that are not ours: misspelt ones, those of other programs, and those of runners."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

from pipeline.runners import is_in_process

_SIMILAR = 0.8


def refuse_meant_for_us(parser: argparse.ArgumentParser, unknown: Sequence[str], ours: Sequence[str]) -> None:
    """Exits with 2 at a flag that is cut short or misspelt, or that other programs have; says what to use instead."""
    for name in _names_of(unknown):
        typed = name.replace("_", "-")
        for names, instead in _FLAGS_OF_OTHERS.items():
            if name in names.split():
                parser.error(f"there is no flag {name}: {instead}")
        meant = [flag for flag in ours if flag.startswith(typed)]
        meant = meant or difflib.get_close_matches(typed, ours, n=1, cutoff=_SIMILAR)
        if meant:
            parser.error(f"unrecognised flag {name}; did you mean {' or '.join(meant)}?")


def check_known_to_runner(parser: argparse.ArgumentParser, unknown: Sequence[str], runner: str) -> None:
    """Refuses what Beam does not know, which Beam would drop with a warning; job servers know flags of their own."""
    from apache_beam.options.pipeline_options import PipelineOptions

    usage = parser.format_usage().partition(" ")[2].strip()
    beam_parser = argparse.ArgumentParser(
        parser.prog, usage, add_help=False, conflict_handler="resolve", allow_abbrev=False
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(beam_parser)
    _, left = beam_parser.parse_known_args(list(unknown))
    names = _names_of(left)
    may_be_the_servers = names and left[0].startswith("--") and not any("-" in name[2:] for name in names)
    if left and (is_in_process(runner) or not may_be_the_servers):
        parser.error(f"unrecognised flags, neither ours nor Beam's: {' '.join(left)}")
    if left:
        print(
            f"warning: neither ours nor of Beam's client, passed on to the job server of {runner}: {' '.join(left)}",
            file=sys.stderr,
        )


def _names_of(flags: Sequence[str]) -> list[str]:
    return [flag.partition("=")[0] for flag in flags if flag.startswith("--")]


# What people know from other programs, and what to use here.
_FLAGS_OF_OTHERS = {
    "--batch-size --batch_size --max-batch-size --max-num-seqs": (
        "clips are batched as they come, as many as fit in memory; --kv-cache-gib limits that"
    ),
    "--resume --resume-from --continue --skip-existing": "the same command goes on where it was, by itself",
    "--force": "--overwrite removes the run that is in the output folder",
    "--prompt --question --prompt-file --system-prompt": (
        "prompts stand in a recipe, a YAML file: --recipe my.yaml (see recipes/README.md)"
    ),
    "--gpus --gpu --num-gpus --gpu-id --cuda --tensor-parallel-size --tp": (
        "a worker uses one GPU, --device cuda:1 says which; --device-map auto spreads one model over all of them"
    ),
    "--num-workers --workers --num-proc --num-processes --num-threads --threads --jobs": (
        "--decoder-processes is the number of decoder processes per worker; flags of the --runner set the number of "
        "workers"
    ),
    "--model-name --model-path --model-id --model-base --model-name-or-path --checkpoint --pretrained": "use --model",
    "--input-dir --data-dir --video-dir --video --videos --video-path --dataset --data": "use --input",
    "--output-dir --out-dir --save-dir --save-path --output-path": "use --output",
    "--max-new-tokens --max-tokens --max-length": "max_new_tokens stands in the recipe (--recipe my.yaml)",
    "--temperature --top-p --top-k --num-beams --do-sample --seed": "the model answers greedily, nothing is drawn",
    "--precision --torch-dtype --fp16 --bf16": "use --dtype",
    "--load-in-4bit --load-in-8bit --quantization": "weights are not quantized; --dtype bfloat16 takes two bytes each",
    "--limit --max-clips --max-samples --num-samples": "give fewer inputs, for example --input 'folder/00*.mp4'",
    "--dry-run": "`plan` shows what would be done, with the same flags",
    "--trust-remote-code": "no code of a checkpoint is ever run",
}
