"""One `annotate` run from the user's request to published tables."""

from __future__ import annotations

import socket
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from framescribe.publish.publish import OwnUnits, publish
from framescribe.publish.report import PublishReport
from framescribe.storage.claims import remove_claims
from framescribe.storage.journal import list_done_units, record_end, remove_set_aside
from framescribe.storage.output import PARTS_FOLDER, OutputStore
from pipeline.checks import CHECKS
from pipeline.cost import describe_comparison
from pipeline.flink import say_if_no_worker_comes, say_why_workers_stop
from pipeline.metrics_server import MetricsServer, serve_metrics
from pipeline.prediction import predict_start, record_outcome, settle
from pipeline.progress import describe_counters, describe_reuse, describe_start, describe_waits, read_counters
from pipeline.run_state import RunSummary
from pipeline.runners import (
    RunnerFailed,
    count_lanes,
    describe_description,
    is_in_process,
    make_options,
    run_to_end,
)
from pipeline.start import AnnotateRequest, StartedRun, StartPlan, commit, inspect
from pipeline.watching import Progress, RunReader
from schemas.records import WorkUnit
from transforms.answer_index import remove_answer_indexes
from transforms.worker import WORKER


def annotate(request: AnnotateRequest) -> Published | None:
    """Plans, runs what is not done yet, and publishes; None where the pipeline was only described, as a template is.

    Raises:
        TooManyFailedClipsError: the tables are there, without `_SUCCESS`.
        whatever stops a run: bad inputs, other settings in the output, a broken store or device.
    """
    return annotate_plan(inspect(request))


def annotate_plan(plan: StartPlan) -> Published | None:
    """Does so with a start that was inspected already."""
    for check in CHECKS:
        check(plan)
    with _serve_metrics(plan) as metrics:
        started = commit(plan)
        _say(*describe_start(plan), *_find_warnings(plan))
        summary = RunSummary(0.0, 0, plan.num_clips_done, 0, None)
        if plan.todo:
            prediction, started_s = predict_start(plan), time.monotonic()
            run = _run_units(plan, started, metrics)
            if run is None:
                return None
            counters, summary = run
            outcome = settle(plan, prediction, counters, time.monotonic() - started_s)
            taken = record_outcome(plan.record, outcome)
            record_end(plan.store, replace(plan.record, counters=counters, summary=summary.to_json(), **taken))
            _say(describe_comparison(outcome.compared) if outcome else None)
            _say(describe_reuse(counters) if plan.reusable else None)
            if plan.request.is_verbose:
                _say(describe_counters(counters), describe_waits(counters), summary.describe_slowest())
    _say("building the tables")
    own = OwnUnits(plan.record.fingerprint, frozenset(unit.unit_id for unit in plan.units))
    config = plan.config
    published = publish(config.output, config.storage_options, config.failures, own)
    if published.is_complete:
        remove_set_aside(plan.store)
        remove_answer_indexes(plan.store)
        remove_claims(plan.store)
    config.failures.check_run(
        published.num_failed - published.num_withdrawn, published.num_clips, published.failure_reasons
    )
    return Published(published, summary)


@dataclass(frozen=True, slots=True)
class Published:
    """What a run published, and how its last start went."""

    report: PublishReport
    summary: RunSummary


def _serve_metrics(plan: StartPlan) -> AbstractContextManager[MetricsServer | None]:
    if plan.request.metrics_at is None:
        return nullcontext()
    labels = {"run": plan.record.fingerprint, "output": plan.store.address("").rstrip("/")}
    return serve_metrics(*plan.request.metrics_at, labels)


def _find_warnings(plan: StartPlan) -> list[str]:
    # Tried out by writing, so it is no check.
    if plan.store.honours_conditions():
        return []
    return [
        f"warning: {plan.store.address('')} has no locks and ignores conditions of writes: two runs there at once "
        "cannot be kept apart, so start no second one before this one has ended"
    ]


def _run_units(
    plan: StartPlan, started: StartedRun, metrics: MetricsServer | None
) -> tuple[dict[str, int], RunSummary] | None:
    """Runs the pipeline, and returns what the workers counted and how it went; None if none ran."""
    import apache_beam as beam

    from pipeline.graph import build_graph

    runner, output = plan.request.runner, plan.config.output
    options = make_options(runner, plan.request.beam_flags)
    pipeline = beam.Pipeline(options=options)
    config, num_lanes = replace(plan.config, earlier=started.earlier), count_lanes(options)
    start_id = uuid.uuid4().hex
    build_graph(pipeline, started.work, config, plan.columns, start_id, num_lanes)
    worker = WORKER if is_in_process(runner) else None
    reader = RunReader(plan.store, plan.todo, plan.num_clips_done, plan.found.done, worker)
    progress = Progress(reader, output, None if metrics is None else metrics.show)
    has_signs = num_lanes is not None
    waiting = say_if_no_worker_comes(options, plan.store, start_id) if has_signs else nullcontext()
    with say_why_workers_stop(options), waiting:
        result = run_to_end(pipeline, runner, progress)
    described = describe_description(options)
    if described is not None:
        _say(
            f"{described}. The plan is written, nothing is annotated yet; when it has run, `publish --output "
            f"{output}` builds the tables"
        )
        return None
    if not is_in_process(runner):
        _check_parts_are_here(plan.store, plan.todo, runner)
    counters = read_counters(result)
    reader.take_job_counters(counters)
    return counters, progress.summarize()


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


def _say(*lines: str | None) -> None:
    for line in lines:
        if line is not None:
            print(line, file=sys.stderr, flush=True)
