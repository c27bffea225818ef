"""The pipeline, on one screen.

plan units ─ spread units ─ read clips ─ sample frames ─ annotate clips ─ commit parts
                           └────── one fused stage, resource hints on the composite ──────┘
"""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam

from pipeline.config import RunConfig
from schemas.records import CommittedPart, WorkUnit
from schemas.run_columns import RunColumns, find_versions
from transforms.annotate_clips import AnnotateClips
from transforms.commit_parts import CommitParts, SkipCommitted
from transforms.read_clips import KeepAnnotated, PoolProbe, ReadClips
from transforms.sample_frames import SampleFrames, num_cores


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
        config = self._config
        probe = PoolProbe(config.num_decoder_processes or num_cores(), config.sampling)
        read = ReadClips(config.reading, config.storage_options, config.split_s, probe)
        versions = None if config.allow_other_versions else find_versions()
        commit = CommitParts(config.output, self._columns, config.storage_options, config.max_failed_fraction, versions)
        if not config.retry_failed:
            units |= "Skip committed units" >> beam.ParDo(
                SkipCommitted(config.output, self._columns.fingerprint, config.storage_options)
            )
        clips = units | "Read clips" >> beam.ParDo(read)
        if config.retry_failed:
            clips |= "Keep annotated clips" >> beam.ParDo(KeepAnnotated(config.output, config.storage_options))
        return (
            clips
            | "Sample frames"
            >> SampleFrames(
                config.sampling, config.num_decoder_processes, config.frame_memory_bytes, config.prefetch_clips
            )
            | "Annotate clips"
            >> AnnotateClips(
                config.engine,
                config.recipe,
                self._columns.model_revision,
                config.frame_memory_bytes,
                config.prefetch_clips,
                config.canary_every,
                config.earlier,
            )
            | "Commit parts" >> beam.ParDo(commit).with_output_types(CommittedPart)
        )
