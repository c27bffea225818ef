"""Fills the model's modules from the safetensors shards of the original layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from framescribe.llava_video.errors import CheckpointError
from framescribe.llava_video.model.checkpoint import Checkpoint, find_weight_files

Place = Callable[[str, Tensor], Tensor]
"""Moves and casts one tensor, by its name on disk, to where and what it shall be."""
ReadWeights = Callable[[Mapping[str, tuple[int, ...]], Place], dict[str, Tensor]]
"""Returns the tensors of the wanted names and shapes, each put in its place."""


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
        CheckpointError: there are no whole safetensors, or tensors are missing or have other shapes (all are named).
    """
    shards = find_weight_files(checkpoint)
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
    return name in find_weight_files(checkpoint)


def _by_shard(shards: Mapping[str, Path], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[Path, list[str]]]:
    for path in sorted({shards[name] for name in wanted if name in shards}):
        yield path, sorted(name for name in wanted if shards.get(name) == path)
