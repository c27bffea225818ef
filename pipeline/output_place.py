"""Keeps what a run reads apart from what it writes and removes."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from framescribe.storage.access import Store
from framescribe.storage.errors import InputError
from framescribe.storage.output import JOURNAL_FOLDER, PLAN_FOLDER, OutputStore
from framescribe.storage.redaction import strip_credentials
from schemas.tables import TABLES

_MAGIC = re.compile(r"[*?\[]")


def check_inputs_apart(inputs: Sequence[str], reader: Store, output: OutputStore) -> None:
    """Checks that no input lies in a folder that the run writes to, and that none would list what the run wrote.

    The second holds from the first start on: later ones would take the tables for inputs.

    Raises:
        InputError: an input and the output are not apart.
    """
    for uri in inputs:
        location = reader.locate(uri)
        if type(location.fs) is type(output.file_system):
            _check_apart(strip_credentials(uri), _real_path(location.fs, location.path), output)


def _check_apart(shown: str, path: str, output: OutputStore) -> None:
    root = _real_path(output.file_system, output.root)
    magic = _MAGIC.search(path)
    fixed = posixpath.dirname(path[: magic.start()]) if magic else path
    for folder in (*TABLES, JOURNAL_FOLDER):
        if f"{root}/{folder}" in _with_parents(fixed):
            raise InputError(
                f"the input {shown!r} lies in {output.address(folder)}, which this run writes to: choose another "
                "--output"
            )
    written = [f"{root}/{folder}/{folder}-00000-of-00001.parquet" for folder in TABLES]
    if any(_takes_in(path, one) for one in (*written, f"{root}/{PLAN_FOLDER}/000000.parquet")):
        raise InputError(
            f"the input {shown!r} would take in the tables that are written to {output.address('')}: choose an "
            "--output outside of it, or say more closely which files are inputs, for example 'folder/*.mp4'"
        )


def _takes_in(pattern: str, path: str) -> bool:
    """Whether an input means a file, by its own name or by that of a folder above it."""
    places = _with_parents(path)
    return pattern in places or any(map(re.compile(glob_translate(pattern)).match, places))


def _with_parents(path: str) -> list[str]:
    return [path.rstrip("/"), *map(str, PurePosixPath(path).parents)]


def _real_path(file_system: AbstractFileSystem, path: str) -> str:
    return os.path.realpath(path) if isinstance(file_system, LocalFileSystem) else path.rstrip("/")
