"""The parent's handle on one decoder process: starts it, asks it, watches it, kills it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from decoding.wire import ConnectionClosed, Json, receive_message, send_message

_START_DEADLINE_S = 120.0
_WATCH_INTERVAL_S = 0.1
_LAST_WORDS_S = 5.0
_LAST_WORDS_BYTES = 16 << 10
# The only variables a decoder gets: where programs and libraries lie, never a credential.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
# Decoding allocates and frees whole pictures. Kept in the heap they cost nothing; given back to the kernel each time,
# as glibc does by default, their page faults take about as long as their colour conversion.
_KEEP_PICTURES_IN_HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_ARENA_MAX": "1",
}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the pool's processes are the parallelism


class ChildFailed(Exception):
    """A decoder process that had to be killed, or died, over a request.

    Attributes:
        reason: short and for people.
        message: the details.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


class DecoderNotStarted(RuntimeError):
    """No decoder process can be started on this machine."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"a decoder process does not start: {cause}. Nothing can be decoded on this machine; once that is mended, "
            "the same command goes on: finished units are kept"
        )


class ChildProcess:
    """One running decoder process. Used by one thread, the one that made it: Linux ends the process with it."""

    def __init__(self, memory_limit_bytes: int, extra_arguments: Sequence[str] = ()) -> None:
        """Starts the process and waits until it is ready.

        Raises:
            DecoderNotStarted: nothing can be decoded on this machine.
        """
        self._memory_limit_bytes = memory_limit_bytes
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = self._start(theirs.fileno(), extra_arguments)
        self._memory = psutil.Process(self._process.pid)  # kept: to make one takes longer than to ask it
        self.num_served = 0
        self._await_ready()

    def ask(self, request: Mapping[str, Json], descriptors: Sequence[int], deadline_s: float) -> dict[str, Json]:
        """Returns the process's reply to one request.

        Raises:
            ChildFailed: it died, passed its deadline or its memory limit. It is dead then.
        """
        self.num_served += 1
        try:
            send_message(self._connection, request, descriptors)
            self._watch(deadline_s)
            reply, _ = receive_message(self._connection)
        except ConnectionClosed:
            raise self._explain_death() from None
        return reply

    @property
    def resident_bytes(self) -> int:
        """Memory the process holds now; 0 once it is gone."""
        try:
            return int(self._memory.memory_info().rss)
        except psutil.Error:
            return 0

    def signal_kill(self) -> None:
        """Ends the process from another thread; the one that waits for it sees it die."""
        self._process.kill()

    def kill(self) -> None:
        """Ends the process at once and frees what belongs to it."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._log.close()

    def _start(self, connection: int, extra_arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [
                    sys.executable, "-m", "decoding.child", "--connection", str(connection), "--parent",
                    str(os.getpid()), "--memory-limit-bytes", str(self._memory_limit_bytes), *extra_arguments,
                ],
                pass_fds=(connection,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
                env=_scrubbed_environment(), cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as error:  # no more processes, no memory for one
            self._connection.close()
            raise DecoderNotStarted(f"{error.strerror} (see `ulimit -u`, or use fewer --decoders)") from None

    def _watch(self, allowed_s: float) -> None:
        """Waits until the process says something, within its limits."""
        stop_s = time.monotonic() + allowed_s
        waiting = select.poll()  # not select.select, which ends at descriptor 1024
        waiting.register(self._connection, select.POLLIN)
        while not waiting.poll(_WATCH_INTERVAL_S * 1000):
            if time.monotonic() > stop_s:
                self.kill()
                raise ChildFailed("deadline exceeded", f"not decoded within {allowed_s:g} s")
            if self.resident_bytes > self._memory_limit_bytes:
                self.kill()
                raise ChildFailed("memory limit exceeded", f"decoding took more than {self._memory_limit_bytes} bytes")

    def _await_ready(self) -> None:
        try:
            self._watch(_START_DEADLINE_S)
            receive_message(self._connection)
        except ConnectionClosed:
            raise DecoderNotStarted(self._explain_death().message) from None
        except ChildFailed as error:
            raise DecoderNotStarted(error.message) from None

    def _explain_death(self) -> ChildFailed:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)  # the connection closes before the traceback is written
        self._process.kill()
        code = self._process.wait()
        # Only the end: a decoder that floods its log must not flood our memory when it dies.
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        last_words = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        self.kill()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        message = f"the decoder process died of {how}: {''.join(last_words)}"
        return ChildFailed("decoder crashed", message[:2000])


def _scrubbed_environment() -> dict[str, str]:
    # The one place below the command line that reads the environment: to hand as little as possible of it on.
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package_root = str(Path(__file__).resolve().parent.parent)
    roots = dict.fromkeys([package_root, *(entry for entry in sys.path if os.path.isabs(entry))])
    return kept | {"PYTHONPATH": os.pathsep.join(roots)} | _KEEP_PICTURES_IN_HEAP | _ONE_THREAD
