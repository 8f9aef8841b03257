"""One timer for the deadlines of all polls in flight.

A deadline is never noticed early, and at most 25 ms late, what the loop itself is late apart.  Adding one and taking it
away, which is what happens to nearly all, is a set operation: polls are kept by the grain their deadline lies in.

When the loop is ``LATE_READ_S`` late or more, deadlines wait for ``READ_FIRST_S`` longer: an answer that came while the
loop stood still is one, and a single turn of the loop need not read all of it.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

GRAINS_PER_S = 40
TIMER_MIN_S = 0.001  # a loop's timers may be early by less
LATE_READ_S = 0.1
READ_FIRST_S = 0.05

T = TypeVar("T")


class Deadlines(Generic[T]):
    """To be made inside a running loop, which calls ``expired`` with each whose time is up: it has been taken away."""

    def __init__(self, expired: Callable[[T], None]) -> None:
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        self._grains: dict[int, set[T]] = {}  # by the instant at which they are due, in grains
        self._due: list[int] = []  # a heap of the keys of ``_grains``
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(list(self._grains.values()))

    def add(self, poll: T, at: float) -> set[T]:
        """``at``: monotonic seconds.  Returns the set from which to take the poll away when it is over."""
        due = int(at * GRAINS_PER_S) + 1
        grain = self._grains.get(due)
        if grain is None:
            grain = self._grains[due] = set()
            heapq.heappush(self._due, due)
            if self._timer is None or due < self._timer_due:
                self._arm()
        grain.add(poll)
        return grain

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self.close()
        if self._due:
            self._timer_due = self._due[0]
            remaining_s = self._timer_due / GRAINS_PER_S - time.monotonic()
            self._timer = self._loop.call_later(max(TIMER_MIN_S, remaining_s), self._on_timer)

    def _on_timer(self, has_read: bool = False) -> None:
        self._timer = None
        now = time.monotonic()
        if not has_read and now - self._timer_due / GRAINS_PER_S >= LATE_READ_S:
            self._timer = self._loop.call_later(READ_FIRST_S, self._on_timer, True)
            return
        try:
            while self._due and (due := self._due[0]) / GRAINS_PER_S <= now:
                grain = self._grains[due]
                while grain:
                    self._expired(grain.pop())
                heapq.heappop(self._due)
                del self._grains[due]
        finally:
            self._arm()
