"""Beam's own job service and worker pools, as processes of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runner_environment() -> dict[str, str]:
    # The worker pool starts `python` from PATH: it has to be the one with everything installed.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def serve(module: str, flag: str, log: Path, *before: str, **environment: str) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a service in a folder of its own, behind some other command if one is given."""
    port = free_port()
    own_folder = log.with_suffix("")
    own_folder.mkdir()
    command = [*before, sys.executable, "-m", module, f"{flag}={port}"]
    process = subprocess.Popen(
        command, env={**runner_environment(), **environment}, cwd=own_folder, stderr=log.open("wb")
    )
    deadline = time.monotonic() + START_S
    while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
        assert process.poll() is None, f"{module} ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"{module} does not listen after {START_S} s: {log.read_text()}"
        time.sleep(0.2)
    return process, port
