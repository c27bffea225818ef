"""Fills the model's modules from the safetensors shards of the original layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from llava_video.checkpoint import Checkpoint
from llava_video.errors import CheckpointError

Place = Callable[[str, Tensor], Tensor]
"""Moves and casts one tensor, by its name on disk, to where and what it shall be."""
ReadWeights = Callable[[Mapping[str, tuple[int, ...]], Place], dict[str, Tensor]]
"""Returns the tensors of the wanted names and shapes, each put in its place."""

_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_weights(
    checkpoint: Checkpoint,
    wanted: Mapping[str, tuple[int, ...]],
    place: Place,
) -> dict[str, Tensor]:
    """Reads the wanted tensors of a checkpoint, shard by shard.

    Args:
        wanted: shape of each tensor by its name on disk.
        place: moves and casts one tensor to where and what it shall be; called as each is read.

    Raises:
        CheckpointError: there are no safetensors, or tensors are missing or have other shapes (all are named).
    """
    shards = _find_shards(checkpoint)
    missing = sorted(set(wanted) - set(shards))
    mis_shaped: list[str] = []
    weights: dict[str, Tensor] = {}
    for path, names in _by_shard(shards, wanted):
        with safe_open(path, framework="pt") as shard:
            for name in names:
                shape = tuple(shard.get_slice(name).get_shape())
                if shape == wanted[name]:
                    weights[name] = place(name, shard.get_tensor(name))
                else:
                    mis_shaped.append(f"{name} has shape {list(shape)}, wanted {list(wanted[name])}")
    if missing or mis_shaped:
        lines = [f"missing: {name}" for name in missing] + mis_shaped
        raise CheckpointError(
            f"{checkpoint.name}: {len(lines)} tensors do not fit config.json:\n  " + "\n  ".join(lines)
        )
    return weights


def has_tensor(checkpoint: Checkpoint, name: str) -> bool:
    """Returns whether the checkpoint holds a tensor of that name."""
    return name in _find_shards(checkpoint)


def _find_shards(checkpoint: Checkpoint) -> dict[str, Path]:
    """Returns the file of each tensor, after the index where there is one."""
    index = checkpoint.folder / _INDEX
    if index.exists():
        return _read_index(checkpoint, index)
    files = sorted(checkpoint.folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in checkpoint.folder.glob(pattern))
        held = f"only pickled weights ({', '.join(pickles)}), which are never loaded;" if pickles else "no weights;"
        raise CheckpointError(f"{checkpoint.name}: {checkpoint.folder} holds {held} wanted *.safetensors")
    return {name: path for path in files for name in _tensor_names(path)}


def _read_index(checkpoint: Checkpoint, index: Path) -> dict[str, Path]:
    weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
    files = set(weight_map.values())
    odd = sorted(name for name in files if Path(name).name != name or not name.endswith(".safetensors"))
    absent = sorted(name for name in files - set(odd) if not (checkpoint.folder / name).exists())
    if odd or absent:
        raise CheckpointError(
            f"{checkpoint.name}: {_INDEX} names {odd or absent}; wanted safetensors files beside it"
            + ("" if odd else " (the download is incomplete)")
        )
    return {name: checkpoint.folder / file for name, file in weight_map.items()}


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as shard:
        return list(shard.keys())


def _by_shard(shards: Mapping[str, Path], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[Path, list[str]]]:
    for path in sorted({shards[name] for name in wanted if name in shards}):
        yield path, sorted(name for name in wanted if shards.get(name) == path)
