"""Runs with one fingerprint write the same rows, however their settings were typed; others have another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from decoding.config import SamplingConfig
from llava_video.checkpoint import CONFIGURATION, find_checkpoint
from llava_video.engine_config import EngineConfig
from llava_video.model_config import read_model_config
from pipeline.config import RunConfig, record_run
from recipes import load_recipe
from run_pipeline import main
from storage.run_journal import RunRecord
from tests.run_fixtures import (
    CHECKPOINT,
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    make_shard,
    read_tables,
)
from tests.stub_engine import StubEngine


def record(model: str = CHECKPOINT, dtype: str = "float32", decoder: str = "auto", **engine: Any) -> RunRecord:
    checkpoint = find_checkpoint(model, files=CONFIGURATION)
    config = RunConfig("out", EngineConfig(model, **engine), load_recipe("seed"), SamplingConfig(decoder=decoder))
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
