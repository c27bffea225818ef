"""A Flink session cluster on this machine, with Beam's job server and pools of SDK workers: real processes.

Each TaskManager has a pool of its own, as on machines of their own: a pool tells its workers apart by ids that two
TaskManagers give twice. All reach theirs by the same address, since each looks names up in a hosts file of its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

_STARTS_WITHIN_S = 600.0  # on a busy machine; 15 s on a quiet one
_TRIES = 3
_SLOTS = 2
_POOL_HOST = "sdk-workers"
_POOL_ADDRESSES = ("127.0.0.2", "127.0.0.3")  # one for each TaskManager
# Java 17 opens these to Flink only when told to; the list is that of the configuration that Flink comes with.
_EXPORTS = (
    "java.base/sun.net.util java.rmi/sun.rmi.registry jdk.compiler/com.sun.tools.javac.api "
    "jdk.compiler/com.sun.tools.javac.file jdk.compiler/com.sun.tools.javac.parser "
    "jdk.compiler/com.sun.tools.javac.tree jdk.compiler/com.sun.tools.javac.util java.security.jgss/sun.security.krb5"
)
_OPENS = (
    "java.lang java.net java.io java.nio sun.nio.ch java.lang.reflect java.text java.time java.util "
    "java.util.concurrent java.util.concurrent.atomic java.util.concurrent.locks"
)
_JAVA = [
    "java",
    *(f"--add-exports={name}=ALL-UNNAMED" for name in _EXPORTS.split()),
    *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENS.split()),
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # half the CPU time of a start
]
# What Flink's start scripts would compute of one total.
_MEMORY = {
    "taskmanager.memory.framework.heap.size": "96m",
    "taskmanager.memory.framework.off-heap.size": "64m",
    "taskmanager.memory.task.heap.size": "192m",
    "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.managed.size": "32m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
    "taskmanager.memory.jvm-metaspace.size": "160m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
    "taskmanager.cpu.cores": "2.0",
}


def free_port() -> int:
    """Returns a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FlinkCluster:
    """One JobManager, TaskManagers of two slots each, and a job server; ended when the block ends.

    Args:
        folder: for logs and temporary files, a folder for each process.
        libraries: folder of Flink's jars.
        job_server_jar: Beam's job server for that Flink, started as `java -jar`.
    """

    def __init__(self, folder: Path, libraries: Path, job_server_jar: Path) -> None:
        self._parent, self._libraries, self.job_server_jar = folder, libraries, job_server_jar

    def __enter__(self) -> FlinkCluster:
        for number in range(_TRIES):
            self._ending = ExitStack()
            self._folder = self._parent / f"try{number}"
            self._processes: dict[str, subprocess.Popen[bytes]] = {}
            self._pools: dict[str, list[subprocess.Popen[bytes]]] = {}
            self.task_managers: list[subprocess.Popen[bytes]] = []
            try:
                self._start_all()
            except DidNotStart as error:  # such as a port that another program was faster to take
                self._ending.close()
                if number + 1 == _TRIES:
                    raise
                print(error, file=sys.stderr)
            else:
                break
        return self

    def _start_all(self) -> None:
        self._rest_port = free_port()
        self.master = f"127.0.0.1:{self._rest_port}"
        self._write_configuration()
        self._start_java("jobmanager", "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint")
        for address in _POOL_ADDRESSES:
            self.start_task_manager(address)
        self._wait(lambda: self.ask("/overview")["taskmanagers"] == 2, "two TaskManagers")
        self.job_endpoint = self._start_job_server()

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def ask(self, path: str) -> dict[str, Any]:
        """Returns what the JobManager's REST service answers."""
        with urllib.request.urlopen(f"http://{self.master}{path}", timeout=10) as answer:
            return json.load(answer)

    def start_task_manager(self, pool_address: str = _POOL_ADDRESSES[-1]) -> None:
        """Starts one more TaskManager, with two slots, in place of the last one if nothing else is said."""
        name = f"taskmanager{len(self.task_managers)}"
        hosts = self._folder / f"{name}.hosts"
        hosts.write_text(f"{pool_address} {_POOL_HOST}\n127.0.0.1 localhost\n127.0.0.1 {socket.gethostname()}\n")
        flags = [word for name, value in _MEMORY.items() for word in ("-D", f"{name}={value}")]
        main_class = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        settings = ("-Xmx288m", "-Xms288m", f"-Djdk.net.hosts.file={hosts}")
        self.task_managers.append(self._start_java(name, main_class, *flags, settings=settings))

    def kill_task_manager(self) -> None:
        """Kills the last TaskManager; the workers in its pool go on until they miss it."""
        self.task_managers[-1].kill()
        self._processes.pop(f"taskmanager{len(self.task_managers) - 1}")

    def start_pools(self, name: str, *before: str, **environment: str) -> str:
        """Starts a pool of SDK workers for each TaskManager, in folders of their own; returns their common address.

        Args:
            before: a command that a pool is started by.
            environment: variables beside those of this process.
        """
        port = free_port()
        for number, address in enumerate(_POOL_ADDRESSES):
            pool_port = free_port()
            module = "apache_beam.runners.worker.worker_pool_main"
            command = [*before, sys.executable, "-m", module, f"--service_port={pool_port}"]
            pool = self._start(f"{name}-{number}", command, {**_environment(), **environment})
            self._ending.callback(forward((address, port), ("127.0.0.1", pool_port)).shutdown)
            self._wait(partial(_listens, pool_port), f"{name} on port {pool_port}")
            self._pools.setdefault(name, []).append(pool)
        return f"{_POOL_HOST}:{port}"

    def find_workers(self, name: str) -> list[psutil.Process]:
        """Returns the SDK worker processes of pools, those of the last TaskManager at the end."""
        children = (child for pool in self._pools[name] for child in psutil.Process(pool.pid).children())
        return [child for child in children if "sdk_worker" in " ".join(_words(child))]

    def log(self, name: str) -> str:
        """Returns what one of the processes has said so far."""
        return (self._folder / name / "log").read_text(errors="replace")

    def _start_job_server(self) -> str:
        port = free_port()
        flags = [f"--flink-master={self.master}", "--job-host=127.0.0.1", f"--job-port={port}", "--artifact-port=0"]
        flags += ["--expansion-port=0", f"--artifacts-dir={self._folder}/artifacts"]
        self._start("jobserver", [*_JAVA, "-Xmx384m", "-jar", str(self.job_server_jar), *flags])
        self._wait(lambda: _listens(port), f"the job server on port {port}")
        return f"127.0.0.1:{port}"

    def _write_configuration(self) -> None:
        configuration = {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": free_port(),
            "jobmanager.bind-host": "127.0.0.1",
            "jobmanager.memory.process.size": "768m",
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": _SLOTS,
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self._rest_port,
            "io.tmp.dirs": f"{self._folder}/tmp",
            "blob.storage.directory": f"{self._folder}/blobs",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 5,
            "restart-strategy.fixed-delay.delay": "1 s",
            # Calls to a TaskManager that was killed fail; two of them do, so its heartbeat need not be waited for.
            "heartbeat.interval": 2000,
            # A busy machine takes more than 10 s.
            "pekko.startup-timeout": "300 s",
            "pekko.ask.timeout": "120 s",
        }
        for name in ("configuration", "tmp", "blobs"):
            (self._folder / name).mkdir(parents=True)
        (self._folder / "configuration" / "config.yaml").write_text(yaml.safe_dump(configuration))

    def _start_java(
        self, name: str, main_class: str, *flags: str, settings: tuple[str, ...] = ("-Xmx320m",)
    ) -> subprocess.Popen[bytes]:
        class_path = f"{self._libraries}/*"
        command = [
            *_JAVA,
            *settings,
            "-cp",
            class_path,
            main_class,
            "--configDir",
            f"{self._folder}/configuration",
            *flags,
        ]
        return self._start(name, command)

    def _start(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        own_folder = self._folder / name
        own_folder.mkdir()
        log = (own_folder / "log").open("wb")
        process = subprocess.Popen(command, cwd=own_folder, env=environment, stdout=log, stderr=log)
        self._ending.callback(end_tree, process)
        self._processes[name] = process
        return process

    def _wait(self, is_there: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while not _is_true(is_there):
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline_s:
                logs = "\n".join(f"== {name}\n{self.log(name)[-2000:]}" for name in ended or self._processes)
                raise DidNotStart(f"no {what}: {', '.join(ended) or 'nothing'} ended\n{logs}")
            time.sleep(0.2)


class DidNotStart(Exception):
    """A process of the cluster ended, or does not answer."""


def forward(here: tuple[str, int], target: tuple[str, int]) -> socketserver.ThreadingTCPServer:
    """Passes connections on from one address to another, in threads."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(target) as there:
                threading.Thread(target=_copy, args=(there, self.request), daemon=True).start()
                _copy(self.request, there)

    server = socketserver.ThreadingTCPServer(here, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    return server


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while payload := source.recv(1 << 16):
            target.sendall(payload)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it has started."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.send_signal(signal.SIGKILL)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def write_job_server_jar(jar: Path, jars: Path) -> None:
    """Writes a jar that starts Beam's job server with the jars of a folder, as the one that Beam publishes does."""
    names = [path.resolve().as_uri() for path in sorted(jars.glob("*.jar"))]
    lines = ("Manifest-Version: 1.0", "Main-Class: org.apache.beam.runners.flink.FlinkJobServerDriver")
    class_path = f"Class-Path: {' '.join(names)}"
    folded = "\r\n ".join(class_path[start : start + 70] for start in range(0, len(class_path), 70))
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "\r\n".join((*lines, folded, "", "")))


def _environment() -> dict[str, str]:
    # The pool starts `python` from PATH: it has to be the one with everything installed.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    root = str(Path(__file__).parents[2])
    python_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PATH": path, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_true(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:
        return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


if __name__ == "__main__":
    write_job_server_jar(Path(sys.argv[1]), Path(sys.argv[2]))
