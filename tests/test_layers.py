"""The arrows between the folders go one way, and the light folders stay light."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.support.source_tree import FOLDERS, ROOT, imports, loaded_with, source_modules, tree_of

# The library proper imports nothing above it; `schemas` builds on the records that it returns.
LIBRARY = {"framescribe", "framescribe.decoding", "framescribe.llava_video", "framescribe.recipes"}
OVER_STORES = {"framescribe.storage", "framescribe.shards", "framescribe.publish"}
BELOW_TRANSFORMS = {*LIBRARY, *OVER_STORES, "schemas"}
BELOW_PIPELINE = {*BELOW_TRANSFORMS, "transforms"}
MAY_IMPORT = {
    "framescribe": LIBRARY,
    "framescribe.decoding": {"framescribe"},
    "framescribe.llava_video": {"framescribe"},
    "framescribe.recipes": {"framescribe", "framescribe.llava_video"},
    "schemas": {"framescribe", "framescribe.recipes", "framescribe.decoding"},
    "framescribe.storage": {"framescribe", "schemas"},
    "framescribe.shards": {"framescribe", "framescribe.storage", "schemas"},
    # An export reads videos again, and cuts them.
    "framescribe.publish": {*LIBRARY, "framescribe.storage", "framescribe.shards", "schemas"},
    "transforms": BELOW_TRANSFORMS,
    "pipeline": BELOW_PIPELINE,
    "run_pipeline": {*BELOW_PIPELINE, "pipeline"},
    "demo": {*BELOW_PIPELINE, "pipeline"},
    "demo.training": {*BELOW_PIPELINE, "pipeline", "demo"},
    "benchmarks": {*BELOW_PIPELINE, "pipeline", "demo", "run_pipeline"},
}
OURS = {*MAY_IMPORT, *FOLDERS, "tests"}
TORCH = {"accelerate", "flash_attn", "safetensors.torch", "torch", "transformers"}
WITH_MODEL = {"benchmarks", "demo", "demo.training", "framescribe.llava_video"}
WITH_BEAM = {"benchmarks", "pipeline", "run_pipeline", "transforms"}
# What `plan`, `export`, `review` and a bad flag load.
LIGHT = {
    "framescribe.llava_video.engine.generation",
    "framescribe.publish.export",
    "pipeline.options",
    "run_pipeline",
    "schemas.records",
}
# What an assignment makes that holds what changes.
MAKES_STATE = {
    "{}", "[]", "Condition", "Counter", "defaultdict", "deque", "dict", "Event", "list", "local", "Lock", "OrderedDict",
    "Queue", "RLock", "set", "SimpleQueue", "Thread", "ThreadPoolExecutor", "WeakKeyDictionary", "WeakValueDictionary",
    "Worker",
}  # fmt: skip
MODULES = sorted(source_modules())
# Within the model and its engine: each may import those before it.
MODEL_PARTS = ("framescribe.llava_video.model", "framescribe.llava_video.attention", "framescribe.llava_video.engine")


def folder_of(module: str) -> str:
    """Returns the package whose rules a module keeps: for `framescribe.shards.tar` it is `framescribe.shards`."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in (2, 1)]
    return next((name for name in names if name in MAY_IMPORT and (name == parts[0] or is_package(name))), parts[0])


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/") / "__init__.py").exists()


def is_one_of(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def find_state(module: str) -> set[str]:
    """Returns the names of a module that hold what changes: empty collections, locks, threads, workers."""
    assigned = [node for node in tree_of(module).body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    return {
        f"{module}.{ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)}"
        for node in assigned
        if ast.unparse(node.value or node).split("(")[0].split(".")[-1] in MAKES_STATE
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_folder_and_the_folders_below(module):
    imported = {folder_of(name) for name in imports(module)} & OURS
    assert imported - {folder_of(module)} <= MAY_IMPORT[folder_of(module)]


@pytest.mark.parametrize("number", range(len(MODEL_PARTS)))
def test_attention_builds_on_the_model_and_the_engine_on_both(number: int):
    own = [name for name in MODULES if is_one_of(name, {MODEL_PARTS[number]})]
    later = set(MODEL_PARTS[number + 1 :])
    assert own
    assert {name: wrong for name in own if (wrong := {one for one in imports(name) if is_one_of(one, later)})} == {}


@pytest.mark.parametrize("module", [name for name in MODULES if folder_of(name) not in WITH_BEAM])
def test_beam_stays_in_transforms_and_pipeline(module):
    assert not {name for name in imports(module) if folder_of(name) == "apache_beam"}


def test_the_worker_is_the_only_state_of_steps_and_decoding():
    holders = [name for name in MODULES if folder_of(name) in ("transforms", "framescribe.decoding")]
    assert {state for name in holders for state in find_state(name)} == {"transforms.worker.WORKER"}


@pytest.mark.parametrize("module", [name for name in MODULES if folder_of(name) not in WITH_MODEL])
def test_a_module_outside_the_model_does_not_bring_in_torch(module):
    assert not {name for name in loaded_with(module) if is_one_of(name, TORCH)}


@pytest.mark.parametrize("module", sorted(LIGHT & {*MODULES}))
def test_a_light_module_is_imported_without_torch(module):
    code = f"import sys, {module}; print(sorted({TORCH!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
