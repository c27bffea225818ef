"""Chooses some clips of the inputs for a first look: the first ones, or a sample that depends on their ids alone.

A larger number takes all that a smaller one took. Windows of `--split-seconds` count as clips, so the videos that they
are cut from are probed, as the workers will probe them. What a unit holds beside picked clips is read and passed over.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from framescribe.decoding.config import SamplingConfig, UndecodableClip
from framescribe.decoding.pool import DecoderPool
from framescribe.shards.reading import read_unit, split_clip
from framescribe.storage.access import Store
from pipeline.config import UnitConfig
from pipeline.units import ListedShard, cut_picked
from schemas.records import Clip, FailedClip, LimitedTo, WorkUnit

_Place = tuple[int, int]  # number of a shard, position of a clip in it
_Picks = Mapping[_Place, tuple[int, ...] | None]  # the numbers of the windows that are taken, None for all


@dataclass(frozen=True, slots=True)
class Subset:
    """How many clips a start is limited to.

    Attributes:
        num_clips: None takes all that `where` keeps.
        seed: of the sample; None takes the first clips in the planner's order.
        where: SQL expression over the columns of the clips' rows, for `pipeline.where`; counted is what it keeps.
    """

    num_clips: int | None = None
    seed: int | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Windows:
    """How videos are cut, and the decoder processes that say how long they are."""

    split_s: float
    pool: DecoderPool


def pick_clips(
    store: Store,
    shards: Sequence[ListedShard],
    subset: Subset,
    config: UnitConfig,
    sampling: SamplingConfig,
    split_s: float | None,
) -> tuple[WorkUnit, ...]:
    """Does as `pick_units`, with a decoder process that lives as long as videos are probed."""
    if split_s is None or subset.num_clips is None:
        return pick_units(store, shards, subset, config)
    with closing(DecoderPool(1, sampling)) as pool:
        return pick_units(store, shards, subset, config, Windows(split_s, pool))


def pick_units(
    store: Store, shards: Sequence[ListedShard], subset: Subset, config: UnitConfig, windows: Windows | None = None
) -> tuple[WorkUnit, ...]:
    """Returns units of the clips that a subset takes, in the planner's order; the whole units where it takes all."""
    num_listed = sum(len(listed.id_hashes) for listed in shards)
    places = order_clips(shards, subset.num_clips, subset.seed)
    picks: _Picks = dict.fromkeys(places)
    if windows is not None:
        picks = _pick_windows(shards, _count_windows(store, shards, places, subset, config, windows), subset)
    if len(picks) == num_listed and all(numbers is None for numbers in picks.values()):
        return tuple(unit for listed in shards for unit in listed.units)
    return tuple(unit for number in range(len(shards)) for unit in _cut(store, shards, number, picks, config))


def limit_of(subset: Subset, shards: Sequence[ListedShard], split_s: float | None) -> LimitedTo:
    """Returns what a subset takes of the shards, as it is told."""
    num_listed, num_null = sum(len(listed.id_hashes) for listed in shards), sum(listed.num_null for listed in shards)
    num_false = num_listed - num_null - sum(listed.num_kept for listed in shards)
    return LimitedTo(subset.num_clips, num_listed, subset.seed, split_s, subset.where, num_false, num_null)


def order_clips(shards: Sequence[ListedShard], num_clips: int | None, seed: int | None) -> list[_Place]:
    """Returns the first clips in the planner's order, or in one that is drawn for their ids, of those that are kept."""
    numbers = np.repeat(np.arange(len(shards)), [len(listed.id_hashes) for listed in shards])
    positions = np.concatenate([np.arange(len(listed.id_hashes)) for listed in shards])
    kept = [np.ones(len(one.id_hashes), bool) if one.kept is None else one.kept for one in shards]
    chosen = np.flatnonzero(np.concatenate(kept))
    numbers, positions = numbers[chosen], positions[chosen]
    if seed is not None:
        drawn = np.argsort(_draw(np.concatenate([one.id_hashes for one in shards])[chosen], seed), kind="stable")
        numbers, positions = numbers[drawn], positions[drawn]
    return list(zip(numbers[:num_clips].tolist(), positions[:num_clips].tolist(), strict=True))


def read_places(
    store: Store, shards: Sequence[ListedShard], places: Sequence[_Place], config: UnitConfig
) -> Iterator[tuple[_Place, Clip | FailedClip]]:
    """Reads some clips, whole, in the planner's order."""
    picks = dict.fromkeys(places)
    for number in sorted({number for number, _ in picks}):
        for unit in _cut(store, shards, number, picks, config):
            for position, clip in enumerate(read_unit(unit, store.options, store.config), start=unit.start):
                if (number, position) in picks:
                    yield (number, position), clip


def _draw(id_hashes: np.ndarray, seed: int) -> np.ndarray:
    """Returns a random number of each hash, uint64 [num_clips], the same everywhere: a hash of it and the seed."""
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big")
    mixed = id_hashes ^ np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _cut(
    store: Store, shards: Sequence[ListedShard], number: int, picks: _Picks, config: UnitConfig
) -> tuple[WorkUnit, ...]:
    own = {position: windows for (of, position), windows in picks.items() if of == number}
    return cut_picked(store, shards[number].shard, own, config) if own else ()


def _count_windows(
    store: Store,
    shards: Sequence[ListedShard],
    places: Sequence[_Place],
    subset: Subset,
    config: UnitConfig,
    windows: Windows,
) -> dict[_Place, int]:
    """Returns the number of windows of the videos that the subset may take any of; every video has at least one."""
    counts: dict[_Place, int] = {}
    for place, clip in read_places(store, shards, places, config):
        counts[place] = _count(clip, windows)
        if subset.seed is None and subset.num_clips is not None and sum(counts.values()) >= subset.num_clips:
            break
    return {place: counts[place] for place in places if place in counts}


def _count(clip: Clip | FailedClip, windows: Windows) -> int:
    if isinstance(clip, FailedClip):
        return 1
    try:
        return len(split_clip(clip, windows.pool.probe_duration_s(clip.video), windows.split_s))
    except UndecodableClip:
        return 1  # as for the workers: decoding it says what is wrong


def _pick_windows(shards: Sequence[ListedShard], counts: Mapping[_Place, int], subset: Subset) -> _Picks:
    """Takes the first windows in their order; of a sample, one of each video before a second of any."""
    ranked = [
        (place, window, rank)
        for place, count in counts.items()
        for rank, window in enumerate(_rank_windows(int(shards[place[0]].id_hashes[place[1]]), count, subset.seed))
    ]
    if subset.seed is not None:
        ranked.sort(key=lambda one: one[2])  # stable: in the sample's order within a round
    taken: dict[_Place, list[int]] = defaultdict(list)
    for place, window, _ in ranked[: subset.num_clips]:
        taken[place].append(window)
    return {
        place: None if len(numbers) == counts[place] else tuple(sorted(numbers)) for place, numbers in taken.items()
    }


def _rank_windows(id_hash: int, count: int, seed: int | None) -> list[int]:
    numbers = np.arange(count, dtype=np.uint64)
    return [int(one) for one in (numbers if seed is None else np.argsort(_draw(numbers ^ np.uint64(id_hash), seed)))]
