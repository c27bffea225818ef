"""Lets a unit that is done again ask the model about its failed clips only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import apache_beam as beam

from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import read_part
from framescribe.storage.output import OutputStore, open_output, part_name
from schemas.part_rows import read_outcomes
from schemas.records import Clip, ClipAnnotation, FailedClip, UnitEnd


class KeepAnnotated(beam.DoFn):
    """Replaces each clip that its unit's part holds as annotated by that annotation; the others pass.

    Later steps let a `ClipAnnotation` through, so that the part is written again with the old rows and the new ones.
    """

    def __init__(self, output: str, storage_options: StorageOptions | None = None) -> None:
        super().__init__()
        self._output = output
        self._storage_options = storage_options

    def setup(self) -> None:
        """Opens the output in the worker."""
        self._store: OutputStore = open_output(self._output, self._storage_options)

    def start_bundle(self) -> None:
        """Forgets the part that was read last: it may have been written again since."""
        self._unit_id: str | None = None
        self._annotated: dict[str, ClipAnnotation] = {}
        self._version: str | None = None

    def process(self, element: Clip | FailedClip | UnitEnd) -> Iterator[Clip | ClipAnnotation | FailedClip | UnitEnd]:
        """Yields the element, or the annotation that it had before; a unit's end says which part that was."""
        if isinstance(element, UnitEnd):
            self._read(element.unit_id)
            yield replace(element, replaces=self._version)
        else:
            self._read(element.ref.unit_id)
            yield self._annotated.get(element.ref.clip_id, element)

    def _read(self, unit_id: str) -> None:
        if unit_id != self._unit_id:
            # The version first: a part that is written between the two calls is not replaced then.
            self._version = self._store.version(part_name(unit_id))
            self._annotated = read_annotated(self._store, unit_id)
            self._unit_id = unit_id


def read_annotated(store: OutputStore, unit_id: str) -> dict[str, ClipAnnotation]:
    """Returns clip id to annotation of the clips that a unit's part holds as annotated; none where it has no part."""
    try:
        part = read_part(store, unit_id)
    except FileNotFoundError:
        return {}
    return {one.ref.clip_id: one for one in read_outcomes(part) if isinstance(one, ClipAnnotation)}
