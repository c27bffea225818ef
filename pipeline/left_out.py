"""Compares the inputs of a start with those that earlier starts planned in the same output.

A start may neither push clips out of the tables whose videos are still where they were, nor annotate a video under a
second id, nor put rows of changed inputs beside rows of the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from framescribe.storage.access import Store
from framescribe.storage.errors import InputError, StoreRefused
from framescribe.storage.journal import OtherRunError, Source, list_done_units, list_sources, read_plan
from framescribe.storage.output import OutputStore
from framescribe.storage.parts import read_parts
from framescribe.storage.redaction import clean_text, strip_credentials
from pipeline.progress import write_count
from schemas.records import InputKind, WorkUnit

# Of these the column `source` names what the plan names; rows of manifests and Parquet may name any video.
_KINDS = (InputKind.FILES, InputKind.TAR)
_MAX_SHOWN = 3


def check_nothing_left_out(store: OutputStore, reader: Store, units: Sequence[WorkUnit], fingerprint: str) -> None:
    """Looks at the finished units that this start's plan replaces: of a shard, the newest listing alone counts.

    So other files of a folder than last time, or another tar of the same name, would take the place of the earlier
    ones. Files that were deleted or moved since may go; files that are there may not.

    Raises:
        OtherRunError: a clip would leave the tables though its file is there; nothing was changed.
        StoreUnavailable: whether it is there could not be found out.
    """
    named = {clean_text(strip_credentials(uri)) for unit in units for uri in unit.files or (unit.shard,)}
    gone: set[str] = set()
    for clip_id, source in _list_replaced(store, units, fingerprint):
        if clean_text(source) in named or source in gone:
            continue
        if _is_there(reader, source):
            raise OtherRunError(
                f"{store.address('')} holds the clip {clip_id!r} of {source}, which would leave the tables: this start "
                "names others of the same folder, or another shard of that name, but not this one. Name the earlier "
                "inputs as well, or choose another --output"
            )
        gone.add(source)


@dataclass(frozen=True, slots=True)
class ChangedInputs:
    """Finished units of which a file has changed since, under the same name and size, and those files."""

    unit_ids: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def find_changed_inputs(store: OutputStore, units: Sequence[WorkUnit]) -> ChangedInputs:
    """Compares ETags, generations or modification times with those that were planned for the finished units."""
    done = {*list_done_units(store)}
    planned = {unit.unit_id: unit.sources for unit in read_plan(store) if unit.unit_id in done}
    unit_ids: list[str] = []
    changes: dict[str, str] = {}
    for unit in units:
        pairs = zip(planned.get(unit.unit_id, ()), list_sources(unit), strict=False)
        changed = {now.uri: _describe_change(then, now) for then, now in pairs if _differ(then, now)}
        unit_ids += [unit.unit_id] if changed else []
        changes |= changed
    return ChangedInputs(tuple(unit_ids), tuple(changes.values()))


def check_inputs_unchanged(changed: ChangedInputs) -> None:
    """Raises `OtherRunError`, with what to do, where inputs of finished units have changed."""
    if not changed.unit_ids:
        return
    shown, more = ", ".join(changed.changes[:_MAX_SHOWN]), len(changed.changes) - _MAX_SHOWN
    raise OtherRunError(
        f"{write_count(len(changed.changes), 'input')} changed since then, under the same name and size: {shown}"
        f"{f' and {more} more' if more > 0 else ''}. {write_count(len(changed.unit_ids), 'unit')} with clips of them "
        "are done. Nothing was changed. If the contents are the same, and only copied or touched, start with "
        "--changed-inputs keep. --changed-inputs redo does these units again, and takes over the answers of every clip "
        "whose frames are the same; or choose another --output"
    )


def check_no_second_ids(store: OutputStore, units: Sequence[WorkUnit]) -> None:
    """Finds files that an earlier start planned under other ids, as `--input a` does after `--input a/b`.

    Raises:
        OtherRunError: their videos would be annotated twice.
    """
    shard_of = {source.uri: unit.shard_id for unit in read_plan(store) for source in unit.sources}
    for unit in units:
        for source in list_sources(unit):
            earlier = shard_of.get(source.uri, unit.shard_id)
            if earlier != unit.shard_id:
                raise OtherRunError(
                    f"{source.uri} is in {store.address('')} already, as part of {earlier!r}: this start would "
                    f"annotate it a second time, as part of {unit.shard_id!r}. Name it as then, since ids begin at the "
                    "folder that --input names, or choose another --output"
                )


def _differ(then: Source, now: Source) -> bool:
    # Wherever they lie: a unit has the same id after its inputs were copied to another place.
    return bool(then.version and now.version and then.version != now.version)


def _describe_change(then: Source, now: Source) -> str:
    place = "" if then.uri == now.uri else f"{then.uri} "
    return f"{now.uri} ({place}{then.version} -> {now.version})"


def _list_replaced(store: OutputStore, units: Sequence[WorkUnit], fingerprint: str) -> Iterator[tuple[str, str]]:
    """Yields clip id and source of every row in the finished units that the plan replaces."""
    shard_ids = {unit.shard_id for unit in units if unit.kind in _KINDS}
    kept, done = {unit.unit_id for unit in units}, {*list_done_units(store)}
    replaced = [
        unit.unit_id
        for unit in read_plan(store)
        if unit.shard_id in shard_ids and unit.unit_id in done and unit.unit_id not in kept
    ]
    for part in read_parts(store, replaced, fingerprint, ["clip_id", "source"]):
        yield from zip(part["clip_id"].to_pylist(), part["source"].to_pylist(), strict=True)


def _is_there(reader: Store, source: str) -> bool:
    try:
        reader.size(reader.locate(source))
    except (FileNotFoundError, InputError, StoreRefused):
        return False
    return True
