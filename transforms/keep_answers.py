"""Keeps what was answered about units that are under way, so that a run that ends now has not asked for nothing.

A unit is committed as a whole, and all its clips may be in the model at once. Their answers are written now and then to
where those of units that are done again lie, and the next start takes them from there instead of asking.
"""

from __future__ import annotations

import io
import logging
import posixpath
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from framescribe.decoding.sampling import Sampling
from framescribe.storage.journal import DamagedRunError, OtherRunError, check_still_ours, read_part
from framescribe.storage.output import SET_ASIDE_FOLDER, OutputStore, part_name
from framescribe.storage.retries import StoreError
from schemas.part_rows import read_outcomes
from schemas.records import ClipAnnotation, ClipRef
from transforms.answer_reuse import ClipMemory

_log = logging.getLogger(__name__)
# Between two writes: doubled each time, so that a run that has just begun keeps something and a long one writes little.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class AnswerStore:
    """Where the answers of unfinished units are written.

    Attributes:
        build_part: makes a part of a unit's annotations, as they are committed.
    """

    store: OutputStore
    fingerprint: str
    build_part: Callable[[str, Iterable[ClipAnnotation]], pa.Table]

    def write(self, unit_id: str, clips: Iterable[ClipAnnotation]) -> int:
        """Writes the answers about a unit's clips, beside those that are there, and returns how many there are now.

        Raises:
            OtherRunError: the output belongs to another run by now.
            StoreError: the store goes on refusing.
            DamagedRunError: what is there is no part.
        """
        check_still_ours(self.store, self.fingerprint)
        known = {clip.ref.clip_id: clip for clip in self._read(unit_id)}
        for clip in clips:
            known[clip.ref.clip_id] = _join(known.get(clip.ref.clip_id), clip)
        buffer = io.BytesIO()
        pq.write_table(self.build_part(unit_id, known.values()), buffer, compression="zstd")
        self.store.put(_name(unit_id), buffer.getvalue())
        return sum(len(clip.completions) for clip in known.values())

    def remove(self, unit_id: str) -> None:
        """Removes the answers of a unit that is committed."""
        self.store.remove(_name(unit_id))

    def _read(self, unit_id: str) -> list[ClipAnnotation]:
        aside = replace(self.store, root=posixpath.join(self.store.root, SET_ASIDE_FOLDER))
        try:
            part = read_part(aside, unit_id)
        except FileNotFoundError:
            return []
        if (part.schema.metadata or {}).get(b"fingerprint", b"").decode() != self.fingerprint:
            return []
        return [one for one in read_outcomes(part) if isinstance(one, ClipAnnotation)]


def _name(unit_id: str) -> str:
    return f"{SET_ASIDE_FOLDER}/{part_name(unit_id)}"


def _join(known: ClipAnnotation | None, new: ClipAnnotation) -> ClipAnnotation:
    if known is None or known.sampling.frames_digest != new.sampling.frames_digest:
        return new
    completions = {one.question_digest: one for one in (*known.completions, *new.completions)}
    return replace(new, completions=tuple(completions[digest] for digest in sorted(completions)))


@dataclass(frozen=True, slots=True)
class _ClipUnderWay:
    ref: ClipRef
    sampling: Sampling
    memory: ClipMemory

    def read(self) -> ClipAnnotation:
        return ClipAnnotation(self.ref, self.sampling, (), (), self.memory.completions)


class AnswerKeeper:
    """The answers of a process's units under way, and the thread that writes them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may come while the main thread holds it
        self._writing = threading.RLock()
        self._clips: dict[str, dict[str, _ClipUnderWay]] = {}
        self._num_seen: dict[str, int] = {}
        self._num_written: dict[str, int] = {}
        self._place: AnswerStore | None = None
        self._is_asked, self._is_done = threading.Event(), threading.Event()

    @property
    def num_answers(self) -> int:
        """Answers about clips of units that are not committed, as far as they were written."""
        with self._lock:
            return sum(self._num_written.values())

    def open(self, place: AnswerStore) -> None:
        """Says where answers are written; the thread is started the first time."""
        with self._lock:
            is_first, self._place = self._place is None, place
        if is_first:
            threading.Thread(target=self._work, name="keep-answers", daemon=True).start()

    def begin(self, ref: ClipRef, sampling: Sampling, memory: ClipMemory) -> None:
        """Takes in a clip that the model is asked about from now on."""
        with self._lock:
            self._clips.setdefault(ref.unit_id, {})[ref.clip_id] = _ClipUnderWay(ref, sampling, memory)

    def end(self, unit_id: str) -> None:
        """Forgets a unit that is committed, and removes what was written of it."""
        with self._writing, self._lock:
            self._clips.pop(unit_id, None)
            self._num_seen.pop(unit_id, None)
            if self._num_written.pop(unit_id, None) is not None and self._place is not None:
                self._place.remove(unit_id)

    def discard(self) -> None:
        """Removes what was written of units under way, and writes no more of them: it is not to be trusted."""
        with self._writing, self._lock:
            place, self._place = self._place, None
            for unit_id in self._num_written:
                if place is not None:
                    place.remove(unit_id)
            self._clips, self._num_seen, self._num_written = {}, {}, {}

    def flush(self, seconds: float) -> bool:
        """Has everything written that is answered; returns whether that happened in so many seconds."""
        if self._place is None:
            return True
        self._is_done.clear()
        self._is_asked.set()
        return self._is_done.wait(seconds)

    def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            is_asked = self._is_asked.wait(pause_s)
            self._is_asked.clear()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                self._write_all()
            except (StoreError, OtherRunError, DamagedRunError) as error:
                # They are still in memory, and a commit that meets the same stops the run.
                _log.warning("answers of unfinished units cannot be kept now: %s", error)
                continue
            if is_asked:
                self._is_done.set()

    def _write_all(self) -> None:
        with self._lock:
            unit_ids = [*self._clips]
        for unit_id in unit_ids:
            with self._writing:  # a unit that was committed meanwhile is not written again
                self._write_unit(unit_id)

    def _write_unit(self, unit_id: str) -> None:
        with self._lock:
            clips, place = [*self._clips.get(unit_id, {}).values()], self._place
        answered = [clip.read() for clip in clips]
        num_seen = sum(len(clip.completions) for clip in answered)
        if place is None or num_seen <= self._num_seen.get(unit_id, 0):
            return
        num_written = place.write(unit_id, answered)
        with self._lock:
            self._num_seen[unit_id], self._num_written[unit_id] = num_seen, num_written
