"""Answers of an earlier run, read where a clip is about to be asked: from the part of the clip's own unit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import DamagedRunError, read_part
from framescribe.storage.output import OutputStore, open_output, part_name
from schemas.part_rows import read_completions
from schemas.records import KeptCompletion, SampledClip
from transforms.engine_registry import computed_dtype

# Clips arrive in the order in which they are decoded: the last of a unit after the first of the next.
_UNITS_AT_HAND = 4
_COLUMNS = ["clip_id", "frames_digest", "dtype", "completions"]


class OtherDtypeError(RuntimeError):
    """The earlier answers were computed in another number format than this worker computes in."""


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """A run whose answers may be taken: its output, and the fingerprint that its parts must carry."""

    output: str
    fingerprint: str
    storage_options: StorageOptions = field(default_factory=dict, repr=False)


class EarlierAnswers:
    """What an earlier run asked about a clip; keeps the parts of a few units at hand. One bundle thread's own."""

    def __init__(self, run: EarlierRun) -> None:
        self._run = run
        self._store: OutputStore = open_output(run.output, run.storage_options)
        self._parts: OrderedDict[str, dict[str, pa.Table]] = OrderedDict()

    def find(self, clip: SampledClip) -> Mapping[bytes, KeptCompletion]:
        """Returns question digest to completion; nothing for a clip that failed, is new or has other frames now.

        Raises:
            OtherDtypeError: the answers were computed in another number format.
            DamagedRunError: the part is damaged or of other settings than the run.
        """
        row = self._rows(clip.ref.unit_id).get(clip.ref.clip_id)
        if row is None or row["frames_digest"][0].as_py() != clip.sampling.frames_digest:
            return {}
        check_same_dtype(row["dtype"][0].as_py(), computed_dtype())
        return {one.question_digest: one for one in read_completions(row["completions"][0].as_py())}

    def _rows(self, unit_id: str) -> dict[str, pa.Table]:
        """Clip id to row; the completions stay packed until their clip comes."""
        if unit_id not in self._parts:
            self._parts[unit_id] = self._read(unit_id)
        self._parts.move_to_end(unit_id)
        if len(self._parts) > _UNITS_AT_HAND:
            self._parts.popitem(last=False)
        return self._parts[unit_id]

    def _read(self, unit_id: str) -> dict[str, pa.Table]:
        try:
            part = read_part(self._store, unit_id, _COLUMNS)
        except FileNotFoundError:  # the earlier run did not come so far, or had other inputs
            return {}
        found = (part.schema.metadata or {}).get(b"fingerprint", b"").decode()
        if found != self._run.fingerprint:
            raise DamagedRunError(
                f"{self._store.address(part_name(unit_id))} was made with the settings {found!r}, but the run there "
                f"has {self._run.fingerprint!r}: remove that part, or leave out --reuse-from"
            )
        return {clip_id: part.slice(row, 1) for row, clip_id in enumerate(part["clip_id"].to_pylist())}


def check_same_dtype(earlier: str, now: str | None) -> None:
    """Raises `OtherDtypeError` when answers of one number format would stand beside those of another."""
    if now not in (None, earlier):
        raise OtherDtypeError(
            f"the earlier run computed in {earlier}, this worker computes in {now}: its answers are not the ones that "
            f"asking would give. Start with --dtype {earlier}, or without --reuse-from to ask everything"
        )
