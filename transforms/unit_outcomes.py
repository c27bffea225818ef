"""Gathers the clips of one unit, in whatever order they come, until all are there."""

from __future__ import annotations

from dataclasses import dataclass, field

from framescribe.errors import FrameScribeError
from schemas.records import ClipAnnotation, FailedClip, UnitEnd


class LostClipsError(FrameScribeError, RuntimeError):
    """Clips of a unit are missing, doubled or one too many: a bug in the pipeline, never the input's fault."""


@dataclass(slots=True)
class PendingUnit:
    """The clips of one unit that have come so far. Not frozen: it grows until the unit is complete."""

    unit_id: str
    num_clips: int | None = None  # None until the unit's end has come
    outcomes: dict[str, ClipAnnotation | FailedClip] = field(default_factory=dict)
    replaces: str | None = None  # see UnitEnd

    def add(self, element: ClipAnnotation | FailedClip | UnitEnd) -> None:
        """Takes in a clip, or the unit's end.

        Raises:
            LostClipsError: the clip or the end came before, or there are more clips than the end counts.
        """
        if isinstance(element, UnitEnd):
            self._end(element)
        else:
            self._add_clip(element)
        if self.num_clips is not None and len(self.outcomes) > self.num_clips:
            raise LostClipsError(
                f"unit {self.unit_id!r} has {self.num_clips} clips, but more came: {sorted(self.outcomes)}"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the end and every clip have come."""
        return len(self.outcomes) == self.num_clips

    @property
    def num_failed(self) -> int:
        """Failed clips so far."""
        return sum(isinstance(outcome, FailedClip) for outcome in self.outcomes.values())

    def describe_missing(self) -> str:
        """Returns what has not come yet, for a message."""
        wanted = "an unknown number of" if self.num_clips is None else str(self.num_clips)
        return f"unit {self.unit_id!r}: {len(self.outcomes)} of {wanted} clips came"

    def _end(self, end: UnitEnd) -> None:
        if self.num_clips is not None:
            raise LostClipsError(
                f"unit {self.unit_id!r} ended twice: with {self.num_clips} and with {end.num_clips} clips"
            )
        self.num_clips, self.replaces = end.num_clips, end.replaces

    def _add_clip(self, outcome: ClipAnnotation | FailedClip) -> None:
        clip_id = outcome.ref.clip_id
        if clip_id in self.outcomes:
            raise LostClipsError(f"clip {clip_id!r} came twice in unit {self.unit_id!r}")
        self.outcomes[clip_id] = outcome
