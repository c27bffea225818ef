"""What a Flink cluster says about a job: while Flink starts it again and again, Beam's job server says nothing."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.runners import explain_worker_error

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_ANSWER = 5.0


@contextmanager
def say_why_workers_stop(options: PipelineOptions) -> Iterator[None]:
    """Prints from a thread, as long as the block lasts, why Flink starts workers again; each reason once.

    Only where `--flink_master` names a cluster, and the job has a name.
    """
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, GoogleCloudOptions

    master = options.view_as(FlinkRunnerOptions).flink_master
    job_name = options.view_as(GoogleCloudOptions).job_name
    if master.startswith("[") or not job_name:
        yield
        return
    ended = threading.Event()
    watch = _Watch(master if "://" in master else f"http://{master}", job_name)
    threading.Thread(target=watch.look_until, args=(ended,), name="flink-watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _Watch:
    def __init__(self, url: str, job_name: str, say: Callable[[str], None] | None = None) -> None:
        self._url, self._job_name = url.rstrip("/"), job_name
        self._say = say or _print_line
        self._said: set[str] = set()

    def look_until(self, ended: threading.Event) -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                self._look()
            except (OSError, ValueError, KeyError):  # Flink does not answer now, or this is no Flink
                continue

    def _look(self) -> None:
        jobs = [job["jid"] for job in self._ask("/jobs/overview")["jobs"] if job["name"] == self._job_name]
        for job_id in jobs:
            for entry in self._ask(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]:
                reason = _describe(entry["stacktrace"])
                if reason not in self._said:
                    self._said.add(reason)
                    self._say(reason)

    def _ask(self, path: str) -> Any:  # Any: JSON
        with urllib.request.urlopen(self._url + path, timeout=_SECONDS_TO_ANSWER) as answer:
            return json.load(answer)


def _describe(stack_trace: str) -> str:
    ours = explain_worker_error(stack_trace)
    if ours is not None:
        return f"a worker stopped, and Flink starts it again: {ours}"
    return f"Flink starts a part of the job again: {stack_trace.splitlines()[0]}"


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
