"""For `--sample-with`: a decoder process that imports this finds a PyAV of another interface."""

from __future__ import annotations

import av

from framescribe.decoding.sample import sample_video

__all__ = ["sample_video"]


def _open(file: str) -> None:
    raise AssertionError(f"{file} must not be opened: the keywords are refused before")


av.open = _open  # type: ignore[assignment]
