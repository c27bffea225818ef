"""Which device and number format the model takes."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """Returns the device that was asked for, a GPU by its number; `auto` is a GPU where there is one.

    Raises:
        ValueError: it is not there.
    """
    device = find_device(name)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def find_device(name: str) -> torch.device:
    """Returns the device without touching it: a GPU that was asked for without a number may still be any of them.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise ValueError(f"device is {name!r}, wanted auto, cpu, cuda, or the number of a GPU as in cuda:1")
    if device.type == "cpu":
        return device
    num_gpus = torch.cuda.device_count()
    if not num_gpus:
        raise ValueError(f"device is {name!r}, but PyTorch {torch.__version__} sees no GPU; use device 'cpu'")
    if device.index is not None and device.index >= num_gpus:
        raise ValueError(f"device is {name!r}, but PyTorch sees {num_gpus} GPUs, cuda:0 to cuda:{num_gpus - 1}")
    return device


def name_device(device: torch.device) -> str:
    """Returns a name of the kind of device, the same in every process of the machine."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).name)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that was asked for; `auto` is bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
