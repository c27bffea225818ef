"""What a publish found and wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """How far a run is, and what its tables hold.

    Attributes:
        fingerprint: of the run's settings.
        num_units_planned, num_units_done: work units, and those among them with a part.
        num_parts_outdated: parts that are in no table, because their shard was cut into other units since.
        missing_units: ids of planned units without a part, sorted.
        num_rows: table name to rows.
        num_verified: QA pairs that the second look at the frames confirmed.
        failure_reasons: reason to failed clips.
    """

    fingerprint: str
    num_units_planned: int
    num_units_done: int
    num_parts_outdated: int
    missing_units: tuple[str, ...]
    num_rows: Mapping[str, int]
    num_verified: int
    failure_reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is in the tables."""
        return not self.missing_units

    @property
    def num_annotated(self) -> int:
        """Clips with captions or QA pairs."""
        return self.num_rows["clips"]

    @property
    def num_failed(self) -> int:
        """Clips that could not be annotated."""
        return self.num_rows["failures"]

    @property
    def num_clips(self) -> int:
        """Clips with a row in `clips` or `failures`."""
        return self.num_annotated + self.num_failed

    def failed_too_often(self, max_failed_share: float) -> bool:
        """Whether a larger share of the clips failed than allowed, or every one of them, which no share allows."""
        return self.num_failed > max_failed_share * self.num_clips or self.num_annotated == 0 < self.num_failed
