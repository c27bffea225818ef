"""Reads the clips of a work unit, whatever its shard is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from schemas.records import Clip, FailedClip, InputKind, WorkUnit
from shards.config import ReadConfig
from shards.files import read_files
from shards.manifests import read_manifest
from shards.parquet import read_parquet
from shards.store import Store
from shards.tar import read_tar

_READERS = {
    InputKind.TAR: read_tar,
    InputKind.PARQUET: read_parquet,
    InputKind.FILES: read_files,
    InputKind.MANIFEST: read_manifest,
}


def read_unit(
    unit: WorkUnit,
    storage_options: Mapping[str, Any] | None = None,  # Any: fsspec takes what each store defines
    config: ReadConfig | None = None,
) -> Iterator[Clip | FailedClip]:
    """Yields the clips of a unit one by one, in the shard's order: `unit.stop - unit.start` of them.

    A video that is missing, empty, too large or not a regular file is a `FailedClip`. Local files are given as paths,
    everything else as bytes.

    Raises:
        ShardChanged: the shard holds something else than was planned.
        InputError: the shard is damaged.
        StoreUnavailable, StoreRefused, FileNotFoundError: the shard itself cannot be had, after all attempts.
    """
    return _READERS[unit.kind](Store(storage_options or {}, config or ReadConfig()), unit)
