"""The flags that say how a run is watched."""

from __future__ import annotations

import argparse

from pipeline.flag_values import parse_listening_address


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them in a group of their own."""
    group = parser.add_argument_group("watching")
    group.add_argument(
        "--verbose",
        action="store_true",
        help="print at the end also the seconds of each step and the rows of each table",
    )
    group.add_argument(
        "--metrics-port",
        type=parse_listening_address,
        metavar="[HOST:]PORT",
        help="serve the numbers of the run to Prometheus at this port; only this machine may read them unless a host "
        "is given, such as 0.0.0.0:9100",
    )
