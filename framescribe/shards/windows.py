"""Which part of its video a row's clip is: start and end in seconds, as frame numbers, or several pairs in one cell."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError
from framescribe.storage.redaction import strip_credentials

_BOUNDS = frozenset({"start", "begin", "end", "stop"})
_BESIDE_BOUNDS = frozenset(
    (
        *("s", "sec", "secs", "second", "seconds", "ms", "msec", "time", "times", "timestamp", "timestamps", "tc"),
        *("frame", "frames", "index", "idx", "clip", "segment", "window", "video", "scene", "shot", "t", "at"),
    )
)
_WINDOWS = frozenset(
    (
        *("timestamp", "timestamps", "times", "window", "windows", "segment", "segments", "interval", "intervals"),
        *("span", "timespan", "time_span", "time_range"),
    )
)
_CLOCK = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_PAIRS = re.compile(r"[\[\](),\s\d.:'\"eE+-]*")  # numbers and times in brackets, and nothing else
_AS_JSON = str.maketrans("()'", '[]"')
_MAX_WINDOWS = 1000  # in one cell; they are one unit
Window = tuple[float | None, float | None]


def parse_windows(values: Mapping[str, object], where: str, config: ReadConfig) -> list[Window]:
    """Returns start and end of each clip of a row in seconds from the start of its video, None where absent.

    Raises:
        InputError: they are no numbers, negative, or a window is empty.
    """
    windows = config.column_of("windows")
    if windows is not None:
        return _parse_pairs(values, windows, where)
    if _frame_columns_of(config):
        return [_parse_frames(values, where, config)]
    start_s, end_s = (_parse_seconds(values, name, where) if name else None for name in _second_columns_of(config))
    return [_check_window(start_s, end_s, where)]


def check_window_columns(names: Collection[str], where: str, config: ReadConfig) -> None:
    """Refuses columns that look like a window under another name: the whole video would be annotated in its place.

    Raises:
        InputError: with the columns and what to do.
    """
    if config.window_columns is not None or config.columns_of_times or "start_s" in names or "end_s" in names:
        return
    suspects = [name for name in names if looks_like_window(name)]
    if suspects:
        shown = ", ".join(map(ascii, suspects[:4]))
        raise InputError(
            f"{where}: {shown} looks like the window of a clip in its video, which is read from 'start_s' and 'end_s', "
            "in seconds: rename the columns, or name two that hold seconds or H:MM:SS with --window-columns START,END; "
            "--window-columns none takes every video whole, and these columns as metadata; frame numbers and "
            "lists of windows are named with --columns"
        )


def check_chosen_columns(names: Collection[str], where: str, config: ReadConfig, is_header: bool) -> None:
    """Raises InputError where columns that `--window-columns` and `--columns` name are not there.

    A header has them all; a row of JSON Lines may lack one of two that are start and end, and the frame rate.
    """
    pairs = [_second_columns_of(config) if config.window_columns else (), _frame_columns_of(config)]
    groups = [{name for name in pair if name} for pair in pairs]
    groups += [{name} for role, name in config.columns if role in ("clip_id", "windows")]
    if is_header and not _is_number(rate := config.column_of("fps") or "0"):
        groups.append({rate})
    for group in filter(None, groups):
        missing = sorted(group.difference(names))
        if len(missing) > (0 if is_header else len(group) - 1):
            shown = " and ".join(map(ascii, missing))
            raise InputError(
                f"{where}: no column {shown} (--columns, --window-columns); seen: {', '.join(names)[:200]!a}"
            )


@lru_cache(maxsize=4096)
def looks_like_window(name: str) -> bool:
    """Whether a column is called as if it held an end of a clip: `start`, `endTime`, `clip_start_frame`."""
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if word]
    if "_".join(words) in _WINDOWS:
        return True
    words = [part for word in words for part in _split_bound(word)]
    return any(word in _BOUNDS for word in words) and all(word in _BOUNDS | _BESIDE_BOUNDS for word in words)


def _parse_pairs(values: Mapping[str, object], column: str, where: str) -> list[Window]:
    """Returns the windows in a cell: a list of pairs, or one pair, in JSON or as Python shows it."""
    cell = values.get(column)
    if cell is None or cell == "" or cell == []:
        return [(None, None)]
    pairs = _load_pairs(cell) if isinstance(cell, str) else cell
    pairs = [pairs] if isinstance(pairs, list) and pairs and not isinstance(pairs[0], (list, tuple)) else pairs
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise InputError(
            f"{where}: {column!r} is {show_value(cell)}, wanted windows such as [[0, 4.5], [10, 12]] or "
            '[["0:00:00.000", "0:00:04.500"]]'
        )
    if len(pairs) > _MAX_WINDOWS:
        raise InputError(
            f"{where}: {column!r} holds {len(pairs)} windows, wanted at most {_MAX_WINDOWS}: split the row"
        )
    bounds = ({"start": start, "end": end} for start, end in pairs)
    return [
        _check_window(_parse_seconds(pair, "start", where), _parse_seconds(pair, "end", where), where)
        for pair in bounds
    ]


def _load_pairs(text: str) -> object:
    if not _PAIRS.fullmatch(text):
        return None
    try:
        return json.loads(text.translate(_AS_JSON))
    except (ValueError, RecursionError):
        return None


def _parse_frames(values: Mapping[str, object], where: str, config: ReadConfig) -> Window:
    start, end = (_parse_frame(values, column, where) for column in _frame_columns_of(config))
    if start is None and end is None:
        return None, None
    named = config.column_of("fps")
    rate = _read_seconds(named if named is None or _is_number(named) else values.get(named))
    if not 0 < rate < 1e4:
        raise InputError(
            f"{where}: frame numbers, but no frame rate: name its column, or the rate of all videos, as in "
            "--columns start_frame=first,end_frame=last,fps=25, or write seconds"
        )
    return _check_window(None if start is None else start / rate, None if end is None else end / rate, where)


def _parse_frame(values: Mapping[str, object], column: str, where: str) -> float | None:
    value = values.get(column) if column else None
    if value is None or value == "":
        return None
    number = math.nan if isinstance(value, str) and ":" in value else _read_seconds(value)
    if not (0 <= number < 1e12 and number == int(number)):
        raise InputError(f"{where}: {column!r} is {show_value(value)}, wanted the number of a frame, from 0")
    return number


def _check_window(start_s: float | None, end_s: float | None, where: str) -> Window:
    if end_s is not None and end_s <= (start_s or 0.0):
        raise InputError(f"{where}: the window from {start_s or 0.0} s to {end_s} s is empty")
    return start_s, end_s


def _split_bound(word: str) -> list[str]:
    """Splits `starttime` and `endframe`, which are written without a line between their words."""
    for bound in _BOUNDS:
        if word.startswith(bound) and word[len(bound) :] in _BESIDE_BOUNDS:
            return [bound, word[len(bound) :]]
    return [word]


def _parse_seconds(values: Mapping[str, object], name: str, where: str) -> float | None:
    value = values.get(name)
    if value is None or value == "":
        return None
    seconds = _read_seconds(value)
    if not (math.isfinite(seconds) and 0 <= seconds < 1e9):
        raise InputError(
            f"{where}: {name!r} is {show_value(value)}, wanted seconds from the video's start, such as 12.5 or "
            "0:00:12.5"
        )
    return seconds


def _read_seconds(value: object) -> float:
    """Returns the seconds that a number, a text or a duration says, NaN where it says none."""
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, dt.time):
        return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    try:
        return float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def show_value(value: object) -> str:
    """Returns a value of a cell for messages: short, without credentials."""
    if value is None:
        return "missing"
    return ascii(strip_credentials(value)[:80]) if isinstance(value, str) else ascii(value)[:80]


def window_columns_of(config: ReadConfig) -> tuple[str, ...]:
    """Returns the columns with the start and the end of a clip; none where every video is taken whole."""
    return tuple(name for name in _frame_columns_of(config) or _second_columns_of(config) if name)


def _second_columns_of(config: ReadConfig) -> tuple[str, str]:
    """Returns the columns with the start and the end of a clip in seconds, empty texts where there is none."""
    if config.window_columns is None:
        return ("", "") if config.columns_of_times else ("start_s", "end_s")
    return config.window_columns or ("", "")


def _frame_columns_of(config: ReadConfig) -> tuple[str, ...]:
    start, end = config.column_of("start_frame"), config.column_of("end_frame")
    return (start or "", end or "") if start or end else ()


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d+)?", text))
