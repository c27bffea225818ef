"""Finds a LLaVA-Video checkpoint, reads its JSON files, and says which safetensors file holds each tensor.

Without torch: the headers of the files are enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from safetensors import SafetensorError, safe_open

from framescribe.llava_video.errors import CheckpointError

# What the original layout consists of; nothing else is fetched, least of all code or pickles.
WHOLE_CHECKPOINT = ("*.json", "*.safetensors", "merges.txt")

# Enough to start a run with, on a machine that will not load the model.
CONFIGURATION = ("config.json", "generation_config.json", "tokenizer.json")

_INDEX = "model.safetensors.index.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on local disk.

    Attributes:
        name: the hub id, the URI without credentials, or the folder's absolute path; goes into every row.
        revision: the hub commit, or a digest of the files' names, sizes and edges.
    """

    name: str
    folder: Path
    revision: str

    def read_json(self, file_name: str) -> dict[str, Any]:  # Any: JSON values
        """Reads one JSON object of the checkpoint.

        Raises:
            CheckpointError: the file is missing or is not a JSON object.
        """
        path = self.folder / file_name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.name}: no {file_name} in {self.folder}; wanted the original layout of "
                "lmms-lab/LLaVA-Video-7B-Qwen2 (config.json, tokenizer.json, *.safetensors)"
            ) from None
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{self.name}: {file_name} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.name}: {file_name} holds a {type(content).__name__}, wanted an object")
        return content


def find_checkpoint(
    model: str,
    revision: str | None = None,
    storage_options: Mapping[str, object] | None = None,
    files: Sequence[str] = WHOLE_CHECKPOINT,
) -> Checkpoint:
    """Brings a checkpoint to local disk: a folder as it is, an fsspec URI or a hub id through a cache.

    Args:
        files: patterns of the files to bring; the revision is the same whatever they are.

    Raises:
        CheckpointError: nothing was found under that name.
    """
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        return Checkpoint(os.path.abspath(folder), folder, _digest_files(fsspec.filesystem("file"), str(folder)))
    if "://" in model:
        fs, root = fsspec.core.url_to_fs(model, **(storage_options or {}))
        name, revision = _without_credentials(model), _digest_files(fs, root)
        return Checkpoint(name, _fetch_uri(fs, root, name, revision, files), revision)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"no folder {model!r}; wanted a folder, a URI such as s3://bucket/model, or a hub id")
    return _fetch_from_hub(model, revision, files)


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


def _fetch_from_hub(model: str, revision: str | None, files: Sequence[str]) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except RepositoryNotFoundError:
        raise _not_fetched(model, "it has no such model, or shows it to others only") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _not_fetched(model, str(error).partition("\n")[0]) from error
    return Checkpoint(model, folder, folder.name)  # a snapshot's folder is named by its commit


def _not_fetched(model: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"there is no folder {model!r}, and the Hugging Face hub gives no model of that id: {reason}. Check the "
        "spelling of the path or the id, and the network; without one, pass a local folder"
    )


def _fetch_uri(fs: fsspec.AbstractFileSystem, root: str, name: str, revision: str, files: Sequence[str]) -> Path:
    """Copies the wanted files of a revision below the user's cache folder once; later calls find them by size."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "framescribe" / "models"
    folder = cache / hashlib.sha256(f"{name} {revision}".encode()).hexdigest()[:16]
    remote = {path: fs.size(path) for pattern in files for path in fs.glob(f"{root.rstrip('/')}/{pattern}")}
    if not remote:
        raise CheckpointError(f"no checkpoint files at {name!r}; wanted *.json and *.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    for path, size_bytes in remote.items():
        target = folder / Path(path).name
        if not target.exists() or target.stat().st_size != size_bytes:
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            with fs.open(path, "rb") as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 24)
            partial.replace(target)
    return folder


def _digest_files(fs: fsspec.AbstractFileSystem, root: str) -> str:
    """Returns 16 hex digits over names, sizes and the first and last MiB of the configuration and weight files."""
    digest, edge = hashlib.sha256(), 1 << 20
    folder = root.rstrip("/")
    for path in sorted(path for name in (*CONFIGURATION, "*.safetensors") for path in fs.glob(f"{folder}/{name}")):
        size_bytes = fs.size(path)
        digest.update(f"{Path(path).name}:{size_bytes}\n".encode())
        digest.update(fs.cat_file(path, start=0, end=min(edge, size_bytes)))
        digest.update(fs.cat_file(path, start=max(0, size_bytes - edge), end=size_bytes))
    return digest.hexdigest()[:16]


def _without_credentials(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


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
