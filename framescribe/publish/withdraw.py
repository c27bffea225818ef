"""Takes clips out of a run, whatever was made of it, and keeps them out."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from framescribe.errors import FrameScribeError
from framescribe.publish.export import REPORT_FILE
from framescribe.publish.publish import publish
from framescribe.publish.report import PublishReport
from framescribe.publish.review import INDEX_FILE
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.journal import read_run, remove_set_aside
from framescribe.storage.output import open_output
from framescribe.storage.withdrawn import Withdrawal, add_withdrawn, take_out_withdrawn


class CannotWithdraw(FrameScribeError, ValueError):
    """The file of ids, or a folder of an export, is not one."""


@dataclass(frozen=True, slots=True)
class WithdrawReport:
    """What was taken out of the parts, the tables that were built again, and the exports that were removed."""

    withdrawal: Withdrawal
    published: PublishReport
    removed: tuple[Path, ...]


def read_ids(path: Path) -> frozenset[str]:
    """Reads a file with one clip id per line, UTF-8, as they stand in the column `clip_id`; blank lines count not.

    Raises:
        CannotWithdraw: there is no such file, or no id in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotWithdraw(f"--ids {path}: {error}; wanted a text file with one clip_id per line") from None
    ids = frozenset(line.strip() for line in lines if line.strip())
    if not ids:
        raise CannotWithdraw(f"--ids {path} is empty; wanted one clip_id per line, as in the column of that name")
    return ids


def withdraw(
    output: str,
    clip_ids: Collection[str],
    exports: Sequence[Path] = (),
    storage_options: StorageOptions | None = None,
) -> WithdrawReport:
    """Takes clips out of parts, plan and tables, for good, and removes exports and pages that may hold them.

    Killed half-way it goes on when it is started again; a run that is at work meanwhile leaves them out as well, at
    the latest when it publishes.

    Raises:
        FileNotFoundError: no run was started in this folder.
        CannotWithdraw: one of `exports` is neither an export nor a page of `review`; nothing is changed then.
    """
    for folder in exports:
        if not ((folder / REPORT_FILE).is_file() or (folder / INDEX_FILE).is_file()):
            raise CannotWithdraw(
                f"--exports {folder} is no folder that `export` or `review` wrote; nothing was changed"
            )
    store = open_output(output, storage_options)
    run = read_run(store)
    if run is None:
        raise FileNotFoundError(f"no run in {store.address('')}: wanted an --output of `annotate`")
    add_withdrawn(store, clip_ids)  # first: from here on nobody annotates them
    taken_out = take_out_withdrawn(store, run.fingerprint)
    remove_set_aside(store)  # answers of the same clips, kept for units that are done again
    published = publish(output, storage_options)
    for folder in exports:
        shutil.rmtree(folder)
    return WithdrawReport(taken_out, published, tuple(exports))
