"""Which of a machine's GPUs an engine claims."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch

from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.engine import Engine
from tests.support.run_fixtures import ROOT
from tests.support.stub_engine import StubEngine
from transforms import worker as engine_registry
from transforms.worker import SlotTaken, get_engine, is_loaded

CLAIM = """
import sys
from pathlib import Path
from transforms.worker import SlotTaken, claim_slot
try:
    slot = claim_slot([sys.argv[2]], Path(sys.argv[1]))
except SlotTaken:
    sys.exit(3)
print("claimed", flush=True)
sys.stdin.read()
"""


class TwoGpus:
    """A machine of two GPUs; notes on which of them engines are loaded."""

    def __init__(self) -> None:
        self.loaded_on: list[str] = []

    def load(self, config: EngineConfig) -> StubEngine:
        self.loaded_on.append(config.device)
        return StubEngine("any")


def start_claim(name: str) -> subprocess.Popen[str]:
    """Starts another process that claims a GPU and keeps it, or ends with status 3."""
    command = [sys.executable, "-c", CLAIM, tempfile.gettempdir(), name]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_taken(name: str) -> bool:
    """Whether another process finds a GPU claimed."""
    with start_claim(name) as claim:
        claim.communicate()
        return claim.returncode == 3


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Iterator[TwoGpus]:
    """Two GPUs of which another process uses the first."""
    machine = TwoGpus()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("framescribe.llava_video.engine.memory.name_gpus", lambda: ["first", "second"])
    monkeypatch.setattr(Engine, "load", machine.load)
    monkeypatch.setattr(engine_registry, "_running", {})
    monkeypatch.setattr(engine_registry, "_slots", {})
    with start_claim("first") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        yield machine
        other.kill()
    for slot in engine_registry._slots.values():
        slot.lock.release()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_without_a_number_is_any_that_is_free(machine, device):
    get_engine(EngineConfig("7b", device=device))
    assert machine.loaded_on == ["cuda:1"]
    assert is_taken("second")


def test_a_gpu_by_its_number_is_that_one(machine):
    with pytest.raises(SlotTaken):
        get_engine(EngineConfig("7b", device="cuda:0"))
    assert not is_taken("second")
    get_engine(EngineConfig("7b", device="cuda:1"))
    assert machine.loaded_on == ["cuda:1"]


def test_a_second_engine_of_a_process_takes_no_gpu_of_the_first(machine):
    get_engine(EngineConfig("7b", device="cuda"))
    with pytest.raises(SlotTaken):
        get_engine(EngineConfig("72b", device="cuda"))
    assert machine.loaded_on == ["cuda:1"]


def test_a_load_that_fails_leaves_its_gpu_to_others(machine, monkeypatch):
    monkeypatch.setattr(Engine, "load", lambda config: [][0])
    with pytest.raises(IndexError):
        get_engine(EngineConfig("7b", device="cuda:1"))
    assert not is_taken("second")


def test_an_engine_is_loaded_once_its_load_succeeded(machine, monkeypatch):
    config = EngineConfig("7b", device="cuda:1")
    assert not is_loaded(config)
    monkeypatch.setattr(Engine, "load", lambda config: [][0])
    with pytest.raises(IndexError):
        get_engine(config)
    assert not is_loaded(config)
    monkeypatch.setattr(Engine, "load", machine.load)
    get_engine(config)
    assert is_loaded(config)
