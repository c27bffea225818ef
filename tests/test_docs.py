"""The documentation: what it shows runs, and what it links to is there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
# Not those of packages that a target has installed in a folder of its own.
_OTHERS = re.compile(r"/(\.(?!github)|out/|site/|build/)")
PAGES = sorted(path for path in ROOT.rglob("*.md") if not _OTHERS.search(f"/{path.relative_to(ROOT).as_posix()}"))
LINKS = re.compile(r"\]\(([^)\s]+)\)")


def _commands(page: str) -> list[str]:
    """Returns the commands of a page's blocks, those of the demo model: the others need a GPU or a bucket."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [line for line in lines if line.startswith("framescribe ") and "s3://" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_links_to_are_there(page):
    links = [link.split("#")[0] for link in LINKS.findall(page.read_text())]
    local = [link for link in links if link and "://" not in link]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


def test_the_site_builds_with_every_link_and_anchor_resolved(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial.html").is_file()


def test_messages_of_the_troubleshooting_page_are_those_of_the_programs():
    said = "\n".join(_texts_of_programs())
    lines = (ROOT / "docs/troubleshooting.md").read_text().splitlines()
    messages = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    pieces = [piece.strip(" :;,.()") for message in messages for piece in message.split("…")]
    assert [piece for piece in pieces if piece not in said] == []
    assert len(messages) > 40


def _texts_of_programs():
    """Yields every text of the sources, with `…` where values are filled in."""
    for package in ("framescribe", "pipeline", "schemas", "transforms"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.mark.slow
def test_every_command_of_the_tutorial_and_the_how_to_pages_runs(tmp_path):
    for folder in ("demo", "framescribe"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "ids.txt").write_text("clips/01_left\n")
    commands = [command for page in ("tutorial.md", "how_to.md", "training.md") for command in _commands(page)]
    for command in commands:
        run = [sys.executable, str(ROOT / "run_pipeline.py"), *shlex.split(command)[1:]]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert len(commands) == 16
    assert (tmp_path / "out/first_review/index.html").is_file()
    assert pq.read_table(tmp_path / "out/second/clips").num_rows == 11
    assert pq.read_table(tmp_path / "out/second/failures")["reason"].to_pylist() == ["withdrawn"]
    assert pq.read_table(tmp_path / "out/look/clips").num_rows == 4
    assert pq.read_table(tmp_path / "out/third/clips").num_rows == 12
    assert (tmp_path / "out/first_hf/README.md").is_file()
    assert (tmp_path / "out/first_llava/train.yaml").is_file()


@pytest.mark.slow
def test_the_notebook_runs_on_the_demo_model():
    notebook = nbformat.read(ROOT / "docs/notebooks/first_look.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    printed = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert "background" in printed
    assert "ok  What" in printed
    assert "image/png" in printed


def test_the_workflow_calls_the_script_that_a_developer_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    assert "bash .ci/run" in [step.get("run") for step in workflow["jobs"]["check"]["steps"]]
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12"]
