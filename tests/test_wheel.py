"""The built wheel, installed and run in another folder: what a user gets who never sees this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
IMPORT_NAMES = {"framescribe", "pipeline", "run_pipeline", "schemas", "transforms"}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files beside the source
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("this is no git checkout: what belongs to the source cannot be told")
    for name in filter(None, tracked.stdout.split("\0")):
        if name.startswith(("framescribe/", "pipeline/", "schemas/", "transforms/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    done = run([sys.executable, *build], source)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = run([sys.executable, "-m", "pip", *install], folder)
    assert done.returncode == 0, done.stderr
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but its own .pth files, the editable install's among them, are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_five_import_names_are_installed_and_nothing_else(wheel: Path):
    with ZipFile(wheel) as files:
        names = {name.split("/")[0].removesuffix(".py") for name in files.namelist() if ".dist-info/" not in name}
    assert names == IMPORT_NAMES


def test_recipes_and_the_typing_mark_are_in_the_wheel(wheel: Path):
    with ZipFile(wheel) as files:
        names = set(files.namelist())
    assert {"framescribe/py.typed", "framescribe/recipes/detailed.yaml", "framescribe/decoding/self_check.mp4"} <= names


def test_the_installed_command_annotates_the_demo_clips_from_another_folder(installed: Path, tmp_path: Path):
    demo = ROOT / "demo"
    command = [
        str(installed / "bin" / "framescribe"), "annotate", "--input", str(demo / "clips"), "--model",
        str(demo / "checkpoint"), "--num-frames", "8", "--recipe", "model_card", "--output", "annotated",
    ]  # fmt: skip
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 clips in" in done.stdout
    assert (tmp_path / "annotated" / "_SUCCESS").exists()


def test_the_installed_packages_are_the_wheels_own(installed: Path, tmp_path: Path):
    code = f"import importlib; print([importlib.import_module(n).__file__ for n in {sorted(IMPORT_NAMES)!r}])"
    done = run([str(installed / "bin" / "python"), "-c", code], tmp_path)
    assert done.stdout.count(str(installed)) == len(IMPORT_NAMES), done.stderr
