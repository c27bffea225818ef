"""Which earlier runs answers may be taken from, and what the refusals say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from framescribe.storage.journal import OtherRunError, RunRecord, record_start
from framescribe.storage.output import open_output
from pipeline.checks import check_reuse_fits
from pipeline.found import FoundOutput
from pipeline.start import StartPlan
from tests.support.output_fixtures import commit, make_annotation, make_units, memory_output, plan_start

MODEL = {"name": "7b", "revision": "abc", "dtype": "bfloat16"}
RUN = RunRecord(
    "f00d", {"model": MODEL, "sampling": {"max_frames": 64}, "recipe": {"recipe": "detailed"}}, {"caption": "Say."}
)
OTHER_RECIPE = replace(
    RUN, fingerprint="beef", settings={**RUN.settings, "recipe": {"recipe": "model_card"}}, prompts={"caption": "Tell."}
)


@pytest.fixture
def earlier(tmp_path):
    output = str(tmp_path / "old")
    commit(output, "one", [make_annotation("a", "one")])
    record_start(open_output(output), RUN, None)
    return output


def find(earlier: str, run: RunRecord = OTHER_RECIPE, output: str | None = None, *unit_ids: str) -> StartPlan:
    plan = plan_start(open_output(output or memory_output()), run, make_units(*(unit_ids or ("one", "two"))))
    plan.request = replace(plan.request, reuse_from=earlier)
    plan.config = plan.request.config
    plan.earlier = FoundOutput(open_output(earlier))
    check_reuse_fits(plan)
    return plan


def with_model(**changes: str) -> RunRecord:
    return replace(OTHER_RECIPE, settings={**OTHER_RECIPE.settings, "model": {**MODEL, **changes}})


def test_a_run_with_another_recipe_is_taken_and_its_clips_are_counted(earlier):
    plan = find(earlier)
    (found,) = plan.reusable
    assert (found.run.output, found.run.fingerprint, plan.num_reusable) == (earlier, "f00d", 3)


def test_a_run_with_the_same_recipe_is_taken_too(earlier):
    assert find(earlier, RUN).num_reusable == 3


def test_another_model_is_refused_with_the_setting_that_differs_and_what_to_do(earlier):
    with pytest.raises(OtherRunError, match=r'(?s)other things than the recipe.*model\.revision: "abc" -> "def".*Give'):
        find(earlier, with_model(revision="def"))


def test_other_frames_are_refused_and_the_recipe_is_not_shown_as_a_difference(earlier):
    other = replace(OTHER_RECIPE, settings={**OTHER_RECIPE.settings, "sampling": {"max_frames": 32}})
    with pytest.raises(OtherRunError, match=r"sampling\.max_frames: 64 -> 32") as caught:
        find(earlier, other)
    assert "prompts" not in str(caught.value)
    assert "model_card" not in str(caught.value)


def test_another_number_format_is_refused(earlier):
    with pytest.raises(OtherRunError, match=r'model\.dtype: "bfloat16" -> "float32"'):
        find(earlier, with_model(dtype="float32"))


def test_what_auto_comes_to_is_left_to_the_workers(earlier):
    assert find(earlier, with_model(dtype="auto")).num_reusable == 3


def test_the_runs_own_output_is_refused_also_by_another_name(earlier, tmp_path):
    (tmp_path / "link").symlink_to(earlier)
    with pytest.raises(OtherRunError, match="same folder"):
        find(earlier, output=str(tmp_path / "link"))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--reuse-from takes the --output of an earlier run"):
        find(str(tmp_path / "nothing"))


def test_a_run_over_other_inputs_is_refused_before_work_starts(earlier):
    with pytest.raises(OtherRunError, match=r"none of the 3 clips of this run by their ids.*--input"):
        find(earlier, OTHER_RECIPE, None, "three")
