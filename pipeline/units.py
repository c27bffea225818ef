"""Plans the work: lists every clip once, and cuts the shards into units."""

from __future__ import annotations

import logging
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from framescribe.shards.files import JoinedTables, add_metadata, index_files, join_tables
from framescribe.shards.kinds import compression_of
from framescribe.shards.listing import FoundFile, find_inputs
from framescribe.shards.manifests import index_manifest
from framescribe.shards.naming import IndexedClip, NamedShard, hash_id, hash_video_id, make_unit_id, name_shards
from framescribe.shards.parquet import index_parquet
from framescribe.shards.tar import index_tar
from framescribe.storage.access import Store
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, NoInputFound, NoVideos
from framescribe.storage.redaction import clean_text, strip_credentials
from pipeline.config import UnitConfig
from schemas.records import InputKind, WorkUnit

_log = logging.getLogger(__name__)
_NUM_THREADS = 16  # headers of shards in a store: the time goes into waiting
_MAX_SHOWN_PROBLEMS = 20
# Clips with the same bytes stay in one unit: videos of one key, and windows in one row.
_SHARED_BYTES = (InputKind.TAR, InputKind.MANIFEST)
_MAX_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class _ShardPlan:
    """What remains of a shard's listing once it is cut: its units, and 64 bits for each clip id and each video's id."""

    units: tuple[WorkUnit, ...]
    id_hashes: np.ndarray  # uint64 [num_clips]
    video_hashes: np.ndarray  # uint64 [num_clips], the very same array where no clip is a window


@dataclass(frozen=True, slots=True)
class ListedShard:
    """A shard with the units that all its clips are cut into, and 64 bits of each clip's and video's id.

    Attributes:
        id_hashes, video_hashes: `hash_id` and `hash_video_id` of each clip, uint64 [num_clips], in the shard's order.
        kept: which clips `--where` keeps, bool [num_clips]; None for all. It is null of `num_null` of them.
    """

    shard: NamedShard
    units: tuple[WorkUnit, ...]
    id_hashes: np.ndarray
    video_hashes: np.ndarray
    kept: np.ndarray | None = None
    num_null: int = 0

    @property
    def num_kept(self) -> int:
        """Clips that `--where` keeps."""
        return len(self.id_hashes) if self.kept is None else int(self.kept.sum())


@dataclass(frozen=True, slots=True)
class PlannedInputs:
    """The clips that a start takes, cut into units, and what tells which of them an earlier run had.

    Attributes:
        video_hashes: `hash_video_id` of each clip, uint64, in the order of the units.
    """

    units: tuple[WorkUnit, ...]
    video_hashes: np.ndarray

    @classmethod
    def of(cls, shards: Sequence[ListedShard], units: Sequence[WorkUnit]) -> PlannedInputs:
        """Returns units of these shards with the hashes of all clips between their bounds."""
        hashes = {listed.shard.shard_id: listed.video_hashes for listed in shards}
        slices = [hashes[unit.shard_id][unit.start : unit.stop] for unit in units]
        return cls(tuple(units), np.concatenate(slices or [np.empty(0, np.uint64)]))


def plan_units(
    inputs: Sequence[str],
    config: UnitConfig | None = None,
    storage_options: Mapping[str, Any] | None = None,  # Any: fsspec takes what each store defines
    read: ReadConfig | None = None,
) -> tuple[WorkUnit, ...]:
    """Returns the units of `plan_inputs`."""
    return plan_inputs(inputs, config, storage_options, read).units


def plan_inputs(
    inputs: Sequence[str],
    config: UnitConfig | None = None,
    storage_options: Mapping[str, Any] | None = None,  # Any: fsspec takes what each store defines
    read: ReadConfig | None = None,
) -> PlannedInputs:
    """Lists the clips of all inputs and cuts them into units, the same ones in the same order on every machine.

    Args:
        inputs: files, folders and globs of any kinds, local or any fsspec URI.

    Raises:
        NoInputFound: an input matches nothing, or nothing that is supported.
        InputError: shards or manifest lines that cannot be read, and duplicate clip ids, all named.
        StoreUnavailable, StoreRefused: a store does not answer, or not to us.
    """
    shards = list_shards(Store(storage_options or {}, read or ReadConfig()), inputs, config or UnitConfig())
    return PlannedInputs.of(shards, [unit for listed in shards for unit in listed.units])


def list_shards(store: Store, inputs: Sequence[str], config: UnitConfig) -> list[ListedShard]:
    """Lists the clips of all inputs, shard by shard in the order of their ids; raises as `plan_units` does."""
    shards, plans = _plan_files(store, find_inputs(store, inputs), config)
    _check_unique(store, shards, plans)
    return [
        ListedShard(shard, plan.units, plan.id_hashes, plan.video_hashes)
        for shard, plan in zip(shards, plans, strict=True)
    ]


def cut_picked(
    store: Store, shard: NamedShard, picks: Mapping[int, tuple[int, ...] | None], config: UnitConfig
) -> tuple[WorkUnit, ...]:
    """Cuts some clips of a shard into units that hold as few others as can be.

    Args:
        picks: position of a clip in the shard to the numbers of its windows that are taken, None for all.
    """
    atoms = groupby(enumerate(_index(store, shard)), key=lambda numbered: _atom_of(shard, *numbered))
    groups = (list(group) for _, group in atoms)
    kept = (one for group in groups if any(number in picks for number, _ in group) for one in group)
    return tuple(
        _make_unit(shard, clips, start, [picks.get(start + place, ()) for place in range(len(clips))])
        for start, clips in _gather_units(shard, kept, config)
    )


def _atom_of(shard: NamedShard, number: int, clip: IndexedClip) -> object:
    """Returns what is the same for clips that cannot be read without each other."""
    if _is_one_stream(shard):
        return None
    return (clip.byte_start, clip.byte_stop) if shard.kind in _SHARED_BYTES else number


def _plan_files(
    store: Store, found: Sequence[FoundFile], config: UnitConfig
) -> tuple[list[NamedShard], list[_ShardPlan]]:
    """Plans the shards, without those that were only found and hold no videos, and joins tables to videos they name."""
    files = [file for file in found if file.named or file.kind is not InputKind.MANIFEST]
    planned: dict[NamedShard, _ShardPlan | NoVideos] = {}
    without_videos: dict[str, NoVideos] = {}
    while True:
        shards = name_shards(files)
        new = [shard for shard in shards if shard.kind is not InputKind.FILES and shard not in planned]
        planned |= zip(new, _plan_shards(store, new, config), strict=True)
        left_out = {shard.uri: plan for shard in new if isinstance(plan := planned[shard], NoVideos)}
        without_videos |= left_out
        if not left_out:  # else the others may have shorter ids
            break
        files = [file for file in files if file.uri not in left_out]
    taken = {file.uri for file in files}
    tables = [file for file in found if file.uri not in taken and file.kind is not InputKind.TAR]
    joined = join_tables(store, tables, [file for file in files if file.kind is InputKind.FILES])
    _report_skipped_files(joined, without_videos)
    if not shards:
        raise NoInputFound("nothing to annotate: " + "; ".join(map(str, without_videos.values())))
    shards = [replace(shard, metadata=add_metadata(shard, joined)) for shard in shards]
    plans = [planned.get(shard) or _plan_shard(store, shard, config) for shard in shards]
    return shards, [plan for plan in plans if isinstance(plan, _ShardPlan)]


def _report_skipped_files(joined: JoinedTables, without_videos: Mapping[str, NoVideos]) -> None:
    """Logs the tars without videos and the tables that say nothing about one, a line for each reason."""
    names_of: dict[str, list[str]] = defaultdict(list)
    left_out = (joined.unused.keys() | without_videos.keys()) - joined.used
    for uri in sorted(left_out):
        name = clean_text(strip_credentials(uri))
        reason = joined.unused.get(uri) or str(without_videos.get(uri, "no column of it names one of the videos"))
        names_of[reason.removeprefix(f"{name}: ").removeprefix(f"{name} ")].append(name)
    for reason, names in names_of.items():
        more = f" and {len(names) - _MAX_SHOWN_NAMES} more" if len(names) > _MAX_SHOWN_NAMES else ""
        _log.warning("left out: %s%s: %s", ", ".join(names[:_MAX_SHOWN_NAMES]), more, reason)


def _plan_shards(store: Store, shards: Sequence[NamedShard], config: UnitConfig) -> list[_ShardPlan | NoVideos]:
    def plan(shard: NamedShard) -> _ShardPlan | InputError:
        try:
            return _plan_shard(store, shard, config)
        except InputError as error:  # collected, so that a thousand shards need not be mended one run at a time
            return error

    outcomes = _map_in_threads(plan, shards)
    left_out = [
        isinstance(outcome, NoVideos) and not shard.named for shard, outcome in zip(shards, outcomes, strict=True)
    ]
    problems = [
        str(outcome)
        for outcome, is_left_out in zip(outcomes, left_out, strict=True)
        if isinstance(outcome, InputError) and not is_left_out
    ]
    if problems:
        raise InputError(_join_problems(problems))
    return [outcome for outcome in outcomes if isinstance(outcome, (_ShardPlan, NoVideos))]


def _map_in_threads(
    plan: Callable[[NamedShard], _ShardPlan | InputError], shards: Sequence[NamedShard]
) -> list[_ShardPlan | InputError]:
    pool = ThreadPoolExecutor(min(_NUM_THREADS, max(1, len(shards))), thread_name_prefix="plan")
    try:
        return list(pool.map(plan, shards))
    finally:
        pool.shutdown(cancel_futures=True)  # after a store's failure: nothing more is asked of it


def _plan_shard(store: Store, shard: NamedShard, config: UnitConfig) -> _ShardPlan:
    units: list[WorkUnit] = []
    id_hashes, video_hashes = array("Q"), array("Q")
    for start, clips in _gather_units(shard, enumerate(_index(store, shard)), config):
        units.append(_make_unit(shard, clips, start))
        hashes = [hash_id(clip.clip_id) for clip in clips]
        id_hashes.extend(hashes)
        video_hashes.extend(map(_hash_video, clips, hashes))
    ids, videos = np.array(id_hashes, np.uint64), np.array(video_hashes, np.uint64)
    return _ShardPlan(tuple(units), ids, ids if np.array_equal(ids, videos) else videos)


def _hash_video(clip: IndexedClip, id_hash: int) -> int:
    return hash_video_id(clip.clip_id) if "@" in clip.clip_id else id_hash


def _index(store: Store, shard: NamedShard) -> Iterator[IndexedClip]:
    if shard.kind is InputKind.FILES:
        return index_files(shard)
    location = store.locate(shard.uri)
    if shard.kind is InputKind.PARQUET:
        return index_parquet(store, location, shard.shard_id, shard.named)
    return (index_tar if shard.kind is InputKind.TAR else index_manifest)(store, location, shard.shard_id)


def _gather_units(
    shard: NamedShard, clips: Iterable[tuple[int, IndexedClip]], config: UnitConfig
) -> Iterator[tuple[int, list[IndexedClip]]]:
    """Yields the position of each unit's first clip in the shard, and its clips; only those of one are in memory."""
    start, size = 0, 0
    unit: list[IndexedClip] = []
    for number, clip in clips:
        is_apart = number != start + len(unit)
        if unit and (is_apart or _ends_before(clip, shard, unit, start, size, config)):
            yield start, unit
            size, unit = 0, []
        start = start if unit else number
        unit.append(clip)
        size += clip.size_bytes
    yield start, unit


def _ends_before(
    clip: IndexedClip, shard: NamedShard, unit: list[IndexedClip], start: int, size: int, config: UnitConfig
) -> bool:
    if _is_one_stream(shard):
        return False
    full = len(unit) >= config.max_clips or size + clip.size_bytes > config.max_bytes
    same_group = (unit[-1].byte_start, unit[-1].byte_stop) == (clip.byte_start, clip.byte_stop)
    if shard.kind is InputKind.PARQUET and not same_group:
        return full or _is_row_group_too_much(clip, unit, start, size, config)
    return full and not (shard.kind in _SHARED_BYTES and same_group)


def _is_row_group_too_much(
    clip: IndexedClip, unit: list[IndexedClip], start: int, size: int, config: UnitConfig
) -> bool:
    """Whether a unit of Parquet rows ends before this row group: it would be read only in part, and twice."""
    started_inside = unit[0].byte_start != start
    num_rows = clip.byte_stop - clip.byte_start
    fits = clip.byte_stop - start <= config.max_clips and size + num_rows * clip.size_bytes <= config.max_bytes
    return started_inside or not fits


def _is_one_stream(shard: NamedShard) -> bool:
    return shard.kind is InputKind.TAR and compression_of(shard.uri) is not None


def _make_unit(
    shard: NamedShard, clips: Sequence[IndexedClip], start: int, picks: Sequence[tuple[int, ...] | None] = ()
) -> WorkUnit:
    stop = start + len(clips)
    picks = tuple(picks) if any(windows is not None for windows in picks) else ()
    has_bytes = shard.kind in (InputKind.TAR, InputKind.MANIFEST) and not _is_one_stream(shard)
    return WorkUnit(
        unit_id=make_unit_id(shard.shard_id, start, stop, (clip.content for clip in clips), picks),
        kind=shard.kind,
        shard=shard.uri,
        shard_id=shard.shard_id,
        start=start,
        stop=stop,
        size_bytes=sum(clip.size_bytes for clip in clips),
        byte_start=clips[0].byte_start if has_bytes else 0,
        byte_stop=clips[-1].byte_stop if has_bytes else 0,
        files=tuple(file.uri for file in shard.files[start:stop]),
        clip_ids=shard.clip_ids[start:stop],
        metadata=shard.metadata[start:stop],
        versions=_versions_of(shard, start, stop),
        picks=picks,
    )


def _versions_of(shard: NamedShard, start: int, stop: int) -> tuple[str, ...]:
    if shard.kind is InputKind.FILES:
        return tuple(file.version for file in shard.files[start:stop])
    return () if shard.kind is InputKind.MANIFEST else (shard.version,)


def _check_unique(store: Store, shards: Sequence[NamedShard], plans: Sequence[_ShardPlan]) -> None:
    """Finds duplicate ids by their hashes; only where two are equal are the shards listed again, to name both."""
    hashes = np.concatenate([plan.id_hashes for plan in plans])
    ordered = np.sort(hashes)
    doubled = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(doubled):
        return
    suspects = [shard for shard, plan in zip(shards, plans, strict=True) if np.isin(plan.id_hashes, doubled).any()]
    problems = list(_name_duplicates(store, suspects, set(doubled.tolist())))
    if problems:
        raise InputError(_join_problems(problems))


def _name_duplicates(store: Store, shards: Sequence[NamedShard], doubled: set[int]) -> Iterator[str]:
    first_places: dict[str, str] = {}
    for shard in shards:
        for clip in _index(store, shard):
            if hash_id(clip.clip_id) in doubled and clip.clip_id in first_places:
                yield (
                    f"duplicate clip id {clip.clip_id!r}: {first_places[clip.clip_id]} and {clip.where}; "
                    "rename one, or give the rows of the manifest their own 'clip_id'"
                )
            elif hash_id(clip.clip_id) in doubled:
                first_places[clip.clip_id] = clip.where


def _join_problems(problems: Sequence[str]) -> str:
    more = len(problems) - _MAX_SHOWN_PROBLEMS
    return "\n".join([*problems[:_MAX_SHOWN_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])
