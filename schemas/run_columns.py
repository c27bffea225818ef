"""What produced a row: the settings of the run, and the program, device and attention of the worker."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from framescribe.errors import FrameScribeError

_PACKAGES = ("framescribe", "apache-beam", "torch", "transformers", "av", "decord", "pyarrow", "pillow", "numpy")
# Of these another minor version may write other answers to the same questions.
_DECISIVE = ("framescribe", "torch", "transformers")


class OtherVersionsError(FrameScribeError, ValueError):
    """A run would go on, or take answers, under other versions than its rows were written with."""


@dataclass(frozen=True, slots=True)
class RunColumns:
    """What produced a row, the same for every row of one run.

    Attributes:
        recipe: name of the recipe, or of the user's own recipe file.
        model: path or hub id of the checkpoint, without credentials.
        model_revision: commit of the hub, or a digest of the local checkpoint.
        prompt_layout: `model_card`, `demo` or `training`.
        pool_mode: spatial pooling of the visual tokens, as it was really used.
        dtype: what the weights were computed in, for example `bfloat16`.
        framescribe_version: version of this package.
        fingerprint: digest of all settings that change rows, as in `_framescribe/run.json`.
    """

    recipe: str
    model: str
    model_revision: str
    prompt_layout: str
    pool_mode: str
    dtype: str
    framescribe_version: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a part was written by; equal for all workers of one kind of machine and one installation.

    Attributes:
        versions: package to version.
        device: for example `cpu (AVX2)` or `NVIDIA H100 80GB HBM3`; empty where no model was loaded.
        attention: which code attended, for example `sdpa; decoding: paged`; empty where no model was loaded.
    """

    versions: Mapping[str, str]
    device: str
    attention: str

    def to_json(self) -> str:
        """Returns it as a JSON object, the same text for the same record."""
        return json.dumps(asdict(self), sort_keys=True)


@cache
def find_versions() -> Mapping[str, str]:
    """Returns package to version of everything installed here that rows depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_other_versions(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Returns `torch 2.12.1 -> 2.13.0` and so on for the packages whose major or minor version differs; or nothing.

    Only FrameScribe, torch and transformers count, and only where both sides say their version.
    """
    differing = (
        f"{name} {then[name]} -> {now[name]}"
        for name in _DECISIVE
        if name in then and name in now and _minor(then[name]) != _minor(now[name])
    )
    return ", ".join(differing)


def _minor(text: str) -> tuple[str, ...]:
    return tuple(text.partition("+")[0].split(".")[:2])
