"""Reads tar archives forwards: their headers (ustar, PAX, GNU long names), and the stream of a compressed one.

Not by Python's `tarfile`: it ends silently at a damaged header, keeps every member in memory, and the versions that
many Pythons still carry can be made to loop for ever by a negative size (CVE-2025-8194).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa

from framescribe.storage.errors import InputError
from framescribe.storage.ranged_file import ByteStream

_BLOCK_BYTES = 512
_ZERO_BLOCK = bytes(_BLOCK_BYTES)
_NO_OCTAL = re.compile(rb"[89]")
_MAX_EXTENSION_BYTES = 1 << 20  # long names and PAX records; the longest real path has 4 KiB
_MAX_EXTENSIONS = 16  # extension headers before one member
_MAX_ZERO_BLOCKS = 2048  # of padding that is searched for an archive that was appended with `cat`
_WITH_DATA = frozenset(b"\x000")  # regular files
_CONTIGUOUS, _SPARSE, _PAX, _PAX_SOLARIS, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"7SxXgLK"
_EXTENSIONS = frozenset({_PAX, _PAX_SOLARIS, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK})
_MAX_SIZE_BYTES = 1 << 60  # beyond it, positions overflow what files can seek to
_WITHOUT_DATA = frozenset(b"123456")  # links, devices, folders, pipes
_KINDS = {
    ord("1"): "hard link",
    ord("2"): "symbolic link",
    ord("3"): "device",
    ord("4"): "device",
    ord("5"): "folder",
    ord("6"): "pipe",
    _SPARSE: "sparse file",
}
_OPENERS: dict[str, Callable[..., object]] = {
    "gz": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
    "zst": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"),
}
# Encoded video does not shrink. Text sidecars do, but never make up a shard.
_MAX_GROWTH = 50
_FREE_BYTES = 64 << 20
_STEP_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member of a tar archive.

    Attributes:
        name: as stored; undecodable bytes are surrogates. Never a path to open.
        start: byte of its first header, extension headers included.
        data_start, size: where its content is.
        stop: byte after its padded content, where the next member starts.
        unusual: None for a regular file, else what it is: `symbolic link`, `device`, `folder`, ...
    """

    name: str
    start: int
    data_start: int
    size: int
    stop: int
    unusual: str | None = None


def iterate_members(stream: ByteStream, shard: str, start: int, stop: int | None) -> Iterator[TarMember]:
    """Yields the members of the archive from the header at byte `start` on, each before its content is read.

    `stop` is where the archive (or the slice of it that is wanted) ends, None where that is not known before.

    The caller may read a member's content (`stream.seek(member.data_start)`) before it asks for the next one.

    Raises:
        InputError: a header is damaged, or the archive ends inside of a member.
    """
    position = start
    extensions = _Extensions()
    first = start
    while stop is None or position < stop:
        block = _read_at(stream, position, shard)
        if block == _ZERO_BLOCK or not block:
            header_start = _skip_padding(stream, position) if block else None
            if header_start is None:
                _check_complete(extensions, shard, position)
                return
            position = first = header_start
            continue
        header = _parse_header(block, shard, position)
        if header.kind in _EXTENSIONS:
            position = _read_extension(stream, header, position, extensions, shard)
            continue
        member = _make_member(stream, header, extensions, first, position, shard)
        if stop is not None and member.data_start + member.size > stop:
            raise _truncated(shard, stop)
        yield member
        position = first = member.stop
        extensions = _Extensions()
    _check_complete(extensions, shard, position)


class DecompressedStream(io.RawIOBase):
    """Reads a compressed file forwards; `seek` only goes forwards, too.

    Raises:
        InputError: on reading: the stream is damaged, truncated, or a decompression bomb.
    """

    def __init__(self, compressed: ByteStream, compression: str, compressed_bytes: int, shard: str) -> None:
        super().__init__()
        self._compressed = compressed
        self._stream = cast(BinaryIO, _OPENERS[compression](compressed))
        self._position = 0
        self._max_bytes = _FREE_BYTES + _MAX_GROWTH * compressed_bytes
        self._shard = shard

    def readable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Returns the byte that is read next."""
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed wants Buffer, new in 3.12
        """Fills a buffer and returns how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, num_bytes: int = -1, /) -> bytes:
        """Returns that many bytes of the content, fewer at its end."""
        pieces, left = [], num_bytes if num_bytes >= 0 else self._max_bytes
        while left > 0 and (piece := self._read_step(min(left, _STEP_BYTES))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def seek(self, position: int, _whence: int = io.SEEK_SET, /) -> int:
        """Reads on to a byte of the content from its start; there is no way back."""
        while self._position < position and self._read_step(min(position - self._position, _STEP_BYTES)):
            pass
        return self._position

    def close(self) -> None:
        """Closes both streams."""
        super().close()
        self._stream.close()
        self._compressed.close()

    def _read_step(self, num_bytes: int) -> bytes:
        try:
            piece = self._stream.read(num_bytes)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise InputError(f"{self._shard} is damaged after {self._position} bytes: {error}; copy it again") from None
        except OSError as error:
            if type(error) is not OSError:  # a store's own failure; bz2 has no error type but the bare OSError
                raise
            raise InputError(f"{self._shard} is damaged after {self._position} bytes: {error}; copy it again") from None
        self._position += len(piece)
        if self._position > self._max_bytes:
            raise InputError(
                f"{self._shard} decompresses to over {self._max_bytes} bytes, more than {_MAX_GROWTH} times its size: "
                "that is no shard of videos"
            )
        return piece


@dataclass(slots=True)
class _Extensions:
    """What extension headers said about the member that follows them."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False
    count: int = 0


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: int
    kind: int
    continues: bool  # GNU sparse only: a block with more of the map follows


def _read_at(stream: ByteStream, position: int, shard: str) -> bytes:
    if stream.seek(position) < position:
        raise _truncated(shard, position)
    return stream.read(_BLOCK_BYTES)


def _parse_header(block: bytes, shard: str, position: int) -> _Header:
    problem = _find_damage(block)
    if problem:
        raise InputError(f"{shard}: no tar header at byte {position} ({problem}): it is damaged; copy it again")
    name = _decode(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_decode(block[345:500])}/{name}"
    return _Header(name, _parse_number(block[124:136]) or 0, block[156], block[482] != 0)


def _find_damage(block: bytes) -> str | None:
    if len(block) < _BLOCK_BYTES:
        return f"only {len(block)} bytes left"
    recorded = _parse_number(block[148:156])
    summed = block[:148] + b" " * 8 + block[156:]
    if recorded != sum(summed) and recorded != sum(byte - 256 if byte > 127 else byte for byte in summed):
        return "wrong checksum"
    size = _parse_number(block[124:136])
    if block[156] not in _WITHOUT_DATA and (size is None or size > _MAX_SIZE_BYTES):
        return "impossible size"
    return None


def _parse_number(raw: bytes) -> int | None:
    """Returns an octal or base-256 number of a header, None when it is negative or no number."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    text = raw.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    return int(text, 8) if text.isdigit() and not _NO_OCTAL.search(text) else None


def _decode(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _skip_padding(stream: ByteStream, position: int) -> int | None:
    """Returns where a further archive begins behind this one's end marker, or None when there is only padding."""
    for number in range(1, _MAX_ZERO_BLOCKS):
        candidate = position + number * _BLOCK_BYTES
        if stream.seek(candidate) < candidate:
            return None
        block = stream.read(_BLOCK_BYTES)
        if block != _ZERO_BLOCK:
            return None if _find_damage(block) else candidate
    return None


def _check_complete(extensions: _Extensions, shard: str, position: int) -> None:
    if extensions.count:
        raise _truncated(shard, position)


def _read_extension(stream: ByteStream, header: _Header, position: int, extensions: _Extensions, shard: str) -> int:
    extensions.count += 1
    if header.size > _MAX_EXTENSION_BYTES or extensions.count > _MAX_EXTENSIONS:
        raise InputError(f"{shard}: extension header at byte {position} is over the limits: no sound archive")
    content = stream.read(header.size)
    if len(content) < header.size:
        raise _truncated(shard, position)
    if header.kind == _LONG_NAME:
        extensions.name = _decode(content)
    elif header.kind in (_PAX, _PAX_SOLARIS):
        _apply_pax(content, extensions, shard, position)
    return position + _BLOCK_BYTES + _padded(header.size)


def _apply_pax(content: bytes, extensions: _Extensions, shard: str, position: int) -> None:
    for key, value in _split_pax(content, shard, position):
        if key in (b"path", b"GNU.sparse.name"):
            extensions.name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not re.fullmatch(rb"[0-9]{1,18}", value):
                raise InputError(f"{shard}: PAX header at byte {position} gives the size {value[:30]!r}: it is damaged")
            extensions.size = int(value)
        extensions.is_sparse |= key.startswith(b"GNU.sparse.")


def _split_pax(content: bytes, shard: str, position: int) -> Iterator[tuple[bytes, bytes]]:
    offset = 0
    while offset < len(content) and content[offset]:
        matched = re.compile(rb"([0-9]{1,7}) ([^=]+)=").match(content, offset)
        stop = offset + int(matched.group(1)) if matched else 0
        if not matched or not matched.end() < stop <= len(content) or content[stop - 1 : stop] != b"\n":
            raise InputError(f"{shard}: the PAX header at byte {position} is damaged; copy it again")
        yield matched.group(2), content[matched.end() : stop - 1]
        offset = stop


def _make_member(
    stream: ByteStream, header: _Header, extensions: _Extensions, first: int, position: int, shard: str
) -> TarMember:
    name = header.name if extensions.name is None else extensions.name
    size = header.size if extensions.size is None else extensions.size
    unusual = _KINDS.get(header.kind)
    if unusual is None and name.endswith("/"):
        unusual = "folder"  # how archives before ustar marked them
    if header.kind in _WITHOUT_DATA:
        size = 0
    data_start = position + _BLOCK_BYTES
    if header.kind == _SPARSE:
        data_start = _skip_sparse_map(stream, data_start, header.continues, shard)
    if unusual is None and (extensions.is_sparse or header.kind not in _WITH_DATA | {_CONTIGUOUS}):
        unusual = "sparse file" if extensions.is_sparse else "member of unknown type"
    return TarMember(name, first, data_start, size, data_start + _padded(size), unusual)


def _skip_sparse_map(stream: ByteStream, position: int, continues: bool, shard: str) -> int:
    """Returns where the content starts behind the continuation blocks of an old GNU sparse header."""
    while continues:
        stream.seek(position)
        block = stream.read(_BLOCK_BYTES)
        if len(block) < _BLOCK_BYTES:
            raise _truncated(shard, position)
        continues = block[504] != 0
        position += _BLOCK_BYTES
    return position


def _padded(size: int) -> int:
    return (size + _BLOCK_BYTES - 1) // _BLOCK_BYTES * _BLOCK_BYTES


def _truncated(shard: str, position: int) -> InputError:
    return InputError(f"{shard} ends before byte {position}, in the middle of a member: it is truncated; copy it again")
