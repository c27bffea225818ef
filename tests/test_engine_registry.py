"""Which of a machine's GPUs an engine claims."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from llava_video.engine import Engine
from llava_video.engine_config import EngineConfig
from tests.stub_engine import StubEngine
from transforms import engine_registry
from transforms.engine_registry import get_engine, is_loaded
from transforms.gpu_slots import Slot, SlotTaken


class SecondIsFree:
    """A machine of two GPUs of which other processes use the first; notes what is asked for."""

    def __init__(self) -> None:
        self.claimed: list[list[str]] = []
        self.loaded_on: list[str] = []

    def claim_slot(self, gpu_names: Sequence[str]) -> Slot:
        self.claimed.append(list(gpu_names))
        if "second" not in gpu_names:
            raise SlotTaken("taken")
        return Slot("second", None)  # type: ignore[arg-type]

    def load(self, config: EngineConfig) -> StubEngine:
        self.loaded_on.append(config.device)
        return StubEngine("any")


@pytest.fixture
def machine(monkeypatch):
    machine = SecondIsFree()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("llava_video.memory.name_gpus", lambda: ["first", "second"])
    monkeypatch.setattr(Engine, "load", machine.load)
    monkeypatch.setattr(engine_registry, "claim_slot", machine.claim_slot)
    monkeypatch.setattr(engine_registry, "_running", {})
    monkeypatch.setattr(engine_registry, "_slots", {})
    return machine


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_without_a_number_is_any_that_is_free(machine, device):
    get_engine(EngineConfig("7b", device=device))
    assert (machine.claimed, machine.loaded_on) == ([["first", "second"]], ["cuda:1"])


def test_a_gpu_by_its_number_is_that_one(machine):
    get_engine(EngineConfig("7b", device="cuda:1"))
    assert (machine.claimed, machine.loaded_on) == ([["second"]], ["cuda:1"])


def test_a_second_engine_of_a_process_takes_no_gpu_of_the_first(machine):
    get_engine(EngineConfig("7b", device="cuda"))
    with pytest.raises(SlotTaken):
        get_engine(EngineConfig("72b", device="cuda"))
    assert machine.claimed == [["first", "second"], ["first"]]


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
