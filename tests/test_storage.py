"""Atomic writes to disks and stores, retried while an error may pass."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from framescribe.storage.access import Store
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, StoreRefused, StoreUnavailable
from framescribe.storage.journal import list_done_units, read_part
from framescribe.storage.local_files import remove_leftovers, scratch_folder
from framescribe.storage.output import OutputStore, open_output
from framescribe.storage.retries import RetryPolicy, StoreError, may_pass, retry_passing_errors
from tests.support.output_fixtures import memory_output

PATIENT = RetryPolicy(max_attempts=4, sleep=lambda delay_s: None)
NO_ROOM = """
import resource, sys
from framescribe.storage.output import open_output
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
open_output(sys.argv[1]).put("table/a", b"x" * 2000)
"""
ENDLESS_WRITER = """
import itertools, sys
from framescribe.storage.output import open_output
from framescribe.storage.journal import commit_part
from schemas.part_rows import build_part
from tests.support.output_fixtures import RUN, make_annotation
store, part = open_output(sys.argv[1]), build_part("one", [make_annotation("a")], RUN)
print("started", flush=True)
for number in itertools.count():
    commit_part(store, f"unit-{number}", part, RUN.fingerprint)
"""

# Ends at the sync of a part's temporary file: it is written, and not in its place.
WRITER_THAT_DIES = ENDLESS_WRITER.replace(
    "print(",
    """
import os, signal, stat
sync, synced = os.fsync, []
def sync_or_die(descriptor):
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        synced.append(descriptor)
        if len(synced) > int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
os.fsync = sync_or_die
print(""",
)


class RefusingStore(MemoryFileSystem):
    """Refuses the first writes with the errors it is given."""

    cachable = False

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if self.errors:
            raise self.errors.pop(0)
        super().pipe_file(path, value, mode=mode, **kwargs)


class ForeignError(Exception):
    """What a store's own library raises, with the status of the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return open_output({"local": str(tmp_path / "out"), "memory": memory_output()}[request.param])


def test_what_is_put_is_read_and_listed(store):
    store.put("folder/b", b"2")
    store.put("folder/a", b"1")
    assert (store.list_files("folder"), store.read("folder/a")) == (["a", "b"], b"1")


def test_what_is_put_again_is_replaced(store):
    store.put("a", b"old")
    store.put("a", b"new")
    assert store.read("a") == b"new"


def test_a_file_from_the_scratch_folder_is_put_and_the_folder_goes(store):
    with store.scratch_folder() as scratch:
        (scratch / "table").write_bytes(b"rows")
        assert store.replace_with_file("folder/table", scratch / "table", None)
    assert store.read("folder/table") == b"rows"
    assert not scratch.exists()


def test_what_is_not_there_is_listed_as_nothing_removed_in_peace_and_not_read(store):
    assert store.list_files("folder") == []
    store.remove("folder/a")
    with pytest.raises(FileNotFoundError, match="folder/a is not there"):
        store.read("folder/a")


def test_hidden_files_and_folders_are_not_listed(tmp_path):
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/.hidden").write_bytes(b"")
    assert open_output(str(tmp_path)).list_files("folder") == []


def test_a_passing_error_is_tried_again():
    file_system = RefusingStore(ConnectionResetError("reset"), TimeoutError("late"))
    store = OutputStore(file_system, "/refusing-once", PATIENT)
    store.put("a", b"1")
    assert store.read("a") == b"1"


def test_a_store_that_goes_on_refusing_stops_the_run_with_what_to_do():
    store = OutputStore(RefusingStore(*[OSError(errno.EIO, "busy")] * 9), "/refusing", PATIENT)
    with pytest.raises(StoreError, match=r"cannot write .*/a: still refused after 4 attempts \(OSError.*busy\)"):
        store.put("a", b"1")


def test_a_refused_permission_is_not_tried_again():
    file_system = RefusingStore(PermissionError("signature does not match"), PermissionError("again"))
    with pytest.raises(StoreError, match=r"signature does not match.*permissions"):
        OutputStore(file_system, "/forbidden", PATIENT).put("a", b"1")
    assert len(file_system.errors) == 1


def test_an_output_that_may_not_be_written_stops_the_run_with_what_to_do(tmp_path, monkeypatch):
    store = OutputStore(LocalFileSystem(), str(tmp_path), PATIENT)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match=r"cannot write .*Permission denied.*permissions"):
        store.remove_leftovers()
    with pytest.raises(StoreError, match=r"cannot write .*Permission denied.*permissions"), store.scratch_folder():
        pass


def test_pauses_grow_and_are_bounded():
    pauses = []
    policy = RetryPolicy(max_attempts=6, first_delay_s=1.0, max_delay_s=4.0, sleep=pauses.append)

    def fail() -> None:
        raise TimeoutError

    with pytest.raises(StoreError):
        retry_passing_errors("read a", fail, policy)
    assert [most / 2 <= pause <= most for pause, most in zip(pauses, (1, 2, 4, 4, 4), strict=True)] == [True] * 5


@pytest.mark.parametrize(("status", "passes"), [(500, True), (503, True), (429, True), (403, False), (404, False)])
def test_an_answer_of_a_store_is_judged_by_its_status(status, passes):
    assert may_pass(ForeignError(status)) is passes


@pytest.mark.parametrize("name", ["NoCredentialsError", "DefaultCredentialsError", "ParamValidationError"])
def test_what_only_the_user_can_mend_is_asked_once_when_reading_and_when_writing(monkeypatch, name):
    error = type(name, (Exception,), {})  # as botocore and google.auth call it; neither needs to be installed
    monkeypatch.setattr("aiohttp.ClientError", error)
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error("mend it")

    with pytest.raises(StoreError, match="mend it.*Check the address and the permissions"):
        retry_passing_errors("write a", fail, PATIENT)
    with pytest.raises((StoreRefused, InputError), match="mend it"):
        Store().ask("read a", fail)
    assert len(calls) == 2


def test_a_call_that_asks_a_store_in_its_turn_is_not_repeated_as_a_whole():
    store, calls = Store(config=ReadConfig(retries=PATIENT)), []

    def fail() -> None:
        calls.append(1)
        raise TimeoutError("late")

    with pytest.raises(StoreUnavailable, match="cannot read b: TimeoutError: late, at attempt 4 of 4"):
        store.ask("read a", lambda: store.ask("read b", fail))
    assert len(calls) == 4


@pytest.mark.parametrize("message", ["https://user:hunter2@host/a?X-Signature=hunter2", "AccountKey=hunter2 is wrong"])
def test_a_credential_in_an_error_is_not_repeated(message):
    store = OutputStore(RefusingStore(PermissionError(message)), "/x", PATIENT, secrets=("hunter2",))
    with pytest.raises(StoreError) as refused:
        store.put("a", b"1")
    assert "hunter2" not in str(refused.value)
    assert (refused.value.__cause__, refused.value.__suppress_context__) == (None, True)


def test_the_values_of_storage_options_are_secrets():
    store = open_output(memory_output(), {"client": {"password": "hunter2"}})
    assert store.secrets == ("hunter2",)
    assert "hunter2" not in repr(store)


def test_storage_options_may_be_given_by_protocol():
    options = {"memory": {"use_listings_cache": False}, "s3": {"key": "other store"}}
    assert open_output(memory_output(), options).file_system.storage_options == {"use_listings_cache": False}
    assert open_output("relative/folder", options).file_system.storage_options == {}


def test_an_unknown_kind_of_store_is_refused_with_what_to_write():
    with pytest.raises(StoreError, match="takes a local path or an fsspec URI"):
        open_output("nosuchstore://bucket/folder")


def test_a_full_disk_is_a_clear_stop_that_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", NO_ROOM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "no room left" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("num_whole", [0, 3])
def test_a_writer_that_is_killed_in_the_middle_of_a_part_leaves_the_parts_before_and_half_a_file_that_goes(
    tmp_path, num_whole
):
    command = [sys.executable, "-c", WRITER_THAT_DIES, str(tmp_path), str(num_whole)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    store = open_output(str(tmp_path))
    (half,) = (tmp_path / "_framescribe" / "parts").glob(".*.tmp")
    assert half.stat().st_size > 0
    assert list_done_units(store) == [f"unit-{number}" for number in range(num_whole)]
    assert all(read_part(store, unit_id).num_rows == 1 for unit_id in list_done_units(store))
    store.remove_leftovers()
    assert not half.exists()
    assert len(list_done_units(store)) == num_whole


@pytest.mark.parametrize("num_writers", [1, 2])
def test_writers_of_the_same_parts_that_are_killed_leave_whole_parts_and_their_leftovers_go(tmp_path, num_writers):
    command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(num_writers)]
    assert [writer.stdout.readline() for writer in writers] == ["started\n"] * num_writers
    while len(open_output(str(tmp_path)).list_files("_framescribe/parts")) < 3:
        time.sleep(0.01)
    [writer.kill() for writer in writers]
    [writer.wait() for writer in writers]
    store = open_output(str(tmp_path))
    names = store.list_files("_framescribe/parts")
    assert len(names) >= 3
    assert {pq.read_table(io.BytesIO(store.read(f"_framescribe/parts/{name}"))).num_rows for name in names} <= {1}
    store.remove_leftovers()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == names


def test_leftovers_stay_while_another_writer_is_at_work(tmp_path):
    leftover = tmp_path / f".a.{'0' * 32}.tmp"
    leftover.write_bytes(b"half")
    lock_folder = tmp_path / "_framescribe"
    lock_folder.mkdir()
    with scratch_folder(lock_folder) as scratch:
        remove_leftovers(tmp_path, lock_folder)
        assert leftover.exists()
        assert scratch.exists()
    remove_leftovers(tmp_path, lock_folder)
    assert not leftover.exists()


def test_the_scratch_folder_of_a_killed_publish_is_removed(tmp_path):
    killed = tmp_path / "_framescribe/.framescribe-scratch-abc"
    Path(killed).mkdir(parents=True)
    (killed / "table").write_bytes(b"half")
    remove_leftovers(tmp_path, tmp_path / "_framescribe")
    assert not killed.exists()


@pytest.fixture
def calls(monkeypatch):
    """What was synced, renamed or linked, in order; a file by the number of its bytes."""
    seen = []
    sync, replace_path, link = os.fsync, Path.replace, os.link

    def record_sync(descriptor):
        found = os.fstat(descriptor)
        seen.append("sync folder" if stat.S_ISDIR(found.st_mode) else f"sync file of {found.st_size}")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", lambda path, target: (seen.append("place"), replace_path(path, target))[1])
    monkeypatch.setattr(os, "link", lambda path, target: (seen.append("place"), link(path, target))[1])
    return seen


def test_a_file_is_on_disk_before_it_is_in_its_place_and_its_folder_after(tmp_path, calls):
    open_output(str(tmp_path)).put("table/a", b"12345")
    assert calls == ["sync file of 5", "place", "sync folder"]


def test_a_finished_file_is_on_disk_before_it_is_moved_and_its_folder_after(tmp_path, calls):
    store = open_output(str(tmp_path))
    with store.scratch_folder() as scratch:
        (scratch / "a").write_bytes(b"123")
        assert store.replace_with_file("table/a", scratch / "a", None)
    assert calls == ["sync file of 3", "place", "sync folder"]


def test_a_file_that_is_created_is_on_disk_before_it_is_in_its_place_and_its_folder_after(tmp_path, calls):
    assert open_output(str(tmp_path)).create("table/a", b"12345")
    assert calls == ["sync file of 5", "place", "sync folder"]
