"""A pilot: the same few clips annotated with several settings, and a page to decide by before the full run is paid."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from framescribe.publish.export import PublishedTables, SourceVideos
from framescribe.publish.pilot_page import Found, Offer, PilotSetting, count_rows, summarise, write_page
from framescribe.shards.lookup import VideoLookup
from framescribe.storage.access import Store
from framescribe.storage.journal import RunRecord, read_run
from framescribe.storage.output import OutputStore, open_output
from pipeline.annotate import annotate_plan
from pipeline.checks import CHECKS
from pipeline.config import CannotStart
from pipeline.cost import MachineCost, read_measured
from pipeline.machines import Machine, read_machines
from pipeline.plan_report import PlanReport, make_report, write_time
from pipeline.progress import write_count
from pipeline.start import AnnotateRequest, StartPlan, inspect

PAGE_FILE, FIGURES_FILE = "pilot.html", "pilot.json"


@dataclass(frozen=True, slots=True)
class PilotRun:
    """One setting that a pilot tries.

    Attributes:
        recipe, frames: the setting for people.
        request: annotates the pilot's clips so, into a folder of its own.
        full: annotates all clips so, without the pilot.
        command: the command line of the full run that takes the pilot's answers.
    """

    recipe: str
    frames: str
    request: AnnotateRequest
    full: AnnotateRequest
    command: str


def pilot(output: str, runs: Sequence[PilotRun]) -> str:
    """Annotates the clips with each setting, as far as that is not done, and writes the page; returns its address.

    Every setting is checked before the first one starts.

    Raises:
        CannotStart: the runner only wrote a description of its job.
        whatever stops a run of `annotate`.
    """
    first = inspect(runs[0].request)
    plans = [first, *(_inspect_like(first, run.request) for run in runs[1:])]
    for plan in plans:
        for check in CHECKS:
            check(plan)
    _say(
        f"pilot: {write_count(first.num_clips, 'clip')} of {_count_listed(first):,}, "
        f"with {write_count(len(runs), 'setting')}"
    )
    for number, (run, plan) in enumerate(zip(runs, plans, strict=True), start=1):
        _say(f"setting {number} of {len(runs)}: {run.recipe}, {run.frames}")
        published = annotate_plan(plan)
        if published is None:
            raise CannotStart(
                f"--runner {run.request.runner} only wrote a description of its job, and a pilot needs what comes of it"
            )
        _say(published.summary.describe(published.report.num_failed))
    _say("counting what the full run would take, and looking at the frames again for the page")
    machines = read_machines(runs[0].request.machines)
    found = [count_rows(_describe(run, _inspect_like(first, run.full), machines)) for run in runs]
    return _write(open_output(output, runs[0].request.config.storage_options), first, runs, found)


def _inspect_like(first: StartPlan, request: AnnotateRequest) -> StartPlan:
    """Inspects another start over the same inputs, which are listed once."""
    plan = inspect(request)
    plan.shards = first.shards
    return plan


def _count_listed(plan: StartPlan) -> int:
    return sum(unit.num_clips for unit in plan.all_units)


def _describe(run: PilotRun, full: StartPlan, machines: Sequence[Machine]) -> PilotSetting:
    config = run.request.config
    store = open_output(config.output, config.storage_options)
    record = read_run(store)
    measured = None if record is None else read_measured(record.measured)
    report = make_report(full, machines, None if measured is None else config.output, True, False)
    return PilotSetting(
        name=f"{run.recipe}, {run.frames}",
        recipe=run.recipe,
        frames=run.frames,
        tables=PublishedTables(store),
        command=run.command,
        counters=_counters(record),
        seconds=None if measured is None else measured.seconds,
        device="" if measured is None else measured.device,
        here="" if report.same_machine_s is None else write_time(report.same_machine_s),
        offers=[*_list_offers(report)],
    )


def _counters(record: RunRecord | None) -> dict[str, int]:
    return {} if record is None else dict(record.counters)


def _list_offers(report: PlanReport) -> Iterator[Offer]:
    """Yields the machines that hold the model, the cheapest first."""
    for one in sorted((one for one in report.machines if one.limit != "memory"), key=lambda one: one.cost):
        yield _offer(one)


def _offer(one: MachineCost) -> Offer:
    return Offer(
        machine=one.machine.name,
        clips_per_s=f"{one.clips_per_s:,.2f}",
        wall_time=write_time(one.wall_s),
        gpu_hours=f"{one.gpu_hours:,.2f}",
        cost=f"{one.cost:,.2f} {one.machine.currency}",
        limit=one.limit,
        basis="measured" if one.is_measured else "modelled",
    )


def _write(store: OutputStore, first: StartPlan, runs: Sequence[PilotRun], found: Sequence[Found]) -> str:
    config, num_listed = first.request.config, _count_listed(first)
    title = f"Pilot: {write_count(first.num_clips, 'clip')} of {num_listed:,}, {write_count(len(runs), 'setting')}"
    subset = first.request.subset
    drawn = (
        ""
        if subset is None or first.limited is None
        else f"The clips were drawn by their ids with seed {subset.seed}. "
    )
    notes = (
        f"{drawn}Each setting annotated the same clips. “Usable” means that a text came in the form that was "
        "asked for; whether it is true, only the clips below tell.",
        "Times on machines follow what the pilot took where it ran on such a GPU, else they are modelled. Prices are "
        "those of the table of machines (--machines; the shipped ones are examples).",
    )
    with tempfile.TemporaryDirectory(prefix="framescribe-") as scratch:
        lookup = VideoLookup(Store(config.storage_options, config.reading), config.output)
        videos = SourceVideos(lookup, Path(scratch))
        page = "".join(write_page(title, found, videos, notes))
        videos.close()
    store.put(PAGE_FILE, page.encode("utf-8", "replace"))
    figures = {"clips": first.num_clips, "of": num_listed, "settings": [summarise(one) for one in found]}
    store.put(FIGURES_FILE, (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode())
    return store.address(PAGE_FILE)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
