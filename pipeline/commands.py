"""What each sub-command does: turns flags into settings and calls the part that knows how."""

from __future__ import annotations

import ctypes
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from framescribe.decoding.config import SamplingConfig, UndecodableClip
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.errors import CheckpointError, ClipTooLarge, EngineBroken, PromptTooLong
from framescribe.llava_video.model.checkpoint import CONFIGURATION, find_checkpoint
from framescribe.llava_video.model.config import ModelConfig, read_model_config
from framescribe.publish.decisions import DecisionsError
from framescribe.publish.export import CannotExport, ExportConfig, describe_export, export
from framescribe.publish.export_rows import KINDS, Selection
from framescribe.publish.publish import publish
from framescribe.publish.report import PublishReport
from framescribe.publish.review import review
from framescribe.recipes import Recipe, RecipeError, load_recipe
from framescribe.storage.addresses import AddressError, origins_of, select_options
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, NoInputFound, ShardChanged, StoreRefused, StoreUnavailable
from framescribe.storage.journal import DamagedRunError, OtherRunError
from framescribe.storage.redaction import secrets_in, secrets_of, strip_credentials
from framescribe.storage.retries import RetryPolicy, StoreError, retry_passing_errors
from pipeline.annotate import AnnotateRequest, annotate
from pipeline.checks import CannotStart
from pipeline.config import RunConfig, UnitConfig
from pipeline.options import Command
from pipeline.progress import write_count, write_size
from pipeline.runners import RunnerFailed, UnknownRunner, WorkerStopped, is_in_process
from pipeline.units import plan_units
from schemas.run_columns import OtherVersionsError
from transforms.unit_outcomes import TooManyFailedClipsError, describe_reasons
from transforms.worker import WorkerConfig

USER_ERRORS = (
    AddressError,
    CannotExport,
    CannotStart,
    CheckpointError,
    ClipTooLarge,
    DamagedRunError,
    DecisionsError,
    EngineBroken,
    FileNotFoundError,
    InputError,
    NoInputFound,
    OtherRunError,
    OtherVersionsError,
    PromptTooLong,
    RecipeError,
    RunnerFailed,
    ShardChanged,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    TooManyFailedClipsError,
    UndecodableClip,
    UnknownRunner,
    WorkerStopped,
)


def run_annotate(command: Command) -> None:
    """Annotates; the tables are there when it returns."""
    flags = command.flags
    if is_in_process(flags.runner):
        check_driver(flags.device)
    engine = _engine_config(flags)
    recipe = _recipe(flags)
    model = _read_model(engine)
    config = RunConfig(
        output=flags.output,
        engine=engine,
        recipe=recipe,
        sampling=_sampling_config(flags, model),
        reading=_read_config(flags),
        units=UnitConfig(max_clips=flags.clips_per_unit),
        split_s=flags.split_seconds,
        max_failed_fraction=flags.max_failed_fraction,
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
    request = AnnotateRequest(
        inputs=tuple(flags.input),
        runner=flags.runner,
        beam_flags=command.beam_flags,
        overwrite=flags.overwrite,
        reuse_from=flags.reuse_from,
        changed_inputs=flags.changed_inputs,
    )
    published = annotate(request, config, model)
    if published is not None:
        _report(published, flags.output)


def run_plan(command: Command) -> None:
    """Prints the units that a run would work through."""
    flags = command.flags
    units = plan_units(
        flags.input, UnitConfig(max_clips=flags.clips_per_unit), flags.storage_options, _read_config(flags)
    )
    for unit in units:
        print(f"{unit.unit_id}\t{write_count(unit.stop - unit.start, 'clip')}\t{write_size(unit.size_bytes)}")
    num_clips = sum(unit.stop - unit.start for unit in units)
    print(f"{write_count(num_clips, 'clip')} in {write_count(len(units), 'unit')}", file=sys.stderr)


def run_ask(command: Command) -> None:
    """Prints what the model answers about one video."""
    from framescribe.decoding.sample import sample_frames
    from framescribe.video_model import MODEL_CARD_PROMPT, load

    flags = command.flags
    check_driver(flags.device)
    try:  # before the model is loaded, which takes long
        sample_frames(flags.video, SamplingConfig(max_frames=1))
    except UndecodableClip as error:
        raise CannotStart(f"{flags.video!r} cannot be decoded: {error}. Wanted a video file") from None
    config = EngineConfig(flags.model, device=flags.device, dtype=flags.dtype)
    with load(flags.model, num_frames=flags.num_frames, engine=config) as model:
        question = flags.question or MODEL_CARD_PROMPT
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
    _report(publish(flags.output, flags.storage_options), flags.output)


def run_export(command: Command) -> None:
    """Writes what a run published in a form that trainers read, and says what was left out."""
    flags = command.flags
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
    report = export(flags.output, flags.to, config, flags.storage_options, reading)
    if not report.is_finished:
        print(f"warning: {flags.output} has no _SUCCESS: the export holds what was published so far", file=sys.stderr)
    print(f"{describe_export(report)}\nin {flags.to}")


def run_review(command: Command) -> None:
    """Writes a page that shows clips, captions, questions and failures, and takes decisions about them."""
    flags = command.flags
    reading = ReadConfig(video_column=flags.video_column, trusted_hosts=tuple(flags.trusted_hosts))
    report = review(flags.output, flags.to, flags.thumbnails, flags.storage_options, reading, print)
    print(
        f"{write_count(report.num_clips, 'clip')}, {write_count(report.num_failed, 'failed clip')}, "
        f"{report.num_without_frames:,} without frames: open {flags.to / 'index.html'}"
    )


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
        validation_fraction=flags.validation,
        test_fraction=flags.test,
        seed=flags.seed,
    )


COMMANDS: Mapping[str, Callable[[Command], None]] = MappingProxyType(
    {
        "annotate": run_annotate,
        "plan": run_plan,
        "publish": run_publish,
        "export": run_export,
        "ask": run_ask,
        "review": run_review,
    }
)


def _engine_config(flags: Namespace) -> EngineConfig:
    overrides = {} if flags.pool_mode is None else {"mm_spatial_pool_mode": flags.pool_mode}
    budget = None if flags.kv_cache_gib is None else int(flags.kv_cache_gib * 2**30)
    return EngineConfig(
        model=flags.model,
        revision=flags.revision,
        device=flags.device,
        dtype=flags.dtype,
        attn_implementation=flags.attn_implementation,
        device_map=flags.device_map,
        config_overrides=overrides,
        prompt_layout=flags.prompt_layout,
        kv_budget_bytes=budget,
        storage_options=select_options(flags.model, flags.storage_options),
    )


def _read_config(flags: Namespace) -> ReadConfig:
    named = [*flags.input, *(uri for uri in (flags.output, flags.model) if uri is not None)]
    return ReadConfig(
        video_column=flags.video_column,
        window_columns=flags.window_columns,
        trusted_hosts=(*sorted(origins_of(named)), *flags.trusted_hosts),
    )


def _read_model(engine: EngineConfig) -> ModelConfig:
    """Reads the configuration of the model: the first contact with where it lies."""

    def read() -> ModelConfig:
        checkpoint = find_checkpoint(engine.model, engine.revision, engine.storage_options, CONFIGURATION)
        return read_model_config(checkpoint, engine.config_overrides)

    secrets = (*secrets_in(engine.model), *secrets_of(engine.storage_options))
    return retry_passing_errors(f"read the model {strip_credentials(engine.model)!r}", read, RetryPolicy(), secrets)


def _recipe(flags: Namespace) -> Recipe:
    recipe = load_recipe(flags.recipe)
    return replace(recipe, stop_loops=False) if flags.no_loop_stop else recipe


def _sampling_config(flags: Namespace, model: ModelConfig) -> SamplingConfig:
    return SamplingConfig(
        max_frames=flags.num_frames,
        fps=flags.fps,
        time_base=flags.time_base,
        decoder=flags.decoder,
        image_size=model.tower.image_size,
        deadline_s=flags.decode_deadline,
        min_decoded_fraction=flags.min_decoded_fraction,
    )


def _report(published: PublishReport, output: str) -> None:
    rows = ", ".join(f"{table} {number:,}" for table, number in published.num_rows.items())
    print(f"rows: {rows} ({write_count(published.num_consistent, 'QA pair')} consistent) in {output}")
    if published.failure_reasons:
        print(f"why clips failed: {describe_reasons(published.failure_reasons)}")
    if not published.is_complete:
        print(f"{published.num_units_done} of {published.num_units_planned} units are done: no _SUCCESS yet")
