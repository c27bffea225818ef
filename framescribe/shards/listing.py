"""Finds the shards, manifests and videos that `--input` means: files, folders and globs in any store.

A file is named where an input is its path, or a glob that ends in its suffix; all others are found.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

from framescribe.shards.kinds import LIST_EXTENSIONS, SUPPORTED, is_read_only_by_name, kind_of, path_of, split_extension
from framescribe.storage.access import Location, Store, input_version
from framescribe.storage.addresses import protocol_of
from framescribe.storage.errors import InputError, NoInputFound
from framescribe.storage.redaction import clean_text, strip_credentials
from schemas.records import InputKind

_log = logging.getLogger(__name__)
_MAX_SHOWN_SUFFIXES = 8
_NUM_THREADS = 16  # the time goes into waiting for stores
_RANGE = re.compile(r"\{(\d{1,9}\.\.\d{1,9})\}")
_MAX_ADDRESSES = 100_000
_ADVICE = "; a manifest is read when --input names the file itself, not its folder, and so is a .gif"
_ZIP_ADVICE = (
    "; a .zip is not read: `unzip FILE.zip -d FOLDER`, and give the folder as --input "
    "(docs/inputs.md says how to convert other formats)"
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One input file.

    Attributes:
        root: URI of the folder that its ids are relative to: the part of the `--input` before any wildcard.
        relative: its path below the root, `/` as separator.
        size: bytes, None where the listing does not say.
        version: what changes with its contents, see `framescribe.storage.access.input_version`; empty where the listing
            does not say.
        named: whether an input names it; a manifest that was only found is no input, but may say things about videos.
    """

    kind: InputKind
    uri: str
    root: str
    relative: str
    size: int | None
    version: str = ""
    named: bool = True


def find_inputs(store: Store, inputs: Iterable[str]) -> list[FoundFile]:
    """Lists every input once, sorted within each of `inputs`; a file that several of them name is taken once.

    What is passed over in folders is logged.

    Raises:
        NoInputFound: one of `inputs` matches nothing.
        InputError: one of them is of a kind that is not supported.
    """
    found: dict[str, FoundFile] = {}
    expanded = [one for uri in inputs for one in expand_braces(uri)]
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="find") as pool:
        for file in (file for files in pool.map(partial(_find, store), expanded) for file in files):
            found[file.uri] = _merge(found.get(file.uri), file)
    if not found:
        raise NoInputFound("no input given: --input takes files, folders and globs, for example '/data/shards/*.tar'")
    return list(found.values())


def expand_braces(uri: str) -> list[str]:
    """Returns the addresses that ranges such as `{000..099}` stand for.

    Raises:
        InputError: a range ends before it begins, or there are too many.
    """
    addresses = [""]
    for number, part in enumerate(_RANGE.split(uri)):
        ends = part.split("..") if number % 2 else []
        width = len(ends[0]) if ends and (ends[0][:1] == "0" or len(ends[0]) == len(ends[1])) else 0
        parts = [f"{value:0{width}d}" for value in range(int(ends[0]), int(ends[1]) + 1)] if ends else [part]
        if not 0 < len(parts) * len(addresses) <= _MAX_ADDRESSES:
            raise InputError(
                f"{strip_credentials(uri)!r} stands for {len(parts) * len(addresses)} addresses, wanted 1 to "
                f"{_MAX_ADDRESSES}: use a wildcard, or several inputs"
            )
        addresses = [address + one for address in addresses for one in parts]
    return addresses


def _merge(first: FoundFile | None, second: FoundFile) -> FoundFile:
    if first is None or (first.kind is InputKind.MANIFEST and not first.named):
        return second
    return replace(first, named=first.named or second.named)


def _find(store: Store, uri: str) -> list[FoundFile]:
    location = store.locate(uri)
    listed = _list_literal(store, location)
    if listed is not None:
        return listed
    magic = _first_magic(location)
    if magic is None:
        raise NoInputFound(f"{strip_credentials(uri)!r} does not exist: --input takes files, folders and globs")
    root = posixpath.dirname(location.path[:magic])
    matches = store.ask(f"list {strip_credentials(uri)}", lambda: location.fs.glob(location.path, detail=True))
    below: dict[str, Mapping[str, Any]] = {}
    for path in [path for path, entry in matches.items() if entry["type"] == "directory"]:
        below.update(_find_below(store, location.sibling(path)))
    return _take(location, root, matches, below, f"no video or shard matches {strip_credentials(uri)!r}")


def _list_literal(store: Store, location: Location) -> list[FoundFile] | None:
    """Returns what a path without wildcards names, or None if nothing has that very name."""
    what = f"look for {strip_credentials(location.uri)}"
    if protocol_of(location.uri) in ("http", "https") and _first_magic(location) is not None:
        return None  # few web servers answer for a name with a wildcard
    try:
        entry = store.ask(what, lambda: location.fs.info(location.path))
    except FileNotFoundError:
        return None
    if entry["type"] == "directory" or (kind_of(location.uri) is None and location.path.endswith("/")):
        none_there = f"{strip_credentials(location.uri)!r} holds no video and no shard"
        return _take(location, location.path.rstrip("/"), {}, _find_below(store, location), none_there)
    if kind_of(location.uri) is None:
        raise InputError(
            f"cannot read {strip_credentials(location.uri)!r}: wanted {SUPPORTED}"
            + (_advise([location.uri]) or "; docs/inputs.md says how to convert others")
        )
    folder, _, name = _without_query(location.path).rpartition("/")
    kind = kind_of(location.uri)
    assert kind is not None
    root = _root_uri(location, folder)
    return [FoundFile(kind, location.uri, root, name, entry.get("size"), _listed_version(entry))]


def _find_below(store: Store, folder: Location) -> dict[str, Mapping[str, Any]]:
    if folder.is_local:
        _check_subfolders(folder.path)
    found = store.ask(f"list {strip_credentials(folder.uri)}", lambda: folder.fs.find(folder.path, detail=True))
    return dict(found)


def _check_subfolders(root: str) -> None:
    """Refuses folders that may not be listed and names links to folders: fsspec passes over both without a word."""

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"cannot list {error.filename}: {error.strerror}; it may hold videos: check its permissions")

    for folder, names, _ in os.walk(root, onerror=refuse):
        names[:] = [name for name in names if not name.startswith(".")]
        for link in (name for name in names if os.path.islink(os.path.join(folder, name))):
            _log.warning("%s is a link to a folder and is not followed: name it as an --input", f"{folder}/{link}")


def _take(
    location: Location,
    root: str,
    matched: Mapping[str, Mapping[str, Any]],
    below: Mapping[str, Mapping[str, Any]],
    none_there: str,
) -> list[FoundFile]:
    """Returns what is supported among the files that a pattern matched and those below the folders that it matched."""
    root_uri, wanted = _root_uri(location, root), kind_of(location.path)
    taken: list[FoundFile] = []
    passed_over: list[str] = []
    for path, entry in _list_visible(root, {**below, **matched}):
        kind, relative = kind_of(path), path.removeprefix(root).lstrip("/")
        named = kind is wanted  # also of a folder, which Spark calls `clips.parquet`
        is_list = (
            split_extension(path)[1] in LIST_EXTENSIONS and split_extension(location.path)[1] not in LIST_EXTENSIONS
        )
        if kind is None or is_list or (kind is InputKind.FILES and is_read_only_by_name(path) and not named):
            passed_over.append(relative)
        else:
            uri, size = location.sibling(path).uri, entry.get("size")
            taken.append(FoundFile(kind, uri, root_uri, relative, size, _listed_version(entry), named))
    if all(file.kind is InputKind.MANIFEST and not file.named for file in taken):
        seen = ", ".join(repr(posixpath.basename(path)) for path in sorted({**matched, **below})[:3])
        raise NoInputFound(
            f"{none_there}; seen: {seen or 'nothing'}; wanted {SUPPORTED}" + _advise({**matched, **below})
        )
    if passed_over:
        _log.warning("not read below %s: %s", strip_credentials(root_uri), _count_suffixes(passed_over))
    return taken


def _advise(paths: Iterable[str]) -> str:
    """Returns what to do about files that were seen but are not read; empty where there is nothing to say."""
    extensions = {split_extension(path_of(path))[1]: path for path in paths}
    if ".zip" in extensions:
        return _ZIP_ADVICE
    return _ADVICE if any(map(is_read_only_by_name, extensions.values())) else ""


def _listed_version(entry: Mapping[str, Any]) -> str:
    if not entry.get("islink"):
        return input_version(entry)
    try:  # what fsspec says of a link is its own time, not that of the file behind it
        return input_version({"mtime": os.stat(entry["name"]).st_mtime})
    except OSError:
        return ""


def _list_visible(root: str, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in sorted(entries):
        hidden = any(part.startswith(".") for part in path.removeprefix(root).lstrip("/").split("/"))
        if entries[path]["type"] != "directory" and not hidden:
            yield path, entries[path]


def _count_suffixes(names: Iterable[str]) -> str:
    """Returns how many files of which suffix there are, the most frequent first: `12 .json, 1 without suffix`."""
    counts = Counter(split_extension(name)[1] or "without suffix" for name in names)
    shown = [f"{number} {suffix}" for suffix, number in counts.most_common(_MAX_SHOWN_SUFFIXES)]
    more = len(counts) - len(shown)
    return clean_text(", ".join(shown)) + (f" and files of {more} other suffixes" if more else "")


def _root_uri(location: Location, path: str) -> str:
    return location.sibling(path).uri.rstrip("/")


def _first_magic(location: Location) -> int | None:
    # `?` begins the query of a web address, where signatures stand.
    pattern = r"\*" if location.path.startswith(("http://", "https://")) else r"[*?\[]"
    matched = re.search(pattern, location.path)
    return matched.start() if matched else None


def _without_query(path: str) -> str:
    return path.split("?", 1)[0] if path.startswith(("http://", "https://")) else path
