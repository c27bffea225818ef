"""One `annotate` run from plan to published tables."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from framescribe.llava_video.model.checkpoint import CONFIGURATION, Checkpoint, find_checkpoint
from framescribe.llava_video.model.config import ModelConfig
from framescribe.publish.publish import OwnUnits, publish
from framescribe.publish.report import PublishReport
from framescribe.storage.access import Store
from framescribe.storage.journal import (
    RunRecord,
    list_done_units,
    list_set_aside,
    record_end,
    remove_set_aside,
    set_part_aside,
)
from framescribe.storage.output import PARTS_FOLDER, SET_ASIDE_FOLDER, SUCCESS_FILE, OutputStore, open_output
from pipeline.checks import check_inputs_apart, check_prompts, describe_run, find_earlier_run, prepare_model
from pipeline.config import RunConfig, record_run, run_columns
from pipeline.left_out import (
    check_inputs_unchanged,
    check_no_second_ids,
    check_nothing_left_out,
    find_changed_inputs,
)
from pipeline.progress import describe_counters, describe_reuse, read_counters, show_progress, write_count
from pipeline.runners import RunnerFailed, check_runner, describe_description, is_in_process, make_options, run_to_end
from pipeline.start import StartedRun, add_failed_units, check_same_run, check_same_versions, overwrite_run, start_run
from pipeline.units import plan_units
from schemas.records import WorkUnit
from schemas.run_columns import RunColumns
from transforms.answer_reuse import ReusableRun
from transforms.unit_outcomes import TooManyFailedClipsError, check_failed_fraction, describe_reasons


@dataclass(frozen=True, slots=True)
class AnnotateRequest:
    """What to run and where it shall be told.

    Attributes:
        reuse_from: output of an earlier run whose answers to unchanged questions are taken; None asks everything.
        changed_inputs: what becomes of finished units whose inputs changed: `keep`, `redo`, or None for an error.
    """

    inputs: tuple[str, ...]
    runner: str
    beam_flags: tuple[str, ...]
    overwrite: bool
    reuse_from: str | None = None
    changed_inputs: str | None = None


def annotate(request: AnnotateRequest, config: RunConfig, model: ModelConfig) -> PublishReport | None:
    """Plans, runs what is not done yet, and publishes; None where the pipeline was only described, as a template is.

    Raises:
        TooManyFailedClipsError: the tables are there, without `_SUCCESS`.
        whatever stops a run: bad inputs, other settings in the output, a broken store or device.
    """
    store = open_output(config.output, config.storage_options)
    check_inputs_apart(request.inputs, Store(config.storage_options, config.reading), store)
    check_runner(request.runner, request.beam_flags)
    checkpoint = find_checkpoint(
        config.engine.model, config.engine.revision, config.engine.storage_options, CONFIGURATION
    )
    config = _with_absolute_folders(config, store, checkpoint)
    check_prompts(config, checkpoint, model)
    units = plan_units(request.inputs, config.units, config.storage_options, config.reading)
    # Elsewhere each worker sees for itself which device it has.
    dtype = prepare_model(config, model) if is_in_process(request.runner) else config.engine.dtype
    record = record_run(config, checkpoint, model, dtype)
    if request.reuse_from is not None:
        config, record = _reuse_answers(request.reuse_from, config, store, record, units)
    started = _start(request, config, store, record, units)
    config = _take_set_aside(config, store, record)
    if started.todo:
        counters = _run_units(request, config, run_columns(config, checkpoint, model, dtype, record), store, started)
        if counters is None:
            return None
        record_end(store, replace(record, counters=counters))
        for line in (describe_counters(counters), describe_reuse(counters) if config.earlier else None):
            if line is not None:
                _say(line)
    _say("building the tables")
    own = OwnUnits(record.fingerprint, frozenset(unit.unit_id for unit in units))
    published = publish(config.output, config.storage_options, config.max_failed_fraction, own)
    if published.is_complete:
        remove_set_aside(store)
    _check_failures(published, config)
    return published


def _with_absolute_folders(config: RunConfig, store: OutputStore, checkpoint: Checkpoint) -> RunConfig:
    """Returns settings that mean the same folders in workers elsewhere, which have current folders of their own."""
    is_folder = os.path.isabs(checkpoint.name)  # otherwise a URI or a hub id
    engine = replace(config.engine, model=checkpoint.name) if is_folder else config.engine
    return replace(config, engine=engine, output=str(store.local_path or config.output))


def _start(
    request: AnnotateRequest, config: RunConfig, store: OutputStore, record: RunRecord, units: Sequence[WorkUnit]
) -> StartedRun:
    """Starts the run in its folder, or goes on with it, and says what there is to do."""
    if not request.overwrite:
        check_same_run(store, record)
        if not config.allow_other_versions:
            check_same_versions(store, record)
        check_nothing_left_out(store, Store(config.storage_options, config.reading), units, record.fingerprint)
        check_no_second_ids(store, units)
        _judge_changed_inputs(request, store, units)
    started = (overwrite_run if request.overwrite else start_run)(store, record, units)
    if not store.honours_conditions():
        _say(
            f"warning: {store.address('')} has no locks and ignores conditions of writes: two runs there at once "
            "cannot be kept apart, so start no second one before this one has ended"
        )
    if config.retry_failed:
        started = add_failed_units(store, started, units, record.fingerprint)
        _say(f"to be tried again: {write_count(started.num_failed_clips, 'failed clip')}")
    num_clips = sum(unit.stop - unit.start for unit in units)
    planned = f"{write_count(num_clips, 'clip')} in {write_count(len(units), 'unit')}"
    _say(f"{planned}, {started.num_done:,} done before" if started.num_done else planned)
    if started.num_clips_again:
        again = write_count(started.num_clips_again, "clip")
        _say(
            f"warning: up to {again} of those done before will be annotated again, or leave the tables if their files "
            "are gone, since their shards are cut into other units now: files came or went, or --clips-per-unit is "
            "another"
        )
    if started.num_outdated:
        _say(f"in no table: {write_count(started.num_outdated, 'part')} of shards that were cut into other units since")
    return started


def _judge_changed_inputs(request: AnnotateRequest, store: OutputStore, units: Sequence[WorkUnit]) -> None:
    """Lets finished units of changed inputs stand, or sets their parts aside to be done again, as the user said."""
    changed = find_changed_inputs(store, units)
    if request.changed_inputs is None:
        check_inputs_unchanged(changed)
    if request.changed_inputs == "redo" and changed.unit_ids:
        store.remove(SUCCESS_FILE)  # before the first part goes
        for unit_id in changed.unit_ids:
            set_part_aside(store, unit_id)
    if changed.unit_ids:
        fate = "done again" if request.changed_inputs == "redo" else "kept as they are"
        _say(f"{write_count(len(changed.unit_ids), 'finished unit')} of changed inputs: {fate}")


def _take_set_aside(config: RunConfig, store: OutputStore, record: RunRecord) -> RunConfig:
    """Returns settings that take the answers of parts that were set aside, by this start or by one that was killed."""
    if config.earlier is not None or not list_set_aside(store):
        return config
    output = f"{config.output.rstrip('/')}/{SET_ASIDE_FOLDER}"
    return replace(config, earlier=ReusableRun(output, record.fingerprint, config.storage_options))


def _check_failures(published: PublishReport, config: RunConfig) -> None:
    reasons = published.failure_reasons
    check_failed_fraction(published.num_failed, published.num_clips, config.max_failed_fraction, 1, reasons)
    if published.num_failed and not published.num_annotated:
        raise TooManyFailedClipsError(
            f"none of {write_count(published.num_clips, 'clip')} was annotated ({describe_reasons(reasons)}). The "
            "tables are there, without _SUCCESS. Mend the cause and start again with --retry-failed; "
            f"`publish --output {config.output}` takes them as they are"
        )


def _reuse_answers(
    earlier: str, config: RunConfig, store: OutputStore, record: RunRecord, units: Sequence[WorkUnit]
) -> tuple[RunConfig, RunRecord]:
    """Returns settings and record of a run that takes the answers of an earlier one."""
    found, num_units = find_earlier_run(earlier, config.storage_options, store, record, units)
    if not config.allow_other_versions:
        check_same_versions(open_output(earlier, config.storage_options), record)
    _say(f"{num_units} of {len(units)} units have earlier answers; what is unchanged in them is not asked again")
    return replace(config, earlier=found), replace(record, reused_run=describe_run(found))


def _run_units(
    request: AnnotateRequest, config: RunConfig, columns: RunColumns, store: OutputStore, started: StartedRun
) -> dict[str, int] | None:
    """Runs the pipeline, with progress shown from a thread, and returns what the workers counted; None if none ran."""
    import apache_beam as beam

    from pipeline.graph import build_graph

    options = make_options(request.runner, request.beam_flags)
    pipeline = beam.Pipeline(options=options)
    build_graph(pipeline, started.todo, config, columns)
    when_interrupted = (
        f"stopped; what is committed under {config.output} is kept. The same command goes on from there, "
        f"`publish --output {config.output}` builds tables of what is done"
    )
    with show_progress(store, started.todo, "loading the model" if is_in_process(request.runner) else ""):
        result = run_to_end(pipeline, request.runner, when_interrupted)
    described = describe_description(options)
    if described is not None:
        _say(
            f"{described}. The plan is written, nothing is annotated yet; when it has run, `publish --output "
            f"{config.output}` builds the tables"
        )
        return None
    if not is_in_process(request.runner):
        _check_parts_are_here(store, started.todo, request.runner)
    return read_counters(result)


def _check_parts_are_here(store: OutputStore, units: Sequence[WorkUnit], runner: str) -> None:
    """Raises `RunnerFailed` where a runner is done, but its workers wrote to a folder that is not the one seen here."""
    missing = {unit.unit_id for unit in units}.difference(list_done_units(store))
    if missing:
        folder, here = store.address(PARTS_FOLDER), f"on this machine ({socket.gethostname()})"
        raise RunnerFailed(
            f"--runner {runner} says that all is done, but the parts of {len(missing)} of {len(units)} units "
            f"are not in {folder} {here}: the workers wrote them to {folder} on their own. "
            "Give an --output that all machines share, such as s3://bucket/folder or a mounted folder"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
