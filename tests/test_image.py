"""The environment that docker/Dockerfile installs: workers in it do a job. `make test-image` makes it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def wait_for(port: int) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)


@pytest.fixture
def image() -> Path:
    if "FRAMESCRIBE_IMAGE" not in os.environ:
        pytest.skip("needs the environment of the image: `make test-image` makes it")
    return Path(os.environ["FRAMESCRIBE_IMAGE"])


def test_a_worker_pool_of_the_image_annotates_the_demo_clips(image, tmp_path):
    pool_port, job_port = free_port(), free_port()
    # Of the image's packages alone, as in a container: neither this checkout nor its environment is seen.
    environment = {"PATH": f"{image}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    pool = ["python", "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool_port}"]
    server = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", f"--port={job_port}"]
    (tmp_path / "elsewhere").mkdir()
    with (
        subprocess.Popen(pool, env=environment, cwd=tmp_path / "elsewhere", start_new_session=True) as workers,
        subprocess.Popen(server) as service,
    ):
        try:
            wait_for(pool_port)
            wait_for(job_port)
            flags = ["--input", "demo/clips", "--model", "demo/checkpoint", "--num-frames", "8", "--device", "cpu"]
            runner = ["--runner=PortableRunner", f"--job_endpoint=localhost:{job_port}", "--environment_type=EXTERNAL"]
            where = [f"--environment_config=localhost:{pool_port}", "--output", str(tmp_path / "out")]
            command = [sys.executable, "run_pipeline.py", "annotate", *flags, *runner, *where]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        finally:
            os.killpg(workers.pid, 9)
            service.terminate()
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out" / "captions").num_rows == 12
