"""What a run does when one of its stages, its store or its disk fails, and when its work is done twice."""

from __future__ import annotations

import errno
import io

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from framescribe.storage.output import open_output
from framescribe.storage.retries import StoreError
from schemas.tables import TABLES
from tests.support.run_fixtures import (
    annotate_arguments,
    annotate_with,
    checkpoint_revision,
    find_hidden,
    make_shard,
    read_tables,
)
from tests.support.stub_engine import StubEngine


class UnrulyFileSystem(MemoryFileSystem):
    """A store in memory, `unruly://`, whose every third write is refused, times out, or is done and then denied."""

    protocol = "unruly"
    store: dict[str, object] = {}  # noqa: RUF012  # how MemoryFileSystem keeps its files
    num_writes = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("unruly://").strip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        type(self).num_writes += 1
        trouble = type(self).num_writes % 9
        if trouble == 1:
            raise ConnectionResetError("refused for a moment")
        if trouble == 4:
            raise TimeoutError("no answer")
        super().pipe_file(path, value, mode=mode, **kwargs)
        if trouble == 7:
            raise TimeoutError("the answer came too late: it is written")


fsspec.register_implementation("unruly", UnrulyFileSystem, clobber=True)


class Broken:
    """Calls a function, except the second time, when it raises."""

    def __init__(self, function, error: Exception) -> None:
        self._function, self._error, self._num_calls = function, error, 0

    def __call__(self, *arguments, **settings):
        self._num_calls += 1
        if self._num_calls == 2:
            raise self._error
        return self._function(*arguments, **settings)


class BrokenEngine(StubEngine):
    """Breaks with its third answer."""

    def answer(self, future, completion):
        if self.stats.questions == 3:
            future.set_exception(RuntimeError("the device is gone"))
        else:
            future.set_result(completion)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return [make_shard(folder / "shards" / "a.tar", 7, num_broken=1), make_shard(folder / "shards" / "b.tar", 5)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, shards):
    """The tables of a run that nothing happened to."""
    return run(tmp_path_factory.mktemp("undisturbed"), shards)


def run(folder, inputs, *flags, engine=None):
    """Runs to the end and returns the tables."""
    status = try_to_run(folder, inputs, *flags, engine=engine)
    assert status == 0
    return read_tables(folder / "out")


def try_to_run(folder, inputs, *flags, engine=None):
    arguments = annotate_arguments(folder, inputs, folder / "out", "--canary-every", "0", *flags)
    return annotate_with(engine or StubEngine(checkpoint_revision()), arguments)


def stop(folder, inputs, engine=None):
    """Runs until the run stops by itself, in whatever way, and returns what it said."""
    try:
        assert try_to_run(folder, inputs, engine=engine) == 1
    except RuntimeError as error:
        return str(error)
    return ""


def read_table_of(store, table):
    files = (store.read(f"{table}/{name}") for name in store.list_files(table))
    return [row for content in files for row in pq.read_table(io.BytesIO(content)).to_pylist()]


def test_bundles_that_are_executed_twice_write_the_same_tables(tmp_path, shards, undisturbed):
    assert run(tmp_path, shards, "--direct_runner_bundle_repeat=1") == undisturbed


def test_a_rerun_with_more_inputs_writes_the_tables_of_a_run_with_all_of_them(tmp_path, shards, undisturbed):
    run(tmp_path, shards[:1])
    assert run(tmp_path, shards) == undisturbed


def test_a_rerun_of_a_finished_run_asks_nothing_and_changes_nothing(tmp_path, shards, undisturbed):
    run(tmp_path, shards)
    again = StubEngine(checkpoint_revision())
    assert run(tmp_path, shards, engine=again) == undisturbed
    assert again.stats.encoded_clips == 0


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("transforms.read_clips.read_unit", OSError(errno.EIO, "input/output error")),
        ("framescribe.decoding.pool.allocate", RuntimeError("a decoder process does not start")),
        ("transforms.commit_parts.build_part", RuntimeError("a bug of ours")),
        ("transforms.commit_parts.commit_part", StoreError("cannot write: no room left")),
    ],
    ids=["read", "decode", "build", "commit"],
)
def test_an_exception_in_a_stage_stops_the_run_and_the_next_start_finishes_it(
    tmp_path, shards, undisturbed, monkeypatch, place, error
):
    with monkeypatch.context() as patched:
        module, _, name = place.rpartition(".")
        function = getattr(__import__(module, fromlist=[name]), name)
        patched.setattr(place, Broken(function, error))
        said = stop(tmp_path, shards)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert str(error) in said or isinstance(error, StoreError)
    assert run(tmp_path, shards) == undisturbed
    assert find_hidden(tmp_path / "out") == []


def test_an_engine_that_breaks_stops_the_run_and_the_next_start_finishes_it(tmp_path, shards, undisturbed):
    assert "the device is gone" in stop(tmp_path, shards, engine=BrokenEngine(checkpoint_revision()))
    assert run(tmp_path, shards) == undisturbed


def test_a_full_disk_stops_the_run_with_what_to_do_and_the_next_start_finishes_it(
    tmp_path, shards, undisturbed, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched.setattr("framescribe.storage.local_files.os.fsync", Broken(lambda descriptor: None, full))
        stop(tmp_path, shards)
    assert "no room left" in capsys.readouterr().err
    assert find_hidden(tmp_path / "out") == []
    assert run(tmp_path, shards) == undisturbed


def test_a_store_that_fails_times_out_and_answers_late_ends_in_the_same_tables(tmp_path, shards, undisturbed):
    UnrulyFileSystem.store.clear()
    arguments = annotate_arguments(tmp_path, shards, "unruly://bucket/out", "--canary-every", "0")
    assert annotate_with(StubEngine(checkpoint_revision()), arguments) == 0
    store = open_output("unruly://bucket/out")
    tables = {name: read_table_of(store, name) for name in TABLES}
    assert tables == undisturbed
    assert UnrulyFileSystem.num_writes > 9
