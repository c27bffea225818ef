"""Catches what FFmpeg says of a file: often the only sign that the file is cut short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import av.logging

LogLine = tuple[int, str, str]  # level, FFmpeg component, text
# Errors to FFmpeg that leave the pictures right: about what stands beside them, or what an earlier line said already.
_HARMLESS = ("mmco: unref short failure", "SEI type ")


@contextmanager
def ffmpeg_log() -> Iterator[list[LogLine]]:
    """Collects FFmpeg's warnings and errors of this thread while the context lasts."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    # Or PyAV leaves out a line like the last one, of another file perhaps, and mentions it in a third file's log.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as lines:
            yield lines
    finally:
        av.logging.set_level(level)


def has_error(lines: Iterable[LogLine]) -> bool:
    """Whether FFmpeg says that something could not be read as it was written."""
    return any(level <= av.logging.ERROR and not text.startswith(_HARMLESS) for level, _, text in lines)
