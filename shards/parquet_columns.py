"""Finds the column of a Parquet shard that holds the videos."""

from __future__ import annotations

import pyarrow as pa

from shards.errors import InputError

# In the order they are preferred; what WebDataset exports, Hugging Face and people write.
_USUAL_NAMES = (
    *("video", "mp4", "webm", "video_bytes", "video_data", "bytes", "content", "video_path", "video_uri", "video_url"),
    *("path", "uri", "url", "file_name", "filename", "file"),
)


def find_video_column(schema: pa.Schema, named: str | None, shard: str) -> str:
    """Returns the column with videos: the one named, the one of a usual name, or the only one that holds bytes.

    Raises:
        InputError: there is none, or it cannot hold videos.
    """
    if named is not None:
        if named not in schema.names or not _can_hold_videos(schema.field(named).type):
            raise InputError(f"{shard}: no column {named!r} of bytes, texts or {{bytes, path}}; seen: {_show(schema)}")
        return named
    for name in _USUAL_NAMES:
        if schema.names.count(name) == 1 and _can_hold_videos(schema.field(name).type):
            return name
    holding_bytes = [field.name for field in schema if _is_binary(field.type) or _is_media(field.type)]
    if len(holding_bytes) != 1:
        raise InputError(f"{shard}: which column holds the videos? Name it with --video-column; seen: {_show(schema)}")
    return str(holding_bytes[0])


def is_scalar(kind: pa.DataType) -> bool:
    """Returns whether a column of this type can go into the metadata: numbers, texts, dates, booleans."""
    return not (pa.types.is_nested(kind) or _is_binary(kind))


def _can_hold_videos(kind: pa.DataType) -> bool:
    return _is_binary(kind) or _is_text(kind) or _is_media(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_media(kind: pa.DataType) -> bool:
    """Hugging Face's Video feature: a struct of `bytes` and `path`."""
    names = {kind.field(index).name for index in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    return {"bytes", "path"} <= names


def _show(schema: pa.Schema) -> str:
    return ascii(", ".join(f"{field.name} ({field.type})" for field in schema)[:300])
