"""What a benchmark's figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_machine() -> dict[str, object]:
    """Returns processor, cores, GPU where there is one, and versions, as JSON values."""
    found: dict[str, object] = {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers", "av", "decord", "pillow", "numpy", "apache-beam"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | _describe_gpu()


def _processor_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _describe_gpu() -> dict[str, object]:
    try:
        import torch
    except ImportError:
        return {}
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
