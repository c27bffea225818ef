"""The pipeline, on one screen.

read units ─ spread units ─ read clips ─ sample frames ─ annotate clips ─ commit parts
                           └────── one fused stage, resource hints on the composite ──────┘

Where the runner deals elements to its workers beforehand, as Flink does, it deals lanes, which take units at their own
pace: lanes ─ show signs of life ─ spread lanes ─ take units ─ read clips ...
"""

from __future__ import annotations

import apache_beam as beam

from framescribe.storage.plan import PlannedWork
from pipeline.config import RunConfig
from schemas.run_columns import RunColumns
from transforms.annotate_clips import AnnotateClips
from transforms.commit_parts import CommitParts
from transforms.read_clips import ReadClips, ReadUnits, ShowSignOfLife, TakeUnits
from transforms.sample_frames import SampleFrames


def build_graph(
    pipeline: beam.Pipeline,
    work: PlannedWork,
    config: RunConfig,
    columns: RunColumns,
    start_id: str,
    num_lanes: int | None = None,
) -> beam.PCollection:
    """Adds the whole run to a pipeline and returns its committed parts.

    The job says where in the plan the units lie, and not what they are: a million clips are too many for that.

    Args:
        start_id: another one for each start of the run; lanes and their workers are told apart by it.
        num_lanes: for a runner that deals elements to its workers beforehand: as many elements, each of which takes
            one unit after another until none is left. None leaves spreading the units to the runner.
    """
    if num_lanes is None:
        units = _read_units(pipeline, work, config, columns)
    else:
        units = _take_units(pipeline, work, config, columns, start_id, num_lanes)
    return units | "Annotate units" >> AnnotateUnits(config, columns)


def _take_units(
    pipeline: beam.Pipeline, work: PlannedWork, config: RunConfig, columns: RunColumns, start_id: str, num_lanes: int
) -> beam.PCollection:
    where = config.read_units(columns)
    lanes = pipeline | "Lanes" >> beam.Create([(lane, 0) for lane in range(num_lanes)], reshuffle=False)
    show = beam.ParDo(ShowSignOfLife(where, start_id)).with_output_types(tuple[int, int])
    lanes = lanes | "Show signs of life" >> show
    take = TakeUnits(where, work, start_id)
    # No Reshuffle: when Flink does a part of a job again, that may bring the lane that was lost to a slot that is done.
    return lanes | "Spread lanes" >> beam.GroupByKey() | "Take units" >> take


def _read_units(pipeline: beam.Pipeline, work: PlannedWork, config: RunConfig, columns: RunColumns) -> beam.PCollection:
    slices = pipeline | "Slices of the plan" >> beam.Create(work.slices, reshuffle=False)
    units = slices | "Read units" >> ReadUnits(config.read_units(columns))
    if work.units:
        carried = pipeline | "Units with credentials" >> beam.Create(work.units, reshuffle=False)
        units = (units, carried) | "All units" >> beam.Flatten()
    return units | "Spread units" >> beam.Reshuffle()


class AnnotateUnits(beam.PTransform):  # type: ignore[misc]  # Beam has no types
    """WorkUnit -> CommittedPart: everything between reading a shard and its committed part, in one fused stage.

    Resource hints belong on this composite (`.with_resource_hints(...)`): on one step alone they would split the
    stage and send frames through a shuffle.
    """

    def __init__(self, config: RunConfig, columns: RunColumns) -> None:
        super().__init__()
        self._config, self._columns = config, columns

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        """Composes the steps from units to committed parts."""
        config, columns = self._config, self._columns
        return (
            units
            | "Read clips" >> ReadClips(config.read_clips(columns))
            | "Sample frames" >> SampleFrames(config.sample_frames())
            | "Annotate clips" >> AnnotateClips(config.annotate_clips(columns))
            | "Commit parts" >> CommitParts(config.commit_parts(columns))
        )
