"""How numbers are said in messages."""

from __future__ import annotations


def write_count(number: int, noun: str) -> str:
    """Returns `1 clip`, `0 clips` or `2,000 clips`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def write_size(size_bytes: int) -> str:
    """Returns a size in the unit of the flags: `0.3 GiB`, or `12.0 MiB` below a tenth of one."""
    gib = size_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{size_bytes / 2**20:.1f} MiB"
