"""A remote file that can be read and searched, fetched block by block with ranged reads."""

from __future__ import annotations

import io
from typing import Protocol

from framescribe.storage.access import Location, Store
from framescribe.storage.errors import CutShort, ShardChanged
from framescribe.storage.redaction import strip_credentials

READ_BLOCK_BYTES = 256 << 20  # a unit of default size is one ranged read; a larger one takes several, one at a time
INDEX_BLOCK_BYTES = 64 << 10  # reading headers only: a small video's sidecar and the next header come with it


class ByteStream(Protocol):
    """What a shard is read through: a local file, a `RangedFile` or a decompressed stream."""

    def read(self, num_bytes: int = -1, /) -> bytes:
        """Returns that many bytes, fewer at the end; all that is left if negative."""

    def seek(self, position: int, /) -> int:
        """Goes to a byte from the start and returns where it is."""

    def close(self) -> None:
        """Ends reading."""


class RangedFile(io.RawIOBase):
    """A file of a store up to byte `stop`; one block is held in memory, nothing before byte `start` is fetched."""

    def __init__(self, store: Store, location: Location, stop: int, block_bytes: int, start: int = 0) -> None:
        super().__init__()
        self._store, self._location = store, location
        self._stop, self._block_bytes = stop, block_bytes
        self._position = start
        self._block, self._block_start = b"", 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Returns the byte that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to a byte; nothing is fetched before it is read."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stop}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def read(self, num_bytes: int | None = -1, /) -> bytes:
        """Returns that many bytes, fewer at the end; all that is left if negative or None.

        Raises:
            ShardChanged: the file ends before `stop`.
        """
        left = max(0, self._stop - self._position)
        wanted = left if num_bytes is None or num_bytes < 0 else min(num_bytes, left)
        pieces = []
        while wanted > 0:
            piece = self._read_from_block(wanted)
            pieces.append(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed wants Buffer, new in 3.12
        """Fills a buffer and returns how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_from_block(self, wanted: int) -> bytes:
        offset = self._position - self._block_start
        if not 0 <= offset < len(self._block):
            self._fetch_block(wanted)
            offset = self._position - self._block_start
        piece = self._block[offset : offset + wanted]
        self._position += len(piece)
        return piece

    def _fetch_block(self, wanted: int) -> None:
        start = self._position
        stop = min(self._stop, start + max(self._block_bytes, wanted))
        self._block = b""  # the old block goes before the new one comes: never two in memory
        changed = ShardChanged(
            f"{strip_credentials(self._location.uri)} ended before byte {stop}: it changed while it was read; "
            "let whatever writes it finish, then run again"
        )
        try:
            data = self._store.read_range(self._location, start, stop)
        except CutShort:
            raise changed from None
        if len(data) > stop - start:  # a web server without ranges sends the whole file: keep it, ask once
            start = 0
        if not start <= self._position < start + len(data):
            raise changed
        self._block, self._block_start = data, start


def open_shard(
    store: Store, location: Location, stop: int | None = None, start: int = 0, block_bytes: int = READ_BLOCK_BYTES
) -> ByteStream:
    """Opens a file at byte `start`, to be read up to `stop` at most; local files are opened directly.

    Raises:
        FileNotFoundError, StoreRefused, StoreUnavailable: as `Store.ask`; reading raises them, too.
    """
    if location.is_local:
        stream = store.ask(f"open {location.uri}", lambda: location.local_path.open("rb"))
        stream.seek(start)
        return stream
    if stop is None:
        stop = store.size(location)
    if stop is None:
        return io.BytesIO(store.read_file(location, None))
    return RangedFile(store, location, stop, block_bytes, start)
