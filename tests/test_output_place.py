"""Inputs and output are kept apart, so that no start ever takes its own tables for inputs or removes an input."""

from __future__ import annotations

from dataclasses import replace

import pytest

from framescribe.storage.errors import InputError
from framescribe.storage.output import open_output
from pipeline.checks import check_places_apart
from run_pipeline import main
from tests.support.output_fixtures import RUN_RECORD, plan_start
from tests.support.run_fixtures import annotate_arguments
from tests.support.shards_fixtures import write


def check(output: str, *inputs: str) -> None:
    plan = plan_start(open_output(output), RUN_RECORD, ())
    plan.request = replace(plan.request, inputs=inputs)
    check_places_apart(plan)


@pytest.mark.parametrize("uri", ["/d", "/d/", "/d/*", "/d/**", "/d/**/*.parquet", "/d/o*", "/d/out", "/d/out/*/*", "/"])
def test_an_input_that_would_list_the_tables_is_refused_at_the_first_start(uri):
    with pytest.raises(InputError, match=r"would take in the tables that are written to /d/out/?: choose an --output"):
        check("/d/out", uri)


@pytest.mark.parametrize(
    "uri", ["/d/clips", "/d/clips/a.parquet", "/d/clips/*.mp4", "/d/qa/deep/a.tar", "/d/_framescribe"]
)
def test_an_input_inside_a_folder_that_the_run_writes_to_is_refused(uri):
    with pytest.raises(InputError, match=r"lies in /d/\w+, which this run writes to: choose another --output"):
        check("/d", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "/d/*.tar",
        "/d/**/*.mp4",
        "/d/a.parquet",
        "/d/outer",
        "/d/clips",
        "memory://d/out",
        "/d/[o]ut.tar",
        "/d/out/qa[1]/a.mp4",
    ],
)
def test_inputs_beside_the_output_are_fine(uri):
    check("/d/out", uri)


def test_stores_are_compared_by_their_paths():
    check("memory://d/out", "/d", "memory://d/shards", "memory://d/*.tar")
    with pytest.raises(InputError, match="would take in"):
        check("memory://d/out", "memory://d")


def test_links_are_followed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match="would take in"):
        check(str(tmp_path / "link" / "out"), str(tmp_path / "data"))


def test_parquet_inputs_in_a_folder_named_like_a_table_outlive_an_overwriting_start(tmp_path, capsys):
    mine = write(tmp_path / "clips" / "clips-00000-of-00001.parquet", b"mine")
    assert main(annotate_arguments(tmp_path, [mine], tmp_path, "--overwrite")) == 1
    assert "which this run writes to" in capsys.readouterr().err
    assert (tmp_path / "clips" / "clips-00000-of-00001.parquet").read_bytes() == b"mine"
    assert not (tmp_path / "_framescribe").exists()
