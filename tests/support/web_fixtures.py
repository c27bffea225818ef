"""Web servers of this machine that answer as they are told to, and remember what they were asked."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Answer = Callable[["ToldHandler"], None]
Server = TypeVar("Server", bound="LocalServer")


class ToldHandler(http.server.BaseHTTPRequestHandler):
    """Answers by the path; the query is ignored."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server: ToldServer = self.server  # type: ignore[assignment]
        server.asked.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        server.answers.get(self.path.partition("?")[0], say_status(404))(self)

    def log_message(self, *arguments: object) -> None:
        pass


class LocalServer(http.server.ThreadingHTTPServer):
    """Listens on a free port of this machine, and says nothing of what fails."""

    daemon_threads = True

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}"

    def handle_error(self, *arguments: object) -> None:
        pass


class ToldServer(LocalServer):
    def __init__(self) -> None:
        super().__init__(ToldHandler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []


def web_server() -> AbstractContextManager[ToldServer]:
    return serving(ToldServer())


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Lets a server answer as long as the block lasts."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def give(content: bytes) -> Answer:
    """A whole file, without ranges."""
    return lambda handler: _send(handler, 200, {"Content-Length": str(len(content))}, content)


def give_short(content: bytes, announced: int) -> Answer:
    """A file that ends before the length that its own headers say."""
    return lambda handler: _send(handler, 200, {"Content-Length": str(announced)}, content)


def give_less_than_asked(content: bytes, announced: int) -> Answer:
    """A file of which HEAD says more bytes than GET gives, whose headers say nothing."""

    def answer(handler: ToldHandler) -> None:
        length = {"Content-Length": str(announced)} if handler.command == "HEAD" else {}
        _send(handler, 200, length, content)

    return answer


def give_slowly(content: bytes, pieces: int) -> Answer:
    """A file without a length, in pieces."""

    def answer(handler: ToldHandler) -> None:
        _send(handler, 200, {}, b"")
        step = len(content) // pieces + 1
        for start in range(0, len(content) if handler.command == "GET" else 0, step):
            handler.wfile.write(content[start : start + step])
            handler.wfile.flush()
            threading.Event().wait(0.02)

    return answer


def say_status(status: int, reason: str | None = None) -> Answer:
    return lambda handler: _send(handler, status, {"Content-Length": "0"}, b"", reason)


def redirect(target: str, status: int = 302) -> Answer:
    return lambda handler: _send(handler, status, {"Location": target, "Content-Length": "0"}, b"")


def keep_waiting(seconds: float) -> Answer:
    """Nothing for so long, and then no answer either."""

    def answer(handler: ToldHandler) -> None:
        threading.Event().wait(seconds)
        hang_up(handler)

    return answer


def give_when(may_go_on: threading.Event, content: bytes) -> Answer:
    """A whole file, of which nothing but its length is told before."""

    def answer(handler: ToldHandler) -> None:
        if handler.command == "GET":
            may_go_on.wait(300)
        give(content)(handler)

    return answer


def hang_up(handler: ToldHandler) -> None:
    """No answer at all, though the connection was taken."""
    handler.close_connection = True


def _send(
    handler: ToldHandler, status: int, headers: dict[str, str], content: bytes, reason: str | None = None
) -> None:
    handler.send_response(status, reason)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content if handler.command == "GET" else b"")
    handler.close_connection = True
