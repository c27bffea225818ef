"""Rows of manifests and Parquet shards: the clip that a row names, and its metadata as one JSON object."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from framescribe.shards.kinds import split_extension
from framescribe.shards.naming import clean_id, window_suffix
from framescribe.shards.windows import (
    Window,
    check_chosen_columns,
    check_window_columns,
    parse_windows,
    show_value,
    window_columns_of,
)
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError
from framescribe.storage.redaction import escape_json, strip_credentials

_MAX_VIDEO_CHARS = 8192
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


def parse_row(values: Mapping[str, object], where: str, config: ReadConfig) -> list[ClipRow]:
    """Checks the columns of a manifest's row and returns its clips; empty values count as absent.

    Raises:
        InputError: a column is missing or holds what it cannot mean; `where` begins the message.
    """
    column = video_column_of(config)
    if column not in values:
        raise InputError(f"{where}: {column_missing(values, config)}")
    video = values[column]
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"{where}: {column!r} is {show_value(video)}, wanted the path or URI of a video")
    if len(video) > _MAX_VIDEO_CHARS or "\0" in video:
        raise InputError(f"{where}: {column!r} is {show_value(video)}, which is no path or URI")
    check_window_columns([name for name, value in values.items() if value not in (None, "")], where, config)
    check_chosen_columns(values, where, config, is_header=False)
    own = own_columns_of(config)
    metadata = {key: value for key, value in values.items() if key not in own and key != column}
    return [
        ClipRow(video.strip(), parse_clip_id(values, where, config, window), *window, metadata)
        for window in parse_windows(values, where, config)
    ]


def default_clip_id(shard_id: str, row: ClipRow) -> str:
    """Returns the id of a row without one: shard, path of the video without extension, and its window."""
    assert row.video is not None
    video = strip_credentials(row.video)
    _, separator, rest = video.rpartition("://")
    path = re.sub(r"^(\.{1,2}/)+", "", rest if separator else video)
    return clean_id(f"{shard_id}/{split_extension(path)[0].strip('/')}{window_suffix(row.start_s, row.end_s)}")


def parse_clip_id(values: Mapping[str, object], where: str, config: ReadConfig, window: Window) -> str | None:
    """Returns the id of a row's clip, cleaned, or None where it has none of its own.

    Where one cell may hold several windows, the window is part of it.

    Raises:
        InputError: it is neither text nor an integer.
    """
    column = _id_column_of(config)
    clip_id = values.get(column)
    if clip_id is None or clip_id == "":
        return None
    if isinstance(clip_id, bool) or not isinstance(clip_id, (str, int)):
        raise InputError(f"{where}: {column!r} is {show_value(clip_id)}, wanted a text or an integer")
    return clean_id(str(clip_id) + (window_suffix(*window) if config.column_of("windows") else ""))


def video_column_of(config: ReadConfig) -> str:
    """Returns the column of a manifest that names the videos."""
    return config.video_column or "video"


def own_columns_of(config: ReadConfig) -> frozenset[str]:
    """Returns the columns beside the video's that are no metadata."""
    return frozenset({_id_column_of(config), *window_columns_of(config)})


def list_read_columns(names: Collection[str], config: ReadConfig) -> list[str]:
    """Returns which of the columns that there are tell ids and windows, sorted."""
    read = own_columns_of(config) | {name for role, name in config.columns if role in ("windows", "fps")}
    return sorted(read.intersection(names))


def column_missing(names: Collection[str], config: ReadConfig) -> str:
    """Says that the column of videos is not there, which are, and what to do."""
    return (
        f"no column {video_column_of(config)!r}: name the column of the videos with --video-column or "
        "--columns; known are 'video', 'clip_id', 'start_s' and 'end_s', all others are metadata; seen: "
        f"{', '.join(names)[:200]!a}"
    )


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


def _id_column_of(config: ReadConfig) -> str:
    return config.column_of("clip_id") or "clip_id"


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
