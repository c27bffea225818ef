"""The pipeline, on one screen.

plan units ─ spread units ─ read clips ─ sample frames ─ annotate clips ─ commit parts
                           └────── one fused stage, resource hints on the composite ──────┘
"""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam

from pipeline.config import RunConfig
from schemas.records import WorkUnit
from schemas.run_columns import RunColumns
from transforms.annotate_clips import AnnotateClips
from transforms.commit_parts import CommitParts
from transforms.read_clips import ReadClips
from transforms.sample_frames import SampleFrames


def build_graph(
    pipeline: beam.Pipeline, units: Sequence[WorkUnit], config: RunConfig, columns: RunColumns
) -> beam.PCollection:
    """Adds the whole run to a pipeline and returns its committed parts."""
    return (
        pipeline
        | "Plan units" >> beam.Create(units, reshuffle=False)
        | "Spread units" >> beam.Reshuffle()
        | "Annotate units" >> AnnotateUnits(config, columns)
    )


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
