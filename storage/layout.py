"""Where everything lies under OUTPUT; names are relative to it."""

from __future__ import annotations

JOURNAL_FOLDER = "_framescribe"
RUN_FILE = f"{JOURNAL_FOLDER}/run.json"
PLAN_FOLDER = f"{JOURNAL_FOLDER}/plan"
PARTS_FOLDER = f"{JOURNAL_FOLDER}/parts"
TURN_FILE = f"{JOURNAL_FOLDER}/locks/turn"
REPLACE_FILE = f"{JOURNAL_FOLDER}/locks/replace"
PROBE_PREFIX = f"{JOURNAL_FOLDER}/locks/probe-"
SET_ASIDE_FOLDER = f"{JOURNAL_FOLDER}/set_aside"  # laid out like an output of its own, so that it can be read as one
CARD_FILE = "README.md"
SUCCESS_FILE = "_SUCCESS"

_PARQUET = ".parquet"


def part_name(unit_id: str) -> str:
    """Returns the name of a unit's part.

    Raises:
        ValueError: the unit id would be a path, a hidden file or too long for one.
    """
    # 200 leaves room for the temporary name within the 255 bytes of a file name.
    if "/" in unit_id or "\\" in unit_id or unit_id[:1] in ("", ".") or len(unit_id.encode()) > 200:
        raise ValueError(f"unit id {unit_id!r} is no file name: it must have 1 to 200 bytes, no slash, no leading dot")
    return f"{PARTS_FOLDER}/{unit_id}{_PARQUET}"


def unit_of_part(file_name: str) -> str | None:
    """Returns the unit id that a file in the folder of parts belongs to, or None for a foreign file."""
    return file_name.removesuffix(_PARQUET) if file_name.endswith(_PARQUET) else None
