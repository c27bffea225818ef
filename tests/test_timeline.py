"""What a timeline, made by hand, says of its frames, and what is made of one of which not every frame came."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from framescribe.decoding.config import TimeWindow, UndecodableClip
from framescribe.decoding.damage import DecodedVideo, DecodeTally, match_decoded_frames
from framescribe.decoding.timeline import Timeline, usual_gap_s

WHOLE = TimeWindow()
# Ten frames, ten ticks and a tenth of a second apart; key frames are the first, the fifth and the eighth.
TEN = Timeline(
    container="mov,mp4",
    codec="h264",
    pix_fmt="yuv420p",
    coded_size=(128, 96),
    num_video_streams=1,
    has_leading_pictures=False,
    pts=np.arange(10) * 10,
    key_pts=np.asarray([0, 40, 70]),
    times_s=np.arange(10) * 0.1,
    end_s=1.1,
    average_rate=Fraction(10),
    rate=Fraction(10),
    tick_s=0.01,
    is_reliable=True,
    has_frame_packets=True,
    has_discarded=False,
    has_holes=False,
    num_unread=0,
    num_missing=0,
    is_cut=False,
    problem=None,
)
# Frames are counted where their timestamps do not name them.
COUNTED = replace(TEN, is_reliable=False)


def came(*frames: int, **settings: object) -> DecodeTally:
    """These frames of a timeline, in this order."""
    return DecodeTally([(ordinal, 10 * frame) for ordinal, frame in enumerate(frames)], **settings)  # type: ignore[arg-type]


def counted(number: int, **settings: object) -> DecodeTally:
    """So many frames without timestamps."""
    return DecodeTally([(ordinal, None) for ordinal in range(number)], **settings)  # type: ignore[arg-type]


ALL = came(*range(10))


def match(
    timeline: Timeline, tally: DecodeTally, window: TimeWindow = WHOLE, min_fraction: float = 0.0
) -> DecodedVideo:
    return match_decoded_frames(timeline, tally, window, min_fraction)


def refuse(timeline: Timeline, tally: DecodeTally, min_fraction: float = 0.99) -> tuple[str, str]:
    with pytest.raises(UndecodableClip) as refused:
        match(timeline, tally, min_fraction=min_fraction)
    return refused.value.reason, refused.value.message


@pytest.mark.parametrize(
    ("window", "frames"),
    [
        (TimeWindow(), (0, 10)),
        (TimeWindow(0.2, 0.5), (2, 5)),
        (TimeWindow(0.21, 0.5), (3, 5)),
        (TimeWindow(None, 0.51), (0, 6)),
        (TimeWindow(0.9, None), (9, 10)),
        (TimeWindow(0.3 + 5e-7, 0.5 + 5e-7), (3, 5)),  # text that was rounded
        (TimeWindow(2.0, 3.0), (10, 10)),
        (TimeWindow(0.41, 0.42), (5, 5)),
    ],
)
def test_a_window_holds_the_frames_from_its_start_up_to_its_end(window, frames):
    assert TEN.frames_in(window) == frames


def test_the_key_frame_before_a_frame_is_the_last_one_up_to_it_and_none_is_named_at_the_start():
    assert [TEN.key_before(pts) for pts in (0, 39, 40, 69, 70, 95)] == [None, None, 40, 40, 70, 70]


def test_a_timeline_is_sound_where_nothing_speaks_against_it():
    assert TEN.is_sound
    assert not replace(TEN, problem="the file ends").is_sound
    assert not replace(TEN, num_missing=1).is_sound
    assert not COUNTED.is_sound


def test_a_last_frame_is_shown_for_the_median_gap_or_one_frame_period():
    assert usual_gap_s(np.asarray([0.0, 1.0, 3.0, 5.0]), Fraction(10)) == 2.0
    assert usual_gap_s(np.asarray([0.0]), Fraction(10)) == 0.1
    assert usual_gap_s(np.asarray([0.0]), None) == 0.0


@pytest.mark.parametrize(
    ("window", "fraction"),
    [
        (WHOLE, 10 / 15),
        (TimeWindow(0.5, None), 5 / 10),
        (TimeWindow(0.0, 0.5), 1.0),
        (TimeWindow(0.5, 1.1), 1.0),
        (TimeWindow(0.5, 1.2), 5 / 10),
    ],
)
def test_frames_beyond_the_end_of_a_file_are_missed_only_by_windows_that_reach_beyond_it(window, fraction):
    assert match(replace(TEN, num_missing=5), ALL, window).decoded_fraction == fraction


def test_frames_are_named_in_order_of_time_with_their_place_in_the_decoders_output():
    decoded = match(TEN, came(0, 3, 1, 2))
    assert decoded.indices == (0, 1, 2, 3)
    assert decoded.timeline.pts.tolist() == [0, 2, 3, 1]
    assert decoded.timeline.times_s.tolist() == TEN.times_s[:4].tolist()
    assert decoded.decoded_fraction == 4 / 10


def test_a_video_that_lost_its_last_frame_ends_a_usual_gap_after_the_one_before():
    assert match(TEN, came(*range(9))).timeline.end_s == pytest.approx(0.9)
    assert match(TEN, came(0, 9)).timeline.end_s == 1.1


@pytest.mark.parametrize(
    ("bad", "fraction"), [(frozenset(), 10 / 10), (frozenset({45}), 10 / 11), (frozenset({None, 45}), 10 / 11)]
)
def test_a_packet_between_two_frames_is_a_loss_where_the_decoder_said_so(bad, fraction):
    pts = np.sort(np.append(TEN.pts, 45))
    timeline = replace(TEN, pts=pts, times_s=pts / 100)
    assert match(timeline, replace(ALL, bad_pts=bad)).decoded_fraction == fraction


@pytest.mark.parametrize("lost", [0, 9, 5])
def test_a_frame_that_leaves_a_gap_or_stood_at_an_end_is_a_loss(lost):
    assert match(TEN, came(*(frame for frame in range(10) if frame != lost))).decoded_fraction == 9 / 10


def test_before_a_hole_one_frame_is_cut_and_those_after_it_up_to_a_key_frame_refer_to_lost_ones():
    pts = np.asarray([0, 10, 20, 30, 40, 80, 90, 100, 110, 120])
    timeline = replace(TEN, pts=pts, times_s=pts / 100, key_pts=np.asarray([0, 100]), has_holes=True, end_s=1.3)
    decoded = match(timeline, DecodeTally(list(enumerate(pts.tolist()))))
    assert decoded.indices == (0, 1, 2, 3, 7, 8, 9)
    assert decoded.decoded_fraction == 7 / (7 + 3 + 3)  # three came and are spoilt, three never came
    to_the_end = match(replace(timeline, key_pts=np.asarray([0])), DecodeTally(list(enumerate(pts.tolist()))))
    assert to_the_end.indices == (0, 1, 2, 3)
    whole = match(replace(timeline, has_holes=False), DecodeTally(list(enumerate(pts.tolist()))))
    assert (whole.indices, whole.decoded_fraction) == (tuple(range(10)), 1.0)


@pytest.mark.parametrize(
    ("timeline", "tally", "fraction"),
    [
        (COUNTED, counted(9), 9 / 10),
        (COUNTED, counted(11), 1.0),  # more than there are packets
        (COUNTED, counted(11, num_bad=5), 1.0),
        (replace(COUNTED, has_frame_packets=False), counted(9, num_bad=2), 9 / 11),
        (replace(COUNTED, num_unread=3), counted(10), 10 / 13),
        (replace(COUNTED, num_unread=3, num_missing=2), counted(10), 10 / 12),
        (TEN, counted(9), 9 / 10),
    ],
)
def test_frames_without_timestamps_are_counted(timeline, tally, fraction):
    decoded = match(timeline, tally)
    assert decoded.decoded_fraction == pytest.approx(fraction)
    assert decoded.indices == tuple(range(len(tally.good)))


@pytest.mark.parametrize(
    ("timeline", "tally", "times_s", "end_s"),
    [
        (COUNTED, DecodeTally([(0, 5), (1, 25), (2, 65)]), [0.0, 0.2, 0.6], 0.9),
        (COUNTED, DecodeTally([(0, 5), (1, 5)]), [0.0, 0.1], 0.2),
        (replace(COUNTED, rate=None), counted(2), [0.0, 0.04], 0.08),
        (replace(COUNTED, times_s=np.asarray([0.0, 0.3])), counted(2), [0.0, 0.3], 0.6),
    ],
)
def test_counted_frames_have_their_own_times_where_those_make_sense(timeline, tally, times_s, end_s):
    decoded = match(timeline, tally).timeline
    assert decoded.times_s.tolist() == pytest.approx(times_s)
    assert decoded.end_s == pytest.approx(end_s)
    assert decoded.pts.tolist() == list(range(len(times_s)))


def test_the_wanted_fraction_itself_is_enough():
    assert match(TEN, came(*range(9)), min_fraction=0.9).decoded_fraction == 0.9
    reason, message = refuse(TEN, came(*range(9)), min_fraction=0.91)
    assert (reason, message) == ("damaged", "9 of 10 frames can be decoded, at least 91% are wanted")


def test_a_clip_that_fails_says_what_is_wrong_with_its_file():
    nine = came(*range(9))
    cut = replace(TEN, is_cut=True, num_missing=3)
    assert refuse(TEN, came()) == ("no frame can be decoded", "0 of 10 frames can be decoded, at least 99% are wanted")
    reason, message = refuse(cut, ALL)
    assert (reason, message.split("; ")[1:]) == ("truncated after 1.1 s", ["the file ends before its last frames"])
    assert message.startswith("10 of 13 frames")
    reason, message = refuse(replace(cut, problem="partial file"), nine)
    assert (reason, message.split("; ")[1:]) == ("truncated after 0.9 s", ["partial file"])
    assert refuse(cut, came())[0] == "no frame can be decoded"
    assert refuse(cut, came(*range(6)))[0] == "damaged"  # it lost more than a cut explains
    assert refuse(replace(cut, num_missing=10), came())[0] == "truncated before its first frame"
    message = refuse(TEN, came(*range(9), begins_late=True))[1]
    assert message.endswith("; the file begins in the middle of a group of pictures")
