"""Runs with one fingerprint write the same rows, however their settings were typed; others have another."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from framescribe.decoding.config import SamplingConfig
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.model.checkpoint import CONFIGURATION, find_checkpoint
from framescribe.llava_video.model.config import read_model_config
from framescribe.recipes import load_recipe
from framescribe.storage.config import ReadConfig
from framescribe.storage.journal import RunRecord
from pipeline.config import RunConfig, UnitConfig, record_run, run_columns
from run_pipeline import main
from schemas.records import FailurePolicy
from schemas.run_columns import find_versions
from tests.support.output_fixtures import RUN
from tests.support.run_fixtures import (
    CHECKPOINT,
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    make_shard,
    read_tables,
)
from tests.support.stub_engine import StubEngine
from transforms.answer_reuse import ReusableRun
from transforms.worker import WorkerConfig


def record(model: str = CHECKPOINT, dtype: str = "float32", decoder: str = "auto", **engine: Any) -> RunRecord:
    checkpoint = find_checkpoint(model, files=CONFIGURATION)
    config = RunConfig("out", EngineConfig(model, **engine), load_recipe("model_card"), SamplingConfig(decoder=decoder))
    return record_run(config, checkpoint, read_model_config(checkpoint, config.engine.config_overrides), dtype)


def test_a_checkpoint_is_the_same_however_its_folder_is_called_and_wherever_it_lies(tmp_path, monkeypatch):
    moved = shutil.copytree(CHECKPOINT, tmp_path / "moved")
    monkeypatch.chdir(Path(CHECKPOINT).parent)
    names = [CHECKPOINT, f"{CHECKPOINT}/", "g9", "./g9", str(moved)]
    records = [record(name) for name in names]
    assert len({one.fingerprint for one in records}) == 1
    assert [one.model_name for one in records] == [CHECKPOINT] * 4 + [str(moved)]


@pytest.mark.parametrize("file_name", CONFIGURATION)
def test_another_content_of_a_checkpoints_configuration_is_another_run(tmp_path, file_name):
    changed = Path(shutil.copytree(CHECKPOINT, tmp_path / "changed"))
    content = json.loads((changed / file_name).read_text())
    (changed / file_name).write_text(json.dumps({**content, "new": 1}))
    assert record(str(changed)).fingerprint != record().fingerprint


def test_what_auto_comes_to_is_the_same_as_naming_it():
    assert record(decoder="auto").fingerprint == record(decoder="pyav").fingerprint
    assert record(decoder="auto").fingerprint != record(decoder="decord").fingerprint


def test_the_checkpoints_own_pooling_is_the_same_as_naming_it():
    own, another = ({"mm_spatial_pool_mode": mode} for mode in ("average", "max"))
    assert record(config_overrides=own).fingerprint == record().fingerprint
    assert record(config_overrides=another).fingerprint != record().fingerprint


def test_the_number_format_counts_and_the_device_does_not():
    assert record(device="cpu").fingerprint == record(device="cuda").fingerprint
    assert len({record(dtype=dtype).fingerprint for dtype in ("float32", "bfloat16", "auto")}) == 3


def test_a_run_is_gone_on_with_by_other_words_for_the_same_settings(tmp_path):
    shard = make_shard(tmp_path / "shards" / "a.tar", 2)
    typed = annotate_arguments(tmp_path, [shard], tmp_path / "out", "--canary-every", "0")
    assert annotate_with(StubEngine(checkpoint_revision()), typed) == 0
    others = ("--dtype", "float32", "--decoder", "pyav", "--model", os.path.relpath(CHECKPOINT))
    assert main([*typed, *others]) == 0
    assert {row["dtype"] for row in read_tables(tmp_path / "out")["clips"]} == {"float32"}


def test_another_number_format_is_refused_with_what_auto_came_to(tmp_path, capsys):
    shard = make_shard(tmp_path / "shards" / "a.tar", 1)
    typed = annotate_arguments(tmp_path, [shard], tmp_path / "out", "--canary-every", "0")
    annotate_with(StubEngine(checkpoint_revision()), typed)
    assert main([*typed, "--dtype", "bfloat16"]) == 1
    assert 'model.dtype: "float32" -> "bfloat16"' in capsys.readouterr().err


# Of every setting that is no number, or has no value by default, another one.
OTHERS: dict[str, Any] = {
    "attn_implementation": "eager",
    "config_overrides": {"tokenizer_model_max_length": 4000},
    "decoder": "decord",
    "dtype": "bfloat16",
    "fps": 1.5,
    "prompt_layout": "demo",
    "split_s": 20.0,
    "time_base": "model_card",
}
# Settings that change no row, and where they count instead if they do.
UNHASHED = {
    "RunConfig": {
        "output", "retry_failed", "earlier", "allow_other_versions", "storage_options",
    },
    "FailurePolicy": {"max_failed_fraction"},
    "EngineConfig": {
        "model", "revision",  # what they come to is the checkpoint's revision
        "device", "device_map", "kv_budget_bytes", "max_rows", "vision_batch_frames", "static_decode",
        "compile", "storage_options",
    },
    "SamplingConfig": {"deadline_s", "memory_limit_bytes"},
    # Which clips there are is told by the ids of units: the columns stand in them.
    "ReadConfig": {
        "video_column", "window_columns", "columns", "video_root", "max_video_bytes", "max_sidecar_bytes", "retries",
        "trusted_hosts",
    },
    "UnitConfig": {"max_clips", "max_bytes"},
    "WorkerConfig": {"num_decoder_processes", "frame_memory_bytes", "prefetch_clips", "canary_every"},
}  # fmt: skip
PARTS = {
    "engine": EngineConfig,
    "sampling": SamplingConfig,
    "reading": ReadConfig,
    "units": UnitConfig,
    "failures": FailurePolicy,
    "workers": WorkerConfig,
}
SETTINGS = [
    (kind, one.name)
    for kind in (RunConfig, *PARTS.values())
    for one in fields(kind)
    if one.name not in {*PARTS, "recipe"}
]
CHECKPOINT_FOUND = find_checkpoint(CHECKPOINT, files=CONFIGURATION)
CONFIG = RunConfig("out", EngineConfig(CHECKPOINT), load_recipe("model_card"), SamplingConfig())


def fingerprint(config: RunConfig) -> str:
    model = read_model_config(CHECKPOINT_FOUND, config.engine.config_overrides)
    return record_run(config, CHECKPOINT_FOUND, model, config.engine.dtype).fingerprint


def another(name: str, value: Any) -> Any:
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), (
        f"give OTHERS another value of the new setting {name}, or name it in UNHASHED"
    )
    return value + 1 if isinstance(value, int) else value * 0.9


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=lambda one: getattr(one, "__name__", one))
def test_every_setting_is_in_the_fingerprint_or_known_to_change_no_row(kind, name):
    if name in UNHASHED[kind.__name__]:
        return
    place = next((place for place, part in PARTS.items() if part is kind), None)
    owner = CONFIG if place is None else getattr(CONFIG, place)
    changed = replace(owner, **{name: another(name, getattr(owner, name))})
    assert fingerprint(changed if place is None else replace(CONFIG, **{place: changed})) != fingerprint(CONFIG)


def test_the_lists_of_settings_that_change_no_row_name_nothing_that_is_gone():
    settings = {kind.__name__: {one.name for one in fields(kind)} for kind in (RunConfig, *PARTS.values())}
    assert all(names <= settings[kind] for kind, names in UNHASHED.items())


def test_another_place_of_newlines_is_another_run():
    assert record(config_overrides={"mm_newline_position": "frame"}).fingerprint != record().fingerprint


def test_another_revision_of_the_model_is_another_run():
    model = read_model_config(CHECKPOINT_FOUND, {})
    other = replace(CHECKPOINT_FOUND, revision="another")
    assert record_run(CONFIG, other, model, "auto").fingerprint != fingerprint(CONFIG)


def recipe_settings(settings: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yields the way to every setting of a recipe: names of fields, and places in tuples."""
    if is_dataclass(settings):
        for one in fields(settings):
            yield from recipe_settings(getattr(settings, one.name), (*path, one.name))
    elif isinstance(settings, tuple) and settings and is_dataclass(settings[0]):
        for place, element in enumerate(settings):
            yield from recipe_settings(element, (*path, place))
    else:
        yield path


def changed_at(settings: Any, path: tuple[str | int, ...]) -> Any:
    """Returns a copy with another value at the end of a way; what does not fit together any more is not checked."""
    if not path:
        return (
            settings[:-1]
            if isinstance(settings, tuple) and settings
            else (f"{settings} x" if isinstance(settings, str) else (settings or 0) + 1 if settings != () else (1,))
        )
    if isinstance(settings, tuple):
        return (*settings[: path[0]], changed_at(settings[path[0]], path[1:]), *settings[path[0] + 1 :])
    other = copy.copy(settings)
    object.__setattr__(other, path[0], changed_at(getattr(settings, path[0]), path[1:]))
    return other


@pytest.mark.parametrize("name", ["captions", "detailed", "full", "model_card", "levels"])
def test_every_setting_of_a_recipe_is_in_the_fingerprint(name):
    recipe = load_recipe(name)
    ways = list(recipe_settings(recipe))
    others = {fingerprint(replace(CONFIG, recipe=changed_at(recipe, way))) for way in ways}
    assert len(others - {fingerprint(replace(CONFIG, recipe=recipe))}) == len(ways)
    assert len(ways) >= 6


def with_setting(**setting: Any) -> RunConfig:
    (name,) = setting
    kind = next(kind for kind, one in SETTINGS if one == name)
    place = next((place for place, part in PARTS.items() if part is kind), None)
    return replace(CONFIG, **(setting if place is None else {place: kind(**setting)}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_failed_fraction": -0.1}, {"max_failed_fraction": 1.1}, {"num_decoder_processes": 0},
        {"frame_memory_bytes": 0},
        {"prefetch_clips": 0}, {"split_s": 0.5}, {"canary_every": -1},
    ],
)  # fmt: skip
def test_settings_out_of_their_range_are_refused_by_their_name(wrong):
    with pytest.raises(
        ValueError, match=r"max_failed_fraction|num_decoder_processes|frame_memory|prefetch_clips|split|canary_every"
    ):
        with_setting(**wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"max_failed_fraction": 0.0}, {"max_failed_fraction": 0.5}, {"num_decoder_processes": 1},
        {"frame_memory_bytes": 1},
        {"prefetch_clips": 1}, {"split_s": 1.0}, {"canary_every": 0},
    ],
)  # fmt: skip
def test_settings_at_the_edge_of_their_range_are_taken(right):
    assert with_setting(**right)


_LIMITS = ("tokenizer_model_max_length", "max_position_embeddings")


def test_the_order_in_which_overrides_are_given_does_not_matter():
    one, other = (dict.fromkeys(names, 4000) for names in (_LIMITS, reversed(_LIMITS)))
    assert record(config_overrides=one).fingerprint == record(config_overrides=other).fingerprint


def test_every_step_gets_the_settings_that_were_given():
    given = RunConfig(
        output="elsewhere",
        engine=EngineConfig(CHECKPOINT, max_rows=3),
        recipe=load_recipe("model_card"),
        sampling=SamplingConfig(max_frames=5),
        reading=ReadConfig(max_sidecar_bytes=7),
        split_s=20.0,
        failures=FailurePolicy(0.5),
        retry_failed=True,
        workers=WorkerConfig(prefetch_clips=2),
        earlier=(ReusableRun("earlier", "f00d"),),
        storage_options={"memory": {}},
    )
    read_plan, read, sample = given.read_units(RUN), given.read_clips(RUN), given.sample_frames()
    annotate, commit = given.annotate_clips(RUN), given.commit_parts(RUN)
    names = {one.name for one in fields(RunConfig)}
    shared = [
        (step, name) for step in (read_plan, read, sample, annotate, commit) for name in names if hasattr(step, name)
    ]
    assert [(step, name) for step, name in shared if getattr(step, name) != getattr(given, name)] == []
    assert {name for _, name in shared} == names - {"units", "allow_other_versions"}
    assert (read_plan.fingerprint, read.fingerprint, annotate.model_revision) == ("f00d", "f00d", RUN.model_revision)
    assert (commit.run, commit.versions) == (RUN, find_versions())
    assert replace(given, allow_other_versions=True).commit_parts(RUN).versions is None


def test_rows_repeat_what_the_run_was_started_with():
    config = replace(CONFIG, engine=replace(CONFIG.engine, prompt_layout="demo"))
    model = read_model_config(CHECKPOINT_FOUND, {"mm_spatial_pool_mode": "max"})
    recorded = record_run(config, CHECKPOINT_FOUND, model, "bfloat16")
    columns = run_columns(config, CHECKPOINT_FOUND, model, "bfloat16", recorded)
    assert (columns.recipe, columns.model, columns.dtype) == ("model_card", CHECKPOINT, "bfloat16")
    assert (columns.prompt_layout, columns.pool_mode) == ("demo", "max")
    assert (columns.model_revision, columns.fingerprint) == (CHECKPOINT_FOUND.revision, recorded.fingerprint)
    assert columns.framescribe_version == find_versions()["framescribe"]


def test_other_rules_of_the_program_are_another_run(monkeypatch):
    before = fingerprint(CONFIG)
    monkeypatch.setattr("pipeline.config.ROW_VERSION", 0)
    assert fingerprint(CONFIG) != before
