"""What the set-up says when it cannot go on, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.source_tree import ROOT

OLD_PYTHON = """#!/bin/sh
[ "$1" = --version ] && echo "Python 3.9.18" && exit 0
exit 1
"""
PYTHON_WITHOUT_ENSUREPIP = """#!/bin/sh
[ "$1" = --version ] && echo "Python 3.11.2" && exit 0
[ "$1" = -c ] && exit 0
mkdir -p .venv/bin
exit 1
"""


@pytest.fixture
def project(tmp_path):
    for name in ("install.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def write_python(project: Path, script: str) -> Path:
    python = project / "python"
    python.write_text(script)
    python.chmod(0o755)
    return python


def install(project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run([project / "install.sh"], env=environment, capture_output=True, text=True, timeout=60)


def test_an_interpreter_that_is_too_old_is_refused_with_its_version(project):
    python = write_python(project, OLD_PYTHON)
    done = install(project, PYTHON=str(python))
    assert done.returncode == 1
    assert f"needs Python 3.10, 3.11 or 3.12. Found: {python} is Python 3.9.18;" in done.stderr


def test_an_interpreter_that_does_not_exist_is_said_to_be_missing(project):
    done = install(project, PYTHON="python9.9")
    assert done.returncode == 1
    assert "Found: python9.9 is missing;" in done.stderr


def test_an_interpreter_without_ensurepip_is_refused_with_what_to_install_and_leaves_nothing(project):
    python = write_python(project, PYTHON_WITHOUT_ENSUREPIP)
    done = install(project, PYTHON=str(python))
    assert done.returncode == 1
    assert "install the package python3-venv" in done.stderr
    assert not (project / ".venv").exists()


def test_without_a_suitable_interpreter_all_that_were_tried_are_named(project):
    (project / "bin").mkdir()
    for name in ("bash", "dirname", "cat", "cksum"):
        (project / "bin" / name).symlink_to(shutil.which(name) or name)
    done = install(project, PATH=str(project / "bin"))
    assert done.returncode == 1
    assert "python3 is missing; python3.12 is missing; python3.11 is missing; python3.10 is missing;" in done.stderr
