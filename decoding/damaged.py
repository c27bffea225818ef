"""Makes the timeline of a video from the frames that really decode, and judges whether they are enough."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from decoding.decode_pass import Census
from decoding.errors import UndecodableClip
from decoding.timeline import USUAL_RATE, Span, Timeline, usual_gap_s


@dataclass(frozen=True, slots=True)
class SettledVideo:
    """The frames of a video that can be had.

    Attributes:
        timeline: their times; `pts` holds each one's place in the decoder's output.
        indices: [N] index in the whole video of each frame.
        decoded_share: frames decoded over frames expected, within the clip.
    """

    timeline: Timeline
    indices: tuple[int, ...]
    decoded_share: float


def settle(timeline: Timeline, census: Census, span: Span, min_share: float) -> SettledVideo:
    """Keeps to the frames that came.

    Raises:
        UndecodableClip: they are fewer than `min_share` of the frames that the span should hold.
    """
    places = {int(pts): i for i, pts in enumerate(timeline.pts)} if timeline.is_reliable else {}
    if all(pts in places for _, pts in census.good) and timeline.is_reliable:
        settled, indices = _by_timestamp(timeline, census, places)
        low, high = timeline.window(span)
        first, stop = settled.window(span)
        num_good, num_announced = stop - first, high - low
    else:
        settled, indices = _by_count(timeline, census), tuple(range(len(census.good)))
        num_good, num_announced = len(census.good), len(timeline.times_s)
    is_damaged = bool(census.num_bad or timeline.problem or timeline.num_missing)
    num_missing = timeline.num_missing if span.end_s is None or span.end_s > timeline.end_s else 0
    num_expected = num_missing + (num_announced if is_damaged or timeline.has_frame_packets else num_good)
    num_lost = num_expected - num_missing - num_good  # before the end of the file
    is_cut = bool(settled.problem or settled.num_missing) and num_lost <= max(num_missing, 1)
    return SettledVideo(settled, indices, _check_share(num_good, num_expected, settled, is_cut, min_share))


def _by_timestamp(timeline: Timeline, census: Census, places: dict[int, int]) -> tuple[Timeline, tuple[int, ...]]:
    """The announced frames that came, each at its announced time."""
    came = sorted((places[pts], ordinal) for ordinal, pts in census.good if pts is not None)
    indices = tuple(index for index, _ in came)
    ordinals = np.asarray([ordinal for _, ordinal in came], dtype=np.int64)
    times_s = timeline.times_s[list(indices)]
    gap_s = usual_gap_s(timeline.times_s, timeline.average_rate)
    lost_end = bool(indices) and indices[-1] != len(timeline.times_s) - 1
    end_s = float(times_s[-1]) + gap_s if lost_end else timeline.end_s
    return replace(timeline, pts=ordinals, times_s=times_s, end_s=end_s), indices


def _by_count(timeline: Timeline, census: Census) -> Timeline:
    """The frames in the decoder's order, at their own times where those make sense, else at a steady rate."""
    ordinals = np.asarray([ordinal for ordinal, _ in census.good], dtype=np.int64)
    stated = np.asarray([pts for _, pts in census.good if pts is not None], dtype=np.int64)
    if len(stated) == len(ordinals) and len(stated) and (np.diff(stated) > 0).all():
        times_s = (stated - stated[0]) * timeline.tick_s
    elif len(ordinals) == len(timeline.times_s):
        times_s = timeline.times_s
    else:
        times_s = np.arange(len(ordinals)) / float(timeline.average_rate or USUAL_RATE)
    gap_s = usual_gap_s(times_s, timeline.average_rate)
    return replace(timeline, pts=ordinals, times_s=times_s, end_s=float(times_s[-1]) + gap_s if len(times_s) else 0.0)


def _check_share(num_good: int, num_expected: int, settled: Timeline, is_cut: bool, min_share: float) -> float:
    share = num_good / max(num_good, num_expected, 1)
    if num_good and share >= min_share:
        return share
    seen = f"{num_good} of {num_expected} frames can be decoded, at least {min_share:.0%} are wanted"
    if settled.problem:
        seen += f"; FFmpeg: {settled.problem}"
    if is_cut:
        reason = f"truncated after {settled.end_s:.1f} s" if num_good else "truncated before its first frame"
        raise UndecodableClip(reason, seen if settled.problem else f"{seen}; the file ends before its last frames")
    raise UndecodableClip("damaged" if num_good else "no frame can be decoded", seen)
