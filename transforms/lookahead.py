"""The base of the steps that work ahead: elements are under way elsewhere while their bundle goes on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue


class LookAheadDoFn(beam.DoFn):  # type: ignore[misc]  # Beam has no types
    """Keeps up to `max_ahead` elements of a bundle under way, and yields each result as soon as it is there.

    Elements that `handles` declines pass through at once and may overtake others. Everything here runs on the bundle
    thread, so counters may be counted in `collect`. A future that raises ends the bundle and cancels the others.
    """

    def __init__(self, max_ahead: int) -> None:
        super().__init__()
        if max_ahead < 1:
            raise ValueError(f"max_ahead must be at least 1, got {max_ahead}")
        self._max_ahead = max_ahead

    @abstractmethod
    def handles(self, element: Any) -> bool:
        """Whether this step works on an element; others pass through."""

    @abstractmethod
    def submit(self, element: Any) -> Future[Any] | None:
        """Starts work on an element, or returns None while there is no room for it."""

    def wait_for_room(self, element: Any) -> None:
        """Blocks until `submit` may succeed; called only when nothing of this bundle is under way here."""
        raise NotImplementedError(f"{type(self).__name__}.submit returned None")

    def collect(self, future: Any) -> Any:  # Any: whatever kind of future `submit` gives
        """Returns what goes downstream for a finished future."""
        return future.result()

    def discard(self, result: Any) -> None:
        """Frees what a result holds that nobody will get, because its bundle failed. Called on any thread."""

    def setup(self) -> None:
        """Begins with nothing under way."""
        self._under_way: set[Future[Any]] = set()

    def start_bundle(self) -> None:
        """Lets go of what an earlier bundle left."""
        self._abandon()  # of a bundle that failed downstream of here, without a word to this step

    def process(self, element: Any) -> Iterator[Any]:
        """Submits an element and yields what has finished meanwhile."""
        if not self.handles(element):
            yield element
            return
        yield from self._finished()
        while len(self._under_way) >= self._max_ahead:
            yield from self._next_finished()
        while (future := self.submit(element)) is None:
            # What this thread holds goes downstream first: it may be the very room that everyone waits for.
            if self._under_way:
                yield from self._next_finished()
            else:
                self.wait_for_room(element)
        self._under_way.add(future)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Yields the rest."""
        while self._under_way:
            for result in self._next_finished():
                yield GlobalWindows.windowed_value(result)

    def teardown(self) -> None:
        """Lets go of what is under way."""
        self._abandon()

    def _next_finished(self) -> Iterator[Any]:
        wait(self._under_way, return_when=FIRST_COMPLETED)
        yield from self._finished()

    def _finished(self) -> Iterator[Any]:
        for future in [future for future in self._under_way if future.done()]:
            self._under_way.discard(future)
            if future.cancelled() or future.exception() is not None:
                self._abandon()
            yield self.collect(future)

    def _abandon(self) -> None:
        abandoned, self._under_way = self._under_way, set()
        for future in abandoned:
            future.cancel()
            future.add_done_callback(self._discard_result)

    def _discard_result(self, future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.discard(future.result())
