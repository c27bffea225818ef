"""What lives as long as a worker process: made once, shared by all its bundle threads, and apart from other workers."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from framescribe.decoding.config import SamplingConfig
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.engine import Engine
from schemas.records import FailurePolicy, TooManyFailedClipsError
from tests.support.golden_cases import COMMITTED
from tests.support.output_fixtures import make_annotation, make_failed
from tests.support.source_tree import ROOT
from tests.support.stub_engine import StubEngine
from transforms.worker import WORKER, Budget, FailureTally, GpuTaken, Worker, WorkerConfig, claim_gpu

TINY = EngineConfig(model=str(COMMITTED / "checkpoints" / "g9"), device="cpu", dtype="float32", max_rows=64)
ON_CPU = EngineConfig("7b", device="cpu")
NUM_THREADS = 4
_FORK = multiprocessing.get_context("fork")  # importing anew takes a second for each of a dozen processes


class NotingLoads(Worker):
    """A worker whose engines are stubs; notes on which devices they are loaded."""

    def __init__(self) -> None:
        super().__init__(self._load_stub)
        self.loaded_on: list[str] = []

    def _load_stub(self, config: EngineConfig) -> Engine:
        self.loaded_on.append(config.device)
        return make_stub(config)


def make_stub(config: EngineConfig) -> Engine:
    return StubEngine("any")  # type: ignore[return-value]


def refuse_to_load(config: EngineConfig) -> Engine:
    raise FileNotFoundError("no weights")


@contextmanager
def another_process_with(name: str, folder: Path) -> Iterator[None]:
    """Another process claims a GPU and keeps it for as long as the test wants."""
    ours, theirs = _FORK.Pipe()
    other = _FORK.Process(target=_claim, args=(name, folder, theirs))
    other.start()
    assert ours.recv() == "claimed"
    yield
    other.kill()
    other.join()


def is_taken(name: str) -> bool:
    """Whether another process finds a GPU claimed."""
    ours, theirs = _FORK.Pipe()
    other = _FORK.Process(target=_claim, args=(name, Path(tempfile.gettempdir()), theirs))
    other.start()
    is_claimed = ours.recv() == "taken"
    other.kill()
    other.join()
    return is_claimed


def _claim(name: str, folder: Path, answer: Connection) -> None:
    try:
        claim = claim_gpu([name], folder)
    except GpuTaken:
        answer.send("taken")
    else:
        answer.send("claimed")
        time.sleep(600)
        claim.lock.release()


@pytest.fixture
def two_gpus(monkeypatch, tmp_path) -> Iterator[None]:
    """A machine of two GPUs of which another process uses the first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    gpus = [SimpleNamespace(uuid="first"), SimpleNamespace(uuid="second")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    with another_process_with("first", tmp_path):
        yield


@pytest.fixture
def worker(two_gpus) -> Iterator[NotingLoads]:
    worker = NotingLoads()
    yield worker
    worker.close()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_without_a_number_is_any_that_is_free(worker, device):
    worker.get_engine(EngineConfig("7b", device=device))
    assert worker.loaded_on == ["cuda:1"]
    assert is_taken("second")


def test_a_gpu_by_its_number_is_that_one(worker):
    with pytest.raises(GpuTaken):
        worker.get_engine(EngineConfig("7b", device="cuda:0"))
    assert not is_taken("second")
    worker.get_engine(EngineConfig("7b", device="cuda:1"))
    assert worker.loaded_on == ["cuda:1"]


def test_a_second_engine_of_a_process_takes_no_gpu_of_the_first(worker):
    worker.get_engine(EngineConfig("7b", device="cuda"))
    with pytest.raises(GpuTaken):
        worker.get_engine(EngineConfig("72b", device="cuda"))
    assert worker.loaded_on == ["cuda:1"]


def test_a_load_that_fails_leaves_its_gpu_to_others(two_gpus):
    with pytest.raises(FileNotFoundError):
        Worker(refuse_to_load).get_engine(EngineConfig("7b", device="cuda:1"))
    assert not is_taken("second")


def test_a_worker_that_is_closed_leaves_its_gpu_to_others(worker):
    worker.get_engine(EngineConfig("7b", device="cuda:1"))
    worker.close()
    assert not is_taken("second")


def test_an_engine_is_there_once_its_load_succeeded():
    outcomes = iter([IndexError, None])

    def load(config: EngineConfig) -> Engine:
        error = next(outcomes)
        if error is not None:
            raise error
        return make_stub(config)

    worker = Worker(load)
    assert not worker.has_engine(ON_CPU)
    with pytest.raises(IndexError):
        worker.get_engine(ON_CPU)
    assert not worker.has_engine(ON_CPU)
    worker.get_engine(ON_CPU)
    assert worker.has_engine(ON_CPU)


def test_threads_that_wait_for_a_load_that_fails_do_not_each_load_again():
    loads: list[EngineConfig] = []

    def load(config: EngineConfig) -> Engine:
        loads.append(config)
        time.sleep(0.5)
        return refuse_to_load(config)

    worker = Worker(load)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        failed = [threads.submit(worker.get_engine, ON_CPU) for _ in range(NUM_THREADS)]
    assert [str(failure.exception()) for failure in failed] == ["no weights"] * NUM_THREADS
    assert len(loads) == 1
    with pytest.raises(FileNotFoundError):
        worker.get_engine(ON_CPU)
    assert len(loads) == 2


def test_an_engine_that_is_there_already_is_used_and_named_by_its_dtype():
    worker, engine = Worker(), make_stub(ON_CPU)
    assert worker.dtype is None
    worker.use_engine(ON_CPU, engine)
    assert worker.get_engine(ON_CPU).engine is engine
    assert (worker.engines, worker.dtype) == ([engine], "float32")
    engine.device_name, engine.attention_path = "a GPU", "flash"
    assert (worker.describe().device, worker.describe().attention) == ("a GPU", "flash")


def test_an_engine_is_shared_by_those_of_the_same_settings_only():
    worker = Worker(make_stub)
    first, same, other = (worker.get_engine(replace(ON_CPU, dtype=one)) for one in ("float32", "float32", "bfloat16"))
    assert first is same is not other


def test_a_worker_that_is_closed_has_no_decoders_any_more():
    worker, threads = Worker(), {*threading.enumerate()}
    worker.get_decoder_pool(SamplingConfig(), 3)
    assert len({*threading.enumerate()} - threads) == 3
    worker.close()
    assert {*threading.enumerate()} <= threads


def test_what_an_engine_did_is_reported_once_and_in_whole_milliseconds():
    worker, engine = Worker(), make_stub(ON_CPU)
    worker.use_engine(ON_CPU, engine)
    running = worker.get_engine(ON_CPU)
    engine.stats.questions, engine.stats.decode_s = 3, 0.0014
    first = running.take_totals()
    engine.stats.decode_s = 0.0018
    second = running.take_totals()
    assert [(totals["questions"], totals["decode_s"]) for totals in (first, second)] == [(3, 1), (0, 1)]
    assert "kv_prefix_bytes" not in first


def test_all_threads_of_a_process_share_pools_budgets_and_tallies():
    worker, config = Worker(), SamplingConfig(max_frames=4)
    pool = worker.get_decoder_pool(config, 1)
    assert worker.get_decoder_pool(SamplingConfig(max_frames=4), 1) is pool
    assert worker.get_decoder_pool(config, 2) is not pool
    assert worker.get_decoder_pool(SamplingConfig(max_frames=5), 1) is not pool
    assert worker.get_frame_budget(12345) is worker.get_frame_budget(12345)
    assert worker.get_clip_budget(12345) is worker.get_clip_budget(12345) is not worker.get_frame_budget(12345)
    assert worker.get_failure_tally("run") is worker.get_failure_tally("run")
    worker.close()


def test_failures_of_all_units_of_a_worker_count_together_and_those_of_a_refused_unit_not_at_all():
    tally, half = FailureTally(), FailurePolicy(0.5)
    tally.admit([make_failed(f"a-{number}") for number in range(60)], half)  # of fewer than 100 nothing is said
    with pytest.raises(TooManyFailedClipsError, match=r"100 of 100 clips failed \(100 x no video stream \(decode\)\)"):
        tally.admit([make_failed(f"b-{number}") for number in range(40)], half)
    tally.admit([make_annotation(f"c-{number}") for number in range(60)], half)


def test_a_clip_larger_than_the_whole_budget_is_let_in_alone():
    budget = Budget(100)
    assert budget.try_acquire(500)
    assert not budget.try_acquire(1)
    budget.release(500)
    assert budget.try_acquire(60)
    assert not budget.try_acquire(60)
    assert budget.held == 60


def test_a_thread_waits_for_room_until_another_releases():
    budget = Budget(100)
    budget.try_acquire(80)
    waiting = threading.Thread(target=budget.wait_for_room, args=(50,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    budget.release(80)
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        Budget(0)


def test_a_worker_shares_nothing_with_another():
    one, other = Worker(), Worker()
    assert one.get_frame_budget(12345) is not other.get_frame_budget(12345)
    one.use_engine(ON_CPU, make_stub(ON_CPU))
    assert not other.has_engine(ON_CPU)


def test_a_worker_that_travels_with_a_step_is_itself_in_its_process():
    worker = Worker()
    assert pickle.loads(pickle.dumps(worker)) is worker
    assert pickle.loads(pickle.dumps(WORKER)) is WORKER


def test_a_worker_that_travels_to_another_process_is_the_one_of_that_process():
    arrive = (
        f"import pickle; worker = pickle.loads({pickle.dumps(WORKER)!r}); "
        "from transforms.worker import WORKER; print(worker is WORKER)"
    )
    arrived = subprocess.run([sys.executable, "-c", arrive], cwd=ROOT, capture_output=True, text=True, check=True)
    assert arrived.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("setting", "value"), [("num_decoder_processes", 0), ("frame_memory_bytes", 0), ("prefetch_clips", -1)]
)
def test_nothing_is_not_a_size(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be positive, got {value}"):
        WorkerConfig(**{setting: value})


def test_a_process_that_ends_in_the_middle_of_an_answer_is_not_aborted():
    ask = (
        "import time; from framescribe.llava_video import EngineConfig, GenerationConfig;"
        f"from transforms.worker import WORKER; engine = WORKER.get_engine({TINY!r}).engine;"
        "asked = [engine.ask('Why?', GenerationConfig(max_new_tokens=400)) for _ in range(8)]; time.sleep(0.3)"
    )
    ended = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_gpu_in_use_by_another_process_is_an_error_that_names_the_runner_option(tmp_path: Path):
    with another_process_with("GPU-1", tmp_path):
        with pytest.raises(GpuTaken, match="sdk_worker_parallelism=1"):
            claim_gpu(["GPU-1"], tmp_path)
        assert claim_gpu(["GPU-1", "GPU-2"], tmp_path).name == "GPU-2"
    assert claim_gpu(["GPU-1"], tmp_path).name == "GPU-1"
