"""The flags of `pilot`, and the command line of the full run that follows one."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framescribe.decoding.config import SamplingConfig
from framescribe.recipes.loading import DEFAULT_RECIPE, SHIPPED
from framescribe.storage.redaction import strip_credentials
from pipeline.flag_values import parse_positive_float, parse_positive_int

PILOT_TEXTS: dict[str, Any] = {  # Any: what `add_parser` takes
    "help": "try settings on some clips, and write a page to decide by",
    "usage": "%(prog)s --input URI [URI ...] --output FOLDER [flags]",
    "epilog": "Annotates the same clips with every recipe and every setting of frames, each into a folder of its own "
    "below --output, and writes --output/pilot.html. The full run takes these answers. All other flags are those of "
    "annotate, those of Apache Beam and its runners among them.",
    "conflict_handler": "resolve",  # some flags of annotate take several values here
}
_TRIED_FRAMES = ("64", "1/s")
# Of the pilot alone, and those that were for its own outputs.
_OWN_FLAGS = {
    "--clips", "--sample", "--seed", "--recipe", "--num-frames", "--output", "--overwrite", "--retry-failed",
    "--changed-inputs",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FrameSetting:
    """Which frames one setting of a pilot takes: so many, evenly spread, or so many per second."""

    text: str
    num_frames: int
    fps: float | None = None

    @property
    def words(self) -> str:
        """The setting for people."""
        if self.fps is None:
            return f"{self.num_frames} frames"
        return f"{self.fps:g} frame{'' if self.fps == 1 else 's'} per second, at most {self.num_frames}"


def parse_frame_setting(text: str) -> FrameSetting:
    """Reads `64`, or `1/s` for one frame per second and at most as many as `annotate` takes by default."""
    number, slash, unit = text.partition("/")
    try:
        if slash and unit == "s":
            return FrameSetting(f"{parse_positive_float(number):g}/s", SamplingConfig().max_frames, float(number))
        return FrameSetting(str(parse_positive_int(text)), int(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no setting of frames: wanted a number such as 64, or a rate such as 1/s"
        ) from None


def add_pilot_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `pilot`, in place of those of `annotate` that it varies."""
    group = parser.add_argument_group("pilot")
    group.add_argument(
        "--clips",
        "--sample",
        dest="sample",
        type=parse_positive_int,
        default=200,
        metavar="N",
        help="how many clips are drawn, by their ids and --seed (default: %(default)s)",
    )
    group.add_argument(
        "--recipe",
        dest="recipes",
        nargs="+",
        default=[DEFAULT_RECIPE],
        metavar="NAME",
        help=f"recipes to try, {', '.join(SHIPPED)} or YAML files (default: {DEFAULT_RECIPE})",
    )
    group.add_argument(
        "--num-frames",
        dest="frame_settings",
        type=parse_frame_setting,
        nargs="+",
        default=[parse_frame_setting(text) for text in _TRIED_FRAMES],
        metavar="N",
        help=f"frames to try: numbers, or rates such as 1/s (default: {' '.join(_TRIED_FRAMES)})",
    )
    for flag in ("--limit", "--fps", "--reuse-from"):
        group.add_argument(flag, action=_NotInAPilot, nargs="?", help=argparse.SUPPRESS)


class _NotInAPilot(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(
            f"pilot takes no {self.option_strings[0]}: it draws --clips itself, and tries each of --num-frames, of "
            "which 1/s is a rate"
        )


def name_setting(recipe: str, frames: FrameSetting) -> str:
    """Returns the folder of a setting below the pilot's: `detailed-64`, `detailed-1-per-s`."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(recipe).stem).strip("-.") or "recipe"
    return f"{stem}-{frames.text.replace('/', '-per-')}"


def write_full_command(arguments: Sequence[str], recipe: str, frames: FrameSetting, output: str) -> str:
    """Returns the command line that annotates all clips with one setting and takes the pilot's answers.

    What was typed otherwise stays; of credentials nothing is repeated.

    Args:
        arguments: the pilot's, as typed.
        output: the pilot's.
    """
    kept: list[str] = []
    is_dropped = False
    for argument in arguments[1:]:
        flag, _, _ = argument.partition("=")
        if argument.startswith("--"):
            is_dropped = flag in _OWN_FLAGS
            if flag == "--storage-options" and not _names_file(arguments, argument):
                kept, is_dropped = [*kept, flag, "@FILE"], True
        if not is_dropped:
            kept.append(strip_credentials(argument) if "://" in argument else argument)
    rate = [] if frames.fps is None else ["--fps", f"{frames.fps:g}"]
    setting = ["--recipe", recipe, "--num-frames", str(frames.num_frames), *rate]
    places = ["--output", f"{output}_full", "--reuse-from", f"{output}/{name_setting(recipe, frames)}"]
    return shlex.join(["framescribe", "annotate", *kept, *setting, *places])


def _names_file(arguments: Sequence[str], argument: str) -> bool:
    _, equals, value = argument.partition("=")
    following = arguments[arguments.index(argument) + 1 :][:1]
    return (value if equals else "".join(following)).startswith("@")
