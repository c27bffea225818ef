"""Builds the flat tables, the dataset card and _SUCCESS from the parts of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from publish.clip_index import index_clips
from publish.dataset_card import write_card
from publish.flat_rows import flatten_clips
from publish.parts import read_parts
from publish.published_run import PublishedRun
from publish.sorted_clips import sort_clips
from publish.table_counts import TableCounts
from publish.table_files import TableFiles, is_table_file
from schemas.tables import TABLES
from storage.layout import CARD_FILE, SUCCESS_FILE
from storage.output_store import OutputStore, StorageOptions, open_output
from storage.run_journal import RunRecord, list_done_units, read_plan, read_run


def publish(
    output: str, storage_options: StorageOptions | None = None, max_failed_share: float | None = None
) -> PublishedRun:
    """Rebuilds the published tables and the card from the parts of the planned units.

    Rows are sorted by clip id, and the same parts give the same bytes. `_SUCCESS` is written last, and
    only when every planned unit has its part and the clips did not fail too often.

    Args:
        max_failed_share: see `PublishedRun.failed_too_often`; None takes any failures.

    Raises:
        FileNotFoundError: no run was started in this folder.
        DamagedRunError: a part is damaged or of other settings, or a clip is in two parts.
        StoreError: the store goes on refusing.
    """
    store = open_output(output, storage_options)
    run = read_run(store)
    if run is None:
        raise FileNotFoundError(f"no run in {store.address('')}: `annotate` starts one, `publish` builds its tables")
    store.remove_leftovers()
    planned = {unit.unit_id for unit in read_plan(store)}
    committed = set(list_done_units(store))
    done = sorted(planned & committed)
    with store.scratch_folder() as scratch:
        paths, counts = _build_tables(store, done, run, scratch)
        # Before the first table is replaced: until the end the folder is not to be taken for a finished one.
        store.remove(SUCCESS_FILE)
        _replace_tables(store, paths)
    published = PublishedRun(
        fingerprint=run.fingerprint,
        num_units_planned=len(planned),
        num_units_done=len(done),
        num_parts_outdated=len(committed - planned),
        missing_units=tuple(sorted(planned - committed)),
        num_rows={name: counts.rows[name] for name in TABLES},
        num_verified=counts.num_verified,
        failure_reasons=dict(counts.values["failures.reason"]),
    )
    store.put(CARD_FILE, write_card(run, published, counts, _read_text(store, CARD_FILE)).encode())
    if published.is_complete and (max_failed_share is None or not published.failed_too_often(max_failed_share)):
        store.put(SUCCESS_FILE, _write_success(published, paths))
    return published


def _build_tables(
    store: OutputStore, done: Sequence[str], run: RunRecord, scratch: Path
) -> tuple[dict[str, list[Path]], TableCounts]:
    index = index_clips(store, done, run.fingerprint)
    files = {name: TableFiles(scratch, name, schema, index.num_rows[name]) for name, schema in TABLES.items()}
    counts = TableCounts()
    for clips in sort_clips(read_parts(store, done, run.fingerprint), index.slice_starts, scratch):
        tables = flatten_clips(clips)
        counts.add(tables)
        for name, rows in tables.items():
            files[name].write(rows)
    for table in files.values():
        table.close()
    return {name: table.paths for name, table in files.items()}, counts


def _replace_tables(store: OutputStore, paths: dict[str, list[Path]]) -> None:
    for table, files in paths.items():
        for path in files:
            store.put_file(f"{table}/{path.name}", path)
    for table, files in paths.items():
        fresh = {path.name for path in files}
        for name in store.list_files(table):
            if is_table_file(table, name) and name not in fresh:
                store.remove(f"{table}/{name}")


def _write_success(published: PublishedRun, paths: dict[str, list[Path]]) -> bytes:
    content = {
        "fingerprint": published.fingerprint,
        "num_units": published.num_units_planned,
        "num_clips": published.num_clips,
        "num_annotated": published.num_annotated,
        "num_failed": published.num_failed,
        "num_verified": published.num_verified,
        "tables": {
            name: {"rows": published.num_rows[name], "files": [path.name for path in files]}
            for name, files in paths.items()
        },
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _read_text(store: OutputStore, name: str) -> str:
    try:
        return store.read(name).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
