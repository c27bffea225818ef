"""What an export writes: read by the command line too, which loads nothing heavy for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

FORMATS = ("llava", "messages", "hf", "webdataset")
CAPTION, OPEN_ENDED, MULTIPLE_CHOICE = "caption", "open_ended", "multiple_choice"
KINDS = (CAPTION, OPEN_ENDED, MULTIPLE_CHOICE)
BLIND_SCORE = 0.5  # of `--drop-blind` without a value
MIN_PROBABILITY = 0.5  # of an answer for each of its tokens, of a right option: chosen in docs/quality.md
NUM_THUMBNAILS = 8  # per clip on the page of `review`


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are exported, and how they are split.

    Attributes:
        statuses: of captions and QA pairs.
        kinds: `caption`, `open_ended`, `multiple_choice`, or some of them.
        question_types: of QA pairs; None for all.
        only_consistent: leaves out QA pairs that the second look at the frames did not confirm: answered otherwise, or
            with the right letter not in all rotations of the options; and those without a second look.
        max_blind_score: leaves out QA pairs that are answered without the video as well as this or better.
        min_score: leaves out QA pairs whose `Question.score` is lower, or that have none. None: those whose
            probability is under `MIN_PROBABILITY`; pairs that were not scored stay.
        drop_giveaways: leaves out multiple choices whose right option can be told by its form.
        validation_fraction, test_fraction: fraction of the source videos; the others are for training.
        seed: of the splits, the requests for captions, the places of right options and the closing lines.
    """

    statuses: frozenset[str] = frozenset({"ok"})
    kinds: frozenset[str] = frozenset(KINDS)
    question_types: frozenset[str] | None = None
    only_consistent: bool = False
    max_blind_score: float | None = None
    min_score: float | None = None
    drop_giveaways: bool = False
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := self.kinds - {*KINDS}:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
        if not 0 <= self.validation_fraction + self.test_fraction < 1:
            raise ValueError(
                f"validation_fraction and test_fraction must leave videos for training, got {self.validation_fraction}"
                f" and {self.test_fraction}"
            )


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """What is written.

    Attributes:
        format: one of `FORMATS`.
        selection: which rows, and how they are split.
        decisions: file that the page of `review` saved; None for none.
        has_videos: whether `hf` takes the videos along; every other format does in any case.
        max_frames: `messages`: images per clip, evenly taken from the frames that the model saw; None for all.
        max_side_px: `messages`: longer side of an image, at most.
        clips_per_shard: `webdataset`: clips per tar.
    """

    format: str
    selection: Selection = field(default_factory=Selection)
    decisions: Path | None = None
    has_videos: bool = True
    max_frames: int | None = None
    max_side_px: int = 448
    clips_per_shard: int = 1_000

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
