"""What each sub-command does: turns flags into settings and calls the part that knows how."""

from __future__ import annotations

import ctypes
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from framescribe.decoding.config import SamplingConfig, UndecodableClip
from framescribe.errors import FrameScribeError
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.publish.export_config import KINDS, ExportConfig, Selection
from framescribe.publish.publish import publish
from framescribe.publish.report import PublishReport
from framescribe.recipes import Recipe, load_recipe
from framescribe.storage.addresses import origins_of, select_options
from framescribe.storage.config import COLUMN_ROLES, ReadConfig
from framescribe.storage.errors import InputError
from pipeline.annotate import annotate
from pipeline.config import CannotStart, RunConfig, UnitConfig
from pipeline.machines import read_machines
from pipeline.options import DEFAULT_MODEL, Command
from pipeline.pilot_flags import name_setting, write_full_command
from pipeline.progress import describe_start, describe_units, describe_windows, write_count, write_size
from pipeline.runners import is_in_process
from pipeline.start import AnnotateRequest, inspect
from pipeline.subset import Subset
from schemas.records import FailurePolicy, describe_reasons
from transforms.worker import WorkerConfig

# What the user can mend.
USER_ERRORS = (FrameScribeError, FileNotFoundError, UndecodableClip)


def run_annotate(command: Command) -> None:
    """Annotates; the tables are there when it returns."""
    if is_in_process(command.flags.runner):
        check_driver(command.flags.device)
    published = annotate(_request(command))
    if published is not None:
        _report(published.report, command.flags.output, command.flags.verbose)
        print(published.summary.describe(published.report.num_failed))


def run_plan(command: Command) -> None:
    """Prints the units that a run would work through and what it would take; with `--output`, what is done there.

    Of the model only the configuration is read, and only where it is named, so whether the output holds a run of the
    same settings is left to `annotate`.
    """
    from pipeline.plan_report import make_report, render, to_json

    flags = command.flags
    plan = inspect(_request(command))
    is_output_given = flags.output is not None
    machines = read_machines(flags.machines)
    report = make_report(plan, machines, flags.calibrate_from, flags.model is not None, is_output_given)
    if flags.json:
        print(json.dumps(to_json(report), indent=2))
        return
    for unit in plan.units:
        fate = ("\tdone" if unit.unit_id in plan.done else "\tto do") if is_output_given else ""
        print(f"{unit.unit_id}\t{write_count(unit.num_clips, 'clip')}\t{write_size(unit.size_bytes)}{fate}")
    lines = [*describe_start(plan)] if is_output_given else [describe_units(plan)]
    split_s = plan.request.config.split_s
    if split_s is not None:
        finished = (plan.num_windows_done, len(plan.finished)) if is_output_given else (0, 0)
        lines.append(describe_windows(split_s, *finished))
    for line in (*lines, "", *render(report)):
        print(line, file=sys.stderr)


def run_pilot(command: Command) -> None:
    """Tries settings on some clips, and writes a page that shows what came of them and what the full run would take."""
    from pipeline.pilot import PilotRun, pilot

    flags = command.flags
    if is_in_process(flags.runner):
        check_driver(flags.device)
    output, runs = flags.output.rstrip("/"), dict[str, PilotRun]()
    for recipe in flags.recipes:
        for frames in flags.frame_settings:
            name = name_setting(recipe, frames)
            setting = {"recipe": recipe, "num_frames": frames.num_frames, "fps": frames.fps}
            of_run, of_full = (
                replace(command, flags=Namespace(**{**vars(flags), **setting, **places}))
                for places in ({"output": f"{output}/{name}"}, {"output": f"{output}_full", "sample": None})
            )
            full_command = write_full_command(command.arguments, recipe, frames, output)
            if name in runs:
                raise CannotStart(f"two settings of this pilot would be {output}/{name}: name each once")
            requests = _request(of_run), _request(of_full)
            runs[name] = PilotRun(requests[0].config.recipe.name, frames.words, *requests, full_command)
    print(f"open {pilot(output, [*runs.values()])}")


def run_ask(command: Command) -> None:
    """Prints what the model answers about one video."""
    from framescribe.decoding.sample import sample_frames
    from framescribe.video_model import MODEL_CARD_PROMPT, load

    flags = command.flags
    question = MODEL_CARD_PROMPT if flags.question is None else flags.question
    if not question.strip():
        raise CannotStart(f"the question is empty, got {question!r}: leave it out to have the video described")
    check_driver(flags.device)
    try:  # before the model is loaded, which takes long
        sample_frames(flags.video, SamplingConfig(max_frames=1))
    except UndecodableClip as error:
        raise CannotStart(f"{flags.video!r} cannot be decoded: {error}. Wanted a video file") from None
    config = EngineConfig(flags.model, device=flags.device, dtype=flags.dtype)
    with load(flags.model, num_frames=flags.num_frames, engine=config) as model:
        print(model.ask(flags.video, question, max_new_tokens=flags.max_new_tokens))


def check_driver(device: str) -> None:
    """Raises `CannotStart` where a GPU is asked for and there is no driver of one, without the seconds torch takes."""
    if not device.startswith("cuda") or Path("/dev/kfd").exists():  # AMD's, which PyTorch calls cuda too
        return
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise CannotStart(
            f"--device {device}: no NVIDIA driver is installed (libcuda.so.1), so PyTorch sees no GPU; use device 'cpu'"
        ) from None


def run_publish(command: Command) -> None:
    """Builds the tables of a run from the parts that are committed."""
    flags = command.flags
    _report(publish(flags.output, flags.storage_options), flags.output, has_rows=True)


def run_export(command: Command) -> None:
    """Writes what a run published in a form that trainers read, says what was left out, and uploads it if asked to."""
    from framescribe.publish.export import CannotExport, describe_export, export

    flags = command.flags
    if flags.public and flags.push_to_hub is None:
        raise CannotExport("got --public alone, wanted --push-to-hub NAMESPACE/NAME with it")
    config = ExportConfig(
        format=flags.format,
        selection=_selection(flags),
        decisions=flags.decisions,
        has_videos=not flags.no_videos,
        max_frames=flags.max_frames,
        max_side_px=flags.max_side,
        clips_per_shard=flags.clips_per_shard,
    )
    reading = ReadConfig(video_column=flags.video_column, trusted_hosts=tuple(flags.trusted_hosts))
    prepare, push = _hub_steps(flags)
    report = export(flags.output, flags.to, config, flags.storage_options, reading, prepare)
    if not report.is_finished:
        print(f"warning: {flags.output} has no _SUCCESS: the export holds what was published so far", file=sys.stderr)
    print(f"{describe_export(report)}\nin {flags.to}")
    if push is not None:
        print(push())


def _hub_steps(flags: Namespace) -> tuple[Callable[[], None], Callable[[], str]] | tuple[None, None]:
    """Returns what `--push-to-hub` does before and after the export; only then the hub's client is loaded."""
    if flags.push_to_hub is None:
        return None, None
    from framescribe.publish.hub import HubTarget, prepare_repository, upload

    target = HubTarget(flags.push_to_hub, flags.public)
    return partial(prepare_repository, target), partial(upload, target, flags.to)


def run_review(command: Command) -> None:
    """Writes a page that shows clips, captions, questions and failures, and takes decisions about them."""
    from framescribe.publish.review import review

    flags = command.flags
    reading = ReadConfig(video_column=flags.video_column, trusted_hosts=tuple(flags.trusted_hosts))
    report = review(flags.output, flags.to, flags.thumbnails, flags.storage_options, reading, print)
    print(
        f"{write_count(report.num_clips, 'clip')}, {write_count(report.num_failed, 'failed clip')}, "
        f"{report.num_without_frames:,} without frames: open {flags.to / 'index.html'}"
    )


def run_withdraw(command: Command) -> None:
    """Takes clips out of a run for good, and says what that left."""
    from framescribe.publish.withdraw import read_ids, withdraw

    flags = command.flags
    ids = read_ids(flags.ids)
    report = withdraw(flags.output, ids, flags.exports, flags.storage_options)
    taken = report.withdrawal
    print(
        f"withdrawn: {write_count(len(ids), 'id')}; {write_count(taken.num_clips, 'clip')} taken out of "
        f"{write_count(taken.num_parts, 'part')}, the others were not annotated and are kept out from now on"
    )
    for folder in report.removed:
        print(f"removed {folder}")
    if not report.removed:
        print("exports and pages that were made before still hold them: name them with --exports, or remove them")
    _report(report.published, flags.output, has_rows=True)


def run_report(command: Command) -> None:
    """Writes a page about the quality of what a run published, and draws rows for people to judge."""
    from framescribe.publish.quality_page import report

    flags = command.flags
    written = report(flags.output, flags.to, flags.decisions, flags.sample, flags.storage_options)
    if flags.sample is not None:
        sheet = flags.to.with_suffix(".sample.csv")
        print(f"{write_count(written.num_sampled, 'row')} to judge in {sheet}: fill in verdict (accept, reject, fix)")
    overall = written.quality.judged.get("all")
    if overall is not None:
        low, high = overall.interval
        print(f"precision {overall.num_right / overall.num_judged:.1%} ({low:.1%} to {high:.1%}), by people")
    print(f"{write_count(written.quality.num_clips, 'clip')}: open {flags.to}")


def _selection(flags: Namespace) -> Selection:
    """Sorts the names of `--types` into kinds of rows and types of questions; a list without kinds takes all."""
    named = frozenset(flags.types or ())
    kinds, types = named & {*KINDS}, named - {*KINDS}
    return Selection(
        statuses=frozenset(flags.status),
        kinds=kinds or frozenset(KINDS),
        question_types=types or None,
        only_consistent=flags.only_consistent,
        max_blind_score=flags.drop_blind,
        min_score=flags.min_score,
        drop_giveaways=flags.drop_giveaways,
        validation_fraction=flags.validation,
        test_fraction=flags.test,
        seed=flags.seed,
    )


COMMANDS: Mapping[str, Callable[[Command], None]] = MappingProxyType(
    {
        "annotate": run_annotate,
        "plan": run_plan,
        "pilot": run_pilot,
        "publish": run_publish,
        "export": run_export,
        "ask": run_ask,
        "review": run_review,
        "withdraw": run_withdraw,
        "report": run_report,
    }
)


def _request(command: Command) -> AnnotateRequest:
    flags = command.flags
    config = RunConfig(
        output=flags.output or "",
        engine=_engine_config(flags),
        recipe=_recipe(flags),
        sampling=_sampling_config(flags),
        reading=_read_config(flags),
        units=UnitConfig(max_clips=flags.clips_per_unit),
        split_s=flags.split_seconds,
        failures=FailurePolicy(flags.max_failed_fraction),
        retry_failed=flags.retry_failed,
        workers=WorkerConfig(
            num_decoder_processes=flags.decoder_processes,
            frame_memory_bytes=int(flags.frame_memory_gib * 2**30),
            prefetch_clips=flags.prefetch_clips,
            canary_every=flags.canary_every,
        ),
        allow_other_versions=flags.allow_other_versions,
        storage_options=flags.storage_options,
    )
    return AnnotateRequest(
        config=config,
        inputs=tuple(flags.input),
        runner=flags.runner,
        beam_flags=command.beam_flags,
        overwrite=flags.overwrite,
        reuse_from=flags.reuse_from,
        changed_inputs=flags.changed_inputs,
        metrics_at=flags.metrics_port,
        is_verbose=flags.verbose,
        subset=_subset(flags),
        machines=flags.machines,
    )


def _subset(flags: Namespace) -> Subset | None:
    if flags.sample is not None:
        return Subset(flags.sample, flags.seed, flags.where)
    return None if flags.limit is None and flags.where is None else Subset(flags.limit, where=flags.where)


def _engine_config(flags: Namespace) -> EngineConfig:
    overrides = {} if flags.pool_mode is None else {"mm_spatial_pool_mode": flags.pool_mode}
    budget = None if flags.kv_cache_gib is None else int(flags.kv_cache_gib * 2**30)
    return EngineConfig(
        model=flags.model or DEFAULT_MODEL,
        revision=flags.revision,
        device=flags.device,
        dtype=flags.dtype,
        attn_implementation=flags.attn_implementation,
        device_map=flags.device_map,
        config_overrides=overrides,
        prompt_layout=flags.prompt_layout,
        kv_budget_bytes=budget,
        storage_options=select_options(flags.model or DEFAULT_MODEL, flags.storage_options),
    )


def _read_config(flags: Namespace) -> ReadConfig:
    named = [*flags.input, *(uri for uri in (flags.output, flags.model, flags.video_root) if uri is not None)]
    columns = flags.columns or {}
    if ("video" in columns and flags.video_column) or (
        flags.window_columns is not None and not columns.keys() <= {"video", "clip_id"}
    ):
        raise InputError("--columns names what --video-column or --window-columns names, too: give it once")
    bounds = columns.get("start_s", ""), columns.get("end_s", "")
    return ReadConfig(
        video_column=columns.get("video", flags.video_column),
        window_columns=bounds if any(bounds) else flags.window_columns,
        columns=tuple((role, name) for role, name in sorted(columns.items()) if role in COLUMN_ROLES),
        video_root=flags.video_root,
        trusted_hosts=(*sorted(origins_of(named)), *flags.trusted_hosts),
    )


def _recipe(flags: Namespace) -> Recipe:
    recipe = load_recipe(flags.recipe)
    return replace(recipe, stop_loops=False) if flags.no_loop_stop else recipe


def _sampling_config(flags: Namespace) -> SamplingConfig:
    return SamplingConfig(
        max_frames=flags.num_frames,
        fps=flags.fps,
        time_base=flags.time_base,
        decoder=flags.decoder,
        deadline_s=flags.decode_deadline,
        min_decoded_fraction=flags.min_decoded_fraction,
    )


def _report(published: PublishReport, output: str, has_rows: bool) -> None:
    if has_rows:
        rows = ", ".join(f"{table} {number:,}" for table, number in published.num_rows.items())
        num_consistent = published.num_consistent
        consistent = f" ({write_count(num_consistent, 'QA pair')} consistent)" if num_consistent else ""
        print(f"rows: {rows}{consistent} in {output}")
    if published.failure_reasons:
        print(f"why clips failed: {describe_reasons(published.failure_reasons)}")
    for limited in published.limited:
        print(
            f"limited: only {limited.describe()}; the same command without --limit, --sample and --where goes on to all"
        )
    if not published.is_complete:
        print(f"{published.num_units_done} of {published.num_units_planned} units are done: no _SUCCESS yet")
