"""Looks at the headers of some clips, to say what all of them are: hours, sizes, codecs, and how many will fail.

No frame is decoded, so a file whose headers are sound and whose data is damaged is not found.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from framescribe.decoding.config import SamplingConfig, UndecodableClip, VideoHeader
from framescribe.decoding.pool import DecoderPool
from framescribe.decoding.sampling import choose_frames
from framescribe.shards.reading import MIN_WINDOW_S, split_clip
from framescribe.storage.access import Store
from pipeline.config import UnitConfig
from pipeline.subset import order_clips, read_places
from pipeline.units import ListedShard
from schemas.records import Clip, FailedClip

NUM_SURVEYED = 200
TRAINED_S = 180  # the longest videos of LLaVA-Video-178K, which the model was trained on
_SEED = 178_000  # another sample than the one of --sample
_Z = 1.96  # of 95 %
_LONGEST_S = 86_400.0  # some files say that they are years long
_MAX_FRAME_TIMES = 200_000  # of one clip; a longer one is sampled as if it ended there


@dataclass(frozen=True, slots=True)
class SurveyedClip:
    """A clip whose headers were read.

    Attributes:
        header: None where it will fail.
        windows_s: lengths of the clips that it is cut into, of one where it stays whole.
        reason: why it will fail, or empty.
    """

    header: VideoHeader | None
    windows_s: tuple[float, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate of all clips from some of them, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Survey:
    """Some clips of the inputs, drawn by their ids, of `num_listed`; all of them where there are few."""

    clips: tuple[SurveyedClip, ...]
    num_listed: int

    @property
    def is_whole(self) -> bool:
        """Whether every clip was looked at."""
        return len(self.clips) >= self.num_listed

    @cached_property
    def sound(self) -> tuple[SurveyedClip, ...]:
        """The clips whose headers can be read."""
        return tuple(clip for clip in self.clips if clip.header is not None)

    def failures(self) -> Interval:
        """Returns how many of all clips will fail by their headers: Wilson's interval."""
        number, count = len(self.clips), len(self.clips) - len(self.sound)
        if self.is_whole:
            return Interval(count, count, count)
        share, square = count / number, _Z**2 / number
        middle, half = share + square / 2, _Z * math.sqrt(share * (1 - share) / number + square / number / 4)
        low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
        return Interval(share * self.num_listed, max(0.0, low) * self.num_listed, high * self.num_listed)

    def long_clips(self) -> Interval:
        """Returns how many of all clips `--split-seconds` of the model's training length would cut."""
        return self.total(lambda clip: sum(length_s >= TRAINED_S + MIN_WINDOW_S for length_s in clip.windows_s))

    def total(self, value: Callable[[SurveyedClip], float]) -> Interval:
        """Returns the sum of a value over all clips, failing ones counted as 0."""
        values = np.array([value(clip) if clip.header else 0.0 for clip in self.clips] or [0.0])
        mean, spread = float(values.mean()), 0.0 if self.is_whole else float(values.std()) * _Z / math.sqrt(len(values))
        return Interval(*(max(0.0, one) * self.num_listed for one in (mean, mean - spread, mean + spread)))

    def reasons(self) -> Counter[str]:
        """Counts why surveyed clips will fail."""
        return Counter(clip.reason for clip in self.clips if clip.reason)

    def mix(self, describe: Callable[[VideoHeader], str]) -> list[tuple[str, float]]:
        """Returns what headers say and the fraction of the sound clips that say it, the most frequent first."""
        counts = Counter(describe(clip.header) for clip in self.sound if clip.header is not None)
        return [(name, count / len(self.sound)) for name, count in counts.most_common()]


def survey_clips(
    store: Store,
    shards: Sequence[ListedShard],
    config: UnitConfig,
    sampling: SamplingConfig,
    split_s: float | None,
    num_clips: int = NUM_SURVEYED,
) -> Survey:
    """Reads the headers of some clips; those of remote stores are fetched whole for it."""
    num_listed = sum(listed.num_kept for listed in shards)
    # A single clip of each unit: nothing is read that is not looked at.
    places = order_clips(shards, num_clips, _SEED)
    with closing(DecoderPool(1, sampling)) as pool:
        clips = tuple(
            _look_at(clip, pool, split_s)
            for _, clip in read_places(store, shards, places, replace(config, max_clips=1))
        )
    return Survey(clips, num_listed)


def _look_at(clip: Clip | FailedClip, pool: DecoderPool, split_s: float | None) -> SurveyedClip:
    if isinstance(clip, FailedClip):
        return SurveyedClip(None, (), clip.reason)
    try:
        header = pool.read_header(clip.video)
    except UndecodableClip as error:
        return SurveyedClip(None, (), error.reason)
    windows = [clip] if split_s is None else split_clip(clip, header.duration_s, split_s)
    lengths = (_length_s(one, header.duration_s) for one in windows)
    return SurveyedClip(header, tuple(min(max(0.0, length_s), _LONGEST_S) for length_s in lengths))


def _length_s(clip: Clip, duration_s: float) -> float:
    end_s = duration_s if clip.ref.end_s is None else min(clip.ref.end_s, duration_s)
    return end_s - (clip.ref.start_s or 0.0)


def count_frames(length_s: float, frames_per_s: float, sampling: SamplingConfig) -> tuple[int, int, tuple[float, ...]]:
    """Returns frames of the prompt, unique ones among them, and their times, of a clip with an even frame rate."""
    rate = frames_per_s if 0 < frames_per_s < 1000 else 25.0
    num_frames = min(_MAX_FRAME_TIMES, max(1, round(length_s * rate)))
    even = replace(sampling, time_base="pts")  # the other one differs by a frame at most
    choice = choose_frames(np.arange(num_frames) / rate, length_s, None, even)  # type: ignore[arg-type]  # an array is a sequence of floats
    return len(choice.indices), len(set(choice.indices)), choice.timestamps_s
