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

from framescribe.decoding.config import DECODERS, TIME_BASES, SamplingConfig
from framescribe.llava_video.engine.config import ATTENTION, DTYPES, PROMPT_LAYOUTS, EngineConfig
from framescribe.llava_video.engine.generation import GenerationConfig
from framescribe.recipes.loading import DEFAULT_RECIPE, SHIPPED
from framescribe.storage.config import ReadConfig
from pipeline.config import UnitConfig
from pipeline.export_flags import add_export_flags, add_report_flags, add_review_flags, add_withdraw_flags
from pipeline.flag_values import (
    add_setting,
    default_of,
    parse_count,
    parse_device,
    parse_fraction,
    parse_host,
    parse_place,
    parse_positive_float,
    parse_positive_int,
    parse_storage_options,
)
from pipeline.pilot_flags import PILOT_TEXTS, add_pilot_flags
from pipeline.plan_flags import (
    PLAN_TEXTS,
    add_column_flags,
    add_machines_flag,
    add_plan_flags,
    add_subset_flags,
    relax_for_plan,
)
from pipeline.runners import DEFAULT_RUNNER
from pipeline.unknown_flags import check_known_to_runner, refuse_unknown_command, refuse_unknown_flags, refuse_words
from pipeline.watch_flags import add_watch_flags
from schemas.records import FailurePolicy
from transforms.worker import WorkerConfig

EPILOG = "Flags of Apache Beam and its runners pass through, for example --direct_num_workers=2."
DEFAULT_MODEL = "lmms-lab/LLaVA-Video-7B-Qwen2"
_RUN_BY_BEAM = ("annotate", "plan", "pilot")  # these take flags of Beam
_ATTENTION = [name for name in ATTENTION if name is not None]
STORAGE_OPTIONS = "FRAMESCRIBE_STORAGE_OPTIONS"


@dataclass(frozen=True, slots=True)
class Command:
    """What was typed: the sub-command, our flags, the flags that are for Beam, and all as it was typed."""

    name: str
    flags: argparse.Namespace
    beam_flags: tuple[str, ...]
    arguments: tuple[str, ...] = ()


def parse_command(arguments: Sequence[str]) -> Command:
    """Parses the command line; prints what is wrong and exits with 2 where it cannot be meant.

    Flags that are neither ours nor close to one of ours are taken to be Beam's, and checked against its own. A runner
    with a job server may know more: those pass with a warning.
    """
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)  # as argparse for a wrong flag
    commands = _commands_of(parser)
    refuse_unknown_command(parser, arguments, list(commands))
    if arguments[0] in commands:  # before the parser complains of what is missing: that may be what was misspelt
        known = {name: _flags_of(one) for name, one in commands.items()}
        refuse_unknown_flags(commands[arguments[0]], arguments, known)
    flags, unknown = parser.parse_known_args(arguments)
    command = commands[flags.command]
    refuse_words(command, unknown)
    if unknown and flags.command not in _RUN_BY_BEAM:
        command.error(f"{flags.command} has no flag {unknown[0]}; it has {', '.join(_flags_of(command))}")
    if any(flag.endswith("multi_processing") for flag in unknown):
        command.error(
            "--direct_running_mode=multi_processing loads one model per process and hangs for ever when one dies; "
            "leave it out: several bundle threads share one model"
        )
    if unknown:
        check_known_to_runner(command, unknown, flags.runner)
    return Command(flags.command, flags, tuple(unknown), tuple(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="framescribe",
        description="Annotates video data sets with LLaVA-Video: captions and question-answer pairs, as Parquet.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"framescribe {_find_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    annotate = commands.add_parser(
        "annotate",
        help="read clips, annotate them, write tables",
        usage="%(prog)s --input URI [URI ...] --output FOLDER [flags]",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    _add_input_flags(annotate)
    _add_flags_of_work(annotate)
    add_machines_flag(annotate.add_argument_group("price"))
    plan = commands.add_parser("plan", allow_abbrev=False, **PLAN_TEXTS)
    _add_input_flags(plan)
    add_plan_flags(plan)
    used = [*plan._actions]
    _add_flags_of_work(plan)
    relax_for_plan(plan, used)
    pilot = commands.add_parser("pilot", allow_abbrev=False, **PILOT_TEXTS)
    for add_flags in (_add_input_flags, _add_flags_of_work, add_machines_flag, add_pilot_flags):
        add_flags(pilot)
    publish = commands.add_parser(
        "publish", help="build the tables of a run, also of an unfinished one", allow_abbrev=False
    )
    publish.add_argument("--output", type=parse_place, required=True, metavar="FOLDER", help="folder or URI of the run")
    _add_storage_flag(publish)
    for name, add_flags, text in (
        (
            "export",
            add_export_flags,
            "write the published rows of a run, with their videos, in a format that trainers read",
        ),
        (
            "review",
            add_review_flags,
            "write a page that shows the published rows of a run, to accept, reject and correct them",
        ),
        ("report", add_report_flags, "write a page about the quality of the published rows, and a sample to judge"),
        ("withdraw", add_withdraw_flags, "remove clips for good from a run and from the exports that are named"),
    ):
        reader = commands.add_parser(name, help=text, allow_abbrev=False)
        add_flags(reader)
        _add_store_flags(reader)
    usage = '%(prog)s VIDEO ["QUESTION"] [flags]'
    _add_ask_flags(
        commands.add_parser("ask", help="ask the model about one video file", usage=usage, allow_abbrev=False)
    )
    commands.metavar = " | ".join(commands.choices)
    return parser


def _add_ask_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=parse_place, metavar="VIDEO", help="a video file on this machine")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="in quotes; without one the video is described")
    _add_model_flag(parser)
    _add_num_frames_flag(parser)
    _add_device_flags(parser)
    most = "the most tokens of the answer"
    add_setting(parser, "--max-new-tokens", GenerationConfig, "max_new_tokens", most, parse_positive_int)


def _add_flags_of_work(parser: argparse.ArgumentParser) -> None:
    _add_output_flags(parser)
    _add_model_flags(parser)
    _add_recipe_flags(parser)
    _add_sampling_flags(parser)
    _add_run_flags(parser)
    add_watch_flags(parser)


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
    add_column_flags(group)
    add_setting(group, "--clips-per-unit", UnitConfig, "max_clips", "clips per work unit", parse_positive_int)
    add_subset_flags(group)
    _add_store_flags(group)


def _add_store_flags(parser: argparse._ActionsContainer) -> None:
    _add_storage_flag(parser)
    parser.add_argument(
        "--trusted-hosts",
        action="extend",
        type=parse_host,
        nargs="+",
        default=[*default_of(ReadConfig, "trusted_hosts")],
        metavar="HOST",
        help="further hosts (host or host:port) that rows may name in a private network and that get the headers of "
        "--storage-options; hosts in other flags are trusted already",
    )


def _add_storage_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--storage-options",
        type=parse_storage_options,
        default=os.environ.get(STORAGE_OPTIONS) or "{}",
        metavar="JSON",
        help="fsspec options, as in pandas: '{\"anon\": true}', or @FILE, which `ps` does not show; never written "
        f"anywhere; default: the environment variable {STORAGE_OPTIONS}",
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        type=parse_place,
        required=True,
        metavar="FOLDER",
        help="folder or URI; rerun the command to resume",
    )
    again = group.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="first remove the run that is in the output folder")
    again.add_argument("--retry-failed", action="store_true", help="try the failed clips of this output again")
    group.add_argument(
        "--allow-other-versions",
        action="store_true",
        help="resume a run, or reuse answers, although FrameScribe, torch or transformers has another minor version",
    )
    group.add_argument(
        "--changed-inputs",
        choices=("keep", "redo"),
        help="finished clips whose inputs have changed since: keep them as they are, or redo them",
    )
    group.add_argument(
        "--reuse-from",
        type=parse_place,
        metavar="FOLDER",
        help="output of an earlier run with the same model and frames: its answers are not asked for again",
    )
    most = "stop when more than this fraction of the clips failed; a run in which every clip failed is never a success"
    add_setting(group, "--max-failed-fraction", FailurePolicy, "max_failed_fraction", most, parse_fraction)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    _add_model_flag(group)
    group.add_argument("--revision", metavar="REV", help="commit, branch or tag on the hub")
    _add_device_flags(group)
    add_setting(group, "--attn-implementation", EngineConfig, "attn_implementation", "attention kernels", _ATTENTION)
    group.add_argument("--device-map", choices=("auto",), help="auto: spread the layers over all GPUs (72B)")
    group.add_argument(
        "--pool-mode", choices=("average", "max", "bilinear"), help="how frames are pooled (default: the checkpoint's)"
    )
    layout = "order of frames, times and question in the prompt"
    add_setting(group, "--prompt-layout", EngineConfig, "prompt_layout", layout, PROMPT_LAYOUTS)
    group.add_argument(
        "--kv-cache-gib",
        type=parse_positive_float,
        metavar="X",
        help="GiB for keys and values (default: all free memory of the device)",
    )


def _add_model_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME", help="folder, URI or Hugging Face id (default: %(default)s)"
    )


def _add_device_flags(parser: argparse._ActionsContainer) -> None:
    add_setting(
        parser, "--device", EngineConfig, "device", "cuda, cuda:1, cpu, or auto: a GPU where there is one", parse_device
    )
    add_setting(parser, "--dtype", EngineConfig, "dtype", "auto: bfloat16 on a GPU, float32 on a CPU", DTYPES)


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe")
    group.add_argument(
        "--recipe",
        default=DEFAULT_RECIPE,
        metavar="NAME",
        help=f"{', '.join(SHIPPED)}, or a YAML file (default: %(default)s)",
    )
    group.add_argument("--no-loop-stop", action="store_true", help="do not stop completions that repeat themselves")


def _add_num_frames_flag(parser: argparse._ActionsContainer) -> None:
    add_setting(
        parser, "--num-frames", SamplingConfig, "max_frames", "frames per clip, evenly spread", parse_positive_int
    )


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frames")
    _add_num_frames_flag(group)
    group.add_argument(
        "--fps", type=parse_positive_float, metavar="X", help="frames per second, at most --num-frames per clip"
    )
    group.add_argument("--split-seconds", type=parse_positive_float, metavar="S", help="cut longer videos into windows")
    add_setting(
        group,
        "--time-base",
        SamplingConfig,
        "time_base",
        "times of frames: true ones (pts), or computed as in the model card",
        TIME_BASES,
    )
    add_setting(group, "--decoder", SamplingConfig, "decoder", "library that decodes videos; auto is pyav", DECODERS)
    seconds = "most seconds for decoding one clip"
    add_setting(group, "--decode-deadline", SamplingConfig, "deadline_s", seconds, parse_positive_float)
    text = "a damaged clip is annotated if at least this fraction of its frames can be decoded"
    add_setting(group, "--min-decoded-fraction", SamplingConfig, "min_decoded_fraction", text, parse_fraction)


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--runner",
        default=DEFAULT_RUNNER,
        metavar="NAME",
        help="Beam's runner; DirectRunner runs in this process (default: %(default)s)",
    )
    group.add_argument(
        "--decoder-processes",
        type=parse_positive_int,
        default=default_of(WorkerConfig, "num_decoder_processes"),
        metavar="N",
        help="decoder processes per worker (default: one per core)",
    )
    group.add_argument(
        "--frame-memory-gib",
        type=parse_positive_float,
        default=default_of(WorkerConfig, "frame_memory_bytes") / 2**30,
        metavar="X",
        help="GiB of decoded frames that a worker keeps in memory (default: %(default)g)",
    )
    text = "each worker checks after every N clips that a known clip is still answered as at its start; 0: never"
    add_setting(group, "--canary-every", WorkerConfig, "canary_every", text, parse_count)
    add_setting(
        group,
        "--prefetch-clips",
        WorkerConfig,
        "prefetch_clips",
        "clips that are in the model at once, per worker",
        parse_positive_int,
    )


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _flags_of(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings]


def _find_version() -> str:
    try:
        return version("framescribe")
    except PackageNotFoundError:
        return "(not installed)"


def describe_flags() -> str:
    """Returns docs/flags.md: the flags of `annotate`, a row each, in the groups of `--help`."""
    annotate = _commands_of(build_parser())["annotate"]
    groups = [group for group in annotate._action_groups if group.title and group._group_actions]
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
    return "\n".join([*head, "| group | flag | what it does |", "|---|---|---|", *rows])


def _describe(group: str, action: argparse.Action) -> str:
    choices = f" {{{', '.join(map(str, action.choices))}}}" if action.choices else ""
    metavar = f" {action.metavar}" if isinstance(action.metavar, str) else ""
    text = ((action.help or "") % vars(action)).replace("|", "\\|")
    return f"| {group} | `{action.option_strings[0]}{metavar}`{choices} | {text} |"


if __name__ == "__main__":
    print(describe_flags())
