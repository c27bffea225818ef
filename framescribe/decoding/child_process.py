"""The parent's side of one decoder process: starts it, asks it, watches it, kills it.

Requests and replies are JSON objects over a socket. Encoded videos and frames go through memory that both sides see,
whose file descriptors travel beside the messages.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil

from framescribe.errors import FrameScribeError

_START_DEADLINE_S = 120.0
_WATCH_INTERVAL_S = 0.1
_LOG_TAIL_S = 5.0
_LOG_TAIL_BYTES = 16 << 10
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


class DecoderNotStarted(FrameScribeError, RuntimeError):
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
                    sys.executable, "-m", "framescribe.decoding.child", "--connection", str(connection), "--parent",
                    str(os.getpid()), "--memory-limit-bytes", str(self._memory_limit_bytes), *extra_arguments,
                ],
                pass_fds=(connection,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
                env=_scrubbed_environment(), cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as error:  # no more processes, no memory for one
            self._connection.close()
            raise DecoderNotStarted(f"{error.strerror} (see `ulimit -u`, or use fewer --decoder-processes)") from None

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
            self._process.wait(_LOG_TAIL_S)  # the connection closes before the traceback is written
        self._process.kill()
        code = self._process.wait()
        # Only the end: a decoder that floods its log must not flood our memory when it dies.
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        log_tail = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        self.kill()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        message = f"the decoder process died of {how}: {''.join(log_tail)}"
        return ChildFailed("decoder crashed", message[:2000])


def _scrubbed_environment() -> dict[str, str]:
    # The one place below the command line that reads the environment: to hand as little as possible of it on.
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package_root = str(Path(__file__).resolve().parents[2])
    roots = dict.fromkeys([package_root, *(entry for entry in sys.path if os.path.isabs(entry))])
    return kept | {"PYTHONPATH": os.pathsep.join(roots)} | _KEEP_PICTURES_IN_HEAP | _ONE_THREAD


Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
_LENGTH = struct.Struct("!I")
_MAX_MESSAGE_BYTES = 16 << 20  # a reply lists a clip's frame indices and times, nothing larger
_MAX_DESCRIPTORS = 2


class ConnectionClosed(Exception):
    """The other side is gone."""


def send_message(connection: socket.socket, message: Mapping[str, Json], descriptors: Sequence[int] = ()) -> None:
    """Sends one message.

    Raises:
        ConnectionClosed: the other side is gone.
    """
    body = json.dumps(message).encode()
    try:
        socket.send_fds(connection, [_LENGTH.pack(len(body))], list(descriptors))
        connection.sendall(body)
    except OSError as error:
        raise ConnectionClosed(str(error)) from error


def receive_message(connection: socket.socket) -> tuple[dict[str, Json], list[int]]:
    """Returns the next message and the file descriptors that came with it, which the caller must close.

    Raises:
        ConnectionClosed: the other side is gone, or what it sent is no message.
    """
    try:
        head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, _MAX_DESCRIPTORS)
        head += _receive(connection, _LENGTH.size - len(head)) if head else b""
        length = _LENGTH.unpack(head)[0] if head else 0
        if not 0 < length <= _MAX_MESSAGE_BYTES:
            raise ConnectionClosed(f"a message of {length} bytes")
        message = json.loads(_receive(connection, length))
    except (OSError, ValueError) as error:
        raise ConnectionClosed(str(error)) from error
    if not isinstance(message, dict):
        raise ConnectionClosed(f"a message that is no object: {message!r:.80}")
    return message, descriptors


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        piece = connection.recv(num_bytes - len(received))
        if not piece:
            raise ConnectionClosed(f"{len(received)} of {num_bytes} bytes came")
        received += piece
    return bytes(received)


# Memory that is opened like a file. Where there is none, encoded videos go through a temporary file.
HAS_MEMORY_FILES = sys.platform == "linux"


def allocate(num_bytes: int) -> int:
    """Returns a descriptor of `num_bytes` of zeroed memory without a name; the caller closes it."""
    descriptor = _create()
    os.ftruncate(descriptor, num_bytes)
    return descriptor


@contextmanager
def lend_bytes(content: bytes) -> Iterator[tuple[str | None, list[int]]]:
    """Yields None and the descriptor of memory that holds `content`, or the path of a temporary file that does."""
    if HAS_MEMORY_FILES:
        descriptor = _create()
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            yield None, [descriptor]
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile(suffix=".video") as named:
            named.write(content)
            named.flush()
            yield named.name, []


def write_frames(descriptor: int, pictures: Iterable[np.ndarray]) -> None:
    """Lays pictures into the memory one after another: a page first touched through a mapping takes twice the time."""
    with open(descriptor, "wb", closefd=False) as file:
        for picture in pictures:
            file.write(picture.data)


def map_frames(descriptor: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Returns uint8 [T, H, W, 3] over the start of the memory; the array keeps it alive after the descriptor closes."""
    return np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), dtype=np.uint8).reshape(shape)


def path_of(descriptor: int) -> str:
    """Returns a path under which this process can open stored memory, each time from its start."""
    return f"/proc/self/fd/{descriptor}"


def _create() -> int:
    if HAS_MEMORY_FILES:
        return os.memfd_create("framescribe", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # macOS: a file whose name is gone already
        return os.dup(file.fileno())
