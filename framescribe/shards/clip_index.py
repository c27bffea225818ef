"""What the planner knows of one clip, and the check that the worker finds the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from framescribe.shards.naming import make_unit_id
from framescribe.storage.errors import ShardChanged
from framescribe.storage.redaction import strip_credentials
from schemas.records import WorkUnit


@dataclass(frozen=True, slots=True)
class IndexedClip:
    """One clip of a shard, in the shard's order.

    Attributes:
        where: the place a person finds it at: `shards/000.tar: 17.mp4`, `clips.jsonl:17`.
        content: what the unit's id is made from: a clip that holds something else has another text here.
        size_bytes: of the encoded video, 0 where only reading it would tell.
        byte_start, byte_stop: of everything the clip needs from its shard; clips that share them stay in one unit.
    """

    clip_id: str
    where: str
    content: str
    size_bytes: int = 0
    byte_start: int = 0
    byte_stop: int = 0


def check_unit(unit: WorkUnit, contents: Iterable[str]) -> None:
    """Compares what a unit's slice holds now with what it held when the work was planned.

    Raises:
        ShardChanged: it is not the same.
    """
    if make_unit_id(unit.shard_id, unit.start, unit.stop, contents) != unit.unit_id:
        raise ShardChanged(
            f"{strip_credentials(unit.shard)} changed after the work was planned: clips {unit.start} to {unit.stop} "
            "are not the ones that were there; leave shards alone during a run, and run again"
        )
