"""Which parts of a video have to be decoded for the frames that are wanted: arithmetic only, tested without a video."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from decoding.timeline import Timeline

# Decoders hand frames out up to 16 frames late, so the last frame of a stretch needs some of what follows it.
_LEAST_GAP_FRAMES = 32


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a video that is decoded in order.

    Attributes:
        key_pts: timestamp of the key frame it starts at, None for the start of the video.
        wanted: index in the video by timestamp of the frames to keep.
    """

    key_pts: int | None
    wanted: dict[int, int] = field(default_factory=dict)


def plan_stretches(timeline: Timeline, indices: Iterable[int]) -> list[Stretch]:
    """Leaves out what lies between a wanted frame and the key frame before the next, where that is long enough."""
    stretches: list[Stretch] = []
    last = 0
    for index in sorted(set(indices)):
        key_pts = timeline.key_before(int(timeline.pts[index]))
        key_index = 0 if key_pts is None else int(np.searchsorted(timeline.pts, key_pts))
        if not stretches or key_index - last > _LEAST_GAP_FRAMES:
            stretches.append(Stretch(key_pts))
        stretches[-1].wanted[int(timeline.pts[index])] = last = index
    return stretches
