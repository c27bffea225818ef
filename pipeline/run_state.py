"""Where a run stands, how fast it goes, what limits it, and how long it still takes: numbers and their words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from pipeline.progress import write_count

# Below this fraction of waiting, which a short run has at its start, the model is what the others wait for.
_LITTLE_WAITING = 0.25
_MUCH = 0.5
_FEWEST_CLIPS_FOR_ESTIMATE = 4
_MOST_SLICES = 8
_MOST_SAMPLES = 512
_RECENT_S = 60.0
LIMITS = ("the model", "decoding", "the store")
_STEPS_OF_MODEL = ("encode", "prefill", "question", "decode")


@dataclass(frozen=True, slots=True)
class RunState:
    """A run at one moment.

    Attributes:
        at_s: seconds since this start began to run its units.
        num_planned: clips of the run; windows of long videos are added as they are found.
        num_done: clips that are annotated or failed, committed or not, those of earlier starts among them.
        num_kept: those of them that the next start finds if this one ends now.
        num_failed: those that failed in this start.
        counters: what was counted since this start began, as far as the runner tells.
    """

    at_s: float
    num_planned: int
    num_done: int
    num_kept: int
    num_failed: int
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model wrote in this start."""
        return self.counters.get("engine.generated_tokens", 0)

    @property
    def num_decoded(self) -> int:
        """Clips whose frames were sampled in this start."""
        return self.counters.get("framescribe.clips_sampled", 0)


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """Seconds that a run still takes, from the fewest to the most that are likely; no most where it is not known."""

    fewest_s: float
    most_s: float | None

    def __str__(self) -> str:
        fewest = write_duration(self.fewest_s)
        if self.most_s is None:
            return f"{fewest} or more left"
        most = write_duration(self.most_s)
        if fewest == most:
            return f"{most} left"
        return f"{fewest.removesuffix(most[most.index(' ') :])} to {most} left"


class RunHistory:
    """States of a run in the order of time; the older ones are thinned out."""

    def __init__(self) -> None:
        self._states: list[RunState] = []

    def add(self, state: RunState) -> None:
        """Adds the newest state."""
        self._states.append(state)
        if len(self._states) > _MOST_SAMPLES:
            half = len(self._states) // 2
            self._states[:half] = self._states[:half:2]

    @property
    def first(self) -> RunState:
        """The state at the start."""
        return self._states[0]

    @property
    def last(self) -> RunState:
        """The newest state."""
        return self._states[-1]

    @property
    def is_working(self) -> bool:
        """Whether a clip was decoded, or done, in this start."""
        return self.last.num_decoded > 0 or self.last.num_done > self.first.num_done

    @property
    def clips_per_s(self) -> float | None:
        """Clips done per second of late; None before the first."""
        return self._rate("num_done")

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens written per second of late; None before the first."""
        return self._rate("num_tokens")

    @property
    def limit(self) -> str | None:
        """What has limited the run of late; see `find_limit`."""
        before = self._since(self._recent_s).counters
        return find_limit({name: total - before.get(name, 0) for name, total in self.last.counters.items()})

    def estimate_left(self) -> TimeLeft | None:
        """Returns how long the rest takes if it goes on as before, give or take two standard errors of the speed.

        The time since the first clip was decoded is cut into slices, whose speeds tell how much the speed varies.
        None where too few clips are done to tell.
        """
        begun, last = self._begun, self.last
        num_done, elapsed_s = last.num_done - begun.num_done, last.at_s - begun.at_s
        if num_done < _FEWEST_CLIPS_FOR_ESTIMATE or elapsed_s <= 0:
            return None
        num_slices = min(_MOST_SLICES, num_done // 2)
        ends_s = [begun.at_s + elapsed_s * number / num_slices for number in range(num_slices + 1)]
        counts = [self._done_at(end_s) for end_s in ends_s]
        speeds = [(after - before) * num_slices / elapsed_s for before, after in pairwise(counts)]
        speed, error = num_done / elapsed_s, statistics.stdev(speeds) / math.sqrt(num_slices)
        left, slowest = last.num_planned - last.num_done, speed - 2 * error
        return TimeLeft(left / (speed + 2 * error), left / slowest if slowest > 0 else None)

    @property
    def _begun(self) -> RunState:
        """The last state before the first clip was decoded, or done: until then a model was loaded."""
        worked = (number for number, state in enumerate(self._states) if state.num_decoded or self._is_moved(state))
        return self._states[max(0, next(worked, len(self._states)) - 1)]

    def _is_moved(self, state: RunState) -> bool:
        return state.num_done > self.first.num_done

    @property
    def _recent_s(self) -> float:
        return max(self._begun.at_s, self.last.at_s - max(_RECENT_S, self.last.at_s / 4))

    def _rate(self, name: str) -> float | None:
        before, last = self._since(self._recent_s), self.last
        number, elapsed_s = getattr(last, name) - getattr(before, name), last.at_s - before.at_s
        return number / elapsed_s if elapsed_s > 0 and getattr(last, name) > getattr(self.first, name) else None

    def _since(self, at_s: float) -> RunState:
        return next(state for state in self._states if state.at_s >= at_s)

    def _done_at(self, at_s: float) -> float:
        """Clips done at a moment; between two states, in proportion to the time."""
        for before, after in pairwise(self._states):
            if before.at_s <= at_s <= after.at_s and after.at_s > before.at_s:
                fraction = (at_s - before.at_s) / (after.at_s - before.at_s)
                return before.num_done + fraction * (after.num_done - before.num_done)
        return self.last.num_done


def find_limit(counters: Mapping[str, int]) -> str | None:
    """Returns which of `LIMITS` the rest of a run waited for; None where nothing tells.

    The model is the limit where its thread hardly waits for work. Else it is decoding where the decoder processes are
    at work for most of the time, and else the store, where reading clips and committing parts took most of it.
    """
    ours = {name.removeprefix("framescribe."): total for name, total in counters.items()}
    waiting = ours.get("engine.waiting_milliseconds", 0)
    lasted = waiting + sum(ours.get(f"engine.{step}_milliseconds", 0) for step in _STEPS_OF_MODEL)
    decoding, idle = ours.get("decode_milliseconds", 0), ours.get("decoders_idle_milliseconds", 0)
    if lasted <= 0:
        return None
    if waiting < _LITTLE_WAITING * lasted:
        return "the model"
    if decoding > 0 and decoding >= _MUCH * (decoding + idle):
        return "decoding"
    in_store = ours.get("read_milliseconds", 0) + ours.get("commit_milliseconds", 0)
    return "the store" if in_store >= _MUCH * lasted else None


def describe_clips(state: RunState) -> str:
    """Returns how many clips are done of how many, and how many failed in this start."""
    return f"{state.num_done:,} of {write_count(state.num_planned, 'clip')} done, {state.num_failed:,} failed"


def describe_pace(history: RunHistory) -> str:
    """Returns speeds, time left and limit as far as they are known; before the first clip, what is known instead."""
    clips_per_s, tokens_per_s, left = history.clips_per_s, history.tokens_per_s, history.estimate_left()
    last, limit = history.last, history.limit
    parts = [
        write_rate(clips_per_s, "clips") if clips_per_s else f"{write_count(last.num_decoded, 'clip')} decoded",
        write_rate(tokens_per_s, "tokens") if tokens_per_s else "",
        str(left) if left is not None and last.num_done < last.num_planned else "",
        f"limited by {limit}" if limit else "",
    ]
    return ", ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class UnitTime:
    """How long a unit took, from the first read to its part; units that run at the same time share the model.

    Attributes:
        shard: address of the shard, or of the folder, without credentials.
        start, stop: which of its clips, `stop` exclusive.
    """

    unit_id: str
    shard: str
    start: int
    stop: int
    seconds: float

    def __str__(self) -> str:
        return f"clips {self.start:,} to {self.stop - 1:,} of {self.shard} in {write_duration(self.seconds)}"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a start went that came to its end.

    Attributes:
        seconds: from the first unit's start to the last part.
        num_clips: clips that this start annotated or that failed in it.
        num_before: clips done by earlier starts.
        num_failed: clips that failed in this start.
        limit: see `find_limit`.
        slowest_units: a few of this start, the slowest first; None where other processes did the work.
    """

    seconds: float
    num_clips: int
    num_before: int
    num_failed: int
    limit: str | None
    slowest_units: tuple[UnitTime, ...] | None = None

    @property
    def clips_per_s(self) -> float:
        """Clips per second of the whole start, loading the model included."""
        return self.num_clips / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, object]:
        """Returns it as run.json has it."""
        slowest = self.slowest_units
        return {
            "seconds": round(self.seconds, 1),
            "clips": self.num_clips,
            "clips_done_before": self.num_before,
            "clips_failed": self.num_failed,
            "clips_per_s": round(self.clips_per_s, 4),
            "limited_by": self.limit,
            "slowest_units": slowest and [{**asdict(unit), "seconds": round(unit.seconds, 1)} for unit in slowest],
        }

    def describe_slowest(self) -> str | None:
        """Returns the line that names the slowest units, or None where none is known."""
        return f"slowest units: {'; '.join(map(str, self.slowest_units))}" if self.slowest_units else None

    def describe(self, num_failed: int) -> str:
        """Returns the last line of a run; `num_failed` are those of all its starts."""
        pace = f" in {write_duration(self.seconds)} ({write_rate(self.clips_per_s, '')})" if self.num_clips else ""
        limit = f", limited by {self.limit}" if self.limit and self.num_clips else ""
        before = f"; {self.num_before:,} done before" if self.num_before else ""
        return f"{write_count(self.num_clips, 'clip')}{pace}{limit}{before}; {num_failed:,} failed"


def write_rate(per_s: float, noun: str) -> str:
    """Returns `0.7 clips/s`, or `0.7/s` without a noun; a slow one per minute or per hour."""
    for factor, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if per_s * factor >= 0.1 or unit == "h":
            number = per_s * factor
            return (
                f"{number:,.0f} {noun}/{unit}".replace(" /", "/")
                if number >= 10
                else (f"{number:.1f} {noun}/{unit}".replace(" /", "/"))
            )
    raise AssertionError("the last unit is always taken")


def write_duration(seconds: float) -> str:
    """Returns `55 s`, `12 min`, `3.4 h` or `2.1 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
