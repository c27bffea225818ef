"""Lets a unit that is done again ask the model about its failed clips only."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from schemas.part_rows import read_outcomes
from schemas.records import Clip, ClipAnnotation, FailedClip, UnitEnd
from storage.output_store import OutputStore, StorageOptions, open_output
from storage.run_journal import read_part


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

    def process(self, element: Clip | FailedClip | UnitEnd) -> Iterator[Clip | ClipAnnotation | FailedClip | UnitEnd]:
        """Yields the element, or the annotation that it had before."""
        if isinstance(element, UnitEnd):
            yield element
            return
        if element.ref.unit_id != self._unit_id:
            self._unit_id = element.ref.unit_id
            self._annotated = read_annotated(self._store, element.ref.unit_id)
        yield self._annotated.get(element.ref.clip_id, element)


def read_annotated(store: OutputStore, unit_id: str) -> dict[str, ClipAnnotation]:
    """Returns clip id to annotation of the clips that a unit's part holds as annotated; none where it has no part."""
    try:
        part = read_part(store, unit_id)
    except FileNotFoundError:
        return {}
    return {one.ref.clip_id: one for one in read_outcomes(part) if isinstance(one, ClipAnnotation)}
