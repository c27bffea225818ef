"""The benchmark of planning and publishing works on what it says."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.scale import main


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("manifest", {"units": 3}),
        ("shards", {"units": 4}),  # two for each tar
        ("publish", {"rows": {"captions": 70, "qa": 210, "clips": 70, "failures": 0}}),
    ],
)
def test_all_clips_are_planned_or_published(kind, found, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale", kind, "--clips", "70", "--clips-per-shard", "35", "--pairs", "3"])
    main()
    said = json.loads(capsys.readouterr().out)
    assert {name: said[name] for name in found} == found
    assert said["peak_mib"] >= said["peak_mib_of_imports"] > 10
