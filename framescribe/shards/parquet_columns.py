"""Finds the column of a Parquet shard that holds the videos, and those that are metadata."""

from __future__ import annotations

import re
from collections.abc import Collection

import pyarrow as pa

from framescribe.storage.errors import InputError, NoVideos

# In the order they are preferred; what WebDataset exports, Hugging Face and people write.
_USUAL_NAMES = (
    *("video", "mp4", "webm", "video_bytes", "video_data", "bytes", "content"),
    *("video_path", "video_uri", "video_url", "path", "uri", "url", "file_name", "filename", "file"),
)
# Words of columns whose bytes are no video: a picture of it, its sound, what a model made of it.
_OTHER_BYTES = frozenset(
    (
        *("image", "images", "img", "jpg", "jpeg", "png", "webp", "thumbnail", "thumb", "poster", "cover", "mask"),
        *("audio", "wav", "mp3", "flac", "embedding", "embeddings", "emb", "feature", "features", "vector", "hash"),
        *("md5", "sha1", "sha256", "phash", "checksum", "digest", "id", "uuid", "uid"),
    )
)


def find_video_column(schema: pa.Schema, named: str | None, shard: str, only_bytes: bool = False) -> str:
    """Returns the column with videos: the one named, else one that holds bytes, else one of a usual name.

    Args:
        only_bytes: columns of texts, which might be addresses of videos, do not count.

    Raises:
        NoVideos: there is none.
        InputError: the one named cannot hold videos, or several may.
    """
    if named is not None:
        return _check_named(schema, named, shard, only_bytes)
    holding_bytes = [field.name for field in schema if _is_bytes(field.type) or is_media(field.type)]
    texts = [field.name for field in schema if is_text(field.type)]
    usual = _first_usual(holding_bytes)
    if usual is not None:
        return usual
    others = [name for name in holding_bytes if not _OTHER_BYTES & {*re.split(r"[^a-z0-9]+", name.lower())}]
    if len(others) == 1:
        return others[0]
    usual = None if others else _first_usual(texts)
    if usual is not None and only_bytes:
        raise NoVideos(addresses_not_read(shard, usual))
    if usual is None:
        error = InputError if others else NoVideos
        raise error(f"{shard}: which column holds the videos? Name it with --video-column; seen: {_show(schema)}")
    return usual


def addresses_not_read(shard: str, column: str) -> str:
    """Says why the rows of a shard that was only found in a folder are no clips."""
    return f"{shard}: the addresses in its column {column!r} are read only where --input names the file"


def _check_named(schema: pa.Schema, named: str, shard: str, only_bytes: bool) -> str:
    kind = schema.field(named).type if schema.names.count(named) == 1 else pa.null()
    if _is_bytes(kind) or is_media(kind) or (is_text(kind) and not only_bytes):
        return named
    error = NoVideos if only_bytes else InputError
    raise error(f"{shard}: no column {named!r} of bytes, texts or {{bytes, path}}; seen: {_show(schema)}")


def _first_usual(names: Collection[str]) -> str | None:
    return next((name for name in _USUAL_NAMES if [*names].count(name) == 1), None)


def list_metadata_columns(schema: pa.Schema, without: Collection[str]) -> list[str]:
    """Returns what to read for the metadata: columns without bytes, and of structs with bytes their other fields.

    They are given as Parquet names them, `image.path` for a field of a struct.

    Args:
        without: columns that are none.
    """
    return [path for field in schema if field.name not in without for path in _paths_without_bytes(field)]


def list_path_columns(schema: pa.Schema, column: str) -> list[str]:
    """Returns what to read for the addresses in a column of videos, without the bytes beside them."""
    return [f"{column}.path"] if is_media(schema.field(column).type) else [column]


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column of this type holds texts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_media(kind: pa.DataType) -> bool:
    """Hugging Face's Video feature: a struct of `bytes` and `path`."""
    names = {kind.field(index).name for index in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    return {"bytes", "path"} <= names


def _paths_without_bytes(field: pa.Field) -> list[str]:
    if not _holds_bytes(field.type):
        return [field.name]
    if not pa.types.is_struct(field.type):
        return []
    inner = [field.type.field(index) for index in range(field.type.num_fields)]
    return [f"{field.name}.{path}" for one in inner for path in _paths_without_bytes(one)]


def _holds_bytes(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    types = pa.types
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )  # fmt: skip


def _show(schema: pa.Schema) -> str:
    return ascii(", ".join(f"{field.name} ({field.type})" for field in schema)[:300])
