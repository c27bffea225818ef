"""The settings of a run that every row of its tables repeats."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunColumns:
    """What produced a row, the same for every row of one run.

    Attributes:
        recipe: name of the recipe, or of the user's own recipe file.
        model: path or hub id of the checkpoint, without credentials.
        model_revision: commit of the hub, or a digest of the local checkpoint.
        prompt_layout: `seed`, `demo` or `training`.
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
