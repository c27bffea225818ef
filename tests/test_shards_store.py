"""Stores that fail, refuse or answer oddly, and what their messages may not contain."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framescribe.storage.access import Store
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import InputError, ShardChanged, StoreRefused, StoreUnavailable
from framescribe.storage.redaction import redact, strip_credentials
from pipeline.config import UnitConfig
from pipeline.units import plan_units
from tests.support.shards_fixtures import (
    AT_ONCE,
    QUICK,
    FlakyFileSystem,
    ids_of,
    make_tar,
    read_all,
    webdataset_members,
    write,
)

CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture
def shard():
    FlakyFileSystem.reset()
    FlakyFileSystem().pipe_file("flaky://s/a.tar", make_tar(webdataset_members(2)))
    return "flaky://s/a.tar"


class AnsweredWithStatus(Exception):  # what a client raises, in our fake of one
    """As aiohttp says it: not an OSError, with the status as an attribute."""

    def __init__(self, status):
        super().__init__(f"{status}, url='https://host/x?sig=s3cr3t'")
        self.status = status


@pytest.fixture
def http_client_errors(monkeypatch):
    """Makes AnsweredWithStatus one of the errors that clients of stores are known to raise."""
    import aiohttp

    monkeypatch.setattr(aiohttp, "ClientError", AnsweredWithStatus)


@pytest.fixture
def web_server(tmp_path):
    """Serves tmp_path/web on this machine, without ranges, as Python's own server does."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_store_that_fails_for_a_moment_is_asked_again(shard):
    FlakyFileSystem.failures += [TimeoutError("slow"), ConnectionResetError("gone")]
    units = plan_units([shard], read=QUICK)
    FlakyFileSystem.failures += [OSError("try again")]
    assert len(read_all(units)) == 2


def test_a_store_that_goes_on_failing_stops_the_run_with_what_to_do(shard):
    units = plan_units([shard])
    FlakyFileSystem.failures += [TimeoutError("slow")] * 9
    with pytest.raises(
        StoreUnavailable, match=r"cannot read flaky://s/a\.tar.*at attempt 3 of 3; run the same command again"
    ):
        read_all(units, ReadConfig(retries=replace(AT_ONCE, max_attempts=3)))


def test_a_shard_that_may_not_be_read_stops_the_run_at_once(shard):
    units = plan_units([shard])
    FlakyFileSystem.reads.clear()
    FlakyFileSystem.failures += [PermissionError("Forbidden")]
    with pytest.raises(StoreRefused, match="check the credentials"):
        read_all(units)
    assert len(FlakyFileSystem.reads) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, StoreRefused), (404, FileNotFoundError), (503, StoreUnavailable), (429, StoreUnavailable)],
)
def test_the_status_of_an_answer_decides_whether_to_ask_again(shard, http_client_errors, status, error):
    units = plan_units([shard])
    FlakyFileSystem.failures += [AnsweredWithStatus(status)] * 9
    with pytest.raises(error) as raised:
        read_all(units)
    assert "s3cr3t" not in str(raised.value)


def test_a_shard_cut_short_after_planning_stops_the_run(shard):
    units = plan_units([shard])
    FlakyFileSystem().pipe_file(shard, make_tar(webdataset_members(2))[:2000])
    with pytest.raises(ShardChanged):
        read_all(units)


def test_secrets_in_storage_options_never_reach_a_message(shard):
    store = Store({"flaky": {"secret": "planted-secret"}}, QUICK)
    with pytest.raises(StoreUnavailable) as raised:
        store.ask("read", functools.partial(_fail_with, "bad key planted-secret for https://a:b@host/x?sig=1"))
    assert "planted-secret" not in str(raised.value) + repr(store)
    assert "https://host/x" in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def _fail_with(message):
    raise OSError(message)


def test_storage_options_may_be_given_for_each_protocol():
    store = Store({"memory": {"marker": 1}, "flaky": {}}, QUICK)
    assert store.locate("flaky://s/a.tar").fs.storage_options == {}
    assert store.locate("memory://a").fs.storage_options == {"marker": 1}


def test_units_keep_the_protocol_that_their_storage_options_are_given_for(shard):
    assert [unit.shard for unit in plan_units(["shaky://s/*.tar", "shaky://s"])] == ["shaky:///s/a.tar"]


def test_a_store_that_takes_its_time_to_fail_is_not_asked_for_ever(shard):
    units = plan_units([shard])
    FlakyFileSystem.failures += [TimeoutError("slow")] * 9
    with pytest.raises(StoreUnavailable, match="at attempt 1 of 5"):
        read_all(units, ReadConfig(retries=replace(AT_ONCE, patience_s=0.0)))


@pytest.mark.parametrize(("uri", "extra"), [("s3://bucket/a.tar", "s3"), ("gcs://b/a.tar", "gs"), ("abfs://b/a", "az")])
def test_a_store_whose_client_is_not_installed_is_refused_with_the_extra_to_install(monkeypatch, uri, extra):
    monkeypatch.setattr("fsspec.get_filesystem_class", _fail_to_import)
    with pytest.raises(InputError, match=rf"cannot open '{uri}': Install it; .* pip install '\.\[{extra}\]'"):
        plan_units([uri])


def _fail_to_import(protocol):
    raise ImportError("Install it")


@pytest.mark.parametrize(
    ("uri", "stripped"),
    [
        ("/data/a?b@c.mp4", "/data/a?b@c.mp4"),
        ("s3://bucket/a@b.mp4", "s3://bucket/a@b.mp4"),
        ("https://user:pw@host/a.mp4", "https://host/a.mp4"),
        ("https://host/a.mp4?X-Amz-Signature=1#t", "https://host/a.mp4"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("az://box/a.mp4?sv=2&sig=abc", "az://box/a.mp4"),
        ("gs://bucket/what?.mp4", "gs://bucket/what?.mp4"),
        ("simplecache::https://u:p@h/a?k=1", "simplecache::https://h/a"),
    ],
)
def test_a_uri_loses_its_credentials_and_nothing_else(uri, stripped):
    assert strip_credentials(uri) == stripped


def test_a_message_loses_the_credentials_of_every_url_in_it():
    message = redact("url=URL('https://h/a?sig=1'), then s3://k:s@b/c failed with tok-123456", ["tok-123456"])
    assert message == "url=URL('https://h/a'), then s3://b/c failed with ***"


def test_a_web_server_without_ranges_is_asked_for_the_whole_shard(tmp_path, web_server):
    write(tmp_path / "web" / "s" / "a.tar", make_tar(webdataset_members(5)))
    units = plan_units([f"{web_server}/s/a.tar?token=s3cr3t"], UnitConfig(max_clips=2))
    clips = read_all(units)
    assert ids_of(clips) == [f"s/a/{number:04d}" for number in range(5)]
    assert [len(clip.video) for clip in clips] == [2000, 2001, 2002, 2003, 2004]
    assert "s3cr3t" not in repr(clips)


def test_a_web_address_that_is_not_there_fails_its_row_alone(tmp_path, web_server):
    write(tmp_path / "web" / "a.mp4", b"video")
    manifest = write(tmp_path / "m.csv", f"video\n{web_server}/a.mp4\n{web_server}/gone.mp4?sig=s3cr3t\n")
    found, gone = read_all(plan_units([manifest]))
    assert found.video == b"video"
    assert gone.reason == "video not found"
    assert "s3cr3t" not in repr(gone)


def test_web_hosts_that_are_gone_fail_their_rows_alone(tmp_path, web_server):
    write(tmp_path / "web" / "a.mp4", b"video")
    rows = [
        f"{web_server}/a.mp4?sig=s3cr3t",
        f"{CLOSED_PORT}/b.mp4",
        "http://gone.invalid/c.mp4",
        f"{CLOSED_PORT}/d.mp4",
    ]
    clips = read_all(plan_units([write(tmp_path / "m.csv", "\n".join(["video", *rows]))]))
    assert [getattr(clip, "reason", "read") for clip in clips] == ["read", *["host unreachable"] * 3]
    assert "127.0.0.1:9 gives no answer (ClientConnectorError" in clips[1].message
    assert clips[1].message.endswith(f"while {web_server.removeprefix('http://')} does")
    assert "s3cr3t" not in repr(clips)


def test_a_web_host_that_is_gone_fails_its_rows_of_a_parquet_shard_alone(tmp_path, web_server):
    write(tmp_path / "web" / "a.mp4", b"video")
    table = pa.table({"url": [f"{web_server}/a.mp4", f"{CLOSED_PORT}/b.mp4"]})
    pq.write_table(table, tmp_path / "m.parquet")
    found, gone = read_all(plan_units([str(tmp_path / "m.parquet")]))
    assert (found.video, gone.reason) == (b"video", "host unreachable")


def test_a_host_that_knows_no_video_shows_that_the_network_works(tmp_path, web_server):
    manifest = write(tmp_path / "m.csv", f"video\n{CLOSED_PORT}/a.mp4\n{web_server}/gone.mp4\n")
    assert [clip.reason for clip in read_all(plan_units([manifest]))] == ["host unreachable", "video not found"]


@pytest.mark.parametrize("other", ["http://127.0.0.1:10/b.mp4", "http://a..b/b.mp4", "HTTP://b/b.mp4", "/b.mp4"])
def test_without_another_web_host_that_answers_the_run_stops(tmp_path, other):
    units = plan_units([write(tmp_path / "m.csv", f"video\n{CLOSED_PORT}/a.mp4\n{other}\n")])
    with pytest.raises(StoreUnavailable, match="run the same command again"):
        read_all(units)


def test_a_silent_host_of_most_rows_is_a_store_that_is_down_and_stops_the_run(tmp_path, web_server):
    rows = [f"{web_server}/a.mp4", *(f"{CLOSED_PORT}/{number}.mp4" for number in range(101))]
    units = plan_units([write(tmp_path / "m.csv", "\n".join(["video", *rows]))], UnitConfig(max_clips=2))
    with pytest.raises(StoreUnavailable):
        read_all(units[-1:])


@pytest.mark.parametrize(("name", "head"), [("m.csv", "video,note"), ("m.jsonl", None)])
def test_a_unit_of_one_host_that_is_gone_is_judged_by_the_rows_all_over_its_manifest(tmp_path, web_server, name, head):
    write(tmp_path / "web" / "0.mp4", b"video")
    uris = [f"{web_server}/{number}.mp4" for number in range(3000)] + [f"{CLOSED_PORT}/{n}.mp4" for n in range(200)]
    rows = [f"{uri},{'x' * 500}" if head else json.dumps({"video": uri, "note": "x" * 500}) for uri in uris]
    manifest = write(tmp_path / name, "\n".join([head, *rows] if head else rows))
    (*_, last) = plan_units([manifest], UnitConfig(max_clips=50))
    assert {clip.reason for clip in read_all([last])} == {"host unreachable"}


@pytest.mark.parametrize("address", ["http://", "http:///a.mp4", "http://[open/a.mp4", "https://host:port/a.mp4"])
def test_a_web_address_without_a_host_fails_its_row_alone(tmp_path, address):
    (clip,) = read_all(plan_units([write(tmp_path / "m.csv", f"video\n{address}\n")]))
    assert clip.reason == "video not found"


def test_a_closed_port_stops_the_run(tmp_path):
    units = plan_units([write(tmp_path / "m.csv", "video\nhttp://127.0.0.1:9/a.mp4\n")])
    with pytest.raises(StoreUnavailable, match="run the same command again"):
        read_all(units, replace(QUICK, retries=replace(AT_ONCE, max_attempts=2)))
