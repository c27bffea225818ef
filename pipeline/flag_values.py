"""Values of flags: their defaults, and the parsers, which say what was wanted by an `argparse.ArgumentTypeError`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from framescribe.storage.addresses import parse_trusted_host
from framescribe.storage.config import COLUMN_ROLES


def parse_place(text: str) -> str:
    """Takes a path or URI as it is, but not an empty one: it would mean the current folder."""
    if not text.strip():
        _refuse(text, "a path or URI; an empty variable?")
    return text


def parse_positive_int(text: str) -> int:
    """Parses a whole number of at least 1."""
    return _checked(int, text, lambda value: value >= 1, "a whole number of at least 1")


def parse_count(text: str) -> int:
    """Parses a whole number of at least 0."""
    return _checked(int, text, lambda value: value >= 0, "a whole number of at least 0")


def parse_positive_float(text: str) -> float:
    """Parses a number above 0."""
    return _checked(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def parse_fraction(text: str) -> float:
    """Parses a number from 0 to 1."""
    return _checked(float, text, lambda value: 0 <= value <= 1, "a fraction between 0 and 1")


def parse_share(text: str) -> float:
    """Parses `1%`, or a fraction above 0 and at most 1."""
    number, is_percent = text.removesuffix("%"), text.endswith("%")
    wanted = "a percentage such as 1%, or a fraction above 0 and at most 1"
    return _checked(float, number, lambda value: 0 < value <= (100 if is_percent else 1), wanted) / (
        100 if is_percent else 1
    )


def parse_window_columns(text: str) -> tuple[str, str] | tuple[()]:
    """Parses `START,END`, or `none` to an empty tuple."""
    names = [name.strip() for name in text.split(",")]
    if names == ["none"]:
        return ()
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        _refuse(text, "two columns, such as start,end, or none")
    return names[0], names[1]


def parse_columns(text: str) -> dict[str, str]:
    """Parses `video=path,start_s=begin` to what each column holds and its name."""
    roles = ("video", "start_s", "end_s", *COLUMN_ROLES)
    pairs = [(role.strip(), name.strip()) for role, _, name in (pair.partition("=") for pair in text.split(","))]
    named = dict(pairs)
    if len(named) < len(pairs) or not named.keys() <= {*roles} or not all(named.values()):
        _refuse(text, f"each of {', '.join(roles)} at most once, such as video=path,start_s=begin,end_s=end")
    if sum(bool(kind & named.keys()) for kind in ({"start_s", "end_s"}, {"windows"}, {"start_frame", "end_frame"})) > 1:
        _refuse(
            text, "times as seconds (start_s, end_s), as frames (start_frame, end_frame) or as windows: one of them"
        )
    return named


def parse_device(text: str) -> str:
    """Parses the name of a device; whether it is there is not looked at."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        _refuse(text, "cuda, the number of a GPU as in cuda:1, cpu or auto")
    return text


def parse_listening_address(text: str) -> tuple[str, int]:
    """Parses `PORT`, which is opened to this machine alone, or `HOST:PORT`."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535 or (":" in text and not host):
        _refuse(text, "a port, such as 9100, or host and port, such as 0.0.0.0:9100")
    return host.strip("[]") or "127.0.0.1", int(port)


def parse_storage_options(text: str) -> dict[str, Any]:  # Any: fsspec's own options
    """Parses a JSON object, or that in a file: `@FILE`."""
    try:
        value = json.loads(Path(text[1:]).expanduser().read_text(encoding="utf-8") if text[:1] == "@" else text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text[1:]!r}: {error.strerror}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        # The text may hold a secret: it is not repeated.
        wanted = "wanted a JSON object, such as '{\"anon\": true}', or @FILE with one"
        raise argparse.ArgumentTypeError(wanted)
    return value


def parse_host(text: str) -> str:
    """Parses a host, with or without port or protocol, into one of `ReadConfig.trusted_hosts`."""
    host = parse_trusted_host(text)
    if host is None:
        _refuse(text, "a host, such as videos.example.org, 10.0.0.5:8000 or sftp://example.org")
    return host


_METAVARS: dict[Callable[[str], object], str] = {
    parse_count: "N", parse_positive_int: "N", parse_fraction: "X", parse_positive_float: "X", parse_device: "NAME",
}  # fmt: skip


def default_of(config: type, name: str) -> Any:  # Any: of any setting
    """Returns the default of a setting: defaults stand in the settings, and the flags take them from there."""
    return next(field.default for field in fields(config) if field.name == name)


def add_setting(
    parser: argparse._ActionsContainer,
    flag: str,
    config: type,
    name: str,
    text: str,
    kind: Callable[[str], object] | Sequence[str],
    metavar: str | None = None,
) -> None:
    """Adds the flag of a setting, whose default it takes and tells; `kind` parses the value, or is the choices."""
    values: dict[str, Any] = {"choices": kind}  # Any: what `add_argument` takes
    if callable(kind):
        values = {"type": kind, "metavar": metavar or _METAVARS[kind]}
    default = default_of(config, name)
    shown = f"%(default){'g' if isinstance(default, float) else 's'}"
    parser.add_argument(flag, default=default, help=f"{text} (default: {shown})", **values)


def _checked(convert: Any, text: str, accept: Any, wanted: str) -> Any:  # Any: int or float and a test of it
    try:
        value = convert(text)
    except ValueError:
        _refuse(text, wanted)
    if not accept(value):
        _refuse(text, wanted)
    return value


def _refuse(text: str, wanted: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
