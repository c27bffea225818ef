"""The flags that tell columns, those that limit a start to some clips, and those of `plan` alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.flag_values import parse_columns, parse_count, parse_place, parse_positive_int, parse_window_columns

PLAN_TEXTS: dict[str, Any] = {  # Any: what `add_parser` takes
    "help": "estimate what a run would take: clips, tokens, GPU hours, cost; writes nothing",
    "usage": "%(prog)s --input URI [URI ...] [flags]",
    "epilog": "Reads headers of up to 200 clips, and with --model the model's configuration. With --output it says "
    "what is done there, and uses the times that a run there took. Other flags of annotate are accepted without "
    "effect, so that its command line can be tried.",
}
_SHOWN_IN_PLAN = frozenset({"--output", "--model", "--recipe", "--num-frames", "--fps", "--split-seconds"})


def add_column_flags(group: argparse._ActionsContainer) -> None:
    """Adds the flags that say what the columns of rows hold, and where the videos are that they name."""
    group.add_argument(
        "--video-column",
        metavar="NAME",
        help="column of videos or their URIs (default: of Parquet, found by its name and type; of CSV and JSON Lines, "
        "video)",
    )
    group.add_argument(
        "--window-columns",
        type=parse_window_columns,
        metavar="START,END",
        help="two columns with start and end of a clip in its video, as seconds or H:MM:SS (default: start_s,end_s); "
        "none takes every video whole",
    )
    group.add_argument(
        "--columns",
        type=parse_columns,
        metavar="WHAT=NAME,...",
        help="names of columns: video, clip_id, start_s, end_s (times as in --window-columns), windows (pairs of times "
        "in one cell, each a clip), or start_frame, end_frame and fps (a column or a number)",
    )
    group.add_argument(
        "--video-root",
        type=parse_place,
        metavar="URI",
        help="where relative names of videos in rows begin (default: the folder of the file with the rows)",
    )


def add_subset_flags(group: argparse._ActionsContainer) -> None:
    """Adds the flags that take some of the clips."""
    some = group.add_mutually_exclusive_group()
    some.add_argument(
        "--limit",
        type=parse_positive_int,
        metavar="N",
        help="only the first N clips, or windows of --split-seconds, for a first look; the same command without it "
        "continues to all",
    )
    some.add_argument(
        "--sample", type=parse_positive_int, metavar="N", help="like --limit, but N clips drawn by their ids and --seed"
    )
    group.add_argument(
        "--where",
        metavar="SQL",
        help="only clips whose rows fulfil an SQL expression over their columns, such as 'duration_s >= 4 and motion > "
        "0.02'; needs DuckDB",
    )
    group.add_argument(
        "--seed",
        type=parse_count,
        default=0,
        metavar="N",
        help="another number draws another sample (default: %(default)s)",
    )


def add_machines_flag(group: argparse._ActionsContainer) -> None:
    """Adds the flag of the table of machines."""
    group.add_argument(
        "--machines",
        type=Path,
        metavar="FILE",
        help="YAML table of machines and what you pay for them (default: examples, in machines.yaml of the package)",
    )


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `plan` alone."""
    add_machines_flag(parser)
    parser.add_argument(
        "--calibrate-from",
        type=parse_place,
        metavar="FOLDER",
        help="output of an earlier run with the same recipe and frames, such as one with --limit: its tokens and "
        "seconds are used (default: --output)",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object")


def relax_for_plan(parser: argparse.ArgumentParser, own: Sequence[argparse.Action]) -> None:
    """Demands none of the flags of annotate, and shows those that matter to a plan; `own` stay as they are."""
    for action in (one for one in parser._actions if one not in own):
        action.required = False
        if not _SHOWN_IN_PLAN.intersection(action.option_strings):
            action.help = argparse.SUPPRESS
        elif "--model" in action.option_strings:
            action.default = None  # it is looked at only where it is named
            action.help = "folder, URI or Hugging Face id; only its configuration and tokenizer are read"
