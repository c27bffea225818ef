"""Clip ids, shard ids and unit ids: readable, unique, and the same on every machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from shards.unprintable import clean_text

MAX_ID_CHARS = 240
_MAX_SLUG_CHARS = 60


def clean_id(raw: str) -> str:
    """Returns an id without control characters, `..` components and leading slashes, at most 240 characters long.

    Ids come from data and are never used as paths. An id that had to be altered ends in a hash of the original, so
    that two different ids never become one.
    """
    cleaned = clean_text(raw).strip()
    cleaned = "/".join("__" if part == ".." else part for part in cleaned.split("/") if part not in ("", "."))
    if cleaned and cleaned == raw and len(cleaned) <= MAX_ID_CHARS:
        return cleaned
    return f"{cleaned[: MAX_ID_CHARS - 13] or 'clip'}-{_hash(raw)[:12]}"


def format_seconds(seconds: float) -> str:
    """Returns seconds plainly, to the millisecond: `30`, `2.5`."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def window_suffix(start_s: float | None, end_s: float | None) -> str:
    """Returns `@30-60` for a window of a video, `@30-` for one up to its end, and nothing for the whole video."""
    if start_s is None and end_s is None:
        return ""
    return f"@{format_seconds(start_s or 0.0)}-{'' if end_s is None else format_seconds(end_s)}"


def make_unit_id(shard_id: str, start: int, stop: int, contents: Iterable[str]) -> str:
    """Returns the id of a slice of a shard, fit for a file name.

    `contents` says what the slice holds (clip ids, sizes): a slice that holds something else is another unit, so that
    the finished work of one is never taken for the other's.
    """
    digest = hashlib.sha256(shard_id.encode("utf-8", "surrogatepass"))
    for content in contents:
        digest.update(b"\0" + content.encode("utf-8", "surrogatepass"))
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", shard_id.rpartition("/")[2])[:_MAX_SLUG_CHARS].strip("-.") or "shard"
    return f"{slug}-{digest.hexdigest()[:10]}-{start:06d}-{stop:06d}"


def hash_id(clip_id: str) -> int:
    """Returns 64 bits of a hash of a clip id, to look for duplicates among millions."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _hash(raw: str) -> str:
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()
