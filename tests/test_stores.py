"""What stores do beside keeping objects: keys for folders, servers that ignore conditions, turns without locks."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from types import SimpleNamespace

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from framescribe.publish.publish import publish
from framescribe.publish.sort import index_clips
from framescribe.shards.listing import find_inputs
from framescribe.storage.access import Store
from framescribe.storage.exclusion import (
    ConditionFailed,
    describe_process,
    may_live,
    object_version,
    put_if,
    takes_conditions,
)
from framescribe.storage.local_files import create_file
from framescribe.storage.output import OutputStore, open_output
from framescribe.storage.retries import RetryPolicy, StoreError
from schemas.tables import TABLES
from tests.support.output_fixtures import RUN_RECORD, commit, make_annotation, make_units, memory_output, start_run
from tests.support.run_fixtures import annotate_arguments, annotate_with, checkpoint_revision, make_shard, tiny_clip
from tests.support.stub_engine import StubEngine


class MarkingFileSystem(MemoryFileSystem):
    """A store in memory, `marking://`, that keeps an empty key for every folder, as some servers and consoles do."""

    protocol = "marking"
    store: dict[str, object] = {}  # noqa: RUF012  # how MemoryFileSystem keeps its files
    folders: set[str] = set()  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("marking://").strip("/")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode=mode, **kwargs)
        parent = self._parent(path)
        while parent not in ("", "/"):
            type(self).folders.add(parent)
            parent = self._parent(parent)

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        marked = [{"name": f"{path}/", "type": "file", "size": 0}] if path in self.folders else []
        try:
            entries = super().ls(path, detail=True, **kwargs)
        except FileNotFoundError:
            if not marked:
                raise
            entries = []
        entries = [*marked, *entries]
        return entries if detail else [entry["name"] for entry in entries]

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **kwargs):
        below = super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        marked = (f"{folder}/" for folder in self.folders if f"{folder}/".startswith(self._strip_protocol(path) + "/"))
        below.update({name: {"name": name, "type": "file", "size": 0} for name in marked})
        return below if detail else sorted(below)


class CarelessFileSystem(MemoryFileSystem):
    """A store in memory, `careless://`, that ignores conditions of writes."""

    protocol = "careless"
    store: dict[str, object] = {}  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("careless://").strip("/")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, **kwargs)


fsspec.register_implementation("marking", MarkingFileSystem, clobber=True)
fsspec.register_implementation("careless", CarelessFileSystem, clobber=True)


def run(folder, output, *flags) -> int:
    shard = make_shard(folder / "shards" / "a.tar", 4)
    arguments = annotate_arguments(folder, [shard], output, "--canary-every", "0", *flags)
    return annotate_with(StubEngine(checkpoint_revision()), arguments)


def count_rows(output: str) -> dict[str, int]:
    store = open_output(output)
    return {
        table: sum(
            pq.read_metadata(io.BytesIO(store.read(f"{table}/{name}"))).num_rows for name in store.list_files(table)
        )
        for table in TABLES
    }


def test_an_output_whose_folders_have_keys_of_their_own_is_overwritten_again_and_again(tmp_path):
    output = "marking://bucket/out"
    assert run(tmp_path, output) == 0
    assert MarkingFileSystem().ls("marking://bucket/out/captions")[0]["name"].endswith("/")
    before = count_rows(output)
    assert run(tmp_path, output, "--overwrite") == 0
    assert run(tmp_path, output, "--overwrite", "--num-frames", "3") == 0
    assert count_rows(output) == before
    assert before["clips"] == 4


def test_keys_of_folders_are_no_inputs():
    fsspec.filesystem("marking").pipe_file("/inputs/films.mp4/a.mp4", tiny_clip(0))
    fsspec.filesystem("marking").pipe_file("/inputs/b.mp4", tiny_clip(1))
    assert [file.relative for file in find_inputs(Store(), ["marking://inputs"])] == ["b.mp4", "films.mp4/a.mp4"]


def test_a_key_without_a_slash_for_the_listed_folder_is_no_file_of_it(tmp_path):
    store = open_output(str(tmp_path))
    listing = type(store.file_system).ls
    store.put("qa/a.parquet", b"1")
    path = str(tmp_path / "qa")

    def ls_with_key(self, asked, detail=True, **kwargs):
        return [{"name": path, "type": "file", "size": 0}, *listing(self, asked, detail=detail, **kwargs)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(store.file_system), "ls", ls_with_key)
        assert store.list_files("qa") == ["a.parquet"]


def test_a_store_that_ignores_conditions_is_found_and_named(tmp_path, capsys):
    assert not open_output("careless://bucket/out").honours_conditions()
    assert run(tmp_path, "careless://bucket/out") == 0
    assert "bucket/out/ has no locks and ignores conditions of writes" in capsys.readouterr().err
    assert open_output("careless://bucket/out").list_files("_framescribe/locks") == []


@pytest.mark.parametrize("place", ["memory", "local"])
def test_a_store_that_honours_conditions_is_not_named(tmp_path, place):
    output = {"memory": memory_output(), "local": str(tmp_path)}[place]
    assert open_output(output).honours_conditions()
    assert open_output(output).list_files("_framescribe/locks") == []


@pytest.mark.parametrize("place", ["memory", "local", "careless"])
def test_an_object_is_created_once_and_replaced_as_it_was_seen(tmp_path, place):
    output = {"memory": memory_output(), "local": str(tmp_path), "careless": f"careless://{tmp_path.name}"}[place]
    store = open_output(output)
    assert (store.create("a", b"1"), store.create("a", b"2"), store.create("a", b"1")) == (True, False, True)
    seen = store.version("a")
    assert (store.replace("a", b"2", seen), store.replace("a", b"3", seen), store.read("a")) == (True, False, b"2")
    assert (store.version("a"), store.version("b")) == (store.list_versions("")["a"], None)


def test_where_conditions_are_ignored_a_second_publisher_that_can_be_seen_is_refused(monkeypatch):
    monkeypatch.setattr("framescribe.storage.output.TURN_PATIENCE_S", 0.2)
    store = open_output("careless://bucket/turns")
    elsewhere = json.dumps({**json.loads(describe_process(time.time())), "host": "elsewhere", "process": 7})
    store.put("_framescribe/locks/turn", elsewhere.encode())
    with pytest.raises(StoreError, match="process 7 on elsewhere is starting or publishing"):
        store.turn().__enter__()
    store.put("_framescribe/locks/turn", describe_process(time.time() - 3600).encode())
    with store.turn() as has_turn:
        assert has_turn()
    assert store.list_files("_framescribe/locks") == []


def test_in_a_store_the_last_one_who_begins_has_the_turn_also_when_the_first_one_ends():
    first, second = (open_output("memory://turns-of-two").turn() for _ in range(2))
    first_has, second_has = first.__enter__(), second.__enter__()
    assert (first_has(), second_has()) == (False, True)
    first.__exit__(None, None, None)
    assert second_has()
    second.__exit__(None, None, None)
    assert open_output("memory://turns-of-two").list_files("_framescribe/locks") == []


def test_a_publisher_that_is_overtaken_in_a_store_publishes_what_is_there_then(monkeypatch):
    output = memory_output()
    store = open_output(output)
    start_run(store, RUN_RECORD, make_units("one"))
    commit(output, "one", [make_annotation("a", "one")])
    indexed = []

    def index_while_another_publishes(*arguments):
        index = index_clips(*arguments)
        if not indexed:
            indexed.append(True)
            start_run(store, RUN_RECORD, make_units("one", "two"))
            commit(output, "two", [make_annotation("b", "two")])
            publish(output)
        return index

    monkeypatch.setattr("framescribe.publish.publish.index_clips", index_while_another_publishes)
    assert publish(output).num_rows["clips"] == 2
    assert count_rows(output)["clips"] == 2
    assert json.loads(store.read("_SUCCESS"))["parts"].keys() == {"one", "two"}


class NotingStore(fsspec.AbstractFileSystem):
    """Notes what it is asked, and refuses with the statuses it is given."""

    cachable = False
    base = "https://host/storage/v1/"

    def __init__(self, protocol: str, *statuses: int) -> None:
        super().__init__()
        self.protocol = protocol
        self.asked: dict[str, object] = {}
        self.statuses = list(statuses)

    def split_path(self, path):
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method, **asked):
        self._note(asked)

    def call(self, method, path, bucket, **asked):
        self._note(asked)

    def pipe_file(self, path, value, mode="overwrite", **asked):
        self._note(asked)

    def _note(self, asked):
        self.asked = asked
        if self.statuses:
            raise Refused(self.statuses.pop())


class Refused(OSError):
    """An answer of a store, with its status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    ("protocol", "absent", "same"),
    [
        ("s3", {"IfNoneMatch": "*"}, {"IfMatch": "v1"}),
        ("gs", {"ifGenerationMatch": "0"}, {"ifGenerationMatch": "v1"}),
        ("az", {"overwrite": False}, {"overwrite": True, "etag": "v1", "match_condition": "not modified"}),
    ],
)
def test_a_write_on_a_condition_says_it_in_the_words_of_its_store(monkeypatch, protocol, absent, same):
    azure = SimpleNamespace(MatchConditions=SimpleNamespace(IfNotModified="not modified"))
    monkeypatch.setitem(sys.modules, "azure.core", azure)
    store = NotingStore(protocol)
    assert takes_conditions(store)
    put_if(store, "bucket/a", b"1", None)
    assert absent.items() <= store.asked.items()
    assert not {"IfMatch", "etag"} & store.asked.keys()
    put_if(store, "bucket/a", b"1", "v1")
    assert same.items() <= store.asked.items()
    assert "IfNoneMatch" not in store.asked


def test_a_condition_that_does_not_hold_is_told_from_a_store_without_conditions_and_from_one_that_is_down():
    for status in (409, 412):
        with pytest.raises(ConditionFailed):
            put_if(NotingStore("s3", status), "bucket/a", b"1", None)
    without = NotingStore("s3", 501)
    put_if(without, "bucket/a", b"1", None)
    assert without.asked == {}  # written all the same, without a condition
    with pytest.raises(Refused):
        put_if(NotingStore("s3", 503), "bucket/a", b"1", None)


@pytest.mark.parametrize(
    "written",
    [
        {"generation": "5", "etag": "same"},
        {"ETag": "5"},
        {"etag": "5"},
        {"ino": 5, "mtime": 1.0, "size": 1},
        {"ino": 1, "mtime": 5.0, "size": 1},
        {"ino": 1, "mtime": 1.0, "size": 5},
        {"size": 5},
        {"size": 1, "modified": datetime(2026, 1, 5, tzinfo=timezone.utc)},
    ],
)
def test_an_object_that_is_written_again_has_another_version(written):
    before = {"generation": "1", "ETag": "1", "etag": "same", "ino": 1, "mtime": 1.0, "size": 1}
    before["modified"] = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert object_version(written) != object_version({name: before[name] for name in written})
    assert object_version(written) == object_version(dict(written))


def test_a_time_is_one_version_however_a_store_writes_it():
    time_of_day = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert object_version({"modified": time_of_day}) == object_version({"modified": time_of_day.timestamp()})


def test_a_process_that_ended_has_no_turn_any_more_and_what_is_no_description_never_had_one():
    now_s = time.time()
    ended = subprocess.Popen(["true"])
    ended.wait()
    of_ended = json.dumps({**json.loads(describe_process(now_s)), "process": ended.pid})
    elsewhere = json.dumps({**json.loads(of_ended), "host": "elsewhere"})
    assert [may_live(text, now_s) for text in (describe_process(now_s), of_ended, elsewhere)] == [True, False, True]
    assert [may_live(text, now_s) for text in ("", "7", "[]", '{"process": 7}')] == [False] * 4
    assert (may_live(elsewhere, now_s + 590), may_live(elsewhere, now_s + 610)) == (True, False)


class CachingStore(MemoryFileSystem):
    """A store in memory, `caching://`, whose client remembers what it saw until it is told to forget."""

    protocol = "caching"
    store: dict[str, object] = {}  # noqa: RUF012
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, str], object] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("caching://").strip("/")

    def ls(self, path, detail=True, **kwargs):
        return self._remember("ls", path, super().ls)

    def info(self, path, **kwargs):
        return self._remember("info", path, super().info)

    def invalidate_cache(self, path=None):
        kept = {(verb, seen) for verb, seen in self.seen if path not in (None, seen, self._parent(seen))}
        self.seen = {key: self.seen[key] for key in kept}

    def _remember(self, verb, path, look):
        if (verb, path) not in self.seen:
            self.seen[verb, path] = look(path)
        return self.seen[verb, path]


def test_what_another_process_wrote_is_seen_though_the_client_has_looked_before():
    mine, other = (OutputStore(CachingStore(), "/bucket/seen-anew") for _ in range(2))
    for name in ("folder/a", "listed/a"):
        mine.put(name, b"1")
    seen, listed = mine.version("folder/a"), mine.list_files("listed")
    other.put("folder/a", b"other")
    other.put("listed/b", b"2")
    assert mine.version("folder/a") != seen
    assert (listed, mine.list_files("listed")) == (["a"], ["a", "b"])


class ServerOfS3(NotingStore):
    """Keeps objects in memory, and honours those conditions that it is given."""

    def __init__(self, *honoured: str) -> None:
        super().__init__("s3")
        self.honoured, self.objects = honoured, dict[str, bytes]()

    def call_s3(self, method, Bucket, Key, Body, **conditions):  # noqa: N803  # botocore's names
        path, seen = f"{Bucket}/{Key}", self.objects.get(f"{Bucket}/{Key}")
        is_refused = {"IfNoneMatch": seen is not None, "IfMatch": repr(seen) != conditions.get("IfMatch")}
        if any(is_refused[name] for name in conditions if name in self.honoured):
            raise Refused(412)
        self.objects[path] = Body

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.objects[path] = value

    def rm_file(self, path):
        del self.objects[path]

    def info(self, path, **kwargs):
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "ETag": repr(self.objects[path])}


@pytest.mark.parametrize(
    ("honoured", "is_enough"),
    [(("IfNoneMatch", "IfMatch"), True), (("IfNoneMatch",), False), (("IfMatch",), False), ((), False)],
)
def test_a_server_must_honour_both_conditions(honoured, is_enough):
    server = ServerOfS3(*honoured)
    assert OutputStore(server, "bucket/out").honours_conditions() == is_enough
    assert server.objects == {}


def test_of_many_who_replace_an_object_at_once_one_succeeds(tmp_path):
    stores = [open_output(str(tmp_path)) for _ in range(8)]
    stores[0].put("a", b"first")
    with ThreadPoolExecutor(len(stores)) as threads:
        for number in range(5):
            seen = stores[0].version("a")
            payloads = [f"{number} of {store}".encode() for store in range(len(stores))]
            replaced = list(threads.map(lambda store, payload: store.replace("a", payload, seen), stores, payloads))  # noqa: B023
            assert sum(replaced) == 1
            assert stores[0].read("a") == payloads[replaced.index(True)]


def test_a_finished_file_does_not_replace_what_another_wrote_since(tmp_path):
    store = open_output(str(tmp_path))
    store.put("a", b"1")
    seen = store.version("a")
    store.put("a", b"other")
    with store.scratch_folder() as scratch:
        (scratch / "a").write_bytes(b"2")
        assert not store.replace_with_file("a", scratch / "a", seen)
    assert store.read("a") == b"other"


def test_a_write_that_met_another_one_which_was_given_up_is_tried_again(tmp_path, monkeypatch):
    met = [FileExistsError()]

    def create_after_another(path, payload, lock_folder):
        if met:
            raise met.pop()
        create_file(path, payload, lock_folder)

    monkeypatch.setattr("framescribe.storage.output.create_file", create_after_another)
    store = OutputStore(LocalFileSystem(), str(tmp_path), RetryPolicy(sleep=lambda delay_s: None))
    assert store.create("a", b"1")
    assert store.read("a") == b"1"
