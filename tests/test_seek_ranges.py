"""Only the parts of a video that wanted frames need are decoded."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from framescribe.decoding.sampling import SeekRange, plan_seek_ranges
from framescribe.decoding.timeline import Timeline


def timeline_with_keys_at(*key_indices: int) -> Timeline:
    """A thousand frames, ten ticks apart."""
    pts = np.arange(1000) * 10
    return Timeline(
        container="mov",
        codec="h264",
        pix_fmt="yuv420p",
        coded_size=(128, 96),
        num_video_streams=1,
        has_leading_pictures=False,
        pts=pts,
        key_pts=pts[list(key_indices)],
        times_s=pts / 250,
        end_s=40.0,
        average_rate=Fraction(25),
        rate=Fraction(25),
        tick_s=1 / 250,
        is_reliable=True,
        has_frame_packets=True,
        has_discarded=False,
        has_holes=False,
        num_unread=0,
        num_missing=0,
        is_cut=False,
        problem=None,
    )


def test_frames_of_one_group_of_pictures_are_one_stretch():
    assert plan_seek_ranges(timeline_with_keys_at(0), [0, 500, 999]) == [SeekRange(None, {0: 0, 5000: 500, 9990: 999})]


def test_a_new_stretch_starts_at_the_last_key_frame_up_to_a_wanted_frame():
    seek_ranges = plan_seek_ranges(timeline_with_keys_at(0, 400, 450, 900), [0, 500, 900])
    assert seek_ranges == [SeekRange(None, {0: 0}), SeekRange(4500, {5000: 500}), SeekRange(9000, {9000: 900})]


def test_a_gap_that_the_decoders_delay_may_fill_is_decoded():
    assert plan_seek_ranges(timeline_with_keys_at(0, 100), [80, 120]) == [SeekRange(None, {800: 80, 1200: 120})]


def test_a_window_starts_at_the_key_frame_before_it():
    assert plan_seek_ranges(timeline_with_keys_at(0, 300), [310, 320]) == [SeekRange(3000, {3100: 310, 3200: 320})]


def test_repeated_frames_are_wanted_once():
    assert plan_seek_ranges(timeline_with_keys_at(0), [0, 0, 1, 1]) == [SeekRange(None, {0: 0, 10: 1})]
