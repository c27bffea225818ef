"""The decompressed stream of a compressed tar, guarded against damage and bombs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, cast

from shards.errors import InputError
from shards.ranged_file import ByteStream

_OPENERS: dict[str, Callable[..., object]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
# Encoded video does not shrink. Text sidecars do, but never make up a shard.
_MAX_GROWTH = 50
_FREE_BYTES = 64 << 20
_STEP_BYTES = 8 << 20


class DecompressedStream:
    """Reads a compressed file forwards; `seek` only goes forwards, too.

    Raises:
        InputError: on reading: the stream is damaged, truncated, or a decompression bomb.
    """

    def __init__(self, compressed: ByteStream, compression: str, compressed_bytes: int, shard: str) -> None:
        self._compressed = compressed
        self._stream = cast(BinaryIO, _OPENERS[compression](compressed))
        self._position = 0
        self._max_bytes = _FREE_BYTES + _MAX_GROWTH * compressed_bytes
        self._shard = shard

    def read(self, num_bytes: int = -1, /) -> bytes:
        """Returns that many bytes of the content, fewer at its end."""
        pieces, left = [], num_bytes if num_bytes >= 0 else self._max_bytes
        while left > 0 and (piece := self._read_step(min(left, _STEP_BYTES))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def seek(self, position: int, /) -> int:
        """Reads on to a byte of the content; there is no way back."""
        while self._position < position and self._read_step(min(position - self._position, _STEP_BYTES)):
            pass
        return self._position

    def close(self) -> None:
        """Closes both streams."""
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
