"""Rows of manifests and Parquet shards: the clip that a row names, and its metadata as one JSON object."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from framescribe.shards.kinds import split_extension
from framescribe.shards.naming import clean_id, window_suffix
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError
from framescribe.storage.redaction import escape_json, strip_credentials

_MAX_VIDEO_CHARS = 8192
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
JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
_DECODER = json.JSONDecoder(parse_constant=str)
_MAX_NUMBERS = 64  # a longer list is an embedding: no words about the clip, but kilobytes in every row
_MAX_DEPTH = 64  # deeper nesting is no metadata, and readers of our tables recurse, too


@dataclass(frozen=True, slots=True)
class ClipRow:
    """A row, checked.

    Attributes:
        video: the URI as written in the row, None where the row holds the video itself.
        clip_id: the row's own id, or None.
        metadata: every other column.
    """

    video: str | None
    clip_id: str | None
    start_s: float | None
    end_s: float | None
    metadata: Mapping[str, object]


def parse_row(values: Mapping[str, object], where: str, config: ReadConfig) -> ClipRow:
    """Checks the columns of a manifest's row; empty values count as absent.

    Raises:
        InputError: a column is missing or holds what it cannot mean; `where` begins the message.
    """
    column = video_column_of(config)
    if column not in values:
        raise InputError(f"{where}: {column_missing(values, config)}")
    video = values[column]
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"{where}: {column!r} is {_show(video)}, wanted the path or URI of a video")
    if len(video) > _MAX_VIDEO_CHARS or "\0" in video:
        raise InputError(f"{where}: {column!r} is {_show(video)}, which is no path or URI")
    check_window_columns([name for name, value in values.items() if value not in (None, "")], where, config)
    check_chosen_columns(values, where, config, enough=1)
    start_s, end_s = parse_window(values, where, config)
    own = own_columns_of(config)
    metadata = {key: value for key, value in values.items() if key not in own and key != column}
    return ClipRow(video.strip(), parse_clip_id(values, where), start_s, end_s, metadata)


def default_clip_id(shard_id: str, row: ClipRow) -> str:
    """Returns the id of a row without one: shard, path of the video without extension, and its window."""
    assert row.video is not None
    video = strip_credentials(row.video)
    _, separator, rest = video.rpartition("://")
    path = re.sub(r"^(\.{1,2}/)+", "", rest if separator else video)
    return clean_id(f"{shard_id}/{split_extension(path)[0].strip('/')}{window_suffix(row.start_s, row.end_s)}")


def parse_clip_id(values: Mapping[str, object], where: str) -> str | None:
    """Returns the row's own id, cleaned, or None where it has none.

    Raises:
        InputError: it is neither text nor an integer.
    """
    clip_id = values.get("clip_id")
    if clip_id is None or clip_id == "":
        return None
    if isinstance(clip_id, bool) or not isinstance(clip_id, (str, int)):
        raise InputError(f"{where}: 'clip_id' is {_show(clip_id)}, wanted a text or an integer")
    return clean_id(str(clip_id))


def parse_window(values: Mapping[str, object], where: str, config: ReadConfig) -> tuple[float | None, float | None]:
    """Returns start and end of a row's clip in seconds from the start of its video, None where absent.

    Raises:
        InputError: they are no numbers, negative, or the window is empty.
    """
    columns = _window_columns_of(config)
    if not columns:
        return None, None
    start_s, end_s = (_parse_seconds(values, name, where) for name in columns)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise InputError(f"{where}: the window from {start_s or 0.0} s to {end_s} s is empty")
    return start_s, end_s


def video_column_of(config: ReadConfig) -> str:
    """Returns the column of a manifest that names the videos."""
    return config.video_column or "video"


def own_columns_of(config: ReadConfig) -> frozenset[str]:
    """Returns the columns beside the video's that are no metadata."""
    return frozenset({"clip_id", *_window_columns_of(config)})


def column_missing(names: Collection[str], config: ReadConfig) -> str:
    """Says that the column of videos is not there, which are, and what to do."""
    return (
        f"no column {video_column_of(config)!r}: name the column of the videos with --video-column; known are "
        f"'video', 'clip_id', 'start_s' and 'end_s', all others are metadata; seen: {', '.join(names)[:200]!a}"
    )


def check_window_columns(names: Collection[str], where: str, config: ReadConfig) -> None:
    """Refuses columns that look like a window under another name: the whole video would be annotated in its place.

    Raises:
        InputError: with the columns and what to do.
    """
    if config.window_columns is not None or "start_s" in names or "end_s" in names:
        return
    suspects = [name for name in names if looks_like_window(name)]
    if suspects:
        shown = ", ".join(map(ascii, suspects[:4]))
        raise InputError(
            f"{where}: {shown} looks like the window of a clip in its video, which is read from 'start_s' and 'end_s', "
            "in seconds: rename the columns, or name two that hold seconds or H:MM:SS with --window-columns START,END; "
            "--window-columns none takes every video whole, and these columns as metadata"
        )


def check_chosen_columns(names: Collection[str], where: str, config: ReadConfig, enough: int) -> None:
    """Raises InputError where fewer than `enough` of the columns that `--window-columns` names are there."""
    chosen = config.window_columns or ()
    missing = [name for name in chosen if name not in names]
    if chosen and len(chosen) - len(missing) < enough:
        shown = " and ".join(map(ascii, missing))
        raise InputError(f"{where}: no column {shown} (--window-columns); seen: {', '.join(names)[:200]!a}")


@lru_cache(maxsize=4096)
def looks_like_window(name: str) -> bool:
    """Whether a column is called as if it held an end of a clip: `start`, `endTime`, `clip_start_frame`."""
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if word]
    if "_".join(words) in _WINDOWS:
        return True
    words = [part for word in words for part in _split_bound(word)]
    return any(word in _BOUNDS for word in words) and all(word in _BOUNDS | _BESIDE_BOUNDS for word in words)


def merge_sidecars(sidecars: Mapping[str, bytes]) -> dict[str, JsonValue]:
    """Returns the metadata in sidecars, given as extension (`json`, `txt`, `info.json`) -> content.

    A `.json` that holds an object is the metadata; everything else is a value under its extension. JSON that cannot be
    parsed is kept as text.
    """
    metadata: dict[str, JsonValue] = {}
    for extension, content in sorted(sidecars.items()):
        value = _parse_json(content) if extension.endswith("json") else _decode(content)
        if extension == "json" and isinstance(value, dict):
            metadata.update(value)
        else:
            metadata[extension] = value
    return metadata


def dump_metadata(metadata: Mapping[str, object]) -> str:
    """Returns metadata as one JSON object of valid UTF-8 without control characters; no NaN, no infinity.

    Numbers, texts, dates and JSON itself are kept.
    """
    plain = {key: _make_plain(value) for key, value in metadata.items()}
    return escape_json(json.dumps(plain, ensure_ascii=False, allow_nan=False))


def shorten_numbers(value: object) -> object:
    """Returns a value of a Parquet column, with long lists of numbers in it, such as embeddings, replaced by a note."""
    if isinstance(value, dict):
        return {key: shorten_numbers(inner) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) > _MAX_NUMBERS and all(isinstance(number, (int, float)) for number in value):
        return f"[left out: {len(value)} numbers]"
    return [shorten_numbers(inner) for inner in value]


def parse_json(text: str) -> JsonValue:
    """Parses JSON strictly: NaN and infinity become texts.

    Raises:
        ValueError: it is no JSON, is nested too deep, or holds a number of thousands of digits.
    """
    try:
        value: JsonValue = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    _check_depth(value, _MAX_DEPTH)
    return value


def _window_columns_of(config: ReadConfig) -> tuple[str, ...]:
    """Returns the columns with the start and the end of a clip; none where every video is taken whole."""
    return ("start_s", "end_s") if config.window_columns is None else config.window_columns


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
            f"{where}: {name!r} is {_show(value)}, wanted seconds from the video's start, such as 12.5 or 0:00:12.5"
        )
    return seconds


def _read_seconds(value: object) -> float:
    """Returns the seconds that a number, a text or a duration says, NaN where it says none."""
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    try:
        return float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _show(value: object) -> str:
    if value is None:
        return "missing"
    return ascii(strip_credentials(value)[:80]) if isinstance(value, str) else ascii(value)[:80]


def _make_plain(value: object) -> JsonValue:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, dt.timedelta)):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _make_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _check_depth(value: JsonValue, levels_left: int) -> None:
    if levels_left == 0:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for entry in inner:
        _check_depth(entry, levels_left - 1)


def _parse_json(content: bytes) -> JsonValue:
    try:
        return parse_json(content.decode("utf-8-sig"))
    except ValueError:
        return _decode(content)


def _decode(content: bytes) -> str:
    return content.decode("utf-8-sig", "replace").strip()
