"""Which safetensors file holds each tensor, by the files' headers alone; importable without torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from llava_video.checkpoint import Checkpoint
from llava_video.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_weight_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Returns the file of each tensor, after the index where there is one.

    Raises:
        CheckpointError: there are no safetensors, or one of them is missing, damaged or cut short.
    """
    if (checkpoint.folder / _INDEX).exists():
        files = _read_index(checkpoint)
        for path in sorted(set(files.values())):
            _read_names(checkpoint, path)
        return files
    paths = sorted(checkpoint.folder.glob("*.safetensors"))
    if not paths:
        pickles = sorted(path.name for pattern in _PICKLES for path in checkpoint.folder.glob(pattern))
        held = f"only pickled weights ({', '.join(pickles)}), which are never loaded;" if pickles else "no weights;"
        raise CheckpointError(f"{checkpoint.name}: {checkpoint.folder} holds {held} wanted *.safetensors")
    return {name: path for path in paths for name in _read_names(checkpoint, path)}


def _read_index(checkpoint: Checkpoint) -> dict[str, Path]:
    weight_map = checkpoint.read_json(_INDEX).get("weight_map", {})
    files = set(weight_map.values())
    odd = sorted(name for name in files if Path(name).name != name or not name.endswith(".safetensors"))
    absent = sorted(name for name in files - set(odd) if not (checkpoint.folder / name).exists())
    if odd or absent:
        raise CheckpointError(
            f"{checkpoint.name}: {_INDEX} names {odd or absent}; wanted safetensors files beside it"
            + ("" if odd else " (the download is incomplete)")
        )
    return {name: checkpoint.folder / file for name, file in weight_map.items()}


def _read_names(checkpoint: Checkpoint, path: Path) -> list[str]:
    """Returns the tensors in a file; opening it compares what its header promises with its size."""
    try:
        with safe_open(path, framework="numpy") as shard:
            return list(shard.keys())
    except SafetensorError as error:
        size_bytes = path.stat().st_size
        raise CheckpointError(
            f"{checkpoint.name}: {path.name} is damaged or cut short at {size_bytes} bytes ({error}); fetch it again"
        ) from None
