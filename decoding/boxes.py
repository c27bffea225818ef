"""Looks into the boxes of a file for what FFmpeg does not tell: whether it is MP4, whether its video is encrypted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PATH_TO_STSD = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"free", b"mdat", b"wide", b"skip")
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
