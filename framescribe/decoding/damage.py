"""Makes the timeline of a damaged video from the frames that really decode, and judges whether they are enough."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from framescribe.decoding.config import TimeWindow, UndecodableClip
from framescribe.decoding.timeline import USUAL_RATE, Timeline, usual_gap_s

_GAP = 1.5  # times the usual distance of two frames: nearer ones leave none out


@dataclass(frozen=True, slots=True)
class DecodeTally:
    """What a decode of every frame gave.

    Attributes:
        good: (place in the decoder's output, presentation timestamp) of each faithful frame, in output order.
        bad_pts: timestamps of the packets whose frames are not faithful, or did not come for an error.
        num_bad: how many packets these are.
        begins_late: whether the file begins with frames that refer to some before it.
    """

    good: list[tuple[int, int | None]] = field(default_factory=list)
    bad_pts: frozenset[int | None] = frozenset()
    num_bad: int = 0
    begins_late: bool = False


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """The frames of a video that can be had.

    Attributes:
        timeline: their times; `pts` holds each one's place in the decoder's output.
        indices: [N] index in the whole video of each frame.
        decoded_fraction: frames decoded over frames expected, within the clip.
    """

    timeline: Timeline
    indices: tuple[int, ...]
    decoded_fraction: float


def match_decoded_frames(
    timeline: Timeline, tally: DecodeTally, window: TimeWindow, min_fraction: float
) -> DecodedVideo:
    """Keeps to the frames that came.

    Raises:
        UndecodableClip: they are fewer than `min_fraction` of the frames that the window should hold.
    """
    if timeline.has_holes:
        tally = _drop_frames_after_gaps(timeline, tally)
    places = {int(pts): i for i, pts in enumerate(timeline.pts)} if timeline.is_reliable else {}
    num_missing = timeline.num_missing if window.end_s is None or window.end_s > timeline.end_s else 0
    if all(pts in places for _, pts in tally.good) and timeline.is_reliable:
        decoded, indices = _by_timestamp(timeline, tally, places)
        first, stop = decoded.frames_in(window)
        num_good = stop - first
        num_lost = _count_lost(timeline, indices, tally, window)  # before the end of the file
    else:
        decoded, indices = _by_count(timeline, tally), tuple(range(len(tally.good)))
        num_good = len(tally.good)
        num_lost = len(timeline.times_s) - num_good if timeline.has_frame_packets else tally.num_bad
        num_lost = max(num_lost, 0) + (0 if timeline.num_missing else timeline.num_unread)
    is_cut = timeline.is_cut and num_lost <= max(num_missing, 1)
    num_expected = num_good + num_lost + num_missing
    fraction = _check_fraction(
        num_good, num_expected, decoded, is_cut=is_cut, begins_late=tally.begins_late, min_fraction=min_fraction
    )
    return DecodedVideo(decoded, indices, fraction)


def _count_lost(timeline: Timeline, came: tuple[int, ...], tally: DecodeTally, window: TimeWindow) -> int:
    """How many frames of a window did not come faithfully, those left out that FFmpeg could not even find included.

    Where the decoder says nothing of a packet, and its missing frame leaves no gap between its neighbours, it never
    was a frame to show: an alternate reference, the second field of a picture.
    """
    low, high = timeline.frames_in(window)
    usual_s = usual_gap_s(timeline.times_s[list(came)], timeline.rate)
    lost = np.setdiff1d(np.arange(low, high), came)
    after = np.searchsorted(came, lost)
    is_inside = (after > 0) & (after < len(came))
    around_s = np.full(len(lost), np.inf)
    around_s[is_inside] = np.diff(timeline.times_s[list(came)])[after[is_inside] - 1]
    is_bad = np.isin(timeline.pts[lost], [pts for pts in tally.bad_pts if pts is not None])
    num_lost = int((is_bad | (around_s > _GAP * usual_s)).sum())
    if timeline.has_holes:
        gaps = np.diff(timeline.times_s[low : high + 1]) / max(usual_s, timeline.tick_s)
        num_lost += int(np.rint(gaps[gaps > _GAP] - 1).sum())
    return num_lost


def _drop_frames_after_gaps(timeline: Timeline, tally: DecodeTally) -> DecodeTally:
    """Where the file has holes, the frame before one is cut, and those up to the next key frame refer to lost ones."""
    gaps_s = np.diff(timeline.times_s)
    spoilt: set[int] = set()
    for after in np.flatnonzero(gaps_s > _GAP * usual_gap_s(timeline.times_s, timeline.rate)) + 1:
        next_key = np.searchsorted(timeline.key_pts, timeline.pts[after])
        stop = np.searchsorted(timeline.pts, timeline.key_pts[next_key]) if next_key < len(timeline.key_pts) else None
        spoilt.update(timeline.pts[after - 1 : stop].tolist())
    good = [(ordinal, pts) for ordinal, pts in tally.good if pts not in spoilt]
    return replace(tally, good=good, bad_pts=tally.bad_pts | spoilt)


def _by_timestamp(timeline: Timeline, tally: DecodeTally, places: dict[int, int]) -> tuple[Timeline, tuple[int, ...]]:
    """The announced frames that came, each at its announced time."""
    came = sorted((places[pts], ordinal) for ordinal, pts in tally.good if pts is not None)
    indices = tuple(index for index, _ in came)
    ordinals = np.asarray([ordinal for _, ordinal in came], dtype=np.int64)
    times_s = timeline.times_s[list(indices)]
    gap_s = usual_gap_s(timeline.times_s, timeline.rate)
    lost_end = bool(indices) and indices[-1] != len(timeline.times_s) - 1
    end_s = float(times_s[-1]) + gap_s if lost_end else timeline.end_s
    return replace(timeline, pts=ordinals, times_s=times_s, end_s=end_s), indices


def _by_count(timeline: Timeline, tally: DecodeTally) -> Timeline:
    """The frames in the decoder's order, at their own times where those make sense, else at a steady rate."""
    ordinals = np.asarray([ordinal for ordinal, _ in tally.good], dtype=np.int64)
    stated = np.asarray([pts for _, pts in tally.good if pts is not None], dtype=np.int64)
    if len(stated) == len(ordinals) and len(stated) and (np.diff(stated) > 0).all():
        times_s = (stated - stated[0]) * timeline.tick_s
    elif len(ordinals) == len(timeline.times_s):
        times_s = timeline.times_s
    else:
        times_s = np.arange(len(ordinals)) / float(timeline.rate or USUAL_RATE)
    gap_s = usual_gap_s(times_s, timeline.rate)
    return replace(timeline, pts=ordinals, times_s=times_s, end_s=float(times_s[-1]) + gap_s if len(times_s) else 0.0)


def _check_fraction(
    num_good: int, num_expected: int, decoded: Timeline, *, is_cut: bool, begins_late: bool, min_fraction: float
) -> float:
    fraction = num_good / max(num_good, num_expected, 1)
    if num_good and fraction >= min_fraction:
        return fraction
    seen = f"{num_good} of {num_expected} frames can be decoded, at least {min_fraction:.0%} are wanted"
    if decoded.problem:
        seen += f"; {decoded.problem}"
    if begins_late:
        seen += "; the file begins in the middle of a group of pictures"
    if is_cut:
        reason = f"truncated after {decoded.end_s:.1f} s" if num_good else "truncated before its first frame"
        raise UndecodableClip(reason, seen if decoded.problem else f"{seen}; the file ends before its last frames")
    raise UndecodableClip("damaged" if num_good else "no frame can be decoded", seen)
