"""What is said of a command line that is not ours: misspelt words and flags, those of other programs and of runners."""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence

from pipeline.runners import is_in_process

_SIMILAR, _SIMILAR_COMMAND = 0.8, 0.6


def refuse_unknown_command(parser: argparse.ArgumentParser, arguments: Sequence[str], commands: Sequence[str]) -> None:
    """Exits with 2 where no sub-command comes first, or one that there is not; says which was meant."""
    first = arguments[0]
    if first in commands or first in ("-h", "--help", "--version"):
        return
    wanted = f"wanted one of {', '.join(commands)}"
    if first.startswith("-"):
        parser.error(f"got {first} first, {wanted}: the sub-command stands before its flags")
    if os.path.exists(first) or re.search(r"[./*]", first):
        parser.error(
            f"got {first!r}, {wanted}: for example `ask {first}`, or `annotate --input {first} --output FOLDER`"
        )
    close = difflib.get_close_matches(first.lower(), commands, n=1, cutoff=_SIMILAR_COMMAND)
    meant = [name for name, words in _COMMANDS_OF_OTHERS.items() if first.lower() in words.split()]
    if close or meant:
        parser.error(f"there is no sub-command {first!r}; did you mean {(close or meant)[0]}?")
    parser.error(f"there is no sub-command {first!r}, {wanted}")


def refuse_unknown_flags(
    command: argparse.ArgumentParser, arguments: Sequence[str], flags: Mapping[str, Sequence[str]]
) -> None:
    """Exits with 2 at a flag that is cut short or misspelt, that is another sub-command's, or another program's.

    Args:
        command: the parser of the sub-command.
        arguments: what was typed, the sub-command first.
        flags: those of each sub-command.
    """
    name = arguments[0]
    ours = flags.get(name, ())
    if name in _TAKES_INSTEAD and arguments[1:] and not arguments[1].startswith("-"):
        command.error(f"got {arguments[1]!r}, wanted a flag: {_TAKES_INSTEAD[name].format(arguments[1])}")
    of_beam = _list_flags_of_beam() if _runs_elsewhere(arguments) else frozenset()
    for flag in _flags_in(arguments):
        typed = flag.replace("_", "-")
        if flag in ours or flag in of_beam:
            continue
        for names, use in [*(_FLAGS_OF_OTHERS_TO_ASK if name == "ask" else {}).items(), *_FLAGS_OF_OTHERS.items()]:
            if flag in names.split():
                command.error(f"there is no flag {flag}: {use}")
        meant = [one for one in ours if one.startswith(typed)] if flag.startswith("--") else []
        meant = meant or difflib.get_close_matches(typed, ours, n=1, cutoff=_SIMILAR)
        if meant:
            command.error(f"unrecognised flag {flag}; did you mean {' or '.join(meant)}?")
        others = [other for other, known in flags.items() if flag in known]
        if others:
            command.error(f"{flag} is a flag of {others[0]}, not of {name}, which has {', '.join(ours)}")


def refuse_words(command: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """Exits with 2 at the rest of a question that was not put in quotes."""
    if command.prog.endswith(" ask") and unknown and not unknown[0].startswith("-"):
        command.error(f"got {unknown[0]!r} after the question, wanted one question: put it in quotes")


def check_known_to_runner(parser: argparse.ArgumentParser, unknown: Sequence[str], runner: str) -> None:
    """Refuses what Beam does not know, which Beam would drop with a warning; job servers know flags of their own."""
    beam_parser = _make_parser_of_beam(parser.prog, parser.format_usage().partition(" ")[2].strip())
    _, left = beam_parser.parse_known_args(list(unknown))
    names = _flags_in(left)
    may_be_the_servers = names and left[0].startswith("--") and not any("-" in name[2:] for name in names)
    if left and (is_in_process(runner) or not may_be_the_servers):
        parser.error(f"unrecognised flags, neither ours nor Beam's: {' '.join(left)}")
    if left:
        print(
            f"warning: neither ours nor of Beam's client, passed on to the job server of {runner}: {' '.join(left)}",
            file=sys.stderr,
        )


def _make_parser_of_beam(program: str | None = None, usage: str | None = None) -> argparse.ArgumentParser:
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(program, usage, add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser


def _list_flags_of_beam() -> frozenset[str]:
    return frozenset(_make_parser_of_beam()._option_string_actions)


def _runs_elsewhere(arguments: Sequence[str]) -> bool:
    """Whether a runner is named whose flags may have the names of other programs', such as Dataflow's `--region`."""
    named = [
        one.partition("=")[2] or after
        for one, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if one.partition("=")[0] == "--runner"
    ]
    return bool(named) and not is_in_process(named[-1])


def _flags_in(arguments: Sequence[str]) -> list[str]:
    """Returns the flags among what was typed, without their values; `-1` is a number."""
    before = itertools.takewhile(lambda argument: argument != "--", arguments)
    return [argument.partition("=")[0] for argument in before if re.match(r"--?[A-Za-z]", argument)]


_COMMANDS_OF_OTHERS = {
    "annotate": "run caption captions label generate infer inference process start resume batch",
    "plan": "list ls inspect dry-run dryrun count show preview",
    "publish": "finish merge tables build compile",
    "ask": "describe query question chat predict demo",
}
_TAKES_INSTEAD = {
    "annotate": "--input {} --output FOLDER",
    "plan": "--input {}",
    "publish": "--output {}",
}
# What people know from other programs, and what to use here.
_FLAGS_OF_OTHERS = {
    "--batch-size --batch_size --max-batch-size --max-num-seqs": (
        "clips are batched as they come, as many as fit in memory; --kv-cache-gib limits that"
    ),
    "--resume --resume-from --continue --skip-existing": "rerun the same command to resume",
    "--force": "--overwrite removes the run that is in the output folder",
    "--prompt --question --prompt-file --system-prompt": (
        "prompts stand in a recipe, a YAML file: --recipe my.yaml (see docs/recipes.md)"
    ),
    "-i": "use --input",
    "-o": "use --output",
    "-m": "use --model",
    "-n": "use --num-frames",
    "-v --debug --log-level --quiet -q": "progress is always shown, on standard error; annotate --verbose says more",
    "-j": "--decoder-processes is the number of decoder processes per worker",
    "--gpus --gpu --num-gpus --gpu-id --cuda --tensor-parallel-size --tp": (
        "a worker uses one GPU, --device cuda:1 says which; --device-map auto spreads one model over all of them"
    ),
    "--num-workers --workers --num-proc --num-processes --num-threads --threads --jobs": (
        "--decoder-processes is the number of decoder processes per worker; flags of the --runner set the number of "
        "workers"
    ),
    "--model-name --model-path --model-id --model-base --model-name-or-path --checkpoint --pretrained": "use --model",
    "--frames --max-frames --nframes --max-frames-num --for-get-frames-num": "use --num-frames",
    "--framerate --frame-rate --sample-fps --video-fps": "use --fps",
    "--config --config-file": "settings are flags; prompts stand in a recipe, --recipe my.yaml",
    "--format --output-format": "tables are Parquet; pandas, polars, DuckDB and datasets read it",
    "--hf-token --token --use-auth-token": "set HF_TOKEN in the environment",
    "--region --endpoint-url --profile --anon": 'use --storage-options, for example \'{"endpoint_url": "..."}\'',
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
_FLAGS_OF_OTHERS_TO_ASK = {
    "--prompt --question -p -q": 'the question stands after the video: ask a.mp4 "What happens?"',
    "--video --videos --video-path --input --input-dir --data --video-file -i": "the video comes first: ask a.mp4",
    "--max-tokens --max-length --max-new-token": "use --max-new-tokens",
    "--output --output-path -o --out": "the answer is printed: > FILE keeps it",
}
