"""The flags of `export` and `review`, which read the tables of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.flag_values import parse_count, parse_fraction, parse_place, parse_positive_int

FORMATS = ("llava", "messages", "hf", "webdataset")
_BLIND_SCORE = 0.5


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `export`, but for those of stores."""
    _add_places(parser, "new local folder to write to")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what is written")
    parser.add_argument("--status", nargs="+", default=["ok"], metavar="STATUS", help="rows with these statuses (ok)")
    parser.add_argument(
        "--types",
        nargs="+",
        metavar="TYPE",
        help="kinds of rows (caption, open_ended, multiple_choice) and types of questions; all",
    )
    parser.add_argument("--only-consistent", action="store_true", help="questions with is_consistent alone")
    parser.add_argument(
        "--min-score", type=parse_fraction, metavar="X", help="questions whose recheck_score is X or higher"
    )
    parser.add_argument(
        "--drop-blind",
        type=parse_fraction,
        nargs="?",
        const=_BLIND_SCORE,
        metavar="X",
        help=f"leave out questions whose blind_score is X ({_BLIND_SCORE}) or higher",
    )
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="what the page of `review` saved")
    parser.add_argument(
        "--validation", type=parse_fraction, default=0.0, metavar="X", help="fraction of the videos for validation (0)"
    )
    parser.add_argument(
        "--test", type=parse_fraction, default=0.0, metavar="X", help="fraction of the videos for tests (0)"
    )
    parser.add_argument(
        "--seed", type=parse_count, default=0, metavar="N", help="of splits, requests, letters and closing lines (0)"
    )
    parser.add_argument(
        "--max-frames", type=parse_positive_int, metavar="N", help="messages: images per clip; all that the model saw"
    )
    parser.add_argument(
        "--max-side", type=parse_positive_int, default=448, metavar="PX", help="messages: longer side of images (448)"
    )
    parser.add_argument(
        "--clips-per-shard", type=parse_positive_int, default=1000, metavar="N", help="webdataset: clips per tar (1000)"
    )
    parser.add_argument("--no-videos", action="store_true", help="hf: texts alone")
    _add_video_column(parser)


def add_review_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `review`, but for those of stores."""
    _add_places(parser, "new local folder to write the page to")
    parser.add_argument(
        "--thumbnails", type=parse_count, default=8, metavar="N", help="frames shown per clip; 0 reads no video (8)"
    )
    _add_video_column(parser)


def _add_places(parser: argparse.ArgumentParser, help_of_target: str) -> None:
    parser.add_argument("output", type=parse_place, metavar="OUTPUT", help="folder or URI of the run")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help=help_of_target)


def _add_video_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--video-column", metavar="NAME", help="as in annotate, for Parquet shards")
