"""The same graph through Beam's portable job service: what pickles only by luck is found here, not on a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, GoogleCloudOptions

from framescribe.storage.claims import show_sign_of_life
from framescribe.storage.errors import InputError, StoreUnavailable
from framescribe.storage.output import open_output
from pipeline.flink import say_if_no_worker_comes, say_why_workers_stop
from pipeline.runners import explain_worker_error, make_options
from tests.support.beam_services import START_S, runner_environment, serve
from tests.support.golden_cases import COMMITTED
from tests.support.shards_fixtures import write
from tests.support.web_fixtures import give, web_server

ROOT = Path(__file__).parents[1]
RECIPE = """\
recipe: model_card
caption: {id: model_card_caption, prompt: Please describe this video in detail., max_new_tokens: 3}
stop_loops: true
retries: []
"""


@pytest.fixture
def job_service(tmp_path: Path) -> Iterator[str]:
    process, port = serve(
        "apache_beam.runners.portability.local_job_service_main", "--port", tmp_path / "job_service.log"
    )
    yield f"localhost:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def worker_pool(tmp_path: Path) -> Iterator[str]:
    process, port = serve("apache_beam.runners.worker.worker_pool_main", "--service_port", tmp_path / "worker_pool.log")
    yield f"localhost:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def worker_pool_elsewhere(tmp_path: Path) -> Iterator[str]:
    """A pool that sees an empty disk of its own in place of the output."""
    (tmp_path / "out").mkdir()
    alone = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path}/out && exec "$@"', "sh")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and `unshare`")
    process, port = serve(
        "apache_beam.runners.worker.worker_pool_main", "--service_port", tmp_path / "elsewhere.log", *alone
    )
    yield f"localhost:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def worker_pool_without_package(tmp_path: Path) -> Iterator[str]:
    """A pool whose Python has the packages of this one, but for ours: without `site`, no editable install is seen."""
    programs = tmp_path / "programs"
    write(programs / "python", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n'.encode())
    (programs / "python").chmod(0o755)
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": sysconfig.get_path("purelib")}
    process, port = serve(
        "apache_beam.runners.worker.worker_pool_main", "--service_port", tmp_path / "without.log", **environment
    )
    yield f"localhost:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def worker_pool_without_beam(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A pool that was started with another Python first in its PATH, which has no packages at all; and its log."""
    programs = tmp_path / "programs"
    write(programs / "python", f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n'.encode())
    (programs / "python").chmod(0o755)
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    log = tmp_path / "without.log"
    process, port = serve("apache_beam.runners.worker.worker_pool_main", "--service_port", log, **environment)
    yield f"localhost:{port}", log
    process.kill()
    process.wait()


@pytest.fixture
def job_server_program(tmp_path: Path) -> str:
    """A program that Beam starts as it starts Prism, with Beam's own job service behind it."""
    program = tmp_path / "job_server"
    service = "apache_beam.runners.portability.local_job_service_main"
    # $1 $2: --job_port PORT
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {service} --port "$2"\n')
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def prism() -> str:
    location = os.environ.get("FRAMESCRIBE_PRISM", "")
    if not location:
        pytest.skip("needs Prism: `make test-prism` builds it")
    return location


def _command(tmp_path: Path, *flags: str) -> list[str]:
    """Returns the command line over two demo clips, a unit each."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    clips = [str(path) for path in sorted((ROOT / "demo" / "clips").glob("*.mp4"))[:2]]
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "annotate", "--input", *clips]
    command += ["--output", str(tmp_path / "out"), "--model", str(COMMITTED / "checkpoints" / "g9"), "--device", "cpu"]
    command += ["--num-frames", "2", "--recipe", str(tmp_path / "recipe.yaml"), "--kv-cache-gib", "0.1"]
    return [*command, "--clips-per-unit", "1", *flags]


def _annotate(tmp_path: Path, *beam_flags: str) -> list[str]:
    """Runs the command on two demo clips and returns the annotated clip ids."""
    command = _command(tmp_path, *beam_flags)
    done = subprocess.run(command, env=runner_environment(), cwd=tmp_path, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out" / "_SUCCESS").exists()
    captions = pq.read_table(tmp_path / "out" / "captions")
    assert captions["dtype"].unique().to_pylist() == ["float32"], "what auto came to, in the workers"
    return captions["clip_id"].to_pylist()


def _interrupt(command: list[str], tmp_path: Path) -> tuple[int, str]:
    """Interrupts the command once its job server is up, and returns its exit status and what it said."""
    process = subprocess.Popen(command, env=runner_environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "Really starting service" not in (line := process.stderr.readline()):
        assert line, "it ended before"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def _trace(*errors: str) -> str:
    return "\n\nDuring handling of the above exception, another exception occurred:\n\n".join(
        f'Traceback (most recent call last):\n  File "a.py", line 1, in process\n{error}' for error in errors
    )


@pytest.mark.parametrize("kind", [InputError, StoreUnavailable])
def test_an_error_of_ours_is_found_in_what_a_runner_says_wherever_it_is_defined(kind: type[Exception]) -> None:
    name = f"{kind.__module__}.{kind.__name__}"
    other = "other_package.errors.RunnerError: bundle failed"
    said = explain_worker_error(_trace(f"{name}: no room left\non the disk", other) + " [while running 'Read']")
    assert str(said) == "no room left\non the disk"
    behind = explain_worker_error(_trace("apache_beam.utils.Odd: lost", f"{name}: no room left [while running 'Read']"))
    assert str(behind) == "no room left"


def test_an_error_of_another_package_with_the_names_of_ours_is_none_of_ours() -> None:
    for name in ("storage.errors.InputError", "pipeline.annotate.Odd", "framescribe.errors.Odd", "ValueError"):
        assert explain_worker_error(_trace(f"{name}: no room left")) is None


def test_why_flink_starts_a_job_again_is_said_once_while_it_still_does(capsys: pytest.CaptureFixture[str]) -> None:
    options = make_options("PortableRunner", [])
    name = options.view_as(GoogleCloudOptions).job_name
    ours = _trace(f"{InputError.__module__}.InputError: no room left") + " [while running 'Read']"
    traces = [f"java.lang.RuntimeException: {ours}", "io.grpc.StatusRuntimeException: CANCELLED\n  at io.grpc.Status"]
    with web_server() as flink:
        jobs = [{"name": "other", "jid": "1"}, {"name": name, "jid": "2"}]
        flink.answers["/jobs/overview"] = give(json.dumps({"jobs": jobs}).encode())
        entries = [{"stacktrace": trace} for trace in [*traces, traces[0]]]
        flink.answers["/jobs/2/exceptions"] = give(json.dumps({"exceptionHistory": {"entries": entries}}).encode())
        options.view_as(FlinkRunnerOptions).flink_master = flink.host
        with say_why_workers_stop(options):
            while len([path for _, path, _ in flink.asked if path == "/jobs/2/exceptions"]) < 2:
                time.sleep(0.1)
    assert capsys.readouterr().err.splitlines() == [
        "a worker stopped, and Flink starts it again: no room left",
        "Flink starts a part of the job again: io.grpc.StatusRuntimeException: CANCELLED",
    ]


def test_of_a_cluster_that_is_not_named_nothing_is_asked() -> None:
    with say_why_workers_stop(make_options("FlinkRunner", [])):
        assert "flink-watch" not in [thread.name for thread in threading.enumerate()]


def test_the_graph_runs_with_loopback_workers(tmp_path: Path, job_service: str) -> None:
    flags = ["--runner=PortableRunner", f"--job_endpoint={job_service}", "--environment_type=LOOPBACK"]
    assert _annotate(tmp_path, *flags) == ["clips/01_left", "clips/02_right_up"]


def test_relative_folders_are_those_of_the_client_in_a_worker_pool_too(
    tmp_path: Path, job_service: str, worker_pool: str
) -> None:
    (tmp_path / "checkpoint").symlink_to(COMMITTED / "checkpoints" / "g9")
    places = ("--output", "out", "--model", "checkpoint")
    flags = ["--runner=PortableRunner", f"--job_endpoint={job_service}", "--environment_type=EXTERNAL"]
    clip_ids = _annotate(tmp_path, *flags, f"--environment_config={worker_pool}", *places)
    assert clip_ids == ["clips/01_left", "clips/02_right_up"]


def test_workers_with_a_disk_of_their_own_in_place_of_the_output_are_an_error_that_says_so(
    tmp_path: Path, job_service: str, worker_pool_elsewhere: str
) -> None:
    flags = ("--runner=PortableRunner", f"--job_endpoint={job_service}", "--environment_type=EXTERNAL")
    command = _command(tmp_path, *flags, f"--environment_config={worker_pool_elsewhere}")
    done = subprocess.run(command, env=runner_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"framescribe annotate: the plan of this run is not in {tmp_path}/out/_framescribe/plan as the worker on "
        f"{socket.gethostname()} sees it: the run was removed meanwhile, or that folder is on a disk of the worker's "
        "own. Give an --output that all machines share, such as s3://bucket/folder or a mounted folder"
    )
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_worker_without_the_package_is_one_line_that_names_it_and_the_remedy(
    tmp_path: Path, job_service: str, worker_pool_without_package: str
) -> None:
    flags = ("--runner=PortableRunner", f"--job_endpoint={job_service}", "--environment_type=EXTERNAL")
    command = _command(tmp_path, *flags, f"--environment_config={worker_pool_without_package}")
    done = subprocess.run(command, env=runner_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"framescribe annotate: the worker whose packages lie in {sysconfig.get_path('purelib')} has no module "
        "'transforms': install this version of FrameScribe there, with all that this machine has of it, or name an "
        "image that holds it (--sdk_container_image)"
    )
    assert "Traceback" not in done.stderr


def test_a_pool_whose_python_lacks_beam_is_named_once_instead_of_waited_for_without_a_word(
    tmp_path: Path, job_service: str, worker_pool_without_beam: tuple[str, Path]
) -> None:
    pool, log = worker_pool_without_beam
    flags = ("--runner=PortableRunner", f"--job_endpoint={job_service}", "--environment_type=EXTERNAL")
    command = _command(tmp_path, *flags, f"--environment_config={pool}")
    sooner = "import sys, pipeline.flink as f, run_pipeline as r; f._SECONDS_TO_COME = 8.0; sys.exit(r.main())"
    process = subprocess.Popen(
        [command[0], "-c", sooner, *command[2:]],
        env=runner_environment(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    while not (said and said[-1].startswith("warning: no worker")):
        said.append(process.stderr.readline())
        assert said[-1], f"it ended before: {said}"
    deadline = time.monotonic() + START_S
    while "No module named 'apache_beam'" not in log.read_text():
        assert time.monotonic() < deadline, f"the pool has started no worker: {log.read_text()}"
        time.sleep(0.2)
    assert process.poll() is None, "it waits"
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=60)[1].splitlines(keepends=True)
    (warning,) = [line for line in said if line.startswith("warning: no worker")]
    assert warning.startswith("warning: no worker has begun after 8 s. ")
    assert f"at {pool} (--environment_config)" in warning
    assert "python -c 'import apache_beam, framescribe'" in warning
    assert process.returncode == 130
    assert said[-1].startswith("framescribe: stopped; kept under"), said


def test_a_worker_pool_that_shows_a_sign_of_life_is_not_warned_of(tmp_path: Path) -> None:
    options = make_options("PortableRunner", ["--environment_type=EXTERNAL", '--environment_config={"url": "pool:1"}'])
    store = open_output(str(tmp_path))
    show_sign_of_life(store, "earlier")
    said: list[str] = []
    for start_id in ("earlier", "now"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.flink._SECONDS_TO_COME", 0.0)
            patch.setattr("pipeline.flink._print_line", said.append)
            with say_if_no_worker_comes(options, store, start_id):
                time.sleep(1)
    (warning,) = said
    assert "answers it at pool:1 (--environment_config)" in warning


def test_a_runner_that_starts_its_own_job_server_runs_the_graph(tmp_path: Path, job_server_program: str) -> None:
    clip_ids = _annotate(tmp_path, "--runner=PrismRunner", f"--prism_location={job_server_program}")
    assert clip_ids == ["clips/01_left", "clips/02_right_up"]


def test_an_interrupted_run_leaves_no_job_server_and_says_what_is_kept(tmp_path: Path, job_server_program: str) -> None:
    flags = ("--runner=PrismRunner", f"--prism_location={job_server_program}")
    status, said = _interrupt(_command(tmp_path, *flags), tmp_path)
    assert status == 130
    assert said.endswith(
        f"framescribe: stopped; kept under {tmp_path}/out: at least 0 of 2 clips. The same command goes on from there, "
        f"`publish --output {tmp_path}/out` builds tables of what is finished\n"
    )
    assert "Traceback" not in said
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info)]


def test_a_runner_that_cannot_get_its_job_server_is_one_line(tmp_path: Path) -> None:
    command = _command(tmp_path, "--runner=FlinkRunner", "--flink_job_server_jar=missing.jar")
    done = subprocess.run(command, env=runner_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "framescribe annotate: --runner FlinkRunner did not take the pipeline: ValueError: Unable to parse jar URL"
    )


def test_the_graph_runs_on_prism(tmp_path: Path, prism: str) -> None:
    clip_ids = _annotate(tmp_path, "--runner=PrismRunner", f"--prism_location={prism}")
    assert clip_ids == ["clips/01_left", "clips/02_right_up"]


def test_an_interrupted_run_on_prism_is_finished_by_the_next_one(tmp_path: Path, prism: str) -> None:
    flags = ("--runner=PrismRunner", f"--prism_location={prism}")
    status, said = _interrupt(_command(tmp_path, *flags), tmp_path)
    assert (status, "Traceback" in said) == (130, False)
    assert _annotate(tmp_path, *flags) == ["clips/01_left", "clips/02_right_up"]
