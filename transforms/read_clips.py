"""Reads the clips of work units, and cuts long videos into windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from framescribe.decoding.config import SamplingConfig, UndecodableClip
from framescribe.decoding.pool import get_decoder_pool
from framescribe.shards.reading import check_split_s, read_unit, split_clip
from framescribe.storage.config import ReadConfig
from schemas.records import Clip, FailedClip, UnitEnd, WorkUnit

_NAMESPACE = "framescribe"
DurationProbe = Callable[[bytes | Path], float]


@dataclass(frozen=True, slots=True)
class PoolProbe:
    """Asks this worker's decoder processes how many seconds a video lasts."""

    num_children: int
    sampling: SamplingConfig

    def __call__(self, video: bytes | Path) -> float:
        """Returns the seconds; raises `UndecodableClip` where they cannot be told."""
        return get_decoder_pool(self.num_children, self.sampling).probe_duration_s(video)


class ReadClips(beam.DoFn):
    """Yields a `Clip` or `FailedClip` for each clip of a `WorkUnit`, one by one, and then one `UnitEnd`.

    A shard that cannot be read raises (see `framescribe.shards.reading`): its unit has no end then, so it is never committed.

    Args:
        storage_options: for fsspec, needed in the worker.
        split_s: cuts videos into windows of so many seconds, at least 1; None keeps them whole.
        probe: says how long a video is; only asked when videos are cut.
    """

    def __init__(
        self,
        config: ReadConfig | None = None,
        storage_options: Mapping[str, Any] | None = None,  # Any: fsspec takes what each store defines
        split_s: float | None = None,
        probe: DurationProbe | None = None,
    ) -> None:
        super().__init__()
        if split_s is not None and probe is None:
            raise ValueError("split_s needs a probe that says how long a video is, got None")
        if split_s is not None:
            check_split_s(split_s)
        self._config = config or ReadConfig()
        self._storage_options = storage_options
        self._split_s = split_s
        self._probe = probe
        self._num_read = Metrics.counter(_NAMESPACE, "clips_read")
        self._num_unreadable = Metrics.counter(_NAMESPACE, "clips_unreadable")
        self._num_bytes = Metrics.counter(_NAMESPACE, "bytes_read")

    def process(self, unit: WorkUnit) -> Iterator[Clip | FailedClip | UnitEnd]:
        """Reads one unit."""
        num_clips = 0
        for read in read_unit(unit, self._storage_options, self._config):
            for clip in self._cut(read):
                num_clips += 1
                self._count(clip)
                yield clip
        yield UnitEnd(unit.unit_id, num_clips)

    def _cut(self, clip: Clip | FailedClip) -> list[Clip] | list[FailedClip]:
        if isinstance(clip, FailedClip):
            return [clip]
        if self._split_s is None or self._probe is None:
            return [clip]
        try:
            duration_s = self._probe(clip.video)
        except UndecodableClip:
            return [clip]  # decoding it will say what is wrong with it
        return split_clip(clip, duration_s, self._split_s)

    def _count(self, clip: Clip | FailedClip) -> None:
        if isinstance(clip, FailedClip):
            self._num_unreadable.inc()
            return
        self._num_read.inc()
        self._num_bytes.inc(clip.video.stat().st_size if isinstance(clip.video, Path) else len(clip.video))
