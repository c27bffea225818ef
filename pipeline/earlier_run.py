"""Checks that the answers of an earlier run may stand in the rows of this one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import OtherRunError, RunRecord, list_done_units, read_run
from framescribe.storage.output import OutputStore, open_output
from pipeline.run_folder import describe_difference
from schemas.records import WorkUnit
from transforms.earlier_answers import EarlierRun


def find_earlier_run(
    earlier: str, storage_options: StorageOptions, output: OutputStore, run: RunRecord, units: Sequence[WorkUnit]
) -> tuple[EarlierRun, int]:
    """Returns the run whose answers may be taken, and how many of this run's units it has a part of.

    Args:
        earlier: output folder or URI of that run; nothing is written there.
        output, run, units: of this run.

    Raises:
        FileNotFoundError: no run was started there.
        OtherRunError: it is this run's own output, its model or frames were others, or it has none of the units.
    """
    store = open_output(earlier, storage_options)
    _check_other_folder(store, output)
    recorded = read_run(store)
    if recorded is None:
        raise FileNotFoundError(f"no run in {store.address('')}: --reuse-from takes the --output of an earlier run")
    _check_same_answers(store, recorded, run)
    num_units = len({unit.unit_id for unit in units} & {*list_done_units(store)})
    if not num_units:
        raise OtherRunError(
            f"{store.address('')} has none of the {len(units)} units of this run, so no answer of it can be taken: "
            "give the same --input and --unit-clips as then, or leave out --reuse-from to ask everything"
        )
    return EarlierRun(str(store.local_path or earlier), recorded.fingerprint, storage_options), num_units


def describe_run(earlier: EarlierRun) -> dict[str, str]:
    """Returns what run.json shall say about the run that answers are taken from."""
    address = open_output(earlier.output, earlier.storage_options).address("")
    return {"output": address, "fingerprint": earlier.fingerprint}


def _check_other_folder(store: OutputStore, output: OutputStore) -> None:
    if _identity(store) == _identity(output):
        raise OtherRunError(
            f"--reuse-from and --output are the same folder, {store.address('')}: the earlier rows stay as they are, "
            "choose another --output for the new ones"
        )


def _identity(store: OutputStore) -> str:
    return store.address("") if store.local_path is None else str(store.local_path.resolve())


def _check_same_answers(store: OutputStore, recorded: RunRecord, run: RunRecord) -> None:
    """Everything but the recipe must be the same: which questions are, each of them tells by itself."""
    either_auto = "auto" in (_dtype(recorded), _dtype(run))  # what it came to, the workers see
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
    settings = {name: value for name, value in run.settings.items() if name != "recipe"}
    if drop_dtype:
        settings["model"] = {name: value for name, value in settings.get("model", {}).items() if name != "dtype"}
    return replace(run, settings=settings, prompts={})


def _as_json(settings: Mapping[str, Any]) -> str:  # Any: the settings of other modules
    return json.dumps(settings, sort_keys=True, default=str)
