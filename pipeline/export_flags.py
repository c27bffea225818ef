"""The flags of `export`, `review`, `report` and `withdraw`, which start from a run that is there."""

from __future__ import annotations

import argparse
from pathlib import Path

from framescribe.publish.export_config import (
    BLIND_SCORE,
    FORMATS,
    KINDS,
    MIN_PROBABILITY,
    NUM_THUMBNAILS,
    ExportConfig,
    Selection,
)
from pipeline.flag_values import (
    add_setting,
    default_of,
    parse_count,
    parse_fraction,
    parse_place,
    parse_positive_int,
    parse_share,
)


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `export`, but for those of stores."""
    _add_places(parser, "new local folder to write to")
    statuses = default_of(Selection, "statuses")
    parser.add_argument("--format", choices=FORMATS, required=True, help="format to write")
    parser.add_argument(
        "--status",
        nargs="+",
        default=sorted(statuses),
        metavar="STATUS",
        help=f"only rows with these statuses (default: {' '.join(sorted(statuses))})",
    )
    parser.add_argument(
        "--types",
        nargs="+",
        metavar="TYPE",
        help=f"only these kinds of rows ({', '.join(KINDS)}) and types of questions (default: all)",
    )
    parser.add_argument(
        "--only-consistent",
        action="store_true",
        help="only questions with is_consistent or is_rotation_consistent, where they have one of the two",
    )
    parser.add_argument(
        "--min-score",
        type=parse_fraction,
        metavar="X",
        help="only questions whose answer has a probability of at least X per token, or a recheck_score where it was "
        f"only asked again (default: a probability of {MIN_PROBABILITY}, or no score; 0: all that have one)",
    )
    parser.add_argument(
        "--drop-blind",
        type=parse_fraction,
        nargs="?",
        const=BLIND_SCORE,
        metavar="X",
        help=f"leave out questions whose answer has a probability of at least X ({BLIND_SCORE}) without the video",
    )
    parser.add_argument(
        "--drop-giveaways", action="store_true", help="leave out multiple choices that can be answered by their form"
    )
    _add_decisions(parser)
    of_videos = "fraction of the source videos for"
    add_setting(parser, "--validation", Selection, "validation_fraction", f"{of_videos} validation", parse_fraction)
    add_setting(parser, "--test", Selection, "test_fraction", f"{of_videos} tests", parse_fraction)
    add_setting(parser, "--seed", Selection, "seed", "seed of splits, requests, letters and closing lines", parse_count)
    parser.add_argument(
        "--max-frames", type=parse_positive_int, metavar="N", help="messages: most images per clip (default: all)"
    )
    side = "messages: longer side of images, at most"
    add_setting(parser, "--max-side", ExportConfig, "max_side_px", side, parse_positive_int, "PX")
    add_setting(
        parser, "--clips-per-shard", ExportConfig, "clips_per_shard", "webdataset: clips per tar", parse_positive_int
    )
    parser.add_argument("--no-videos", action="store_true", help="hf: write only texts")
    _add_hub_flags(parser)
    _add_video_column(parser)


def add_review_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `review`, but for those of stores."""
    _add_places(parser, "new local folder to write the page to")
    parser.add_argument(
        "--thumbnails",
        type=parse_count,
        default=NUM_THUMBNAILS,
        metavar="N",
        help="frames shown per clip; 0 reads no video (default: %(default)s)",
    )
    _add_video_column(parser)


def add_withdraw_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `withdraw`, but for those of stores."""
    parser.add_argument("--output", type=parse_place, required=True, metavar="FOLDER", help="folder or URI of the run")
    parser.add_argument("--ids", type=Path, required=True, metavar="FILE", help="text file with one clip_id per line")
    parser.add_argument(
        "--exports",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders of export and review made of this run: they are removed, to be made again",
    )


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `report`, but for those of stores."""
    _add_places(parser, "new local file to write the page to", "FILE.html")
    _add_decisions(parser)
    parser.add_argument(
        "--sample",
        type=parse_share,
        metavar="X%",
        help="draw so many of the good rows of each type for people, as FILE.sample.csv and FILE.sample.jsonl",
    )


def _add_hub_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="then upload the folder to this dataset repository of the Hugging Face hub, NAMESPACE/NAME; a new one is "
        "private. The token is taken from HF_TOKEN or `hf auth login`",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="--push-to-hub: a new repository is public, and one that is public is taken",
    )


def _add_decisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decisions",
        type=Path,
        metavar="FILE",
        help="what the page of `review` saved, or a sample of `report` with verdicts",
    )


def _add_places(parser: argparse.ArgumentParser, help_of_target: str, metavar: str = "FOLDER") -> None:
    parser.add_argument("output", type=parse_place, metavar="OUTPUT", help="folder or URI of the run")
    parser.add_argument("--to", type=Path, required=True, metavar=metavar, help=help_of_target)


def _add_video_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--video-column", metavar="NAME", help="as in annotate, for Parquet shards")
