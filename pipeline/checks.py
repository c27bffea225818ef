"""What can be seen to be wrong with a start in its first seconds, before anything is removed or written."""

from __future__ import annotations

import itertools
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from framescribe.storage.errors import InputError, StoreRefused
from framescribe.storage.journal import OtherRunError, RunRecord
from framescribe.storage.output import JOURNAL_FOLDER, PARTS_FOLDER, PLAN_FOLDER, OutputStore
from framescribe.storage.parts import read_parts
from framescribe.storage.plan import list_sources
from framescribe.storage.redaction import clean_text, strip_credentials
from pipeline.dataflow import check_dataflow, is_dataflow
from pipeline.found import FoundOutput
from pipeline.model_checks import check_model_loads, check_prompts_fit
from pipeline.progress import write_count
from pipeline.runners import check_runner, make_options
from pipeline.start import StartPlan
from schemas.records import InputKind
from schemas.run_columns import OtherVersionsError, describe_other_versions
from schemas.tables import TABLES

_MAGIC = re.compile(r"[*?\[]")
# Of these the column `source` names what the plan names; rows of manifests and Parquet may name any video.
_KINDS = (InputKind.FILES, InputKind.TAR)
_MAX_SHOWN = 3
_SHOWN_CHARACTERS = 80
_NOT_SET = "(not set)"


def check_places_apart(plan: StartPlan) -> None:
    """Checks that no input lies in a folder that the run writes to, and that none would list what the run wrote.

    The second holds from the first start on: later ones would take the tables for inputs.

    Raises:
        InputError: an input and the output are not apart.
    """
    for uri in plan.request.inputs:
        location = plan.reader.locate(uri)
        if type(location.fs) is type(plan.store.file_system):
            _check_apart(strip_credentials(uri), _real_path(location.fs, location.path), plan.store)


def _check_apart(shown: str, path: str, output: OutputStore) -> None:
    root = _real_path(output.file_system, output.root)
    magic = _MAGIC.search(path)
    fixed = posixpath.dirname(path[: magic.start()]) if magic else path
    for folder in (*TABLES, JOURNAL_FOLDER):
        if f"{root}/{folder}" in _with_parents(fixed):
            raise InputError(
                f"the input {shown!r} lies in {output.address(folder)}, which this run writes to: choose another "
                "--output"
            )
    written = [f"{root}/{folder}/{folder}-00000-of-00001.parquet" for folder in TABLES]
    if any(_contains(path, one) for one in (*written, f"{root}/{PLAN_FOLDER}/000000.parquet")):
        raise InputError(
            f"the input {shown!r} would take in the tables that are written to {output.address('')}: choose an "
            "--output outside of it, or say more closely which files are inputs, for example 'folder/*.mp4'"
        )


def _contains(pattern: str, path: str) -> bool:
    """Whether an input means a file, by its own name or by that of a folder above it."""
    places = _with_parents(path)
    return pattern in places or any(map(re.compile(glob_translate(pattern)).match, places))


def _with_parents(path: str) -> list[str]:
    return [path.rstrip("/"), *map(str, PurePosixPath(path).parents)]


def _real_path(file_system: AbstractFileSystem, path: str) -> str:
    return os.path.realpath(path) if isinstance(file_system, LocalFileSystem) else path.rstrip("/")


def check_runner_known(plan: StartPlan) -> None:
    """Checks the runner and its flags.

    Raises:
        UnknownRunner: Beam has no such runner, or the runner refuses its flags.
        CannotRunOnDataflow: Dataflow lacks something that it would miss after minutes.
    """
    request = plan.request
    if is_dataflow(request.runner):
        options = make_options(request.runner, request.beam_flags)
        check_dataflow(options, plan.config.engine.device, _find_local_places(plan))
    check_runner(request.runner, request.beam_flags)


def _find_local_places(plan: StartPlan) -> list[str]:
    model = plan.checkpoint.name
    inputs = [uri for uri in plan.request.inputs if isinstance(plan.reader.locate(uri).fs, LocalFileSystem)]
    output = [plan.config.output] if plan.store.local_path else []
    return [*map(strip_credentials, inputs), *output, *([model] if os.path.isabs(model) else [])]


def check_tables_are_ours(plan: StartPlan) -> None:
    """Raises `OtherRunError` when publishing would replace or remove files that no run recorded here has written."""
    found = None if plan.found.holds_run else next(plan.found.list_tables(), None)
    if found is not None:
        raise OtherRunError(
            f"{plan.store.address(found)} has the name of one of our tables, but no run is recorded in "
            f"{plan.store.address('')}: it would be replaced. Choose another --output, or move the file away"
        )


def check_same_settings(plan: StartPlan) -> None:
    """Raises `OtherRunError`, with the difference, when the folder holds a run with another fingerprint."""
    if plan.request.overwrite:
        return
    recorded, address = plan.found.record, plan.store.address("")
    if recorded is None and plan.found.done:
        raise OtherRunError(
            f"{plan.store.address(PARTS_FOLDER)} holds parts, but there is no run.json that says with which settings "
            "they were made: restore it, choose another --output, or start with --overwrite to remove them"
        )
    if recorded is not None and recorded.fingerprint != plan.record.fingerprint:
        raise OtherRunError(
            f"{address} holds a run with other settings (there -> now):\n"
            + "\n".join(f"  {line}" for line in describe_difference(recorded, plan.record))
            + "\nUse the same settings, choose another --output, or start with --overwrite to remove that run. "
            "Where only the recipe differs, another --output with --reuse-from this one asks only what changed."
        )


def check_same_versions(plan: StartPlan) -> None:
    """Raises `OtherVersionsError` when a run that is gone on with has parts that other minor versions wrote."""
    if not plan.request.overwrite:
        _check_same_versions(plan, plan.found)


def _check_same_versions(plan: StartPlan, found: FoundOutput) -> None:
    # A run without any part has no rows yet that could be others.
    if plan.config.allow_other_versions or found.record is None or not found.done:
        return
    differing = describe_other_versions(found.record.versions, plan.record.versions)
    if differing:
        raise OtherVersionsError(
            f"{found.store.address('')} holds a run that was written under other versions (there -> now): {differing}. "
            "Answers may differ from those that are there. Install the versions of then, choose another --output, or "
            "start with --allow-other-versions; each part says which versions wrote it"
        )


def check_nothing_left_out(plan: StartPlan) -> None:
    """Looks at the finished units that this start's plan replaces: of a shard, the newest listing alone counts.

    So other files of a folder than last time, or another tar of the same name, would take the place of the earlier
    ones. Files that were deleted or moved since may go; files that are there may not.

    Raises:
        OtherRunError: a clip would leave the tables though its file is there; nothing was changed.
        StoreUnavailable: whether it is there could not be found out.
    """
    named = {clean_text(strip_credentials(uri)) for unit in plan.units for uri in unit.files or (unit.shard,)}
    gone: set[str] = set()
    for clip_id, source in _list_replaced(plan):
        if clean_text(source) in named or source in gone:
            continue
        if _is_there(plan, source):
            raise OtherRunError(
                f"{plan.store.address('')} holds the clip {clip_id!r} of {source}, which would leave the tables: this "
                "start names others of the same folder, or another shard of that name, but not this one. Name the "
                "earlier inputs as well, or choose another --output"
            )
        gone.add(source)


def _list_replaced(plan: StartPlan) -> Iterator[tuple[str, str]]:
    """Yields clip id and source of every row in the finished units that the plan replaces."""
    shard_ids = {unit.shard_id for unit in plan.units if unit.kind in _KINDS}
    replaced = [unit.unit_id for unit in plan.replaced if unit.shard_id in shard_ids]
    for part in read_parts(plan.store, replaced, plan.record.fingerprint, ["clip_id", "source"]):
        yield from zip(part["clip_id"].to_pylist(), part["source"].to_pylist(), strict=True)


def _is_there(plan: StartPlan, source: str) -> bool:
    try:
        plan.reader.size(plan.reader.locate(source))
    except (FileNotFoundError, InputError, StoreRefused):
        return False
    return True


def check_limit_takes_more(plan: StartPlan) -> None:
    """Raises `OtherRunError` where clips that are done would leave the tables because the start is limited to others.

    A larger number takes all that a smaller one took, in order or of the same sample.
    """
    limited = plan.limited
    if limited is None:
        return
    earlier = {unit.limited for unit in plan.replaced}
    if not all(one is not None and limited.takes_all_of(one) for one in earlier):
        there = "; ".join(sorted("all clips" if one is None else one.describe() for one in earlier))
        raise OtherRunError(
            f"{plan.store.address('')} holds clips of an earlier start ({there}) that would leave the tables: this "
            f"start takes only {limited.describe()}. Leave out --limit, --sample and --where to go on "
            "to all clips, give a larger number of the same kind, or choose another --output"
        )


def check_no_second_ids(plan: StartPlan) -> None:
    """Finds files that an earlier start planned under other ids, as `--input a` does after `--input a/b`.

    Raises:
        OtherRunError: their videos would be annotated twice.
    """
    shard_of = {source.uri: unit.shard_id for unit in plan.kept_plan for source in unit.sources}
    for unit in plan.units:
        for source in list_sources(unit):
            earlier = shard_of.get(source.uri, unit.shard_id)
            if earlier != unit.shard_id:
                raise OtherRunError(
                    f"{source.uri} is in {plan.store.address('')} already, as part of {earlier!r}: this start would "
                    f"annotate it a second time, as part of {unit.shard_id!r}. Name it as then, since ids begin at the "
                    "folder that --input names, or choose another --output"
                )


def check_inputs_unchanged(plan: StartPlan) -> None:
    """Raises `OtherRunError`, with what to do, where inputs of finished units have changed."""
    changed = plan.changed
    if not changed.unit_ids or plan.request.changed_inputs is not None:
        return
    shown, more = ", ".join(changed.changes[:_MAX_SHOWN]), len(changed.changes) - _MAX_SHOWN
    raise OtherRunError(
        f"{write_count(len(changed.changes), 'input')} changed since then, under the same name and size: {shown}"
        f"{f' and {more} more' if more > 0 else ''}. {write_count(len(changed.unit_ids), 'unit')} with clips of them "
        "are done. Nothing was changed. If the contents are the same, and only copied or touched, start with "
        "--changed-inputs keep. --changed-inputs redo does these units again, and takes over the answers of every clip "
        "whose frames are the same; or choose another --output"
    )


def check_reuse_fits(plan: StartPlan) -> None:
    """Checks that answers of `--reuse-from` may stand in the rows of this run.

    Raises:
        FileNotFoundError: no run was started there.
        OtherRunError: it is this run's own output, its model or frames were others, or it has none of the clips.
        OtherVersionsError: it was written under other minor versions.
    """
    earlier = plan.earlier
    if earlier is None:
        return
    address = earlier.store.address("")
    if _identity(earlier.store) == _identity(plan.store):
        raise OtherRunError(
            f"--reuse-from and --output are the same folder, {address}: the earlier rows stay as they are, choose "
            "another --output for the new ones"
        )
    if earlier.record is None:
        raise FileNotFoundError(f"no run in {address}: --reuse-from takes the --output of an earlier run")
    _check_same_answers(earlier.store, earlier.record, plan.record)
    _check_same_versions(plan, earlier)
    if not plan.num_reusable:
        raise OtherRunError(
            f"{address} has none of the {plan.num_clips:,} clips of this run by their ids, so no answer of it can be "
            "taken. An id begins with the names of folder and shard: give --input as then, or leave out --reuse-from "
            "to ask everything"
        )


def _identity(store: OutputStore) -> str:
    return store.address("") if store.local_path is None else str(store.local_path.resolve())


def _check_same_answers(store: OutputStore, recorded: RunRecord, run: RunRecord) -> None:
    """All must be the same but the recipe, since each question tells by itself whether it is the same.

    And how videos are cut: a window tells by its id and frames.
    """
    either_auto = "auto" in (_dtype(recorded), _dtype(run))  # resolved by the workers
    then, now = (_without_recipe(one, drop_dtype=either_auto) for one in (recorded, run))
    if _as_json(then.settings) != _as_json(now.settings):
        raise OtherRunError(
            f"no answer of {store.address('')} can be taken, since other things than the recipe differ (there -> now):"
            + "".join(f"\n  {line}" for line in describe_difference(then, now))
            + "\nGive the same settings as then, or leave out --reuse-from to ask everything."
        )


def _dtype(run: RunRecord) -> object:
    return run.settings.get("model", {}).get("dtype")


def _without_recipe(run: RunRecord, *, drop_dtype: bool) -> RunRecord:
    settings = {name: value for name, value in run.settings.items() if name not in ("recipe", "split_s")}
    if drop_dtype:
        settings["model"] = {name: value for name, value in settings.get("model", {}).items() if name != "dtype"}
    return replace(run, settings=settings, prompts={})


def _as_json(settings: Mapping[str, Any]) -> str:  # Any: the settings of other modules
    return json.dumps(settings, sort_keys=True, default=str)


def describe_difference(recorded: RunRecord, wanted: RunRecord) -> list[str]:
    """Returns one line a setting or prompt that differs: `sampling.max_frames: 64 -> 32`."""
    before, after = dict(_flatten(recorded)), dict(_flatten(wanted))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    lines = [_describe_setting(name, before.get(name, _NOT_SET), after.get(name, _NOT_SET)) for name in names]
    return lines or [f"fingerprint: {recorded.fingerprint} -> {wanted.fingerprint} (the program's own rules changed)"]


def _describe_setting(name: str, before: str, after: str) -> str:
    # Long prompts usually differ in a few words: show these, not the beginning.
    num_equal = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    cut = max(0, num_equal - _SHOWN_CHARACTERS // 4) if max(len(before), len(after)) > _SHOWN_CHARACTERS else 0
    return f"{name}: {_shorten(before, cut)} -> {_shorten(after, cut)}"


def _shorten(text: str, cut: int) -> str:
    end = cut + _SHOWN_CHARACTERS
    return f"{'...' if cut else ''}{text[cut:end]}{'...' if end < len(text) else ''}"


def _flatten(run: RunRecord) -> Iterator[tuple[str, str]]:
    yield "model_name", json.dumps(run.model_name)
    yield from _flatten_settings("", run.settings)
    yield from _flatten_settings("prompts.", run.prompts)


def _flatten_settings(prefix: str, settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten_settings(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)


# In the order of what they cost: those before the units are looked up, and last what may fetch a model's weights.
CHECKS: tuple[Callable[[StartPlan], None], ...] = (
    check_places_apart,
    check_runner_known,
    check_tables_are_ours,
    check_prompts_fit,
    check_same_settings,
    check_same_versions,
    check_limit_takes_more,
    check_nothing_left_out,
    check_no_second_ids,
    check_inputs_unchanged,
    check_reuse_fits,
    check_model_loads,
)
