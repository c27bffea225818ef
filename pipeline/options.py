"""The command line: every flag, parsed and checked here and nowhere else.

`python -m pipeline.options` prints docs/flags.md from the parser itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pipeline.export_flags import add_export_flags
from pipeline.flag_values import (
    parse_count,
    parse_device,
    parse_fraction,
    parse_host,
    parse_place,
    parse_positive_float,
    parse_positive_int,
    parse_storage_options,
    parse_window_columns,
)
from pipeline.unknown_flags import check_known_to_runner, refuse_meant_for_us

EPILOG = "Flags of Apache Beam and its runners pass through, for example --direct_num_workers=2."
DEFAULT_MODEL = "lmms-lab/LLaVA-Video-7B-Qwen2"
_EXIT_USAGE = 2
_RUN_BY_BEAM = ("annotate", "plan")  # these take flags of Beam
STORAGE_OPTIONS = "FRAMESCRIBE_STORAGE_OPTIONS"


@dataclass(frozen=True, slots=True)
class Command:
    """What was typed: the sub-command, our flags, and the flags that are for Beam."""

    name: str
    flags: argparse.Namespace
    beam_flags: tuple[str, ...]


def parse_command(arguments: Sequence[str]) -> Command:
    """Parses the command line; prints what is wrong and exits with 2 where it cannot be meant.

    Flags that are neither ours nor close to one of ours are taken to be Beam's, and checked against its own. A runner
    with a job server may know more: those pass with a warning.
    """
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(_EXIT_USAGE)
    flags, unknown = parser.parse_known_args(arguments)
    refuse_meant_for_us(parser, unknown, _our_flags(parser, flags.command))
    if unknown and flags.command not in _RUN_BY_BEAM:
        parser.error(f"unrecognised flags for {flags.command}: {' '.join(unknown)}")
    if any(flag.endswith("multi_processing") for flag in unknown):
        parser.error(
            "--direct_running_mode=multi_processing loads one model a process and hangs for ever when one dies; "
            "leave it out: several bundle threads share one model"
        )
    if unknown:
        check_known_to_runner(parser, unknown, flags.runner)
    return Command(flags.command, flags, tuple(unknown))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="framescribe",
        description="Annotates video data sets with LLaVA-Video: captions and question-answer pairs, as Parquet.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"framescribe {_find_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="annotate | plan | publish | export")
    annotate = commands.add_parser(
        "annotate",
        help="read clips, annotate them, write tables",
        usage="%(prog)s --input URI [URI ...] --output FOLDER [flags]",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    _add_input_flags(annotate)
    _add_flags_of_work(annotate)
    plan = commands.add_parser(
        "plan",
        help="list the clips and the units they would be read in; writes nothing",
        usage="%(prog)s --input URI [URI ...] [flags]",
        epilog="Other flags of annotate are taken too and change nothing here, so that its command line can be tried.",
        allow_abbrev=False,
    )
    _add_input_flags(plan)
    used = [*plan._actions]
    _add_flags_of_work(plan)
    for action in plan._actions:
        if action not in used:
            action.help, action.required = argparse.SUPPRESS, False
    publish = commands.add_parser(
        "publish", help="build the tables of a run, finished or not, from its parts", allow_abbrev=False
    )
    publish.add_argument("--output", type=parse_place, required=True, metavar="FOLDER", help="folder or URI of the run")
    _add_storage_flag(publish)
    export = commands.add_parser(
        "export", help="write what a run published, with its videos, in a form that trainers read", allow_abbrev=False
    )
    add_export_flags(export)
    _add_store_flags(export)
    return parser


def _add_flags_of_work(parser: argparse.ArgumentParser) -> None:
    _add_output_flags(parser)
    _add_model_flags(parser)
    _add_recipe_flags(parser)
    _add_sampling_flags(parser)
    _add_run_flags(parser)


def _add_input_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input",
        action="extend",
        type=parse_place,
        nargs="+",
        required=True,
        metavar="URI",
        help="WebDataset .tar shards, Parquet, video files, folders, globs, or .jsonl/.csv manifests; local or any "
        "fsspec URI",
    )
    group.add_argument(
        "--video-column",
        metavar="NAME",
        help="column of videos or URIs: of Parquet, found by its name and type; of CSV and JSON Lines (video)",
    )
    group.add_argument(
        "--window-columns",
        type=parse_window_columns,
        metavar="START,END",
        help="two columns with start and end of a clip in its video, as seconds or H:MM:SS (start_s,end_s); none takes "
        "every video whole",
    )
    group.add_argument(
        "--clips-per-unit", type=parse_positive_int, default=32, metavar="N", help="clips a work unit (32)"
    )
    _add_store_flags(group)


def _add_store_flags(parser: argparse._ActionsContainer) -> None:
    _add_storage_flag(parser)
    parser.add_argument(
        "--trusted-hosts",
        action="extend",
        type=parse_host,
        nargs="+",
        default=[],
        metavar="HOST",
        help="hosts (host or host:port), besides those that other flags name, that rows may reach in a private network "
        "and that get the headers of --storage-options",
    )


def _add_storage_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--storage-options",
        type=parse_storage_options,
        default=os.environ.get(STORAGE_OPTIONS) or "{}",
        metavar="JSON",
        help="fsspec options, as in pandas: '{\"anon\": true}', or @FILE, which `ps` does not show; never written "
        f"anywhere; {STORAGE_OPTIONS} in the environment is their default",
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        type=parse_place,
        required=True,
        metavar="FOLDER",
        help="folder or URI; a rerun goes on where it was",
    )
    again = group.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="remove the run that is in the output folder first")
    again.add_argument("--retry-failed", action="store_true", help="try the clips again that failed in this output")
    group.add_argument(
        "--allow-other-versions",
        action="store_true",
        help="go on with a run, or take its answers, under another minor version of FrameScribe, torch or transformers",
    )
    group.add_argument(
        "--changed-inputs",
        choices=("keep", "redo"),
        help="what becomes of finished clips whose inputs have changed since: kept as they are, or done again",
    )
    group.add_argument(
        "--reuse-from",
        type=parse_place,
        metavar="FOLDER",
        help="output of an earlier run of the same model, frames and inputs: what it asked already is not asked again",
    )
    group.add_argument(
        "--max-failed-fraction",
        type=parse_fraction,
        default=1.0,
        metavar="X",
        help="stop once more than this share failed; a run of which every clip failed is never a success (1.0)",
    )


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME", help=f"folder, URI or Hugging Face id ({DEFAULT_MODEL})"
    )
    group.add_argument("--revision", metavar="REV", help="commit, branch or tag on the hub")
    group.add_argument(
        "--device", type=parse_device, default="auto", metavar="NAME", help="cuda, cuda:1, cpu or auto (auto)"
    )
    group.add_argument(
        "--dtype", default="auto", choices=("auto", "bfloat16", "float32", "float16"), help="auto: bfloat16 on a GPU"
    )
    group.add_argument(
        "--attn-implementation", default="sdpa", choices=("sdpa", "eager", "flash_attention_2"), help="(sdpa)"
    )
    group.add_argument("--device-map", choices=("auto",), help="auto: spread the layers over all GPUs (72B)")
    group.add_argument(
        "--pool-mode", choices=("average", "max", "bilinear"), help="instead of the checkpoint's own pooling"
    )
    group.add_argument(
        "--prompt-layout", default="model_card", choices=("model_card", "demo", "training"), help="(model_card)"
    )
    group.add_argument(
        "--kv-cache-gib", type=parse_positive_float, metavar="X", help="GiB for keys and values; what is free"
    )


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe")
    group.add_argument(
        "--recipe", default="detailed", metavar="NAME", help="model_card, detailed, levels, or a YAML file (detailed)"
    )
    group.add_argument("--no-loop-stop", action="store_true", help="let completions that repeat themselves go on")


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--num-frames", type=parse_positive_int, default=64, metavar="N", help="frames a clip, evenly spread (64)"
    )
    group.add_argument("--fps", type=parse_positive_float, metavar="X", help="frames a second, at most --num-frames")
    group.add_argument("--split-seconds", type=parse_positive_float, metavar="S", help="cut longer videos into windows")
    group.add_argument(
        "--time-base",
        default="pts",
        choices=("pts", "model_card"),
        help="true times, or the model card's arithmetic (pts)",
    )
    group.add_argument("--decoder", default="auto", choices=("auto", "decord", "pyav"), help="auto is pyav (auto)")
    group.add_argument(
        "--decode-deadline", type=parse_positive_float, default=300.0, metavar="S", help="seconds a clip may take (300)"
    )
    group.add_argument(
        "--min-decoded-fraction",
        type=parse_fraction,
        default=0.9,
        metavar="X",
        help="least share of a damaged clip (0.9)",
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--runner", default="DirectRunner", help="as in Beam; DirectRunner, the default, is this process"
    )
    group.add_argument(
        "--decoder-processes", type=parse_positive_int, metavar="N", help="decoder processes a worker; one a core"
    )
    group.add_argument(
        "--frame-memory-gib",
        type=parse_positive_float,
        default=4.0,
        metavar="X",
        help="GiB of decoded frames a worker holds (4)",
    )
    group.add_argument(
        "--canary-every",
        type=parse_count,
        default=500,
        metavar="N",
        help="clips of a worker between two checks that a known clip is still answered as at the start; 0 never (500)",
    )
    group.add_argument(
        "--prefetch-clips", type=parse_positive_int, default=48, metavar="N", help="clips in the model per worker (48)"
    )


def _our_flags(parser: argparse.ArgumentParser, command: str) -> list[str]:
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [name for action in commands.choices[command]._actions for name in action.option_strings]


def _find_version() -> str:
    try:
        return version("framescribe")
    except PackageNotFoundError:
        return "(not installed)"


def describe_flags() -> str:
    """Returns docs/flags.md: the flags of `annotate`, a row each, in the groups of `--help`."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    groups = [group for group in commands.choices["annotate"]._action_groups if group.title and group._group_actions]
    rows = [
        _describe(group.title or "", action)
        for group in groups
        for action in group._group_actions
        if not isinstance(action, argparse._HelpAction)
    ]
    head = [
        "# Flags of `annotate`",
        "",
        "Made from the parser by `make docs`. Flags of Beam and its runners pass through.",
        "",
    ]
    return "\n".join([*head, "| group | flag | what it does (default) |", "|---|---|---|", *rows])


def _describe(group: str, action: argparse.Action) -> str:
    choices = f" {{{', '.join(map(str, action.choices))}}}" if action.choices else ""
    metavar = f" {action.metavar}" if isinstance(action.metavar, str) else ""
    text = (action.help or "").replace("|", "\\|")
    return f"| {group} | `{action.option_strings[0]}{metavar}`{choices} | {text} |"


if __name__ == "__main__":
    print(describe_flags())
