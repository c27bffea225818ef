"""Readable ids of shards, clips and work units, unique in a run and the same on every machine."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from framescribe.shards.kinds import split_extension
from framescribe.shards.listing import FoundFile
from framescribe.storage.errors import InputError, ShardChanged
from framescribe.storage.redaction import clean_text, strip_credentials
from schemas.records import InputKind, WorkUnit

_MAX_ID_CHARS = 240
_MAX_SLUG_CHARS = 60
_WINDOW = re.compile(r"@\d+(\.\d+)?-(\d+(\.\d+)?)?$")  # what `window_suffix` writes


@dataclass(frozen=True, slots=True)
class NamedShard:
    """A shard with its id; the single videos of one root folder count as one shard.

    Attributes:
        version: what changes with its contents, empty where the listing does not say.
        named: whether an input names the shard; one that was only found may hold no videos.
        files: for `FILES`, the videos in order, with their clip ids in `clip_ids`; empty for every other kind.
        metadata: for `FILES`, what tables beside them say about each; empty where there is none.
    """

    kind: InputKind
    uri: str
    shard_id: str
    size: int | None = None
    version: str = ""
    named: bool = True
    files: tuple[FoundFile, ...] = ()
    clip_ids: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexedClip:
    """One clip of a shard, in the shard's order.

    Attributes:
        where: the place a person finds it at: `shards/000.tar: 17.mp4`, `clips.jsonl:17`.
        content: what the unit's id is made from: a clip that holds something else has another text here.
        size_bytes: of the encoded video, 0 where only reading it would tell.
        byte_start, byte_stop: of everything the clip needs from its shard; clips that share them stay in one unit.
    """

    clip_id: str
    where: str
    content: str
    size_bytes: int = 0
    byte_start: int = 0
    byte_stop: int = 0


def name_shards(files: Sequence[FoundFile]) -> list[NamedShard]:
    """Returns the shards, sorted by id: `<root folder>/<path below it, without extension>`.

    Roots of the same name whose shards would share an id are told apart by the folders above them.

    Raises:
        InputError: two shards would still share an id.
    """
    names = _name_below_root(files)
    depths = _find_depths(files, names)
    shards = [
        NamedShard(
            file.kind,
            file.uri,
            clean_id(f"{_label(file.root, depths[file.root])}/{name}"),
            file.size,
            file.version,
            file.named,
        )
        for file, name in zip(files, names, strict=True)
        if file.kind is not InputKind.FILES
    ]
    folders: dict[str, list[tuple[FoundFile, str]]] = defaultdict(list)
    for file, name in zip(files, names, strict=True):
        if file.kind is InputKind.FILES:
            folders[file.root].append((file, name))
    shards.extend(_name_folder(root, _label(root, depths[root]), named) for root, named in folders.items())
    return sorted(shards, key=lambda shard: shard.shard_id)


def clean_id(raw: str) -> str:
    """Returns an id without control characters, `..` components and leading slashes, at most 240 characters long.

    Ids come from data and are never used as paths. An id that had to be altered ends in a hash of the original, so
    that two different ids never become one.
    """
    cleaned = clean_text(raw).strip()
    cleaned = "/".join("__" if part == ".." else part for part in cleaned.split("/") if part not in ("", "."))
    if cleaned and cleaned == raw and len(cleaned) <= _MAX_ID_CHARS:
        return cleaned
    return f"{cleaned[: _MAX_ID_CHARS - 13] or 'clip'}-{_hash(raw)[:12]}"


def window_suffix(start_s: float | None, end_s: float | None) -> str:
    """Returns `@30-60` for a window of a video, `@30-` for one up to its end, and nothing for the whole video."""
    if start_s is None and end_s is None:
        return ""
    return f"@{_format_seconds(start_s or 0.0)}-{'' if end_s is None else _format_seconds(end_s)}"


def make_unit_id(
    shard_id: str,
    start: int,
    stop: int,
    contents: Iterable[str],
    picks: Sequence[tuple[int, ...] | None] = (),
) -> str:
    """Returns the id of a slice of a shard, fit for a file name.

    `contents` says what the slice holds (clip ids, sizes): a slice that holds something else is another unit, so that
    the finished work of one is never taken for the other's. So is one of which other `picks` are taken.
    """
    digest = hashlib.sha256(shard_id.encode("utf-8", "surrogatepass"))
    for content in contents:
        digest.update(b"\0" + content.encode("utf-8", "surrogatepass"))
    if picks:
        digest.update(f"\0picks {picks}".encode())
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", shard_id.rpartition("/")[2])[:_MAX_SLUG_CHARS].strip("-.") or "shard"
    return f"{slug}-{digest.hexdigest()[:10]}-{start:06d}-{stop:06d}"


def check_unit(unit: WorkUnit, contents: Iterable[str]) -> None:
    """Compares what a unit's slice holds now with what it held when the work was planned.

    Raises:
        ShardChanged: it is not the same.
    """
    if make_unit_id(unit.shard_id, unit.start, unit.stop, contents, unit.picks) != unit.unit_id:
        raise ShardChanged(
            f"{strip_credentials(unit.shard)} changed after the work was planned: clips {unit.start} to {unit.stop} "
            "are not the ones that were there; leave shards alone during a run, and run again"
        )


def hash_id(clip_id: str) -> int:
    """Returns 64 bits of a hash of a clip id, to look for duplicates among millions."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def hash_video_id(clip_id: str) -> int:
    """Returns the hash of a clip id without its window: the same for a video and for all that it is cut into."""
    return hash_id(_WINDOW.sub("", clip_id))


def _name_folder(root: str, label: str, named: list[tuple[FoundFile, str]]) -> NamedShard:
    ordered = sorted(named, key=lambda pair: pair[0].relative)
    return NamedShard(
        kind=InputKind.FILES,
        uri=root,
        shard_id=clean_id(label),
        files=tuple(file for file, _ in ordered),
        clip_ids=tuple(clean_id(f"{label}/{name}") for _, name in ordered),
    )


def _name_below_root(files: Sequence[FoundFile]) -> list[str]:
    """Returns each file's path below its root without extension, with it where two differ in nothing else."""
    stems = [(file.root, file.kind is InputKind.FILES, split_extension(file.relative)[0]) for file in files]
    num_of = Counter(stems)
    return [file.relative if num_of[stem] > 1 else stem[2] for file, stem in zip(files, stems, strict=True)]


def _find_depths(files: Sequence[FoundFile], names: Sequence[str]) -> dict[str, int]:
    """Returns how many folder names each root's label needs."""
    depths = {file.root: 1 for file in files}
    while True:
        roots_of: dict[str, set[str]] = defaultdict(set)
        for file, name in zip(files, names, strict=True):
            label = _label(file.root, depths[file.root])
            roots_of[label if file.kind is InputKind.FILES else f"{label}/{name}"].add(file.root)
        clashing = {root for roots in roots_of.values() if len(roots) > 1 for root in roots}
        growing = {root for root in clashing if depths[root] < len(_parts(root))}
        if clashing and not growing:
            shown = " and ".join(repr(strip_credentials(root)) for root in sorted(clashing)[:2])
            raise InputError(f"{shown} would give the same clip ids: annotate them in two runs, or rename a folder")
        if not clashing:
            return depths
        depths.update({root: depths[root] + 1 for root in growing})


def _label(root: str, depth: int) -> str:
    return "/".join(_parts(root)[-depth:])


def _parts(root: str) -> list[str]:
    scheme, _, rest = strip_credentials(root).rpartition("://")
    return [part for part in rest.split("/") if part] or [scheme or "root"]


def _format_seconds(seconds: float) -> str:
    """Returns seconds plainly, to the millisecond: `30`, `2.5`."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _hash(raw: str) -> str:
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()
