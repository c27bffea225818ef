"""What Beam's job server does not say about a job on a cluster: why Flink starts it again, and that no worker comes."""

from __future__ import annotations

import json
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from framescribe.storage.claims import is_any_alive
from framescribe.storage.output import OutputStore
from framescribe.storage.retries import StoreError
from pipeline.runners import explain_worker_error

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_ANSWER = 5.0
# A worker imports Beam and torch within 20 s on a busy machine. A cluster may keep a job waiting for hours: no error.
_SECONDS_TO_COME = 120.0


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


@contextmanager
def say_if_no_worker_comes(options: PipelineOptions, store: OutputStore, start_id: str) -> Iterator[None]:
    """Prints one warning from a thread, as long as the block lasts, if no worker of an external pool has begun by then.

    A pool whose `python` lacks Beam, or that nobody reaches, leaves the job waiting for ever without a word. Only where
    there are lanes: their workers show a sign of life.
    """
    from apache_beam.options.pipeline_options import PortableOptions

    portable = options.view_as(PortableOptions)
    if portable.environment_type not in _EXTERNAL:
        yield
        return
    timer = threading.Timer(_SECONDS_TO_COME, _say_if_none_is_alive, (store, start_id, _name_pool(portable)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_EXTERNAL = ("EXTERNAL", "beam:env:external:v1")
_URL = re.compile(r'"url"\s*:\s*"([^"]+)"')


def _name_pool(portable: PortableOptions) -> str:
    # Beam's own reading of these flags would prepare what is staged for the workers as well.
    named = portable.environment_config or portable.lookup_environment_option("external_service_address") or ""
    url = _URL.search(named)
    return url[1] if url else str(named)


def _say_if_none_is_alive(store: OutputStore, start_id: str, pool: str) -> None:
    try:
        if is_any_alive(store, start_id):
            return
    except StoreError:
        return  # the workers meet it too, and decide
    _print_line(
        f"warning: no worker has begun after {_SECONDS_TO_COME:.0f} s. Either the cluster has no free slot yet, or no "
        f"worker pool answers it at {pool} (--environment_config), or the pool's workers end at once because its "
        "`python` is not FrameScribe's: start the pool with the bin folder of FrameScribe's environment first in PATH; "
        "`python -c 'import apache_beam, framescribe'` has to work there"
    )


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
