"""How a run starts: `inspect` what is there, let `pipeline.checks` judge it, and `commit` to it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from framescribe.llava_video.model.checkpoint import CONFIGURATION, Checkpoint, find_checkpoint
from framescribe.llava_video.model.config import ModelConfig, read_model_config
from framescribe.storage.access import Store
from framescribe.storage.journal import (
    OtherRunError,
    RunRecord,
    check_still_ours,
    holds_run,
    record_start,
    remove_set_aside,
    set_part_aside,
)
from framescribe.storage.output import (
    PARTS_FOLDER,
    PLAN_FOLDER,
    RUN_FILE,
    SET_ASIDE_FOLDER,
    SUCCESS_FILE,
    OutputStore,
    open_output,
)
from framescribe.storage.parts import read_parts
from framescribe.storage.plan import PlannedUnit, PlannedWork, Source, add_to_plan, list_sources
from framescribe.storage.redaction import secrets_in, secrets_of, strip_credentials
from framescribe.storage.retries import RetryPolicy, retry_passing_errors
from framescribe.storage.withdrawn import add_withdrawn
from pipeline.config import RunConfig, choose_dtype_name, record_run, run_columns
from pipeline.found import ChangedInputs, FoundAnswers, FoundOutput, count_failed_clips, find_answers, find_own_answers
from pipeline.runners import is_in_process
from pipeline.subset import Subset, limit_of, pick_clips
from pipeline.units import ListedShard, PlannedInputs, list_shards
from pipeline.where import keep_clips
from schemas.records import LimitedTo, WorkUnit
from schemas.run_columns import RunColumns
from transforms.answer_index import remove_answer_indexes
from transforms.answer_reuse import ReusableRun


@dataclass(frozen=True, slots=True)
class AnnotateRequest:
    """What the user asked for.

    Attributes:
        config: as typed: folders may be relative, and the image size is not the model's yet.
        reuse_from: output of an earlier run whose answers to unchanged questions are taken; None asks everything.
        changed_inputs: what becomes of finished units whose inputs changed: `keep`, `redo`, or None for an error.
        metrics_at: host and port that serve the numbers to Prometheus while the run lasts.
        is_verbose: says also where the engine's time went, and how many rows there are.
        subset: what the start is limited to; None takes all. `machines`: a table of them; None is the shipped one.
    """

    config: RunConfig
    inputs: tuple[str, ...]
    runner: str = "DirectRunner"
    beam_flags: tuple[str, ...] = ()
    overwrite: bool = False
    reuse_from: str | None = None
    changed_inputs: str | None = None
    metrics_at: tuple[str, int] | None = None
    is_verbose: bool = False
    subset: Subset | None = None
    machines: Path | None = None


class StartPlan:
    """What a start found and is going to do. Nothing is written; each thing is looked up when first needed, and once.

    So checks may be ordered by what they cost: a wrong flag is told before a million files are listed.
    """

    def __init__(self, request: AnnotateRequest) -> None:
        self.request = request

    @cached_property
    def found(self) -> FoundOutput:
        """What is in the output folder, also where it is going to be removed."""
        return FoundOutput(open_output(self.request.config.output, self.request.config.storage_options))

    @property
    def store(self) -> OutputStore:
        """The output."""
        return self.found.store

    @property
    def place(self) -> str:
        """The output as workers open it."""
        return str(self.store.local_path or self.request.config.output)

    @cached_property
    def reader(self) -> Store:
        """Reads inputs."""
        return Store(self.request.config.storage_options, self.request.config.reading)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The configuration of the model on local disk: the first contact with where it lies."""
        engine = self.request.config.engine
        secrets = (*secrets_in(engine.model), *secrets_of(engine.storage_options))
        return retry_passing_errors(
            f"read the model {strip_credentials(engine.model)!r}",
            lambda: find_checkpoint(engine.model, engine.revision, engine.storage_options, CONFIGURATION),
            RetryPolicy(),
            secrets,
        )

    @cached_property
    def model(self) -> ModelConfig:
        """The model's configuration with the user's overrides."""
        return read_model_config(self.checkpoint, self.request.config.engine.config_overrides)

    @cached_property
    def config(self) -> RunConfig:
        """The settings with the model's image size, its commit, and folders that workers elsewhere find as well."""
        config, found = self.request.config, self.checkpoint
        engine = config.engine
        if os.path.isabs(found.name):
            engine = replace(engine, model=found.name)
        elif "://" not in found.name:
            engine = replace(engine, revision=found.revision)  # a branch may move, and each worker would ask the hub
        return replace(
            config,
            engine=engine,
            sampling=replace(config.sampling, image_size=self.model.tower.image_size),
            output=self.place,
        )

    @cached_property
    def dtype(self) -> str:
        """What is computed in; `auto` where only the workers know."""
        engine = self.config.engine
        return choose_dtype_name(engine) if is_in_process(self.request.runner) else engine.dtype

    @cached_property
    def record(self) -> RunRecord:
        """What run.json shall say."""
        record = record_run(self.config, self.checkpoint, self.model, self.dtype)
        seen = None if self.request.overwrite else self.found.record
        record = replace(record, limited=asdict(self.limited) if self.limited else {})
        if seen is not None and seen.fingerprint == record.fingerprint:
            record = replace(record, measured=seen.measured, counters=seen.counters, summary=seen.summary)
        if self.earlier is None or self.earlier.record is None:
            return record
        reused = {"output": self.earlier.store.address(""), "fingerprint": self.earlier.record.fingerprint}
        return replace(record, reused_run=reused)

    @property
    def columns(self) -> RunColumns:
        """What every row repeats."""
        return run_columns(self.config, self.checkpoint, self.model, self.dtype, self.record)

    @cached_property
    def shards(self) -> tuple[ListedShard, ...]:
        """The inputs, listed."""
        listed = list_shards(self.reader, self.request.inputs, self.request.config.units)
        return keep_clips(self.reader, listed, self.request.subset)

    @cached_property
    def inputs(self) -> PlannedInputs:
        """The clips to take, all of the inputs unless the start is limited, cut into units in the planner's order."""
        config, subset = self.request.config, self.request.subset
        if subset is None:
            return PlannedInputs.of(self.shards, self.all_units)
        units = pick_clips(self.reader, self.shards, subset, config.units, config.sampling, config.split_s)
        return PlannedInputs.of(self.shards, units)

    @property
    def units(self) -> tuple[WorkUnit, ...]:
        """The units to take."""
        return self.inputs.units

    @property
    def all_units(self) -> tuple[WorkUnit, ...]:
        """All clips of the inputs, cut into units."""
        return tuple(unit for listed in self.shards for unit in listed.units)

    @cached_property
    def limited(self) -> LimitedTo | None:
        """What part of the inputs this start takes; None where that is all of them."""
        if (subset := self.request.subset) is None or self.units == self.all_units:
            return None
        return limit_of(subset, self.shards, self.request.config.split_s)

    @property
    def num_clips(self) -> int:
        """Clips of all units; windows of long videos are not known before they are decoded."""
        return sum(unit.num_clips for unit in self.units)

    @cached_property
    def earlier(self) -> FoundOutput | None:
        """What is in the output of `--reuse-from`."""
        place = self.request.reuse_from
        return None if place is None else FoundOutput(open_output(place, self.request.config.storage_options))

    @cached_property
    def reusable(self) -> tuple[FoundAnswers, ...]:
        """Where answers are taken from: the earlier run, what was set aside here, and units that count no more."""
        request, options, found = self.request, self.request.config.storage_options, list[FoundAnswers]()
        if self.earlier is not None and self.earlier.record is not None:
            place = str(self.earlier.store.local_path or request.reuse_from)
            run = ReusableRun(place, self.earlier.record.fingerprint, storage_options=options)
            found.append(find_answers(self.earlier.store, run, self.earlier.done, self.inputs))
        if request.overwrite or self.found.record is None:
            return tuple(found)
        mine = ReusableRun(self.place, self.found.record.fingerprint, is_own=True, storage_options=options)
        if self.redone or self.found.set_aside:
            aside = replace(mine, output=f"{self.place.rstrip('/')}/{SET_ASIDE_FOLDER}")
            found.append(FoundAnswers(aside, num_clips=0))
        count_no_more = self.outdated.union(unit.unit_id for unit in self.replaced)
        if count_no_more:
            found.append(find_own_answers(self.store, mine, count_no_more, self.inputs))
        return tuple(found)

    @property
    def num_reusable(self) -> int:
        """Clips of this run that the run of `--reuse-from` has, as far as their ids tell."""
        return sum(found.num_clips for found in self.reusable if not found.run.is_own)

    @cached_property
    def changed(self) -> ChangedInputs:
        """Compares ETags, generations or modification times with those that were planned for the finished units."""
        planned = {unit.unit_id: unit.sources for unit in self.kept_plan if unit.unit_id in self.found.done}
        unit_ids: list[str] = []
        changes: dict[str, str] = {}
        for unit in self.units:
            pairs = zip(planned.get(unit.unit_id, ()), list_sources(unit), strict=False)
            changed = {now.uri: _describe_change(then, now) for then, now in pairs if _differ(then, now)}
            unit_ids += [unit.unit_id] if changed else []
            changes |= changed
        for unit_id, uri, change in self.found.find_changed_rows(self.units, planned, self.reader):
            unit_ids += [unit_id] if unit_id not in unit_ids[-1:] else []
            changes[uri] = change
        return ChangedInputs(tuple(unit_ids), tuple(changes.values()))

    @property
    def redone(self) -> frozenset[str]:
        """Ids of finished units that are done again because their inputs changed."""
        return frozenset(self.changed.unit_ids if self.request.changed_inputs == "redo" else ())

    @property
    def kept_plan(self) -> tuple[PlannedUnit, ...]:
        """The units of earlier starts, unless their run is overwritten."""
        return () if self.request.overwrite else self.found.planned

    @cached_property
    def done(self) -> frozenset[str]:
        """Ids of the units, of whichever plan, whose part stays."""
        return frozenset() if self.request.overwrite else self.found.done - self.redone

    @cached_property
    def finished(self) -> tuple[str, ...]:
        """Ids of the units of this plan whose part stays, in the planner's order."""
        return tuple(unit.unit_id for unit in self.units if unit.unit_id in self.done)

    @cached_property
    def num_windows_done(self) -> int:
        """Rows of the finished units: their clips, or the windows that those were cut into."""
        if not self.finished or self.found.record is None:
            return 0
        return sum(
            part.num_rows for part in read_parts(self.store, self.finished, self.found.record.fingerprint, ["status"])
        )

    @cached_property
    def replaced(self) -> tuple[PlannedUnit, ...]:
        """Finished units of earlier starts that count no more: their shard is cut into other units now."""
        shard_ids, unit_ids = {unit.shard_id for unit in self.units}, {unit.unit_id for unit in self.units}
        return tuple(
            unit
            for unit in self.kept_plan
            if unit.unit_id in self.done and unit.shard_id in shard_ids and unit.unit_id not in unit_ids
        )

    @cached_property
    def outdated(self) -> frozenset[str]:
        """Ids of parts that are in no table: those of `replaced`, and of what earlier starts had replaced."""
        planned = {unit.unit_id for unit in self.kept_plan} - {unit.unit_id for unit in self.replaced}
        return self.done - planned - {unit.unit_id for unit in self.units}

    @property
    def num_answered_before(self) -> int:
        """Clips of the units to do whose answers are taken from parts of this output, as far as their ids tell."""
        return sum(found.num_clips for found in self.reusable if found.run.is_own)

    @cached_property
    def failed_clips(self) -> dict[str, int]:
        """Unit id to failed clips, of the finished units that hold any; empty unless they are to be tried again."""
        if not self.request.config.retry_failed or not self.finished or self.found.record is None:
            return {}
        return count_failed_clips(self.store, self.finished, self.found.record.fingerprint)

    @cached_property
    def todo(self) -> tuple[WorkUnit, ...]:
        """The units to do: those without a part, and those to be done again."""
        return tuple(unit for unit in self.units if unit.unit_id not in self.done or unit.unit_id in self.failed_clips)

    def look_up_rest(self) -> None:
        """Looks up what nobody has asked for yet: once the start has written, there would be something else."""
        for name in ("record", "todo", "replaced", "outdated", "reusable"):
            getattr(self, name)
        for name in ("version", "done"):
            getattr(self.found, name)

    @property
    def num_done(self) -> int:
        """Units of this plan that were committed before and stay as they are."""
        return len(self.units) - len(self.todo)

    @property
    def num_clips_done(self) -> int:
        """Clips of those units."""
        return self.num_clips - sum(unit.num_clips for unit in self.todo)


def inspect(request: AnnotateRequest) -> StartPlan:
    """Returns what a start finds; it is read as far as somebody asks, and nothing is written."""
    return StartPlan(request)


@dataclass(frozen=True, slots=True)
class StartedRun:
    """What is to be done, and where answers to it are taken from."""

    work: PlannedWork
    earlier: tuple[ReusableRun, ...]


def commit(plan: StartPlan) -> StartedRun:
    """Starts the run in its folder, or goes on with it, and returns the work; the only place where a start writes.

    Shards that an earlier start planned stay planned, so a rerun may come with more inputs, or with new ones only.

    Raises:
        OtherRunError: another start with other settings was faster.
    """
    plan.look_up_rest()
    store, record = plan.store, plan.record
    store.remove_leftovers()
    with store.turn():
        (_record_anew if plan.request.overwrite else _record)(plan, record)
        if plan.todo:
            store.remove(SUCCESS_FILE)  # before work begins: it spoke of fewer units, or of other rows
        for unit_id in sorted(plan.redone):
            set_part_aside(store, unit_id)
        withdrawn = plan.found.withdrawn.union(plan.earlier.withdrawn if plan.earlier else ())
        add_withdrawn(store, withdrawn)  # of the run that answers are taken from as well
        work = add_to_plan(store, plan.units, {unit.unit_id for unit in plan.todo}, plan.limited, withdrawn)
        if plan.todo:
            store.remove(SUCCESS_FILE)  # of a publisher that wrote it meanwhile, and may not live to look again
    earlier = tuple(found.write_index(store, plan.place, plan.inputs) for found in plan.reusable) if plan.todo else ()
    return StartedRun(work, earlier)


def _record(plan: StartPlan, record: RunRecord) -> None:
    seen = plan.found.version
    while not record_start(plan.store, record, seen):
        seen = plan.store.version(RUN_FILE)
        check_still_ours(plan.store, record.fingerprint)  # the same start elsewhere was faster


def _record_anew(plan: StartPlan, record: RunRecord) -> None:
    store = plan.store
    seen = store.version(RUN_FILE)
    if holds_run(store):
        _remove_run(plan.found)
    if not record_start(store, record, seen):
        raise OtherRunError(f"another run was started in {store.address('')} at the same moment: start again")


def _remove_run(found: FoundOutput) -> None:
    # run.json stays until the new run writes its own: a crash half-way leaves a folder that is still refused.
    # Other files in these folders, and the card with the user's own text, stay.
    store = found.store
    store.remove(SUCCESS_FILE)
    for name in found.list_tables():
        store.remove(name)
    remove_set_aside(store)
    remove_answer_indexes(store)
    for folder in (PARTS_FOLDER, PLAN_FOLDER):
        for file_name in store.list_files(folder):
            if file_name.endswith(".parquet"):
                store.remove(f"{folder}/{file_name}")


def _differ(then: Source, now: Source) -> bool:
    # Wherever they lie: a unit has the same id after its inputs were copied to another place.
    return bool(then.version and now.version and then.version != now.version)


def _describe_change(then: Source, now: Source) -> str:
    place = "" if then.uri == now.uri else f"{then.uri} "
    return f"{now.uri} ({place}{then.version} -> {now.version})"
