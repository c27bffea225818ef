"""Reads the clips of a work unit, whatever its shard is, and cuts long videos into windows, each a clip of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from framescribe.shards.files import read_files
from framescribe.shards.manifests import read_manifest
from framescribe.shards.naming import window_suffix
from framescribe.shards.parquet import read_parquet
from framescribe.shards.tar import read_tar
from framescribe.storage.access import Store
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError
from schemas.records import Clip, FailedClip, InputKind, WorkUnit

_READERS = {
    InputKind.TAR: read_tar,
    InputKind.PARQUET: read_parquet,
    InputKind.FILES: read_files,
    InputKind.MANIFEST: read_manifest,
}
_MAX_WINDOWS = 20_000  # a file that says it is years long is lying; decoding it says so
MIN_WINDOW_S = 1.0  # a shorter window holds nothing worth a caption of its own


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


def check_split_s(split_s: float) -> None:
    """Raises InputError for windows too short to be meant."""
    if not split_s >= MIN_WINDOW_S:
        raise InputError(
            f"windows of {split_s:g} s (--split-seconds), wanted at least {MIN_WINDOW_S:g} s: a shorter one holds "
            "nothing worth a caption, and makes thousands of clips of a video of some minutes"
        )


def split_clip(clip: Clip, duration_s: float, split_s: float) -> list[Clip]:
    """Returns the windows of a clip, `split_s` long each; a rest shorter than a second goes to the window before it.

    `duration_s` is that of the whole video; a clip that is itself a window is cut within its bounds. A clip that needs
    no cut, or whose length is not known, comes back as it is.
    """
    start_s = clip.ref.start_s or 0.0
    end_s = duration_s if clip.ref.end_s is None else min(clip.ref.end_s, duration_s)
    length_s = end_s - start_s
    num_windows = _count_windows(length_s, split_s)
    if num_windows <= 1:
        return [clip]
    starts_s = [start_s + number * split_s for number in range(num_windows)]
    return [
        _cut(clip, window_start_s, window_end_s)
        for window_start_s, window_end_s in zip(starts_s, [*starts_s[1:], end_s], strict=True)
    ]


def _count_windows(length_s: float, split_s: float) -> int:
    check_split_s(split_s)
    if not math.isfinite(length_s) or length_s <= 0:
        return 1
    whole, rest_s = divmod(length_s, split_s)
    num_windows = int(whole) + (rest_s >= MIN_WINDOW_S)
    return num_windows if num_windows <= _MAX_WINDOWS else 1


def _cut(clip: Clip, start_s: float, end_s: float) -> Clip:
    whole_id = clip.ref.clip_id.removesuffix(window_suffix(clip.ref.start_s, clip.ref.end_s))
    clip_id = whole_id + window_suffix(start_s, end_s)
    return replace(clip, ref=replace(clip.ref, clip_id=clip_id, start_s=start_s, end_s=end_s))
