"""Looks into the boxes of an MP4 file for what FFmpeg does not tell: is its video encrypted, was it cut or damaged."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PATH_TO_STSD = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_PATH_TO_SENC = (b"moof", b"traf", b"senc")
_FIRST_BOXES = (b"ftyp", b"styp", b"sidx", b"moov", b"moof", b"free", b"mdat", b"wide", b"skip")
_TOP_BOXES = {*_FIRST_BOXES, b"pnot", b"uuid", b"meta", b"mfra", b"ssix", b"emsg", b"pdin", b"prft"}
_NOWHERE = 1 << 63  # behind the end of any file
_INDEX = re.compile(rb"moov.{4}mvhd", re.DOTALL)
_MAX_BOXES = 10_000


def begins_as_mp4(head: bytes) -> bool:
    """Whether the first bytes of a file, at least 8, are a box that MP4 and MOV files begin with."""
    return head[4:8] in _FIRST_BOXES


def has_encrypted_video(path: Path) -> bool:
    """Whether an MP4 or MOV file declares an encrypted video track (sample entry `encv`); False for other files."""
    with path.open("rb") as file:
        if not begins_as_mp4(file.read(8)):
            return False
        size = file.seek(0, 2)
        return any(_sample_entry(file, start) == b"encv" for start in _find(file, _PATH_TO_STSD, 0, size))


def has_encrypted_fragments(path: Path) -> bool:
    """Whether the fragments of an MP4 file say which of their bytes are encrypted (box `senc`)."""
    with path.open("rb") as file:
        return any(True for _ in _find(file, _PATH_TO_SENC, 0, file.seek(0, 2)))


def ends_early(path: Path) -> bool:
    """Whether an MP4 or MOV file was cut: its last box goes on beyond it, or has no end, or there are no data."""
    with path.open("rb") as file:
        ends = {kind: end for kind, _, end in _walk(file, 0, _NOWHERE)}
        return b"mdat" not in ends or max(ends.values()) > file.seek(0, 2)


def has_damaged_boxes(path: Path) -> bool:
    """Whether an MP4 or MOV file without a readable index was not just cut: it has an index, or boxes of no kind."""
    with path.open("rb") as file:
        boxes = list(_walk(file, 0, _NOWHERE))
        is_walked = bool(boxes) and boxes[-1][2] >= file.seek(0, 2) and {kind for kind, _, _ in boxes} <= _TOP_BOXES
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return not is_walked or _INDEX.search(content) is not None


def _find(file: BinaryIO, path: tuple[bytes, ...], start: int, stop: int) -> Iterator[int]:
    """Yields where the content of each box at the end of `path` starts, within two offsets of the file."""
    for kind, content, end in _walk(file, start, stop):
        if kind == path[0] and len(path) == 1:
            yield content
        elif kind == path[0]:
            yield from _find(file, path[1:], content, end)


def _walk(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    for _ in range(_MAX_BOXES):
        file.seek(start)
        header = file.read(16)
        if start >= stop or len(header) < 8:
            return
        size, content = int.from_bytes(header[:4], "big"), start + 8
        if size == 1:
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        end = stop if size == 0 else min(start + size, stop)
        if end < content:
            return
        yield header[4:8], content, end
        start = end


def _sample_entry(file: BinaryIO, content: int) -> bytes:
    """The four-character name of the first sample entry of an `stsd` box, after its version and entry count."""
    file.seek(content + 12)
    return file.read(4)
