"""One row that names a clip: of a manifest, or of a Parquet shard."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shards.clip_ids import clean_id, window_suffix
from shards.errors import InputError
from shards.kinds import split_extension
from storage.redaction import strip_credentials

OWN_COLUMNS = frozenset({"clip_id", "start_s", "end_s"})
KNOWN_COLUMNS = "known are 'video', 'clip_id', 'start_s' and 'end_s', all others are metadata"
_MAX_VIDEO_CHARS = 8192


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


def parse_row(values: Mapping[str, object], where: str, video_column: str = "video") -> ClipRow:
    """Checks the columns of a manifest's row; empty values count as absent.

    Raises:
        InputError: a column is missing or holds what it cannot mean; `where` begins the message.
    """
    video = values.get(video_column)
    if not isinstance(video, str) or not video.strip():
        seen = "" if video_column in values else f"; {KNOWN_COLUMNS}; seen: {', '.join(values)[:200]!a}"
        raise InputError(f"{where}: {video_column!r} is {_show(video)}, wanted the path or URI of a video{seen}")
    if len(video) > _MAX_VIDEO_CHARS or "\0" in video:
        raise InputError(f"{where}: {video_column!r} is {_show(video)}, which is no path or URI")
    start_s, end_s = parse_window(values, where)
    metadata = {key: value for key, value in values.items() if key not in OWN_COLUMNS and key != video_column}
    return ClipRow(video.strip(), parse_clip_id(values, where), start_s, end_s, metadata)


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


def parse_window(values: Mapping[str, object], where: str) -> tuple[float | None, float | None]:
    """Returns `start_s` and `end_s` of a row, None where absent.

    Raises:
        InputError: they are no numbers, negative, or the window is empty.
    """
    start_s, end_s = _parse_seconds(values, "start_s", where), _parse_seconds(values, "end_s", where)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise InputError(f"{where}: the window from {start_s or 0.0} s to {end_s} s is empty")
    return start_s, end_s


def default_clip_id(shard_id: str, row: ClipRow) -> str:
    """Returns the id of a row without one: shard, path of the video without extension, and its window."""
    assert row.video is not None
    video = strip_credentials(row.video)
    _, separator, rest = video.rpartition("://")
    path = re.sub(r"^(\.{1,2}/)+", "", rest if separator else video)
    return clean_id(f"{shard_id}/{split_extension(path)[0].strip('/')}{window_suffix(row.start_s, row.end_s)}")


def _parse_seconds(values: Mapping[str, object], name: str, where: str) -> float | None:
    value = values.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and 0 <= seconds < 1e9):
        raise InputError(f"{where}: {name!r} is {_show(value)}, wanted seconds from the video's start, such as 12.5")
    return seconds


def _show(value: object) -> str:
    if value is None:
        return "missing"
    return ascii(strip_credentials(value)[:80]) if isinstance(value, str) else ascii(value)[:80]
