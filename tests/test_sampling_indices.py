"""The arithmetic of sampling: which frames, and which times the prompt states for them."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.sample import sample_video
from framescribe.decoding.sampling import choose_as_model_card, choose_frames, rate_indices, spread_indices
from tests.support.golden_cases import COMMITTED

GOLDEN_VIDEOS = COMMITTED / "videos"
GOLDEN = json.loads((GOLDEN_VIDEOS / "load_video_golden.json").read_text())
CARD_CASES = [(clip, case) for clip, cases in GOLDEN.items() for case in cases if case != "pyav"]


def card_config(case: str) -> SamplingConfig:
    """The settings behind a golden case's name, such as `max8_fps2_force0`."""
    max_frames, fps, force = case.split("_")
    forced = force == "force1"
    return SamplingConfig(
        max_frames=int(max_frames.removeprefix("max")),
        fps=None if forced else float(fps.removeprefix("fps")),
        time_base="model_card",
        decoder="pyav",
        image_size=32,
    )


@pytest.mark.parametrize(("clip", "case"), [c for c in CARD_CASES if "error" not in GOLDEN[c[0]][c[1]]])
def test_the_time_base_model_card_does_the_model_cards_arithmetic(clip, case):
    golden = GOLDEN[clip][case]
    sampled, _ = sample_video(str(GOLDEN_VIDEOS / clip), TimeWindow(), card_config(case))
    assert list(sampled.frame_indices) == golden["frame_idx"]
    assert ",".join(f"{time_s:.2f}s" for time_s in sampled.timestamps_s) == golden["frame_time"]
    assert sampled.duration_s == golden["video_time"]


@pytest.mark.parametrize(("clip", "case"), [c for c in CARD_CASES if "error" in GOLDEN[c[0]][c[1]]])
def test_where_the_model_cards_arithmetic_raises_the_clip_fails_with_a_reason(clip, case):
    with pytest.raises(UndecodableClip, match="too low for the time base model_card"):
        sample_video(str(GOLDEN_VIDEOS / clip), TimeWindow(), card_config(case))


def test_the_seed_arithmetic_spreads_frames_and_divides_by_the_rate():
    choice = choose_as_model_card(35, Fraction(10), max_frames=8, fps=None)
    assert choice.indices == (0, 4, 9, 14, 19, 24, 29, 34)
    assert choice.timestamps_s == (0.0, 0.4, 0.9, 1.4, 1.9, 2.4, 2.9, 3.4)
    assert choice.duration_s == 3.5


def test_the_seed_arithmetic_with_a_rate_divides_by_the_stride_as_the_card_does():
    choice = choose_as_model_card(35, Fraction(10), max_frames=64, fps=2)
    assert choice.indices == (0, 5, 10, 15, 20, 25, 30)
    assert choice.timestamps_s == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def test_the_seed_arithmetic_falls_back_to_an_even_spread_above_the_cap():
    choice = choose_as_model_card(120, Fraction(30000, 1001), max_frames=3, fps=1)
    assert choice.indices == (0, 59, 119)


def test_a_rate_of_half_a_frame_a_second_fails_under_the_time_base_model_card():
    with pytest.raises(UndecodableClip, match="frame rate 0.5 too low for the time base model_card"):
        choose_as_model_card(6, Fraction(1, 2), max_frames=64, fps=None)


def test_a_video_without_a_mean_rate_fails_under_the_time_base_model_card():
    with pytest.raises(UndecodableClip, match="no frame rate"):
        choose_as_model_card(6, None, max_frames=64, fps=None)


def test_a_clip_with_fewer_frames_than_asked_for_repeats_them():
    assert spread_indices(3, 8) == (0, 0, 0, 0, 1, 1, 1, 2)


def test_true_times_are_stated_for_a_variable_frame_rate():
    times_s = [0.0, 0.1, 1.7, 1.8, 5.0]
    choice = choose_frames(times_s, 6.0, Fraction(5), SamplingConfig(max_frames=3))
    assert choice.indices == (0, 2, 4)
    assert choice.timestamps_s == (0.0, 1.7, 5.0)
    assert choice.duration_s == 6.0


def test_a_rate_takes_the_frame_on_screen_at_each_of_its_ticks():
    assert rate_indices([0.0, 0.1, 1.7, 1.8, 5.0], 6.0, fps=1, max_frames=64) == (0, 1, 3, 4)


def test_a_rate_above_the_videos_own_takes_every_frame_once():
    assert rate_indices([0.0, 0.5, 1.0], 1.5, fps=60, max_frames=64) == (0, 1, 2)


def test_a_rate_that_asks_for_more_than_the_cap_is_spread_evenly():
    times_s = [i / 30 for i in range(300)]
    assert rate_indices(times_s, 10.0, fps=10, max_frames=4) == (0, 99, 199, 299)


def test_times_a_hair_before_a_tick_count_as_the_tick():
    times_s = [0.0, 0.9999, 1.9999]
    assert rate_indices(times_s, 3.0, fps=1, max_frames=64) == (0, 1, 2)


gaps_s = st.lists(st.floats(1e-3, 10), min_size=1, max_size=200)


@given(gaps_s, st.floats(0.01, 1e6), st.integers(1, 64))
def test_a_rate_chooses_between_one_frame_and_the_cap_in_order(gaps, fps, max_frames):
    starts_s = [sum(gaps[:i]) for i in range(len(gaps))]
    indices = rate_indices(starts_s, sum(gaps), fps, max_frames)
    assert 1 <= len(indices) <= max_frames
    assert list(indices) == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < len(gaps)


@given(st.integers(1, 10_000), st.integers(2, 128))
def test_an_even_spread_holds_the_first_and_the_last_frame(num_frames, max_frames):
    indices = spread_indices(num_frames, max_frames)
    assert len(indices) == max_frames
    assert (indices[0], indices[-1]) == (0, num_frames - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_frames": 0}, "max_frames must be positive, got 0"),
        ({"fps": 0.0}, "fps must be a positive number of frames per second, got 0.0"),
        ({"fps": float("nan")}, "fps must be a positive number of frames per second, got nan"),
        ({"decoder": "ffmpeg"}, "decoder must be one of auto, decord, pyav, got 'ffmpeg'"),
        ({"time_base": "wall"}, "time_base must be one of pts, model_card, got 'wall'"),
        ({"min_decoded_fraction": 1.5}, "min_decoded_fraction must lie between 0 and 1, got 1.5"),
        ({"deadline_s": -1.0}, "deadline_s must be positive, got -1.0"),
    ],
)
def test_a_bad_setting_is_refused_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)
