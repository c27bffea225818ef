"""Serves the numbers of a run to Prometheus, in its text format."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline.config import CannotStart
from pipeline.run_state import LIMITS, RunHistory

_Values = Sequence[tuple[Mapping[str, str], float | None]]


class MetricsServer(ThreadingHTTPServer):
    """Answers `GET /metrics` from a thread, with whatever `show` was given last; it asks nobody anything."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, labels: Mapping[str, str]) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        self._labels = labels
        self.text = ""

    def show(self, history: RunHistory) -> None:
        """Takes the newest numbers."""
        self.text = write_metrics(history, self._labels)

    @property
    def address(self) -> str:
        """Where it is asked."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/metrics"


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer

    def do_GET(self) -> None:
        """Answers one scrape."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "wanted /metrics")
            return
        payload = self.server.text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Says nothing: a scrape is no news."""


@contextmanager
def serve_metrics(host: str, port: int, labels: Mapping[str, str]) -> Iterator[MetricsServer]:
    """Serves as long as the block lasts; port 0 takes any that is free.

    Raises:
        CannotStart: the port is taken, or the host is not this machine.
    """
    try:
        server = MetricsServer(host, port, labels)
    except OSError as error:
        raise CannotStart(
            f"--metrics-port {host}:{port} cannot be opened ({error.strerror or error}): wanted a free port of this "
            "machine, as in --metrics-port 9100 or 0.0.0.0:9100; 0 takes any that is free"
        ) from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


_METRICS = {
    "clips_planned": ("gauge", "Clips of the run; windows are added as they are found."),
    "clips_done": ("gauge", "Clips annotated or failed, committed or not, with those of earlier starts."),
    "clips_kept": ("gauge", "Clips that the next start finds if this one ends now."),
    "clips_failed": ("gauge", "Clips that failed in this start."),
    "tokens": ("counter", "Tokens that the model wrote in this start."),
    "clips_per_second": ("gauge", "Clips done per second of late."),
    "tokens_per_second": ("gauge", "Tokens written per second of late."),
    "seconds_left": ("gauge", "Time that the rest takes, from the fewest to the most that are likely."),
    "limited_by": ("gauge", "1 for what has limited the run of late: model, decoding or store."),
    "counter": ("counter", "What was counted in this start, by the names of run.json."),
}


def write_metrics(history: RunHistory, labels: Mapping[str, str]) -> str:
    """Returns the newest numbers in Prometheus' text format, each with these labels."""
    last, left, limit = history.last, history.estimate_left(), history.limit
    fewest_s, most_s = (None, None) if left is None else (left.fewest_s, left.most_s)
    values: dict[str, _Values] = {
        "clips_planned": [({}, last.num_planned)],
        "clips_done": [({}, last.num_done)],
        "clips_kept": [({}, last.num_kept)],
        "clips_failed": [({}, last.num_failed)],
        "tokens": [({}, last.num_tokens)],
        "clips_per_second": [({}, history.clips_per_s)],
        "tokens_per_second": [({}, history.tokens_per_s)],
        "seconds_left": [({"bound": "fewest"}, fewest_s), ({"bound": "most"}, most_s)],
        "limited_by": [({"what": what.removeprefix("the ")}, float(what == limit)) for what in LIMITS],
        "counter": [({"name": name}, total) for name, total in sorted(last.counters.items())],
    }
    return "".join(line for name in _METRICS for line in _write_metric(name, values[name], labels))


def _write_metric(name: str, values: _Values, labels: Mapping[str, str]) -> Iterator[str]:
    kind, text = _METRICS[name]
    full_name = f"framescribe_{name}_total" if kind == "counter" else f"framescribe_{name}"
    yield f"# HELP {full_name} {text}\n# TYPE {full_name} {kind}\n"
    for own, value in values:
        if value is not None:
            written = ",".join(f'{label}="{_escape(text)}"' for label, text in {**labels, **own}.items())
            yield f"{full_name}{{{written}}} {value:g}\n" if value % 1 else f"{full_name}{{{written}}} {value:.0f}\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
