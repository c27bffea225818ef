"""Folders and globs of single video files: one clip a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from schemas.records import Clip, ClipRef, FailedClip, WorkUnit
from shards.indexed_clip import IndexedClip
from shards.naming import NamedShard
from shards.store import Store
from shards.videos import fetch_video, read_videos
from storage.redaction import strip_credentials


def index_files(shard: NamedShard) -> Iterator[IndexedClip]:
    """Yields the clips of a folder from its listing; no file is opened."""
    for file, clip_id in zip(shard.files, shard.clip_ids, strict=True):
        yield IndexedClip(clip_id, strip_credentials(file.uri), f"{clip_id} {file.size}", file.size or 0)


def read_files(store: Store, unit: WorkUnit) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit in order; a file that is gone or unreadable is a failed clip."""
    return read_videos(_refer(store, unit))


def _refer(store: Store, unit: WorkUnit) -> Iterator[tuple[ClipRef, Callable[[], bytes | Path]]]:
    for clip_id, uri in zip(unit.clip_ids, unit.files, strict=True):
        yield ClipRef(clip_id, unit.unit_id, strip_credentials(uri)), partial(fetch_video, store, uri)
