"""Jobs on a real Flink session cluster of two TaskManagers, with workers in a pool: `make test-flink`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framescribe.storage.journal import list_done_units
from framescribe.storage.output import open_output
from tests.support.flink_cluster import FlinkCluster
from tests.support.run_fixtures import CHECKPOINT, ROOT, annotate_arguments, make_shard, read_tables, tiny_clip
from tests.support.shards_fixtures import write
from tests.support.web_fixtures import Answer, ToldServer, give, web_server
from tests.test_real_stores import Bucket, download_tables, start_s3

pytestmark = [pytest.mark.flink, pytest.mark.timeout(1800)]

_NUM_CLIPS = 14
_GRACE_S = 10.0  # of a pool, between SIGTERM and SIGKILL
_JOB_WITHIN_S = 1500.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[FlinkCluster]:
    place = os.environ.get("FRAMESCRIBE_FLINK", "")
    if not place or shutil.which("java") is None:
        pytest.skip("needs Java and Flink: `make test-flink` installs Flink")
    jar = Path(os.environ.get("FRAMESCRIBE_FLINK_JOB_SERVER") or f"{place}/job-server.jar")
    with FlinkCluster(tmp_path_factory.mktemp("flink"), Path(place, "lib"), jar) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pool(cluster) -> str:
    return cluster.start_pools("pool")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[Bucket]:
    server, bucket = start_s3(tmp_path_factory.mktemp("s3"))
    yield bucket
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shards, and the tables of a local run of them in `local`."""
    folder = tmp_path_factory.mktemp("runs")
    make_shard(folder / "shards" / "a.tar", 8, num_broken=1)
    make_shard(folder / "shards" / "b.tar", _NUM_CLIPS - 8)
    run(arguments_of(folder, [str(folder / "shards")], folder / "local"))
    return folder


def arguments_of(folder: Path, inputs: list[str], output: Path | str, *flags: str) -> list[str]:
    """As `annotate_arguments`, with a dtype: `auto` is another fingerprint where only the workers know what it is."""
    return annotate_arguments(folder, inputs, output, "--dtype", "float32", *flags)


def portable(cluster: FlinkCluster, pool: str) -> list[str]:
    endpoint = [
        "--runner",
        "PortableRunner",
        f"--job_endpoint={cluster.job_endpoint}",
        f"--flink_master={cluster.master}",
    ]
    return [*endpoint, "--environment_type=EXTERNAL", f"--environment_config={pool}", "--parallelism=4"]


def flink_runner(cluster: FlinkCluster, pool: str) -> list[str]:
    server = [f"--flink_master={cluster.master}", f"--flink_job_server_jar={cluster.job_server_jar}"]
    environment = ["--environment_type=EXTERNAL", f"--environment_config={pool}", "--parallelism=4"]
    return ["--runner", "FlinkRunner", *server, *environment]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "run_pipeline.py"), *arguments]
    return subprocess.Popen(command, cwd=ROOT.parent, stderr=subprocess.PIPE, text=True)


def end(client: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = client.communicate(timeout=_JOB_WITHIN_S)
    print(said)
    return client.returncode, said


def run(arguments: list[str]) -> str:
    status, said = end(start(arguments))
    assert status == 0, said
    return said


def slowly(answer: Answer, seconds: float) -> Answer:
    def wait_and_answer(handler) -> None:
        time.sleep(seconds if handler.command == "GET" else 0.0)
        answer(handler)

    return wait_and_answer


@pytest.fixture
def slow_clips(tmp_path) -> Iterator[tuple[ToldServer, str]]:
    """A manifest of 24 clips on a web server that remembers how often each was read, and takes its time."""
    with web_server() as server:
        names = [f"/{number:02d}.mp4" for number in range(24)]
        server.answers |= {name: slowly(give(tiny_clip(number)), 1.0) for number, name in enumerate(names)}
        rows = (json.dumps({"video": f"{server.url}{name}"}) for name in names)
        yield server, write(tmp_path / "clips.jsonl", "\n".join(rows))


def count_reads(server: ToldServer) -> dict[str, int]:
    asked = [path for command, path, _ in server.asked if command == "GET"]
    return {path: asked.count(path) for path in sorted(set(asked))}


def wait_until(is_so: Callable[[], object], client: subprocess.Popen[str]) -> None:
    while not is_so():
        assert client.poll() is None, end(client)
        time.sleep(0.1)


def clips_of(output: Path, unit_ids: list[str]) -> set[str]:
    """Returns the paths on the web server of units of one clip each."""
    return {f"/{int(unit_id.rpartition('-')[0].rpartition('-')[2]):02d}.mp4" for unit_id in unit_ids}


def test_a_job_on_flink_writes_the_tables_of_a_local_run(cluster, pool, folder):
    run(arguments_of(folder, [str(folder / "shards")], folder / "disk", *portable(cluster, pool)))
    assert read_tables(folder / "disk") == read_tables(folder / "local")


def test_flink_runner_starts_its_job_server_and_writes_the_same_tables_to_s3(cluster, pool, folder, bucket, tmp_path):
    options = ("--storage-options", json.dumps(bucket.options), *flink_runner(cluster, pool))
    run(arguments_of(folder, [str(folder / "shards")], f"{bucket.uri}/out", *options))
    assert download_tables(bucket, "out", tmp_path) == read_tables(folder / "local")


def kill_worker(cluster: FlinkCluster) -> None:
    cluster.find_workers("pool")[-1].kill()


def terminate_worker(cluster: FlinkCluster) -> None:
    """As Kubernetes does with a machine that is taken, and a pool with a worker of a job that is cancelled."""
    worker = cluster.find_workers("pool")[-1]
    worker.terminate()
    worker.wait(timeout=_GRACE_S)


def kill_task_manager(cluster: FlinkCluster) -> None:
    cluster.kill_task_manager()
    cluster.start_task_manager()


@pytest.mark.parametrize("kill", [kill_worker, terminate_worker, kill_task_manager])
def test_a_job_survives_what_is_killed_and_annotates_no_committed_unit_again(
    cluster, pool, folder, slow_clips, tmp_path, kill
):
    server, manifest = slow_clips
    one_each = ("--clips-per-unit", "1", "--prefetch-clips", "1", "--trusted-hosts", server.host)
    run(arguments_of(folder, [manifest], tmp_path / "local", *one_each))
    server.asked.clear()
    store = open_output(str(tmp_path / "out"))
    client = start(arguments_of(folder, [manifest], tmp_path / "out", *one_each, *portable(cluster, pool)))
    wait_until(lambda: len(list_done_units(store)) >= 6, client)
    kill(cluster)
    committed = list_done_units(store)
    reads = count_reads(server)
    status, said = end(client)
    assert status == 0, said
    assert read_tables(tmp_path / "out") == read_tables(tmp_path / "local")
    read_again = {path for path, number in count_reads(server).items() if number > reads.get(path, 0)}
    print(reads, count_reads(server), committed)
    assert len(committed) < 24
    assert clips_of(tmp_path, committed) & read_again == set()


def hear_reason(arguments: list[str]) -> str:
    """Runs a job that cannot work, and returns its last line, which was said before when Flink first met the reason."""
    status, said = end(start(arguments))
    assert (status, "Traceback" in said) == (1, False), said
    last = said.splitlines()[-1].removeprefix("framescribe annotate: ")
    assert f"a worker stopped, and Flink starts it again: {last}" in said.splitlines()
    return last


def hide(folder: Path) -> tuple[str, ...]:
    """Returns what starts a command that sees an empty disk in place of a folder."""
    alone = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and `unshare`")
    return alone


def test_a_pool_without_the_package_is_one_line(cluster, folder, tmp_path):
    programs = tmp_path / "programs"
    write(programs / "python", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n'.encode())
    (programs / "python").chmod(0o755)
    import sysconfig

    packages = sysconfig.get_path("purelib")
    bare = cluster.start_pools("bare", PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=packages)
    arguments = arguments_of(folder, [str(folder / "shards")], tmp_path / "out", *portable(cluster, bare))
    said = hear_reason(arguments)
    assert said == (
        f"the worker whose packages lie in {packages} has no module 'transforms': install this "
        "version of FrameScribe there, with all that this machine has of it, or name an image that holds it "
        "(--sdk_container_image)"
    )


def test_a_pool_with_another_version_is_one_line(cluster, folder, tmp_path):
    write(tmp_path / "other" / "framescribe-9.9.0.dist-info" / "METADATA", "Name: framescribe\nVersion: 9.9.0\n")
    other = cluster.start_pools("other", PYTHONPATH=f"{tmp_path / 'other'}{os.pathsep}{ROOT}")
    arguments = arguments_of(folder, [str(folder / "shards")], tmp_path / "out", *portable(cluster, other))
    said = hear_reason(arguments)
    assert "has other versions than the place where the run was started: framescribe 9.9.0" in said


def test_a_pool_without_the_stores_client_is_one_line(cluster, folder, bucket, tmp_path):
    without = cluster.start_pools("without-client", PYTHONPATH=str(ROOT))
    options = ("--storage-options", json.dumps(bucket.options), *portable(cluster, without))
    said = hear_reason(arguments_of(folder, [str(folder / "shards")], f"{bucket.uri}/none", *options))
    assert "s3fs" in said
    assert "; in the worker whose packages lie in " in said


def test_a_pool_that_does_not_see_the_model_is_one_line(cluster, folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(CHECKPOINT, model)
    blind = cluster.start_pools("without-model", *hide(model))
    arguments = arguments_of(folder, [str(folder / "shards")], tmp_path / "out", *portable(cluster, blind))
    said = hear_reason([*arguments, "--model", str(model)])
    assert str(model) in said
    assert socket.gethostname() in said


def test_a_pool_that_does_not_see_the_output_is_one_line(cluster, folder, tmp_path):
    (tmp_path / "out").mkdir()
    blind = cluster.start_pools("without-output", *hide(tmp_path / "out"))
    arguments = arguments_of(folder, [str(folder / "shards")], tmp_path / "out", *portable(cluster, blind))
    said = hear_reason(arguments)
    assert f"as the worker on {socket.gethostname()} sees it" in said
    assert "Give an --output that all machines share" in said
