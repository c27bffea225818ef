"""What stops a run leaves one line that says what to do, neither a trace nor a process that waits for ever."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from framescribe.storage.journal import record_start
from framescribe.storage.output import open_output
from framescribe.storage.plan import add_to_plan
from tests.support.output_fixtures import RUN_RECORD, commit, make_annotation, make_units
from tests.support.run_fixtures import ROOT, annotate_arguments, find_hidden, make_shard
from tests.support.shards_fixtures import write

# A limited process must not leave half a file of bytecode in this checkout.
_NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
FAULTS = pytest.mark.faults
# A user without processes of its own yet, whose limits count, and who may read this checkout all the same.
_OTHER_USER = (
    "setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=+dac_override,+dac_read_search",
    "--ambient-caps=+dac_override,+dac_read_search",
)  # fmt: skip


def _run(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Runs the command as a process, and returns its exit status and the lines that it said on standard error."""
    done = subprocess.run(
        [*before, sys.executable, "run_pipeline.py", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def _is_progress(line: str) -> bool:
    return " clips done, " in line or line.endswith(" units")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return annotate_arguments(tmp_path, [make_shard(tmp_path / "a.tar", 12)], tmp_path / "out", "--canary-every", "0")


@pytest.fixture
def clean_environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **_NO_BYTECODE}


@pytest.fixture
def anyones_folder() -> Iterator[Path]:
    """A folder that another user may write to, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_a_decoder_that_does_not_start_is_one_line(tmp_path, arguments, clean_environment):
    write(
        tmp_path / "broken" / "av" / "__init__.py", 'raise ImportError("libavcodec.so.62: cannot open shared object")'
    )
    status, said = _run(arguments, {**clean_environment, "PYTHONPATH": f"{tmp_path}/broken"})
    assert status == 1
    assert [line for line in said if not _is_progress(line)] == [
        "framescribe annotate: a decoder process does not start: the decoder process died of exit code 1: ImportError: "
        "libavcodec.so.62: cannot open shared object. Nothing can be decoded on this machine; once that is mended, the "
        "same command goes on: finished units are kept"
    ]


@pytest.mark.parametrize("most", [pytest.param(14, marks=FAULTS), 20, pytest.param(26, marks=FAULTS)])
def test_a_process_that_gets_no_more_threads_ends_instead_of_waiting_for_ever(anyones_folder, clean_environment, most):
    limited = (*_OTHER_USER, "prlimit", f"--nproc={most}")
    if subprocess.run([*limited, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, setpriv and prlimit")
    shard = make_shard(anyones_folder / "a.tar", 12)
    arguments = annotate_arguments(anyones_folder, [shard], anyones_folder / "out", "--canary-every", "0")
    status, said = _run(arguments, {**clean_environment, "HOME": str(anyones_folder)}, limited)
    assert status == 1
    assert "can't start new thread" in said[-1]
    assert "raise `ulimit -u`, or the pids limit of the container" in said[-1]
    assert "Traceback (most recent call last):" not in said


@pytest.fixture
def unpublished(tmp_path: Path) -> str:
    """The output of a run whose parts are all there, but no tables."""
    output = str(tmp_path / "out")
    commit(output, "one", [make_annotation(f"clip {number}", "one") for number in range(50)])
    store = open_output(output)
    assert record_start(store, RUN_RECORD, instead_of=None)
    add_to_plan(store, make_units("one"))
    return output


def test_a_disk_that_gets_full_while_tables_are_built_is_one_line(unpublished, clean_environment):
    limited = ("prlimit", "--fsize=4000")  # of each file: a disk of one's own takes root
    status, said = _run(["publish", "--output", unpublished], clean_environment, limited)
    assert status == 1
    assert len(said) == 1
    assert said[0].startswith(
        f"framescribe publish: cannot build the tables in {unpublished}/_framescribe: no room left"
    )
    assert said[0].endswith("Free some space, then start the same command again to resume.")
    assert find_hidden(Path(unpublished)) == []


def test_a_small_disk_that_gets_full_while_tables_are_built_is_one_line(unpublished, tmp_path, clean_environment):
    size = sum(path.stat().st_size // 4096 * 4096 + 4096 for path in Path(unpublished).rglob("*.*")) + 12_000
    mount = f"mount -t tmpfs -o size={size} none {tmp_path}/small && cp -r {unpublished} {tmp_path}/small"
    on_small_disk = ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
    (tmp_path / "small").mkdir()
    if subprocess.run([*on_small_disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and `unshare`")
    status, said = _run(["publish", "--output", f"{tmp_path}/small/out"], clean_environment, on_small_disk)
    assert (status, len(said)) == (1, 1)
    assert "no room left" in said[0]
