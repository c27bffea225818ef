"""Turns sidecars and free columns into the metadata of a clip: one JSON object."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from collections.abc import Mapping

from shards.unprintable import escape_json

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
_DECODER = json.JSONDecoder(parse_constant=str)
_MAX_NUMBERS = 64  # a longer list is an embedding: no words about the clip, but kilobytes in every row
_MAX_DEPTH = 64  # deeper nesting is no metadata, and readers of our tables recurse, too


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
