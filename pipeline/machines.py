"""The table of machines that a run is priced for; users copy `machines.yaml` and put in what they pay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import TypeAdapter, ValidationError

from framescribe.llava_video.model.roofline import Gpu
from framescribe.recipes.config import STRICT
from pipeline.config import CannotStart

SHIPPED_MACHINES = Path(__file__).with_name("machines.yaml")
_KV_MARGIN_GB = 12  # activations, graphs, the allocator's own


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with GPUs of one kind.

    Attributes:
        gpu: a name that stands in the device's own, for example `H100`.
        price_per_hour: of the whole machine, in `currency`.
        language_tflops, vision_tflops: that products of the model's shapes reach on one GPU, in bfloat16.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    gpu: str
    gpus: int
    price_per_hour: float
    cpu_cores: int
    memory_gb_per_gpu: float
    network_gbit_per_s: float
    language_tflops: float
    vision_tflops: float
    memory_tb_per_s: float
    currency: str = "USD"

    def __post_init__(self) -> None:
        positive = ("gpus", "cpu_cores", "memory_gb_per_gpu", "network_gbit_per_s", "language_tflops", "vision_tflops")
        for name in (*positive, "memory_tb_per_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.price_per_hour < float("inf"):
            raise ValueError(f"price_per_hour must be 0 or more, got {self.price_per_hour}")

    def model_gpu(self, weight_bytes: float) -> Gpu | None:
        """Returns one of its GPUs that holds the weights; None where they leave no room."""
        kv_bytes = (self.memory_gb_per_gpu - _KV_MARGIN_GB) * 1e9 - weight_bytes
        if kv_bytes <= 0:
            return None
        flops = self.language_tflops * 1e12, self.vision_tflops * 1e12
        return Gpu(self.memory_tb_per_s * 1e12, kv_bytes, *flops)


@dataclass(frozen=True, slots=True)
class _Table:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    machines: tuple[Machine, ...]


def read_machines(path: Path | None = None) -> tuple[Machine, ...]:
    """Reads a table of machines, the shipped one by default.

    Raises:
        FileNotFoundError: there is no such file.
        CannotStart: it is no such table.
    """
    file = path or SHIPPED_MACHINES
    if not file.is_file():
        raise FileNotFoundError(
            f"no table of machines at {str(file)!r}: --machines takes a YAML file such as {_EXAMPLE}"
        )
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        machines = TypeAdapter(_Table).validate_python(content, strict=False).machines
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CannotStart(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise CannotStart(f"{file}: {place}: {first['msg']}; wanted a table such as {_EXAMPLE}") from None
    if not machines:
        raise CannotStart(f"{file}: names no machine; wanted a table such as {_EXAMPLE}")
    return machines


def find_machine(machines: Iterable[Machine], device: str) -> Machine | None:
    """Returns the first machine of the table with such a GPU."""
    return next((machine for machine in machines if machine.gpu.lower() in device.lower()), None)


_EXAMPLE = "pipeline/machines.yaml of the installed package"
