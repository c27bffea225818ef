"""Reads the clips of work units, and cuts long videos into windows.

Lets a unit that is done again ask the model about its failed clips only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from framescribe.decoding.config import SamplingConfig, UndecodableClip
from framescribe.decoding.pool import get_decoder_pool
from framescribe.shards.reading import check_split_s, read_unit, split_clip
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.config import ReadConfig
from framescribe.storage.journal import read_part
from framescribe.storage.output import OutputStore, open_output, part_name
from schemas.part_rows import read_outcomes
from schemas.records import Clip, ClipAnnotation, FailedClip, UnitEnd, WorkUnit

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

    A shard that cannot be read raises (see `framescribe.shards.reading`): its unit has no end then, so it is
    never committed.

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


class KeepAnnotated(beam.DoFn):
    """Replaces each clip that its unit's part holds as annotated by that annotation; the others pass.

    Later steps let a `ClipAnnotation` through, so that the part is written again with the old rows and the new ones.
    """

    def __init__(self, output: str, storage_options: StorageOptions | None = None) -> None:
        super().__init__()
        self._output = output
        self._storage_options = storage_options

    def setup(self) -> None:
        """Opens the output in the worker."""
        self._store: OutputStore = open_output(self._output, self._storage_options)

    def start_bundle(self) -> None:
        """Forgets the part that was read last: it may have been written again since."""
        self._unit_id: str | None = None
        self._annotated: dict[str, ClipAnnotation] = {}
        self._version: str | None = None

    def process(self, element: Clip | FailedClip | UnitEnd) -> Iterator[Clip | ClipAnnotation | FailedClip | UnitEnd]:
        """Yields the element, or the annotation that it had before; a unit's end says which part that was."""
        if isinstance(element, UnitEnd):
            self._read(element.unit_id)
            yield replace(element, replaces=self._version)
        else:
            self._read(element.ref.unit_id)
            yield self._annotated.get(element.ref.clip_id, element)

    def _read(self, unit_id: str) -> None:
        if unit_id != self._unit_id:
            # The version first: a part that is written between the two calls is not replaced then.
            self._version = self._store.version(part_name(unit_id))
            self._annotated = read_annotated(self._store, unit_id)
            self._unit_id = unit_id


def read_annotated(store: OutputStore, unit_id: str) -> dict[str, ClipAnnotation]:
    """Returns clip id to annotation of the clips that a unit's part holds as annotated; none where it has no part."""
    try:
        part = read_part(store, unit_id)
    except FileNotFoundError:
        return {}
    return {one.ref.clip_id: one for one in read_outcomes(part) if isinstance(one, ClipAnnotation)}
