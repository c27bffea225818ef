"""One operating-system lock a GPU: two models on one GPU are an error at once, not out of memory later."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fasteners


class SlotTaken(RuntimeError):
    """Every GPU of this machine is in use."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A claimed GPU. The kernel frees it when the process ends, however it ends."""

    name: str
    lock: fasteners.InterProcessLock


def claim_slot(gpu_names: Sequence[str], folder: Path | None = None) -> Slot:
    """Claims the first GPU that no other process has; within a process the caller keeps count.

    Args:
        gpu_names: a name for each GPU that may be claimed, the same in every process of the machine, such as its UUID.
        folder: where the lock files lie; None for the machine's temporary folder.

    Raises:
        SlotTaken: none is free; says which runner option starts fewer processes.
    """
    for name in gpu_names:
        file_name = f".framescribe-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
        lock = fasteners.InterProcessLock(str((folder or Path(tempfile.gettempdir())) / file_name))
        if lock.acquire(blocking=False):
            return Slot(name, lock)
    raise SlotTaken(
        "FrameScribe uses every GPU that this process may take already. Start one worker process "
        "a GPU: on Flink --sdk_worker_parallelism=1 and one TaskManager a GPU, on Dataflow "
        "--experiments=no_use_multiple_sdk_containers, locally a single run"
    )
