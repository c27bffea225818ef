"""Builds the flat tables, the dataset card and _SUCCESS from the parts of a run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from framescribe.publish.card import write_card
from framescribe.publish.report import PublishReport, TableCounts
from framescribe.publish.sort import index_clips, sort_clips
from framescribe.publish.tables import TableFiles, flatten_clips, is_table_file
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import DamagedRunError, RunRecord, check_still_ours, list_parts, read_run
from framescribe.storage.output import CARD_FILE, PARTS_FOLDER, PLAN_FOLDER, SUCCESS_FILE, OutputStore, open_output
from framescribe.storage.parts import read_parts
from framescribe.storage.plan import read_plan
from framescribe.storage.retries import StoreError
from framescribe.storage.withdrawn import take_out_withdrawn
from schemas.records import FailurePolicy, LimitedTo
from schemas.tables import TABLES

_MAX_TRIES = 8
_MAX_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class OwnUnits:
    """What a start of a run knows to be its own: the tables are no success without it."""

    fingerprint: str
    unit_ids: frozenset[str]


class Overtaken(Exception):
    """Somebody else changed what a publisher read, or published, before it was done."""


def publish(
    output: str,
    storage_options: StorageOptions | None = None,
    failures: FailurePolicy | None = None,
    own: OwnUnits | None = None,
) -> PublishReport:
    """Rebuilds the published tables and the card from the parts of the planned units.

    Rows are sorted by clip id, and the same parts give the same bytes. `_SUCCESS` is written last, and
    only when every planned unit has its part and the clips did not fail too often. What was read is looked at
    again before anything is replaced and before `_SUCCESS`; if another process changed it, all is built anew.

    Args:
        failures: decides whether the run is a success; None takes any failures.
        own: what must be there, when a start of the run publishes.

    Raises:
        FileNotFoundError: no run was started in this folder.
        DamagedRunError: a part is damaged or of other settings, a clip is in two parts, or units are gone.
        OtherRunError: the output is another run's by now.
        StoreError: the store goes on refusing, or another process goes on publishing.
    """
    store = open_output(output, storage_options)
    store.remove_leftovers()
    for num_tries in range(_MAX_TRIES):
        snapshot = _take_snapshot(store, own)
        if take_out_withdrawn(store, snapshot.run.fingerprint).num_parts:  # of a worker that did not know yet
            snapshot = _take_snapshot(store, own)
        try:
            published = _publish_snapshot(store, snapshot, failures, own, is_repeated=num_tries > 0)
        except Overtaken:
            time.sleep(random.uniform(0, min(_MAX_PAUSE_S, 0.1 * 2**num_tries)))
            continue
        # The parts that were still missing may have come from another start meanwhile, which ended before this one.
        if published.is_complete or not _take_snapshot(store, own).is_complete:
            store.remove_leftovers()  # of those who were killed since
            return published
    raise StoreError(
        f"others publish in {store.address('')} again and again, or change its plan and parts: {_MAX_TRIES} tries came "
        "to nothing. Start `publish` once they have ended"
    )


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What a publisher reads, and what it replaces, as found.

    Attributes:
        planned: ids of the planned units.
        limited: to what the starts that planned them were limited.
        parts: unit id to version of every part, planned or not.
        published: name to version of every file that publishing writes.
    """

    run: RunRecord
    planned: frozenset[str]
    limited: tuple[LimitedTo, ...]
    parts: Mapping[str, str]
    published: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        return self.planned <= self.parts.keys()

    @property
    def read(self) -> tuple[object, ...]:
        """What the tables are made of."""
        parts = {unit_id: version for unit_id, version in self.parts.items() if unit_id in self.planned}
        return self.run.fingerprint, self.planned, self.limited, parts


def _take_snapshot(store: OutputStore, own: OwnUnits | None) -> _Snapshot:
    run = read_run(store) if own is None else check_still_ours(store, own.fingerprint)
    if run is None:
        raise FileNotFoundError(f"no run in {store.address('')}: `annotate` starts one, `publish` builds its tables")
    units = read_plan(store)
    limited = tuple(sorted({unit.limited for unit in units if unit.limited}, key=LimitedTo.describe))
    planned = frozenset(unit.unit_id for unit in units)
    snapshot = _Snapshot(run, planned, limited, list_parts(store), _list_published(store))
    if not snapshot.planned:
        raise DamagedRunError(
            f"{store.address(PLAN_FOLDER)} plans no unit: it was removed, or the run was never planned. Start the same "
            "`annotate` again"
        )
    if own is not None and (missing := sorted(own.unit_ids - snapshot.parts.keys())):
        raise DamagedRunError(
            f"{len(missing)} of the {len(own.unit_ids)} units of this start have no part in "
            f"{store.address(PARTS_FOLDER)}, though the runner ended, for example {missing[0]!r}: the output was "
            "removed or changed meanwhile, or the workers write to another place of that name. Start the same command "
            "again: what is there is kept"
        )
    return snapshot


def _list_published(store: OutputStore) -> dict[str, str]:
    found = {name: version for name, version in store.list_versions("").items() if name in (CARD_FILE, SUCCESS_FILE)}
    for table in TABLES:
        files = store.list_versions(table).items()
        found.update({f"{table}/{name}": version for name, version in files if is_table_file(table, name)})
    return found


def _publish_snapshot(
    store: OutputStore, snapshot: _Snapshot, failures: FailurePolicy | None, own: OwnUnits | None, *, is_repeated: bool
) -> PublishReport:
    """Publishes once what a snapshot holds; raises `Overtaken` where others changed it."""
    done = sorted(snapshot.planned & snapshot.parts.keys())
    with store.scratch_folder() as scratch:
        paths, counts, digests = _build_tables(store, done, snapshot, scratch)
        published = _summarise(snapshot, done, counts)
        is_success = published.is_complete and (
            failures is None or failures.allows(published.num_failed - published.num_withdrawn, published.num_clips)
        )
        success = _write_success(published, paths, digests)
        with store.turn() as has_turn:
            if is_repeated and is_success and store.read_text(SUCCESS_FILE).encode() == success:
                return published  # the one who came in between has published the very same
            _check_unchanged(_take_snapshot(store, own), snapshot, has_turn)
            # Before the first table is replaced: until the end the folder is not to be taken for a finished one.
            store.remove(SUCCESS_FILE)
            _replace_tables(store, paths, snapshot)
            card = write_card(snapshot.run, published, counts, store.read_text(CARD_FILE)).encode()
            _replace(store.replace(CARD_FILE, card, snapshot.published.get(CARD_FILE)))
            if is_success:
                files = frozenset(f"{table}/{path.name}" for table, of_table in paths.items() for path in of_table)
                _mark_success(
                    store, success, lambda: has_turn() and _is_true(_take_snapshot(store, own), snapshot, files)
                )
    return published


def _mark_success(store: OutputStore, success: bytes, is_true: Callable[[], bool]) -> None:
    """Writes `_SUCCESS`, and takes it back where it was not true any more when it was written."""
    if not is_true():
        raise Overtaken
    _replace(store.create(SUCCESS_FILE, success))
    if not is_true():
        store.remove(SUCCESS_FILE)
        raise Overtaken


def _is_true(now: _Snapshot, snapshot: _Snapshot, files: frozenset[str]) -> bool:
    """Whether run, plan and parts are still those of the tables, and the tables' files still there."""
    return now.read == snapshot.read and files <= now.published.keys()


def _check_unchanged(now: _Snapshot, snapshot: _Snapshot, has_turn: Callable[[], bool]) -> None:
    # Parts of a run that goes on elsewhere may come: the tables without them are what they say they are.
    is_read_same = (
        now.read == snapshot.read if snapshot.is_complete else now.run.fingerprint == snapshot.run.fingerprint
    )
    if not has_turn() or now.published != snapshot.published or not is_read_same:
        raise Overtaken


def _replace(is_done: bool) -> None:
    if not is_done:
        raise Overtaken


def _summarise(snapshot: _Snapshot, done: Sequence[str], counts: TableCounts) -> PublishReport:
    return PublishReport(
        fingerprint=snapshot.run.fingerprint,
        num_units_planned=len(snapshot.planned),
        num_units_done=len(done),
        num_parts_outdated=len(snapshot.parts.keys() - snapshot.planned),
        missing_units=tuple(sorted(snapshot.planned - snapshot.parts.keys())),
        limited=snapshot.limited,
        num_rows={name: counts.rows[name] for name in TABLES},
        num_consistent=counts.num_consistent,
        failure_reasons=dict(counts.values["failures.reason"]),
    )


def _build_tables(
    store: OutputStore, done: Sequence[str], snapshot: _Snapshot, scratch: Path
) -> tuple[dict[str, list[Path]], TableCounts, dict[str, str]]:
    index, fingerprint = index_clips(store, done, snapshot.run.fingerprint), snapshot.run.fingerprint
    said = {"limited": "; ".join(map(LimitedTo.describe, snapshot.limited))} if snapshot.limited else None
    schemas = {name: schema.with_metadata(said) for name, schema in TABLES.items()}
    files = {name: TableFiles(scratch, name, schema, index.num_rows[name]) for name, schema in schemas.items()}
    counts, digests = TableCounts(), dict[str, str]()
    for clips in sort_clips(read_parts(store, done, fingerprint, digests=digests), index.slice_starts, scratch):
        tables = flatten_clips(clips)
        counts.add(tables)
        for name, rows in tables.items():
            files[name].write(rows)
    for table in files.values():
        table.close()
    return {name: table.paths for name, table in files.items()}, counts, digests


def _replace_tables(store: OutputStore, paths: Mapping[str, Sequence[Path]], snapshot: _Snapshot) -> None:
    fresh = {f"{table}/{path.name}": path for table, files in paths.items() for path in files}
    for name, path in fresh.items():
        _replace(store.replace_with_file(name, path, snapshot.published.get(name)))
    for name in snapshot.published.keys() - fresh.keys() - {CARD_FILE, SUCCESS_FILE}:
        store.remove(name)


def _write_success(published: PublishReport, paths: Mapping[str, Sequence[Path]], digests: Mapping[str, str]) -> bytes:
    content = {
        "fingerprint": published.fingerprint,
        "num_units": published.num_units_planned,
        "num_clips": published.num_clips,
        "limited": [asdict(one) for one in published.limited],  # empty where the tables hold all of the inputs
        "num_annotated": published.num_annotated,
        "num_failed": published.num_failed,
        "num_withdrawn": published.num_withdrawn,
        "num_consistent": published.num_consistent,
        "tables": {
            name: {"rows": published.num_rows[name], "files": [path.name for path in files]}
            for name, files in paths.items()
        },
        "parts": dict(sorted(digests.items())),  # SHA-256 of each file that the tables were made of
    }
    return (json.dumps(content, indent=2) + "\n").encode()
