"""Reads the parts of a run, a few at a time ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from framescribe.storage.journal import DamagedRunError, read_part, read_part_and_digest
from framescribe.storage.output import OutputStore, part_name
from schemas.part_rows import sources_in
from schemas.tables import PUBLISHED_SCHEMA

# A store answers a small read in some 50 ms, whatever its size: many at once, or 100,000 parts take an hour and more.
_READERS = 16
_PARTS_AHEAD = 32


def read_parts(
    store: OutputStore,
    unit_ids: Sequence[str],
    fingerprint: str,
    columns: list[str] | None = None,
    digests: MutableMapping[str, str] | None = None,
) -> Iterator[pa.Table]:
    """Yields the parts of the units in this order: the columns that tables are made of, or some of them.

    Args:
        digests: takes unit id to SHA-256 (hex) of every part that was yielded.

    Raises:
        DamagedRunError: a part is damaged, of other settings or of another version of the program.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        reading: deque[tuple[str, Future[tuple[pa.Table, str]]]] = deque()
        try:
            for unit_id in unit_ids:
                reading.append((unit_id, readers.submit(_read_checked, store, unit_id, fingerprint, columns)))
                if len(reading) == _PARTS_AHEAD:
                    yield _take_first(reading, digests)
            while reading:
                yield _take_first(reading, digests)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


def read_source_versions(store: OutputStore, unit_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns unit id to source to version of the videos that its part was made of; raises `DamagedRunError`."""
    with ThreadPoolExecutor(_READERS) as readers:
        parts = readers.map(lambda unit_id: read_part(store, unit_id, []), unit_ids)
        return {unit_id: sources_in(part.schema) for unit_id, part in zip(unit_ids, parts, strict=True)}


def _take_first(
    reading: deque[tuple[str, Future[tuple[pa.Table, str]]]], digests: MutableMapping[str, str] | None
) -> pa.Table:
    unit_id, future = reading.popleft()
    part, digest = future.result()
    if digests is not None:
        digests[unit_id] = digest
    return part


def _read_checked(
    store: OutputStore, unit_id: str, fingerprint: str, columns: list[str] | None
) -> tuple[pa.Table, str]:
    wanted = pa.schema([PUBLISHED_SCHEMA.field(name) for name in columns or PUBLISHED_SCHEMA.names])
    part, digest = read_part_and_digest(store, unit_id, wanted.names)
    if not part.schema.equals(wanted):
        raise DamagedRunError(
            f"{store.address(part_name(unit_id))} has not the columns of this version of FrameScribe: publish with the "
            "version that wrote it, or start with --overwrite"
        )
    found = (part.schema.metadata or {}).get(b"fingerprint", b"").decode()
    if found != fingerprint:
        raise DamagedRunError(
            f"{store.address(part_name(unit_id))} was made with the settings {found!r}, but run.json says "
            f"{fingerprint!r}: remove that part and start the run again"
        )
    return part, digest
