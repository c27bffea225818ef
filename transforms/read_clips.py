"""Reads the clips of work units, cuts long videos into windows, and leaves out what is committed already."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

import apache_beam as beam
from apache_beam.metrics import Metrics

from framescribe.decoding.config import SamplingConfig, UndecodableClip
from framescribe.errors import FrameScribeError
from framescribe.shards.reading import read_unit, split_clip
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.claims import Lane, show_sign_of_life
from framescribe.storage.config import ReadConfig
from framescribe.storage.journal import check_still_ours, read_fingerprint, read_part, read_run
from framescribe.storage.output import PLAN_FOLDER, OutputStore, open_output, part_name
from framescribe.storage.plan import OpenedWork, PlannedWork, read_slice
from framescribe.storage.withdrawn import read_withdrawn
from schemas.part_rows import read_outcomes, withdraw
from schemas.records import Clip, ClipAnnotation, FailedClip, PlanSlice, UnitEnd, WorkUnit
from transforms.counts import WorkerCounter
from transforms.worker import WORKER, Worker, WorkerConfig

_NAMESPACE = "framescribe"
_Read = TypeVar("_Read", bound=Clip | FailedClip)


@dataclass(frozen=True, slots=True)
class ReadUnitsConfig:
    """Where the plan of a run lies.

    Attributes:
        storage_options: for fsspec, needed in the worker.
    """

    output: str
    fingerprint: str
    storage_options: StorageOptions = field(default_factory=dict, repr=False)


class ReadUnits(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """PlanSlice -> WorkUnit."""

    def __init__(self, config: ReadUnitsConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, slices: beam.PCollection) -> beam.PCollection:
        """Puts the step behind `slices`."""
        return slices | "Read plan" >> beam.ParDo(ReadUnitsFn(self._config)).with_output_types(WorkUnit)


class PlanNotFound(FrameScribeError, RuntimeError):
    """A worker does not find the plan in the output, as it sees that."""


class ReadUnitsFn(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Yields the units of a slice of the plan.

    Raises `OtherRunError` where the output belongs to another run by now, `PlanNotFound` where it has none.
    """

    def __init__(self, config: ReadUnitsConfig) -> None:
        super().__init__()
        self._config = config

    def setup(self) -> None:
        """Opens the output in the worker."""
        self._store: OutputStore = open_output(self._config.output, self._config.storage_options)

    def process(self, place: PlanSlice) -> Iterator[WorkUnit]:
        """Reads one slice."""
        with _naming_lost_plan(self._store, self._config):
            yield from read_slice(self._store, place)


class TakeUnits(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """(number of a lane, anything) -> the `WorkUnit`s that the lane takes from those of a job.

    Args:
        start_id: another one for each start of the run.
    """

    def __init__(self, config: ReadUnitsConfig, work: PlannedWork, start_id: str) -> None:
        super().__init__()
        self._fn = TakeUnitsFn(config, work, start_id)

    def expand(self, lanes: beam.PCollection) -> beam.PCollection:
        """Puts the step behind `lanes`."""
        return lanes | "Take each" >> beam.ParDo(self._fn).with_output_types(WorkUnit)


class TakeUnitsFn(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Yields units as long as there are any that no other lane has taken, the next one when the last one is passed on.

    Raises the same as `ReadUnitsFn`.
    """

    def __init__(self, config: ReadUnitsConfig, work: PlannedWork, start_id: str) -> None:
        super().__init__()
        self._config, self._work, self._start_id = config, work, start_id

    def setup(self) -> None:
        """Opens the output in the worker."""
        self._store: OutputStore = open_output(self._config.output, self._config.storage_options)
        self._opened: OpenedWork | None = None

    def process(self, keyed: tuple[int, Iterable[int]]) -> Iterator[WorkUnit]:
        """Takes units for a lane until none is left."""
        if self._opened is None:
            with _naming_lost_plan(self._store, self._config):
                self._opened = OpenedWork(self._store, self._work)
        for unit_id in Lane(self._store, self._start_id, keyed[0]).take_units(self._opened.sizes):
            yield self._opened.read(unit_id)


class ShowSignOfLife(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Lets the numbers of lanes pass; each worker says in the output that it is there.

    In a stage before the one that loads a model, which takes minutes.
    """

    def __init__(self, config: ReadUnitsConfig, start_id: str) -> None:
        super().__init__()
        self._config, self._start_id = config, start_id

    def setup(self) -> None:
        """Writes the sign."""
        show_sign_of_life(open_output(self._config.output, self._config.storage_options), self._start_id)

    def process(self, lane: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yields the lane."""
        yield lane


@contextmanager
def _naming_lost_plan(store: OutputStore, config: ReadUnitsConfig) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        if read_run(store) is not None:
            check_still_ours(store, config.fingerprint)
        raise PlanNotFound(
            f"the plan of this run is not in {store.address(PLAN_FOLDER)} as the worker on "
            f"{socket.gethostname()} sees it: the run was removed meanwhile, or that folder is on a disk of the "
            "worker's own. Give an --output that all machines share, such as s3://bucket/folder or a mounted folder"
        ) from None


@dataclass(frozen=True, slots=True)
class ReadClipsConfig:
    """How the clips of units are read.

    Attributes:
        split_s: cuts videos into windows of so many seconds; None keeps them whole.
        sampling, workers: of the decoder processes that are asked how long a video is, where videos are cut.
        output: whose committed units are left out, where they have this `fingerprint`; None reads every unit.
        retry_failed: reads committed units as well, and takes their annotated clips as they are.
        storage_options: for fsspec, needed in the worker.
    """

    reading: ReadConfig = field(default_factory=ReadConfig)
    split_s: float | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    output: str | None = None
    fingerprint: str = ""
    retry_failed: bool = False
    storage_options: StorageOptions = field(default_factory=dict, repr=False)


class ReadClips(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """WorkUnit -> Clip | FailedClip | UnitEnd, and ClipAnnotation for clips that are kept."""

    def __init__(self, config: ReadClipsConfig, worker: Worker = WORKER) -> None:
        super().__init__()
        self._config = config
        self._worker = worker

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """Puts the step behind `units`."""
        config, read = self._config, beam.ParDo(ReadClipsFn(self._config, self._worker))
        if config.output is None:
            return units | "Read units" >> read
        if config.retry_failed:
            keep = KeepAnnotated(config.output, config.storage_options)
            return units | "Read units" >> read | "Keep annotated clips" >> beam.ParDo(keep)
        skip = SkipCommitted(config.output, config.fingerprint, config.storage_options)
        return units | "Skip committed units" >> beam.ParDo(skip) | "Read units" >> read


class ReadClipsFn(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Yields a `Clip` or `FailedClip` for each clip of a `WorkUnit`, one by one, and then one `UnitEnd`.

    A shard that cannot be read raises (see `framescribe.shards.reading`): its unit has no end then, so it is
    never committed.
    """

    def __init__(self, config: ReadClipsConfig, worker: Worker = WORKER) -> None:
        super().__init__()
        self._config = config
        self._worker = worker
        self._num_read = WorkerCounter(worker, _NAMESPACE, "clips_read")
        self._num_unreadable = WorkerCounter(worker, _NAMESPACE, "clips_unreadable")
        self._num_bytes = WorkerCounter(worker, _NAMESPACE, "bytes_read")
        self._num_windows = WorkerCounter(worker, _NAMESPACE, "windows_beyond_first")
        self._read_ms = WorkerCounter(worker, _NAMESPACE, "read_milliseconds")
        self._withdrawn: frozenset[str] = frozenset()

    def setup(self) -> None:
        """Looks up in the worker which clips were withdrawn from the output."""
        if self._config.output is not None:
            self._withdrawn = read_withdrawn(open_output(self._config.output, self._config.storage_options))

    def process(self, unit: WorkUnit) -> Iterator[Clip | FailedClip | UnitEnd]:
        """Reads one unit."""
        self._worker.unit_times.begin(unit.unit_id)
        num_clips = 0
        clips = self._timed(read_unit(unit, self._config.storage_options, self._config.reading))
        # No pick for clips that were not planned: the reader says at its end that the shard changed.
        picks = chain(unit.picks, repeat(())) if unit.picks else repeat(None)
        for read, picked in zip(clips, picks, strict=False):
            for clip in pick_windows(self._cut(read), picked) if picked != () else ():
                num_clips += 1
                if clip.ref.clip_id in self._withdrawn:
                    yield withdraw(clip.ref)
                    continue
                self._count(clip)
                yield clip
        yield UnitEnd(unit.unit_id, num_clips)

    def _timed(self, clips: Iterator[Clip | FailedClip]) -> Iterator[Clip | FailedClip]:
        """Yields the clips and counts the time that reading each of them took."""
        while True:
            started_s = time.monotonic()
            clip = next(clips, None)
            self._read_ms.inc(round((time.monotonic() - started_s) * 1000))
            if clip is None:
                return
            yield clip

    def _cut(self, clip: Clip | FailedClip) -> list[Clip] | list[FailedClip]:
        if isinstance(clip, FailedClip):
            return [clip]
        if self._config.split_s is None:
            return [clip]
        pool = self._worker.get_decoder_pool(self._config.sampling, self._config.workers.num_decoder_processes)
        try:
            duration_s = pool.probe_duration_s(clip.video)
        except UndecodableClip:
            return [clip]  # decoding it will say what is wrong with it
        windows = split_clip(clip, duration_s, self._config.split_s)
        self._num_windows.inc(len(windows) - 1)
        return windows

    def _count(self, clip: Clip | FailedClip) -> None:
        if isinstance(clip, FailedClip):
            self._num_unreadable.inc()
            return
        self._num_read.inc()
        self._num_bytes.inc(clip.video.stat().st_size if isinstance(clip.video, Path) else len(clip.video))


def pick_windows(windows: Sequence[_Read], picked: tuple[int, ...] | None) -> Sequence[_Read]:
    """Returns the windows that a limited run takes; of a video that has none of them any more, the first."""
    if picked is None:
        return windows
    return [windows[number] for number in picked if number < len(windows)] or windows[:1]


class SkipCommitted(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Lets the units pass that have no part of these settings yet.

    A runner that loses a worker starts the job, or a bundle of many units, from the beginning: what was committed
    until then is not annotated again.
    """

    def __init__(self, output: str, fingerprint: str, storage_options: StorageOptions | None = None) -> None:
        super().__init__()
        self._output = output
        self._fingerprint = fingerprint
        self._storage_options = storage_options
        self._num_skipped = Metrics.counter(_NAMESPACE, "units_skipped")

    def setup(self) -> None:
        """Opens the output in the worker."""
        self._store: OutputStore = open_output(self._output, self._storage_options)

    def process(self, unit: WorkUnit) -> Iterator[WorkUnit]:
        """Yields the unit, or nothing."""
        if read_fingerprint(self._store, unit.unit_id) == self._fingerprint:
            self._num_skipped.inc()
        else:
            yield unit


class KeepAnnotated(beam.DoFn):  # type: ignore[misc]  # Beam has no types
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
