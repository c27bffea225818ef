"""Keeps a start from pushing clips out of the tables whose videos are still where they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from publish.parts import read_parts
from schemas.records import InputKind, WorkUnit
from shards.errors import InputError, StoreRefused
from shards.store import Store
from shards.unprintable import clean_text
from storage.output_store import OutputStore
from storage.redaction import strip_credentials
from storage.run_journal import OtherRunError, list_done_units, read_plan

# Of these the column `source` names what the plan names; rows of manifests and Parquet may name any video.
_KINDS = (InputKind.FILES, InputKind.TAR)


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
