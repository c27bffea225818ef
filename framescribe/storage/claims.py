"""Which lane of a job does which unit, kept in the output itself, so that no two do the same one."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Mapping

from framescribe.storage.output import JOURNAL_FOLDER, OutputStore

CLAIMS_FOLDER = f"{JOURNAL_FOLDER}/claims"


class Lane:
    """Takes units of a job one after another, until no other is left; what it takes no other lane takes.

    A lane that is started again, because its worker was lost, begins with what it had taken. So there is no time after
    which a unit is given to another lane: the runner starts each lane until that has come to its end.

    Args:
        start_id: names the start of the run; the lanes of another start know nothing of these.
        number: the lane's own, the same when it is started again.
    """

    def __init__(self, store: OutputStore, start_id: str, number: int) -> None:
        self._store, self._number = store, number
        self._taken_by_all = f"{CLAIMS_FOLDER}/{start_id}/units"
        self._taken_by_this = f"{CLAIMS_FOLDER}/{start_id}/lanes/{number:06d}"

    def take_units(self, sizes: Mapping[str, int]) -> Iterator[str]:
        """Takes a unit whenever the next one is asked for, and yields its id.

        Args:
            sizes: unit id to bytes of all units of the job; large ones are taken first.
        """
        taken: set[str] = set()
        yield from self._take_own(sizes, taken)
        of_others: set[str] = set()
        for unit_id in order_units(sizes, self._number):
            if unit_id in taken or unit_id in of_others:
                continue
            if self._take(unit_id):
                taken.add(unit_id)
                yield unit_id
            else:
                of_others.update(self._store.list_files(self._taken_by_all))
        # What an earlier try of this lane, believed dead by the runner, has taken in the meantime.
        yield from self._take_own(sizes, taken)

    def _take_own(self, sizes: Mapping[str, int], taken: set[str]) -> Iterator[str]:
        # Some of them another lane was faster to take.
        for unit_id in self._store.list_files(self._taken_by_this):
            if unit_id in sizes and unit_id not in taken and self._take(unit_id):
                taken.add(unit_id)
                yield unit_id

    def _take(self, unit_id: str) -> bool:
        # What it means to take comes first: a lane that is lost between the two finds it when it is started again.
        self._store.put(f"{self._taken_by_this}/{unit_id}", b"")
        return self._store.create(f"{self._taken_by_all}/{unit_id}", str(self._number).encode())


def order_units(sizes: Mapping[str, int], lane: int) -> list[str]:
    """Returns the ids of units as a lane takes them: large ones first, so that none is begun at a job's end.

    Units of about the same size, within a factor of two, come in an order that is another one in each lane: two lanes
    seldom want the same unit.
    """
    unit_ids = sorted(sizes)
    random.Random(lane).shuffle(unit_ids)
    return sorted(unit_ids, key=lambda unit_id: sizes[unit_id].bit_length(), reverse=True)


def show_sign_of_life(store: OutputStore, start_id: str) -> None:
    """Says in the output that a worker of this start of the run is there, before it has loaded a model."""
    store.put(f"{_signs_of(start_id)}/{uuid.uuid4().hex}", b"")


def is_any_alive(store: OutputStore, start_id: str) -> bool:
    """Whether any worker of this start of the run has shown a sign of life."""
    return bool(store.list_files(_signs_of(start_id)))


def _signs_of(start_id: str) -> str:
    return f"{CLAIMS_FOLDER}/{start_id}/workers"


def remove_claims(store: OutputStore) -> None:
    """Removes what lanes of this start and of earlier ones have taken, and the signs of their workers."""
    store.remove_folder(CLAIMS_FOLDER)
