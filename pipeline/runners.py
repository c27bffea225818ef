"""Runs a Beam pipeline where the user said, without a surprise.

Finds our own error in what a runner says about a worker that stopped.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, cast

from framescribe.errors import FrameScribeError
from pipeline.dataflow import is_dataflow, set_defaults

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineResult

    from pipeline.watching import Progress

_log = logging.getLogger(__name__)
DEFAULT_RUNNER = "DirectRunner"
# Beam's DirectRunner looks for Prism first and would download it; here the name means the in-process runner.
_IN_PROCESS = ("directrunner", "fnapirunner")
_DIES_WITH_ITS_SERVER = ("prismrunner",)
# Bundles of a stage are dealt out beforehand, so a few threads even out units of different size.
_BUNDLE_THREADS = 4
# Keys are dealt at random: of so many lanes per slot, each slot gets some. One after another, they share its turn.
_LANES_PER_SLOT = 8
_SLOTS = 8  # where --parallelism does not say how many
_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130
_SECONDS_TO_CANCEL = 10.0


class UnknownRunner(FrameScribeError, ValueError):
    """No runner of Beam has that name, or it refuses its flags."""


class RunnerFailed(FrameScribeError, RuntimeError):
    """A runner did not take the pipeline, or gave it up; the message says what is known."""


def is_in_process(runner: str) -> bool:
    """Whether the run happens in this very process."""
    return runner.lower() in _IN_PROCESS


def check_runner(runner: str, beam_flags: Sequence[str]) -> None:
    """Checks that Beam knows a runner, and that the runner's flags are complete.

    Raises:
        UnknownRunner: it does not, cannot import it, or refuses its flags.
    """
    if is_in_process(runner) and not beam_flags:
        return
    only_describes = describe_description(make_options(runner, beam_flags))
    if only_describes is not None and not is_dataflow(runner):
        raise UnknownRunner(f"--runner {runner}: --dry_run and --template_location are flags of DataflowRunner alone")
    if is_in_process(runner):
        return
    import apache_beam as beam
    from apache_beam.runners.runner import create_runner

    try:
        create_runner(runner)
        beam.Pipeline(options=make_options(runner, beam_flags))
    except (ValueError, ImportError, AttributeError) as error:
        raise UnknownRunner(f"--runner {runner}: {' '.join(str(error).split())}") from None


def make_options(runner: str, beam_flags: Sequence[str]) -> PipelineOptions:
    """Builds Beam's options, with our defaults for the in-process runner."""
    from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, SetupOptions

    flags = [f"--runner={'FnApiRunner' if is_in_process(runner) else runner}", *beam_flags]
    options = PipelineOptions(flags)
    options.view_as(SetupOptions).save_main_session = False  # everything is imported from the installed package
    if is_in_process(runner):
        direct = options.view_as(DirectOptions)
        direct.direct_running_mode = "multi_threading"
        if not any(flag.startswith("--direct_num_workers") for flag in beam_flags):
            direct.direct_num_workers = _BUNDLE_THREADS
    elif is_dataflow(runner):
        set_defaults(options)
    else:
        google = options.view_as(GoogleCloudOptions)  # the option of all runners' names of a job
        google.job_name = google.job_name or f"framescribe-{uuid.uuid4().hex[:8]}"
    return options


def count_lanes(options: PipelineOptions) -> int | None:
    """Returns how many lanes take units in the job, or None for a runner that spreads elements as workers get on.

    Flink and Spark deal elements to their slots beforehand, so a slow slot would keep its own to the end. Of the lanes
    of a slot the first does the work, and the last ones find nothing left.
    """
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, StandardOptions

    runner = options.view_as(StandardOptions).runner or ""
    if is_in_process(runner) or is_dataflow(runner):
        return None
    parallelism = options.view_as(FlinkRunnerOptions).parallelism
    return _LANES_PER_SLOT * (parallelism if parallelism > 0 else _SLOTS)


def describe_description(options: PipelineOptions) -> str | None:
    """Returns what Dataflow does where the pipeline is only described and no clip annotated; None where it runs."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions, TestOptions

    if options.view_as(TestOptions).dry_run:
        return "--dry_run: the pipeline was built and not submitted"
    template = options.view_as(GoogleCloudOptions).template_location
    return f"the template is in {template}" if template else None


def run_to_end(pipeline: beam.Pipeline, runner: str, progress: Progress) -> PipelineResult:
    """Runs a pipeline and returns its result; to be called in the main thread.

    Job servers that Beam starts itself (Prism, Flink, Spark) install their own handler of Ctrl-C, which works in the
    main thread only.

    Args:
        progress: shows how far the run is, while it lasts, and has the last line that Ctrl-C leaves.

    Raises:
        RunnerFailed: a runner elsewhere did not take the pipeline, or did not finish it.
        WorkerStopped: a worker met what stops a run.
        RuntimeError: what else a worker raised, as the text of its traceback.
    """
    quiet = _traces_only_at_the_end() if is_in_process(runner) else _filtered_logs(_shorten_trace)
    with _EndingAtOnce(progress.describe_interruption) as ending, progress.shown(), quiet:
        try:
            result = pipeline.run() if is_in_process(runner) else _submit(pipeline, runner)
            if runner.lower() not in (*_IN_PROCESS, *_DIES_WITH_ITS_SERVER):
                ending.cancel_first(result)
            if not is_in_process(runner):
                progress.watch_job(result)
            result.wait_until_finish()
        except _errors_of_runners() as error:  # how runners hand on what happened in a worker
            raise explain_worker_error(str(error)) or error from None
    state = getattr(result, "state", None)
    if state not in (None, "DONE"):
        raise RunnerFailed(f"the runner ended the pipeline as {state}; its own log says why. Finished units are kept")
    return result


def _errors_of_runners() -> tuple[type[BaseException], ...]:
    # Dataflow's has no ancestor but Exception; its module needs Google's packages.
    dataflow = sys.modules.get("apache_beam.runners.dataflow.dataflow_runner")
    return (RuntimeError, *([dataflow.DataflowRuntimeException] if dataflow else []))


def _submit(pipeline: beam.Pipeline, runner: str) -> PipelineResult:
    import grpc

    try:
        return pipeline.run()
    except (RuntimeError, ValueError, OSError, ImportError, grpc.RpcError, grpc.FutureTimeoutError) as error:
        reason = str(error) or "no job service answers there"
        raise RunnerFailed(f"--runner {runner} did not take the pipeline: {type(error).__name__}: {reason}") from error


class _EndingAtOnce:
    """Ends the process, while a pipeline runs, at Ctrl-C and when one of the runner's own threads dies.

    An exception would not get through: on its way out the runner joins threads that are in the middle of a clip, or
    that wait for the one that died. Nothing half-done is visible, and decoder processes die with this one.
    """

    def __init__(self, describe_interruption: Callable[[], str]) -> None:
        self._status, self._opening = _EXIT_INTERRUPTED, "\nframescribe: "
        self._describe = describe_interruption
        self._job: PipelineResult | None = None
        self._server_handler: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> _EndingAtOnce:
        self._hook, threading.excepthook = threading.excepthook, self._look_at_dead_thread
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._outer_handler = signal.signal(signal.SIGINT, self._end)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        threading.excepthook = self._hook
        if self._is_main:
            signal.signal(signal.SIGINT, self._outer_handler)
        if error is not None and _NO_THREAD in str(error):
            self._blame(f"RuntimeError: {_NO_THREAD}")
            self._end(0, None)  # the interpreter would wait for threads that wait for those that never started

    def cancel_first(self, job: PipelineResult) -> None:
        """Has Ctrl-C cancel a job before the job server that Beam may have started for it is stopped."""
        self._job = job
        if self._is_main and signal.getsignal(signal.SIGINT) != self._end:
            self._server_handler = signal.signal(signal.SIGINT, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        logging.disable()  # what the runner's threads say of connections that end now
        # A second Ctrl-C waits for nothing.
        describe, self._describe = self._describe, lambda: "stopped; what is committed is kept"
        said = describe()
        job, self._job = self._job, None
        if job is not None:
            said += _cancel(job)
        self._describe = lambda: said
        stop_server, self._server_handler = self._server_handler, None
        if callable(stop_server):
            stop_server(number, frame)  # and comes back here
        os.write(2, f"{self._opening}{said}\n".encode())  # not print: this may have interrupted one
        os._exit(self._status)

    def _look_at_dead_thread(self, dead: threading.ExceptHookArgs) -> None:
        import grpc

        if isinstance(dead.exc_value, grpc.RpcError):
            return  # a connection ended: whoever waits for it says why
        cause, name = f"{dead.exc_type.__name__}: {dead.exc_value}", dead.thread.name if dead.thread else "?"
        if name == COUNTERS_THREAD:
            _log.warning("the runner tells its counters no more, progress goes by the parts alone: %s", cause)
            return
        if name != _WORKER_THREAD and _NO_THREAD not in cause:
            self._hook(dead)
            return
        self._blame(f"thread {name!r} died of {cause}")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _blame(self, cause: str) -> None:
        self._status, self._job, self._opening = _EXIT_ERROR, None, "framescribe annotate: "
        said = (
            f"the runner cannot go on: {cause}.{_MORE_THREADS if _NO_THREAD in cause else ''} "
            "Finished units are kept: the same command goes on from there"
        )
        self._describe = lambda: said


@contextmanager
def _traces_only_at_the_end() -> Iterator[None]:
    """Keeps back the traces that Beam logs and prints of an error in each bundle: the run ends with that error."""
    with _filtered_logs(_has_no_trace), redirect_stderr(cast(TextIO, _WithoutTraces(sys.stderr))):
        yield


@contextmanager
def _filtered_logs(keeps: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(keeps)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(keeps)


def _shorten_trace(record: logging.LogRecord) -> bool:
    """Leaves of an error of ours, handed on by a runner that may well try again, what the worker said."""
    text = record.getMessage()
    stopped = explain_worker_error(text) if _TRACE in text else None
    if stopped is not None:
        record.msg, record.args, record.exc_info = f"a worker stopped: {stopped}", (), None
    return True


def _has_no_trace(record: logging.LogRecord) -> bool:
    is_of_beam = record.name.startswith(("apache_beam.runners.", "grpc."))
    return not (is_of_beam and (record.exc_info or _TRACE in record.getMessage()))


class _WithoutTraces:
    """Standard error, but for traces of worker threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_after_trace = False

    def write(self, text: str) -> int:
        """Writes a text that is neither a trace nor the end of its line; `print` hands over each by itself."""
        is_kept = not (text.startswith(_TRACE) or (self._is_after_trace and text == "\n"))
        self._is_after_trace = text.startswith(_TRACE)
        return self._stream.write(text) if is_kept else len(text)

    def __getattr__(self, name: str) -> Any:  # Any: whatever a text stream has
        return getattr(self._stream, name)


def _cancel(job: PipelineResult) -> str:
    """Ends a job that runs elsewhere, and returns what to say where that cannot be told to have worked."""
    # In a thread: this one may have been interrupted in the middle of asking the runner something.
    cancelling = ThreadPoolExecutor(1).submit(job.cancel)
    done, _ = wait([cancelling], _SECONDS_TO_CANCEL)
    is_cancelled = bool(done) and cancelling.exception() is None
    return "" if is_cancelled else ". The job was told to stop but did not confirm it: look at the runner"


# Beam's name for the thread that takes bundles from the in-process runner; without it the runner waits for ever.
_WORKER_THREAD = "run_worker"
# Ours, which asks a job that runs elsewhere how far it is.
COUNTERS_THREAD = "job-counters"
_TRACE = "Traceback (most recent call last)"
_NO_THREAD = "can't start new thread"
_MORE_THREADS = (
    " This machine gives the process no more threads: raise `ulimit -u`, or the pids limit of the container, or use "
    "fewer --decoder-processes and a smaller --direct_num_workers."
)


# The first one in a chain is the cause; Beam adds the step at the end of the last.
_ERROR = re.compile(r"^(?P<module>\w+(?:\.\w+)*)\.(?P<name>\w+): ", re.MULTILINE)
_END_OF_MESSAGE = re.compile(r" \[while running|\n\nDuring handling|\n\nThe above exception|\Z")


class WorkerStopped(FrameScribeError, RuntimeError):
    """A worker met what stops a run; the message is the worker's own."""


def explain_worker_error(runner_text: str) -> WorkerStopped | None:
    """Returns the error that stopped a worker, without the runner's traces, or None where it is none of ours.

    A worker that lacks a package is named by the folder that its packages lie in: runners hand on no other name.

    Args:
        runner_text: whatever the runner raised, with the worker's traceback in it.
    """
    message, missing = _find_our_message(runner_text), _NO_MODULE.search(runner_text)
    if message is not None:
        # Of stores whose client is not installed; here it is, or the run had not started.
        return WorkerStopped(f"{message}; in {_name_worker(runner_text)}" if _INSTALL.search(message) else message)
    if missing:
        return WorkerStopped(
            f"{_name_worker(runner_text)} has no module {missing['module']!r}: install this version of FrameScribe "
            "there, with all that this machine has of it, or name an image that holds it (--sdk_container_image)"
        )
    return None


def _find_our_message(runner_text: str) -> str | None:
    for error in _ERROR.finditer(runner_text):
        # Only what this process has imported as well: a text from elsewhere shall import nothing.
        kind = getattr(sys.modules.get(error["module"]), error["name"], None)
        if isinstance(kind, type) and issubclass(kind, FrameScribeError):
            end = _END_OF_MESSAGE.search(runner_text, error.end())
            return runner_text[error.end() : end.start() if end else None].strip()
    return None


def _name_worker(runner_text: str) -> str:
    folder = _PACKAGES_OF_WORKER.search(runner_text)
    return f"the worker whose packages lie in {folder['folder']}" if folder else "a worker"


_NO_MODULE = re.compile(r"^ModuleNotFoundError: No module named '(?P<module>[\w.]+)'", re.MULTILINE)
_INSTALL = re.compile(r"\b[Ii]nstall\b")
_PACKAGES_OF_WORKER = re.compile(r'^ *File "(?P<folder>[^"\n]+)/apache_beam/runners/worker/', re.MULTILINE)
