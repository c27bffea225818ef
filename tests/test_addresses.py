"""What rows may name, who gets credentials, and web servers that answer oddly; all of them on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import aiohttp
import pytest

from framescribe.llava_video.model.checkpoint import find_checkpoint
from framescribe.shards.reading import read_unit
from framescribe.storage.addresses import AddressError, open_file_system, select_options
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import StoreUnavailable
from framescribe.storage.redaction import redact, secrets_in, secrets_of, strip_credentials
from framescribe.storage.retries import RetryPolicy
from pipeline.flag_values import parse_host
from pipeline.options import parse_command
from pipeline.units import plan_units
from run_pipeline import main
from schemas.records import Clip
from tests.support.run_fixtures import annotate_arguments, read_tables, start_run, tiny_clip
from tests.support.shards_fixtures import AT_ONCE, FlakyFileSystem, write
from tests.support.web_fixtures import (
    give,
    give_less_than_asked,
    give_short,
    give_slowly,
    hang_up,
    keep_waiting,
    redirect,
    say_status,
    web_server,
)

TOKEN, SIGNATURE = "Bearer planted-token-1", "plantedsignature77"
WITH_TOKEN = {"http": {"headers": {"Authorization": TOKEN, "X-Api-Key": "planted-key-2"}, "cookies": {"session": "c3"}}}
STRICT = ReadConfig(retries=AT_ONCE)
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
def server():
    with web_server() as started:
        yield started


@pytest.fixture
def other():
    with web_server() as started:
        yield started


def read_rows(folder, rows, config=STRICT, options=None):
    """Reads a local manifest of these videos."""
    manifest = write(
        folder / "m.jsonl", "\n".join(json.dumps({"video": row, "clip_id": str(n)}) for n, row in enumerate(rows))
    )
    return read_input(manifest, config, options)


def read_input(uri, config=STRICT, options=None):
    units = plan_units([uri], None, options, config)
    return [clip for unit in units for clip in read_unit(unit, options, config)]


def outcomes(clips):
    return [clip.video if isinstance(clip, Clip) else clip.reason for clip in clips]


def trusting(*hosts):
    return replace(STRICT, trusted_hosts=hosts)


def planted(server):
    """What of the planted secrets reached a server."""
    return [
        name for _, _, headers in server.asked for name in ("authorization", "x-api-key", "cookie") if name in headers
    ]


# What rows may name


@pytest.mark.parametrize(
    "address",
    [
        "zip://x.mp4::file://{secret}.zip",
        "tar://x.mp4::{secret}.tar",
        "dir://x::file://{secret}",
        "reference://x::file://{secret}",
        "simplecache::file://{secret}",
        "filecache::https://127.0.0.1/x",
        "data://text/plain;base64,AAAA",
        "github://org:repo@main/x.mp4",
        "ftp://127.0.0.1:9/x.mp4",
        "git://{secret}",
        "memory://x",
        "sftp://127.0.0.1/x",
        "nosuch://x",
        "ZIP://x.mp4::file://{secret}.zip",
        "local://{secret}",
        "FILE://{secret}",
    ],
)
def test_what_a_remote_manifest_may_not_name_is_a_failed_row_and_opens_nothing(tmp_path, server, address):
    secret = write(tmp_path / "secret", b"secret")
    row = json.dumps({"video": address.format(secret=secret), "clip_id": "bad"})
    server.answers |= {"/m.jsonl": give(f'{row}\n{{"video": "a.mp4"}}\n'.encode()), "/a.mp4": give(b"video")}
    bad, good = outcomes(read_input(f"{server.url}/m.jsonl"))
    assert good == b"video"
    assert bad in ("address not allowed", "local path in a remote shard", "video not found")


@pytest.mark.parametrize(
    "address",
    [
        "zip://a.mp4::{folder}/a.zip",
        "data://x",
        "ftp://127.0.0.1:9/x",
        "github://o:r@/x",
        "s3://arn:aws:s3:eu:1:accesspoint/x/a.mp4",
    ],
)
def test_a_protocol_that_rows_may_not_name_says_which_they_may(tmp_path, address):
    (clip,) = read_rows(tmp_path, [address.format(folder=tmp_path)])
    assert clip.reason == "address not allowed"
    assert "wanted a path or http, https, s3" in clip.message


def test_a_store_that_the_user_lists_may_be_named_by_rows(tmp_path):
    fs, _ = open_file_system("memory://listed/a.mp4")
    fs.pipe_file("/listed/a.mp4", b"video")
    assert outcomes(read_rows(tmp_path, ["memory://listed/a.mp4"], trusting("memory://listed"))) == [b"video"]
    assert outcomes(read_rows(tmp_path, ["memory://listed/a.mp4"], trusting("memory://other"))) == [
        "address not allowed"
    ]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ],
)
def test_no_row_reaches_this_machine_however_it_is_written(tmp_path, server, host):
    (clip,) = read_rows(tmp_path, [f"http://{host}:{server.server_port}/a.mp4"])
    assert clip.reason == "address not allowed"
    assert "--trusted-hosts" in clip.message
    assert server.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "100.100.100.200",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "224.0.0.1",
    ],
)
def test_no_row_reaches_a_private_address(tmp_path, host):
    assert outcomes(read_rows(tmp_path, [f"http://{host}/latest/meta-data"])) == ["address not allowed"]


def test_a_row_reaches_the_host_that_its_manifest_came_from_and_no_other_port(server, other):
    rows = [f"{server.url}/a.mp4", f"{other.url}/a.mp4", "b.mp4"]
    server.answers |= {
        "/m.csv": give("\n".join(["video,clip_id", *(f"{row},{n}" for n, row in enumerate(rows))]).encode()),
        "/a.mp4": give(b"video a"),
        "/b.mp4": give(b"video b"),
    }
    assert outcomes(read_input(f"{server.url}/m.csv")) == [b"video a", "address not allowed", b"video b"]
    assert other.asked == []


@pytest.mark.parametrize("listed", ["127.0.0.1", "{host}", "http://{host}"])
def test_a_listed_host_is_reached(tmp_path, server, listed):
    server.answers["/a.mp4"] = give(b"video")
    config = trusting(parse_host(listed.format(host=server.host)))
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], config)) == [b"video"]


def test_a_host_listed_by_its_name_is_reached_by_this_name_only(tmp_path, server):
    server.answers["/a.mp4"] = give(b"video")
    rows = [f"http://localhost:{server.server_port}/a.mp4", f"{server.url}/a.mp4"]
    assert outcomes(read_rows(tmp_path, rows, trusting("localhost"))) == [b"video", "address not allowed"]


@pytest.mark.parametrize("listed", ["127.0.0.1:1", "https://{host}", "localhost", "127.0.0.10"])
def test_a_host_listed_otherwise_is_not_reached(tmp_path, server, listed):
    config = trusting(parse_host(listed.format(host=server.host)))
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], config)) == ["address not allowed"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_reaches_no_private_address(tmp_path, server, other, status):
    server.answers["/a.mp4"] = redirect(f"{other.url}/metadata", status)
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], trusting(server.host))) == ["address not allowed"]
    assert other.asked == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "//"])
def test_a_redirect_to_something_else_fails_its_row(tmp_path, server, target):
    server.answers["/a.mp4"] = redirect(target)
    (clip,) = read_rows(tmp_path, [f"{server.url}/a.mp4"], trusting(server.host))
    assert clip.reason in ("address not allowed", "bad address")


def test_redirects_without_end_fail_their_row(tmp_path, server):
    server.answers["/a.mp4"] = redirect("/a.mp4")
    (clip,) = read_rows(tmp_path, [f"{server.url}/a.mp4"], trusting(server.host))
    assert (clip.reason, "more than 10 times" in clip.message) == ("address not allowed", True)


# Credentials


def test_credentials_go_to_the_host_of_the_manifest_and_never_across_a_redirect(server, other):
    server.answers |= {
        "/m.csv": give(f"video\na.mp4\nb.mp4\n{other.url}/c.mp4\n".encode()),
        "/a.mp4": redirect("/here/a.mp4"),
        "/here/a.mp4": give(b"video a"),
        "/b.mp4": redirect(f"{other.url}/b.mp4"),
    }
    other.answers |= {"/b.mp4": give(b"video b"), "/c.mp4": give(b"video c")}
    read = read_input(f"{server.url}/m.csv", trusting("https://elsewhere:443"), WITH_TOKEN)
    assert outcomes(read) == [b"video a", "address not allowed", "address not allowed"]
    asked = [headers for _, path, headers in server.asked if path == "/here/a.mp4"]
    assert {headers.get("authorization") for headers in asked} == {TOKEN}
    assert {headers.get("cookie") for headers in asked} == {"session=c3"}


def test_a_listed_host_gets_the_credentials_but_not_across_a_redirect(tmp_path, server, other):
    server.answers |= {"/a.mp4": give(b"video a"), "/b.mp4": redirect(f"{other.url}/b.mp4")}
    other.answers |= {"/b.mp4": give(b"video b")}
    config = trusting(server.host, other.host)
    read = read_rows(tmp_path, [f"{server.url}/a.mp4", f"{server.url}/b.mp4"], config, WITH_TOKEN)
    assert outcomes(read) == [b"video a", b"video b"]
    assert planted(server)
    assert other.asked
    assert planted(other) == []


def test_a_host_that_is_reached_but_not_trusted_gets_no_credentials(tmp_path, server, monkeypatch):
    """As a public one: its address is taken for public here."""
    monkeypatch.setattr("framescribe.storage.web_client.is_public", lambda address: True)
    server.answers["/a.mp4"] = give(b"video")
    options = {"http": {**WITH_TOKEN["http"], "headers": {**WITH_TOKEN["http"]["headers"], "User-Agent": "curator/1"}}}
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], STRICT, options)) == [b"video"]
    assert planted(server) == []
    assert {headers["user-agent"] for _, _, headers in server.asked} == {"curator/1"}


@pytest.mark.parametrize("way", ["client_kwargs", "plain"])
def test_session_wide_credentials_stay_with_trusted_hosts_too(tmp_path, server, monkeypatch, way):
    monkeypatch.setattr("framescribe.storage.web_client.is_public", lambda address: True)
    server.answers["/a.mp4"] = give(b"video")
    options = WITH_TOKEN["http"] if way == "plain" else {"client_kwargs": WITH_TOKEN["http"]}
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], STRICT, options)) == [b"video"]
    assert planted(server) == []


def test_behind_a_proxy_strangers_are_reached_without_credentials_and_private_addresses_are_not(tmp_path, server):
    server.answers["http://videos.example.org/a.mp4"] = give(b"video")
    options = {"http": {**WITH_TOKEN["http"], "proxy": server.url}}
    rows = ["http://videos.example.org/a.mp4", "http://127.0.0.1:1/a.mp4"]
    assert outcomes(read_rows(tmp_path, rows, STRICT, options)) == [b"video", "address not allowed"]
    assert planted(server) == []


def test_an_input_that_redirects_takes_no_credentials_along(server, other):
    server.answers |= {"/a.mp4": redirect(f"{other.url}/a.mp4")}
    other.answers |= {"/a.mp4": give(b"video")}
    assert outcomes(read_input(f"{server.url}/a.mp4", trusting(other.host), WITH_TOKEN)) == [b"video"]
    assert planted(other) == []


def test_options_without_a_protocol_are_for_the_stores_that_the_user_named(server):
    server.answers |= {"/m.csv": give(b"video\nmemory://listed/a.mp4\n")}
    fs, _ = open_file_system("memory://listed/a.mp4")
    fs.pipe_file("/listed/a.mp4", b"video")
    assert outcomes(read_input(f"{server.url}/m.csv", STRICT, WITH_TOKEN["http"])) == ["address not allowed"]


@pytest.mark.parametrize(
    "address", ["abfs://box@evil.blob.core.windows.net/a.mp4", "az://box@evil.dfs.core.windows.net/a"]
)
def test_a_row_does_not_choose_the_account_that_credentials_go_to(tmp_path, address):
    options = {"az": {"account_name": "mine", "account_key": "planted-key-2"}}
    pytest.importorskip("adlfs")
    assert outcomes(read_rows(tmp_path, [address], STRICT, options)) == ["address not allowed"]


@pytest.mark.parametrize(
    "said",
    [
        f"Signature {SIGNATURE} does not match",
        f"for user:hunter22@host and {SIGNATURE}",
        "token planted-token-1 is wrong",
        "dXNlcjpodW50ZXIyMg== is wrong",
    ],
)
@pytest.mark.parametrize("status", [403, 500])
def test_what_a_server_repeats_in_its_reason_is_in_no_message(server, said, status):
    server.answers["/a.mp4"] = say_status(status, said)
    address = f"http://user:hunter22@{server.host}/a.mp4?X-Amz-Signature={SIGNATURE}"
    with pytest.raises(Exception, match=f"{status}") as raised:
        read_input(address, replace(STRICT, retries=ONCE), WITH_TOKEN)
    assert not any(secret in str(raised.value) for secret in (SIGNATURE, "hunter22", "planted", "dXNlcjpodW50ZXIyMg"))


# Bodies and hosts that break off


@pytest.mark.parametrize("short", [give_short, give_less_than_asked])
def test_a_body_shorter_than_announced_fails_its_clip_after_all_attempts(tmp_path, server, short):
    server.answers |= {"/cut.mp4": short(b"x" * 500, 1000), "/a.mp4": give(b"video")}
    rows = [f"{server.url}/cut.mp4", f"{server.url}/a.mp4"]
    cut, whole = read_rows(tmp_path, rows, trusting(server.host))
    assert (cut.reason, whole.video) == ("video cut short", b"video")
    assert sum(method == "GET" and path == "/cut.mp4" for method, path, _ in server.asked) == AT_ONCE.max_attempts


def test_a_short_body_that_is_whole_at_the_next_attempt_is_read(tmp_path, server):
    def first_short(handler):
        gets = sum(method == "GET" for method, _, _ in server.asked)
        (give_short(b"vi", 5) if gets == 1 else give(b"video"))(handler)

    server.answers["/a.mp4"] = first_short
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], trusting(server.host))) == [b"video"]


def test_a_body_of_unknown_length_is_read_to_its_end(tmp_path, server):
    content = bytes(range(256)) * 1000
    server.answers["/a.mp4"] = give_slowly(content, pieces=7)
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], trusting(server.host))) == [content]


def test_a_body_without_end_is_read_to_the_limit_only(tmp_path, server):
    server.answers["/a.mp4"] = give_less_than_asked(b"x" * 5_000_000, 10)
    config = replace(trusting(server.host), max_video_bytes=1000)
    assert outcomes(read_rows(tmp_path, [f"{server.url}/a.mp4"], config)) == ["video too large"]


def test_a_single_video_that_is_cut_short_is_a_failed_clip(server):
    server.answers["/a.mp4"] = give_less_than_asked(b"x" * 500, 1000)
    assert outcomes(read_input(f"{server.url}/a.mp4")) == ["video cut short"]


@pytest.mark.parametrize("broken", [say_status(500), say_status(503), hang_up], ids=["500", "503", "hangs up"])
def test_an_address_that_never_works_fails_its_rows_while_others_of_its_host_answer(tmp_path, server, broken):
    server.answers |= {"/bad.mp4": broken, "/a.mp4": give(b"video")}
    rows = [f"{server.url}/bad.mp4", f"{server.url}/a.mp4", f"{server.url}/bad.mp4"]
    read = read_rows(tmp_path, rows, trusting(server.host))
    assert outcomes(read) == ["server error", b"video", "server error"]
    assert f"while other addresses of {server.host} answer" in read[0].message


def test_an_address_that_is_silent_fails_its_rows_long_before_a_slow_one_would(tmp_path, server, monkeypatch):
    monkeypatch.setattr("framescribe.storage.web_client.TIMEOUT", aiohttp.ClientTimeout(sock_read=0.3))
    server.answers |= {"/bad.mp4": keep_waiting(1.0), "/a.mp4": give_slowly(b"video" * 20, pieces=30)}
    rows = [f"{server.url}/bad.mp4", f"{server.url}/a.mp4"]
    config = replace(trusting(server.host), retries=ONCE)
    assert outcomes(read_rows(tmp_path, rows, config)) == ["server error", b"video" * 20]


@pytest.mark.parametrize("options", [{"timeout": 0.2}, {"client_kwargs": {"timeout": 0.2}}])
def test_a_timeout_of_the_users_own_is_in_seconds(tmp_path, server, options):
    server.answers |= {"/bad.mp4": keep_waiting(1.0), "/a.mp4": give(b"video")}
    rows = [f"{server.url}/bad.mp4", f"{server.url}/a.mp4"]
    config = replace(trusting(server.host), retries=ONCE)
    assert outcomes(read_rows(tmp_path, rows, config, {"http": options})) == ["server error", b"video"]


@pytest.mark.parametrize("status", [500, 503])
def test_a_host_of_which_nothing_works_stops_the_run(tmp_path, server, status):
    server.answers |= {"/a.mp4": say_status(status), "/b.mp4": say_status(status)}
    with pytest.raises(StoreUnavailable, match=f"{status}"):
        read_rows(tmp_path, [f"{server.url}/a.mp4", f"{server.url}/b.mp4"], trusting(server.host))


def test_a_host_with_its_own_trouble_fails_its_rows_while_another_host_answers(tmp_path, server, other):
    server.answers["/bad.mp4"] = say_status(500)
    other.answers["/a.mp4"] = give(b"video")
    read = read_rows(tmp_path, [f"{server.url}/bad.mp4", f"{other.url}/a.mp4"], trusting("127.0.0.1"))
    assert outcomes(read) == ["host unreachable", b"video"]


def test_a_store_that_is_gone_fails_its_rows_while_a_host_answers(tmp_path, server):
    FlakyFileSystem.reset()
    FlakyFileSystem().pipe_file("flaky://v/a.mp4", b"video")
    FlakyFileSystem.failures += [ConnectionError("gone")] * 5
    server.answers["/a.mp4"] = give(b"video")
    rows = [f"{server.url}/a.mp4", "flaky://v/a.mp4"]
    read = read_rows(tmp_path, rows, trusting(server.host, "flaky://v"))
    assert outcomes(read) == [b"video", "host unreachable"]


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".mp4", "a\nb.mp4", "x::y.mp4", "http://" + "a" * 70 + ".invalid/x", "http://a..b/x"]
)
def test_any_error_of_a_rows_own_address_is_that_rows_failure(tmp_path, server, name):
    server.answers["/a.mp4"] = give(b"video")
    bad, good = read_rows(tmp_path, [name, f"{server.url}/a.mp4"], trusting(server.host))
    assert isinstance(bad.reason, str)
    assert good.video == b"video"


# Options


def test_options_of_several_protocols_are_for_each_its_own():
    options = {"memory": {"marker": 1}, "http": {"headers": {}}}
    assert select_options("memory://model", options) == {"marker": 1}
    assert select_options("https://host/model", options)["headers"] == {}
    assert select_options("/local/model", options) == {}


def test_a_model_in_a_store_takes_its_own_of_several_options(tmp_path):
    fs, _ = open_file_system("memory://models/one/config.json")
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights")):
        fs.pipe_file(f"/models/one/{name}", content)
    options = select_options("memory://models/one", {"memory": {}, "http": {"headers": {"a": "b"}}})
    assert find_checkpoint("memory://models/one", None, options).read_json("config.json") == {}


@pytest.mark.parametrize(
    ("uri", "options", "said"),
    [
        ("http://h/a", {"haeders": {"Authorization": "planted-token"}}, "did you mean 'headers'"),
        ("http://h/a", {"anon": True}, "http:// knows no option 'anon'"),
        ("http://h/a", {"http": {"headers": {}}, "gcss": {"token": "planted-token"}}, "'gcss' stands beside 'http'"),
        ("memory://h/a", {"use_listing_cache": True}, "did you mean 'use_listings_cache'"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_right_one(uri, options, said):
    with pytest.raises(AddressError, match=said) as raised:
        select_options(uri, options)
    assert "planted" not in str(raised.value)


def test_storage_options_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = write(tmp_path / "options.json", '{"anon": true}')
    typed = ["plan", "--input", "a"]
    assert parse_command([*typed, "--storage-options", f"@{file}"]).flags.storage_options == {"anon": True}
    monkeypatch.setenv("FRAMESCRIBE_STORAGE_OPTIONS", '{"anon": false}')
    assert parse_command(typed).flags.storage_options == {"anon": False}
    assert parse_command([*typed, "--storage-options", "{}"]).flags.storage_options == {}
    monkeypatch.setenv("FRAMESCRIBE_STORAGE_OPTIONS", f"@{file}")
    assert parse_command(typed).flags.storage_options == {"anon": True}


@pytest.mark.parametrize("text", ["@/no/such/file", "planted-secret", '["planted-secret"]'])
def test_storage_options_that_cannot_be_read_are_not_repeated(text, capsys):
    with pytest.raises(SystemExit):
        parse_command(["plan", "--input", "a", "--storage-options", text])
    assert "planted" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a/b", "http://", "a b", "*", "user@host", "host:port", "h,i"])
def test_what_is_no_host_is_not_trusted(text, capsys):
    with pytest.raises(SystemExit):
        parse_command(["plan", "--input", "a", "--trusted-hosts", text])
    assert "wanted a host" in capsys.readouterr().err


# Redaction


@pytest.mark.parametrize(
    ("uri", "stripped"),
    [
        ("https://u:p@ss@host/a", "https://host/a"),
        ("s3://key:sec/ret@bucket/a", "s3://bucket/a"),
        ("https://user:p?w@host/a.mp4", "https://host/a.mp4"),
        ("http://u:p@[::1]:80/a?sig=1", "http://[::1]:80/a"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("https://host:8000/a@b.mp4", "https://host:8000/a@b.mp4"),
        ("zip://a.mp4::https://u:p@host/x.zip?sig=1", "zip://a.mp4::https://host/x.zip"),
    ],
)
def test_a_uri_loses_its_credentials_however_they_are_written(uri, stripped):
    assert strip_credentials(uri) == stripped


def test_a_part_of_a_secret_that_a_server_repeats_is_blanked():
    secrets = (
        *secrets_of({"headers": {"Authorization": TOKEN}, "list": ["listed-secret"]}),
        *secrets_in("http://h/?k=a%2Fb%2Fcde"),
    )
    assert redact("planted-token-1, listed-secret, a/b/cde and a%2Fb%2Fcde", secrets) == "***, ***, *** and ***"


def test_a_checkpoint_with_a_signature_is_named_without_it(server):
    server.answers |= {
        "/model": lambda handler: give(b'<a href="config.json">c</a><a href="w.safetensors">w</a>')(handler),
        "/model/": give(b'<a href="config.json">c</a><a href="w.safetensors">w</a>'),
        "/model/config.json": give(b"{}"),
        "/model/w.safetensors": give(b"weights"),
    }
    uri = f"http://user:p@ss@{server.host}/model"
    assert find_checkpoint(uri, None, select_options(uri, {})).name == f"{server.url}/model"


# The command line


def run_command(arguments, **environment):
    process = start_run(arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_manifest_of_web_videos_is_annotated_by_the_command_line(tmp_path, server, other):
    server.answers |= {
        "/a.mp4": give(tiny_clip(0)),
        "/cut.mp4": give_less_than_asked(tiny_clip(1)[:600], len(tiny_clip(1))),
        "/b.mp4": redirect(f"{other.url}/b.mp4"),
    }
    other.answers["/b.mp4"] = give(tiny_clip(1))
    rows = [
        f"{server.url}/a.mp4?sig={SIGNATURE}",
        f"{server.url}/cut.mp4",
        f"{server.url}/b.mp4",
        "data://x",
        f"{other.url}/b.mp4",
    ]
    manifest = write(
        tmp_path / "m.jsonl", "\n".join(json.dumps({"video": row, "clip_id": str(n)}) for n, row in enumerate(rows))
    )
    options = write(tmp_path / "secret.json", json.dumps(WITH_TOKEN))
    flags = ("--storage-options", f"@{options}", "--trusted-hosts", server.host)
    status, out, err = run_command(annotate_arguments(tmp_path, [manifest], tmp_path / "out", *flags))
    assert (status, "Traceback" in err) == (0, False), err
    tables = read_tables(tmp_path / "out")
    assert [row["clip_id"] for row in tables["clips"] if row["clip_id"] == "0"] == ["0"]
    reasons = {row["clip_id"]: row["reason"] for row in tables["failures"]}
    private = dict.fromkeys("234", "address not allowed")
    assert reasons == {"1": "video cut short", **private}
    assert other.asked == []
    assert SIGNATURE not in out + err + str(tables)


@pytest.mark.parametrize(
    "source",
    [
        "data://x",
        "github://org:repo@main/x",
        "ftp://127.0.0.1:9/x.mp4",
        "zip://x.mp4::{folder}/no.zip",
        "zip://*::{folder}/m.txt",
        "tar://x.mp4::{folder}/m.txt",
        "http://127.0.0.1:{port}/a.tar",
        "nosuch://x",
        "s3://b/a::b.mp4",
        "http://[/a.mp4",
    ],
)
def test_a_plan_shows_no_traceback(tmp_path, server, monkeypatch, capsys, source):
    monkeypatch.setattr("pipeline.commands.ReadConfig", partial(ReadConfig, retries=AT_ONCE))
    server.answers["/a.tar"] = say_status(500)
    write(tmp_path / "m.txt", b"no archive")
    assert main(["plan", "--input", source.format(folder=tmp_path, port=server.server_port)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
