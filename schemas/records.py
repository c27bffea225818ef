"""The records that travel between the stages of the pipeline, one record per stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import numpy as np

from framescribe.decoding.sampling import Sampling
from framescribe.errors import FrameScribeError
from framescribe.recipes.annotation import Caption, QAPair


class InputKind(str, Enum):
    """How the clips of a shard are stored."""

    TAR = "tar"
    PARQUET = "parquet"
    FILES = "files"
    MANIFEST = "manifest"


WITHDRAWN = "withdrawn"  # the reason of a failed clip that a person took out of the run


class Stage(str, Enum):
    """The step at which a clip failed."""

    READ = "read"
    DECODE = "decode"
    ANNOTATE = "annotate"


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """A slice of one shard: the clips `start` to `stop` (exclusive) in the shard's own order.

    Attributes:
        unit_id: file-name-safe, unique in a run, the same for the same slice on every machine.
        shard: URI of the shard; for `FILES` the folder the files were listed from.
        shard_id: the readable name that clip ids of this shard begin with.
        size_bytes: bytes of encoded video in the unit, as far as the planner could know.
        byte_start, byte_stop: the byte range of the unit's members (`TAR`) or lines (`MANIFEST`); both 0 for a
            compressed tar, which is read as one stream.
        files: for `FILES`, the URIs of the videos, in order; `clip_ids` are their clip ids, and `metadata` what tables
            beside them say about each, as JSON objects; empty where there is no such table.
        versions: what changes with the contents of each of `files`, for `TAR` and `PARQUET` of the shard alone: ETag,
            generation or modification time; empty texts where the store tells none. They may change without the
            contents, so they are no part of `unit_id`. Lines of a `MANIFEST` are.
        picks: for each clip of the slice, the numbers of its windows (from 0; a clip that is not split has one) that a
            limited run takes: None for all, none for a clip that is only passed. Empty where every clip is taken.
    """

    unit_id: str
    kind: InputKind
    shard: str
    shard_id: str
    start: int
    stop: int
    size_bytes: int
    byte_start: int = 0
    byte_stop: int = 0
    files: tuple[str, ...] = ()
    clip_ids: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    picks: tuple[tuple[int, ...] | None, ...] = ()

    @property
    def num_clips(self) -> int:
        """Clips that are taken, and picked windows of clips; how many windows all of a clip are is not known here."""
        if not self.picks:
            return self.stop - self.start
        return sum(1 if windows is None else len(windows) for windows in self.picks)


@dataclass(frozen=True, slots=True)
class LimitedTo:
    """The part of its inputs that a start takes, for a first look.

    Attributes:
        num_clips: clips, or windows of `split_s` seconds; None for all that `where` keeps. `num_listed` counts all
            clips of the inputs, before the cut.
        seed: of the sample; None where the first ones are taken.
        where: SQL expression over the columns of their rows; it is false of `num_false` clips and null of `num_null`.
    """

    num_clips: int | None
    num_listed: int
    seed: int | None = None
    split_s: float | None = None
    where: str | None = None
    num_false: int = 0
    num_null: int = 0

    def describe(self) -> str:
        """Returns it in words: `a sample of 20 of 1,000 clips (seed 0)`."""
        listed = f"{self.num_listed:,} clips"
        if self.where is not None:
            kept = self.num_listed - self.num_false - self.num_null
            left_out = f"left out: {self.num_false:,} false, {self.num_null:,} null"
            listed = f"{kept:,} of {listed} where {' '.join(self.where.split())} ({left_out})"
        if self.split_s is not None:
            listed = f"the windows of {self.split_s:g} s of {listed}"
        if self.num_clips is None:
            return listed
        if self.seed is None:
            return f"the first {self.num_clips:,} of {listed}"
        return f"a sample of {self.num_clips:,} of {listed} (seed {self.seed})"

    def takes_all_of(self, other: LimitedTo) -> bool:
        """Whether it takes what another one took of the same inputs: of one kind a larger number does."""
        if self.num_clips is None:
            return other == replace(self, num_clips=other.num_clips, seed=other.seed)
        is_larger = other.num_clips is not None and other.num_clips <= self.num_clips
        return is_larger and other == replace(self, num_clips=other.num_clips)


@dataclass(frozen=True, slots=True)
class PlanSlice:
    """Units of a plan file that are to be done: `rows` of one of its row groups."""

    plan: str
    row_group: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClipRef:
    """Which clip this is: what every later record and row carries unchanged.

    Attributes:
        clip_id: readable, unique in a run, the same on every machine.
        source: URI of the video file or of the shard that holds it, without credentials.
        member: name of the video inside the shard (tar member, Parquet row from 0, manifest row from 1), or None.
        start_s, end_s: the window of the video that is the clip, or None for the video's own bounds.
        metadata: JSON object with the sidecar or the free columns, "{}" when there are none.
        source_version: version of the video that was read, see `framescribe.storage.access.input_version`; empty where
            nobody knows.
    """

    clip_id: str
    unit_id: str
    source: str
    member: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    metadata: str = "{}"
    source_version: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Clip:
    """One encoded video to annotate: its bytes, or the path of a local file that holds them."""

    ref: ClipRef
    video: bytes | Path = field(repr=False)


@dataclass(frozen=True, slots=True)
class UnitEnd:
    """Closes a unit: `num_clips` clips of it, failed ones counted, went down the pipeline.

    Attributes:
        replaces: version of the part whose annotations were kept, for units that are done again; None for a first part.
    """

    unit_id: str
    num_clips: int
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class FailedClip:
    """A clip that could not be annotated, with the stage and a reason a person understands.

    Attributes:
        reason: short and groupable, for example `no video stream` or `encrypted`.
        message: the details: what was seen, what was wanted.
    """

    ref: ClipRef
    stage: Stage
    reason: str
    message: str


def is_withdrawn(outcome: object) -> bool:
    """Whether this is what is left of a clip that a person took out of the run."""
    return isinstance(outcome, FailedClip) and outcome.reason == WITHDRAWN


@dataclass(frozen=True, slots=True)
class SampledClip:
    """The sampled frames of one clip: uint8 [T, H, W, 3] RGB, resized to the model's input size."""

    ref: ClipRef
    sampling: Sampling
    frames: np.ndarray = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeptCompletion:
    """What the model wrote to one question, kept so that a later run need not ask it again.

    Attributes:
        question_digest: 16 bytes over the frames with their times, the words and the limits of generation; of a score
            also over the answer.
        token_ids: every generated id, as in `framescribe.llava_video.engine.generation.Completion`, or those scored.
        logprobs: of a score, the log-probability of each of its tokens; else None.
    """

    question_digest: bytes
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str
    num_prompt_tokens: int
    logprobs: tuple[float, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ClipAnnotation:
    """All captions and QA pairs of one clip, and every completion that they were read from, retries included.

    Attributes:
        workers: who may have written it, each as JSON (`schemas.run_columns.WorkerRecord`), where it was read from
            a part; empty for this worker itself.
    """

    ref: ClipRef
    sampling: Sampling
    captions: tuple[Caption, ...]
    qa_pairs: tuple[QAPair, ...]
    completions: tuple[KeptCompletion, ...] = ()
    workers: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CommittedPart:
    """A unit whose part is written: how many of its clips were annotated and how many failed."""

    unit_id: str
    num_annotated: int
    num_failed: int


class TooManyFailedClipsError(FrameScribeError, RuntimeError):
    """More clips failed than `--max-failed-fraction` allows, or all of a run."""


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """When too many clips failed: the same for a worker, for `_SUCCESS` and for the exit status.

    Attributes:
        max_failed_fraction: the largest fraction of the clips that may fail.
    """

    max_failed_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"max_failed_fraction must lie between 0 and 1, got {self.max_failed_fraction}")

    def check_worker(self, num_failed: int, num_clips: int, reasons: Mapping[str, int]) -> None:
        """Raises `TooManyFailedClipsError` when more of one worker's clips failed than allowed.

        Two bad clips among the first three say little: nothing is judged below 100. And where all of them failed,
        other workers may have annotated some.
        """
        if num_clips >= _FEWEST_JUDGED and self._is_above_fraction(num_failed, num_clips):
            raise TooManyFailedClipsError(self._explain_fraction(num_failed, num_clips, reasons))

    def check_run(self, num_failed: int, num_clips: int, reasons: Mapping[str, int]) -> None:
        """Raises `TooManyFailedClipsError` for a run that is no success: too many clips failed, or every one."""
        if self._is_above_fraction(num_failed, num_clips):
            raise TooManyFailedClipsError(self._explain_fraction(num_failed, num_clips, reasons))
        if not self.allows(num_failed, num_clips):
            raise TooManyFailedClipsError(
                f"none of {num_clips:,} clip{'' if num_clips == 1 else 's'} was annotated "
                f"({describe_reasons(reasons)}). The tables are there, without _SUCCESS. Mend the cause and start "
                "again with --retry-failed; `publish` takes them as they are"
            )

    def allows(self, num_failed: int, num_clips: int) -> bool:
        """Whether a whole run is a success; one of which every clip failed never is."""
        return not self._is_above_fraction(num_failed, num_clips) and not num_failed == num_clips > 0

    def _is_above_fraction(self, num_failed: int, num_clips: int) -> bool:
        return num_failed > self.max_failed_fraction * num_clips

    def _explain_fraction(self, num_failed: int, num_clips: int, reasons: Mapping[str, int]) -> str:
        shown = f" ({describe_reasons(reasons)})" if reasons else ""
        return (
            f"{num_failed} of {num_clips} clips failed{shown}, more than --max-failed-fraction "
            f"{self.max_failed_fraction:g} allows. What is committed is kept. Mend the cause and start again with "
            "--retry-failed, or, if the input is that bad, raise the fraction"
        )


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Returns the most frequent reasons of failed clips, such as `10 x damaged, 2 x empty file`."""
    most = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{number} x {reason}" for reason, number in most[:_SHOWN_REASONS]]
    return ", ".join([*shown, "..."] if len(most) > _SHOWN_REASONS else shown)


_FEWEST_JUDGED = 100
_SHOWN_REASONS = 5
