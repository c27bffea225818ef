"""Finds the videos that rows of the published tables name: single files, members of tars, rows of Parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from framescribe.shards.kinds import compression_of, kind_of
from framescribe.shards.parquet import iterate_rows, open_parquet
from framescribe.shards.parquet_columns import find_video_column
from framescribe.shards.tar import is_video, normal_name
from framescribe.shards.tar_stream import DecompressedStream, TarMember, iterate_members
from framescribe.shards.videos import check_size, fetch_video
from framescribe.storage.access import Location, Store
from framescribe.storage.addresses import protocol_of
from framescribe.storage.errors import VideoUnreadable
from framescribe.storage.ranged_file import INDEX_BLOCK_BYTES, READ_BLOCK_BYTES, ByteStream, open_shard
from framescribe.storage.redaction import clean_text, strip_credentials
from schemas.records import InputKind

_ROW = re.compile(r"row (\d+)")


class VideoLookup:
    """Fetches videos by `source` and `member` of the tables; quickest in the order of a shard.

    Local sources are opened as they are; of every other store only what rows of `tables` may name, see
    `Store.for_rows`.

    Args:
        tables: address of the output whose tables name the videos.
    """

    def __init__(self, store: Store, tables: str) -> None:
        self._store = store
        self._tables = tables
        self._tar: _OpenTar | None = None

    def find(self, source: str, member: str | None) -> bytes | Path:
        """Returns the path of a local video, the bytes of any other.

        Raises:
            VideoUnreadable: this video is missing, is empty or too large, or may not be read.
            InputError, StoreUnavailable, StoreRefused, FileNotFoundError: its shard is damaged or cannot be had.
        """
        store = self._store if protocol_of(source) == "file" else self._store.for_rows(self._tables)
        kind = kind_of(source) if member is not None else InputKind.FILES
        if member is not None and kind is InputKind.TAR:
            return self._find_in_tar(store, source, member)
        row = _ROW.fullmatch(member or "")
        if row is not None and kind is InputKind.PARQUET:
            return _find_in_parquet(store, source, int(row[1]))
        return fetch_video(store, source).content

    def close(self) -> None:
        """Closes the shard that was read last."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def _find_in_tar(self, store: Store, source: str, member: str) -> bytes:
        if self._tar is None or self._tar.source != source or not self._tar.can_find(member):
            self.close()
            self._tar = _open_tar(store, source)
        return self._tar.find(store, member)


@dataclass(slots=True)
class _OpenTar:
    """A tar and the members that were passed in it; a compressed one has no way back to them."""

    source: str
    stream: ByteStream
    members: Iterator[TarMember]
    is_compressed: bool
    passed: dict[str, TarMember] = field(default_factory=dict)

    def can_find(self, member: str) -> bool:
        return not (self.is_compressed and member in self.passed)

    def find(self, store: Store, member: str) -> bytes:
        found = self.passed.get(member) or self._go_on_to(member)
        if found is None or found.unusual is not None:
            raise VideoUnreadable("video not found", f"{strip_credentials(self.source)} holds no video {member!r}")
        check_size(store, found.size)
        self.stream.seek(found.data_start)
        video = self.stream.read(found.size)
        if len(video) < found.size:
            raise VideoUnreadable("video cut short", f"{strip_credentials(self.source)} ends inside of {member!r}")
        return video

    def close(self) -> None:
        self.stream.close()

    def _go_on_to(self, member: str) -> TarMember | None:
        for one in self.members:
            name = clean_text(normal_name(one.name))
            if is_video(one):
                self.passed.setdefault(name, one)
            if name == member and is_video(one):
                return one
        return None


def _open_tar(store: Store, source: str) -> _OpenTar:
    location = store.locate(source)
    name, compression, size = strip_credentials(source), compression_of(source), store.size(location)
    if compression is None:
        # A stream of its own for the headers: what is read between them moves that of the videos.
        headers = open_shard(store, location, stop=size, block_bytes=INDEX_BLOCK_BYTES)
        videos = open_shard(store, location, stop=size, block_bytes=READ_BLOCK_BYTES)
        return _OpenTar(source, videos, _iterate_closing(headers, name, size), is_compressed=False)
    compressed = open_shard(store, location, stop=size, block_bytes=READ_BLOCK_BYTES)
    stream = DecompressedStream(compressed, compression, size or 1 << 30, name)
    return _OpenTar(source, stream, iterate_members(stream, name, 0, None), is_compressed=True)


def _iterate_closing(stream: ByteStream, name: str, size: int | None) -> Iterator[TarMember]:
    with closing(stream):
        yield from iterate_members(stream, name, 0, size)


def _find_in_parquet(store: Store, source: str, row: int) -> bytes:
    location: Location = store.locate(source)
    with closing(open_parquet(store, location)) as shard:
        column = find_video_column(shard.schema, store.config.video_column, shard.name)
        for _, values in iterate_rows(shard, [column], row, row + 1, 1):
            cell = values[column]
            video = cell.get("bytes") if isinstance(cell, dict) else cell
            if isinstance(video, bytes):
                check_size(store, len(video))
                return video
    raise VideoUnreadable("video not found", f"{strip_credentials(source)} holds no video in row {row}")
