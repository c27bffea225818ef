"""Shards made for the tests, and a store that fails when it is told to."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from framescribe.shards.reading import read_unit
from framescribe.storage.config import ReadConfig
from framescribe.storage.retries import RetryPolicy
from schemas.records import Clip, FailedClip, WorkUnit

# Rows may name others of these hosts than a user's rows might: web servers of this machine, stores that are made up.
LISTED = ("127.0.0.1", "flaky://v", "memory://elsewhere")
AT_ONCE = RetryPolicy(max_attempts=5, first_delay_s=0.0)
QUICK = ReadConfig(retries=AT_ONCE, trusted_hosts=LISTED)


def make_tar(members: Iterable[tuple[str, bytes]], mode: str = "w", tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Returns a tar archive with regular files of these names and contents, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tar_format) as archive:  # type: ignore[call-overload]
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def webdataset_members(num_clips: int, video_bytes: int = 2000) -> list[tuple[str, bytes]]:
    """Returns `0000.json`, `0000.mp4`, `0001.json`, ...: the number in the metadata, and in every byte of the video."""
    return [
        member
        for number in range(num_clips)
        for member in (
            (f"{number:04d}.json", f'{{"number": {number}}}'.encode()),
            (f"{number:04d}.mp4", bytes([number % 251]) * (video_bytes + number)),
        )
    ]


def write(path: Path, content: bytes | str) -> str:
    """Writes a file, its folders too, and returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read_all(units: Sequence[WorkUnit], config: ReadConfig = QUICK) -> list[Clip | FailedClip]:
    """Reads all clips of all units."""
    return [clip for unit in units for clip in read_unit(unit, None, config)]


def ids_of(clips: Iterable[Clip | FailedClip]) -> list[str]:
    return [clip.ref.clip_id for clip in clips]


class FlakyFileSystem(MemoryFileSystem):
    """A store in memory, `flaky://`, that raises what is put into `failures`, one a call, and counts its reads."""

    protocol = ("flaky", "shaky")
    store: dict[str, object] = {}  # noqa: RUF012  # how MemoryFileSystem keeps its files
    failures: list[BaseException] = []  # noqa: RUF012
    reads: list[tuple[int | None, int | None]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").removeprefix("shaky://").strip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        type(self).reads.append((start, end))
        if type(self).failures:
            raise type(self).failures.pop(0)
        return super().cat_file(path, start=start, end=end, **kwargs)

    @classmethod
    def reset(cls) -> None:
        cls.store.clear()
        cls.failures.clear()
        cls.reads.clear()


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
fsspec.register_implementation("shaky", FlakyFileSystem, clobber=True)
