"""Ticks that were due and not polled, gathered into ranges.

A range grows while the project's next tick is missed for the same reason; it is handed over at most ``HOLD_MS`` after
it was opened, so that the table is never far behind.  Bounded by the number of projects: one open range each.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice

import msgspec

from cluster.messages.results import MissedRange, MissedReason, PollResult

HOLD_MS = 2_000
TAKE_MAX = 50_000  # ranges closed at a time: some tens of milliseconds of the loop


class OpenRange(msgspec.Struct, gc=False):
    first_ms: int
    last_ms: int
    interval_ms: int
    reason: MissedReason
    epoch: int
    partition: int
    opened_ms: int


class MissedLog:
    def __init__(self) -> None:
        self._open: dict[int, OpenRange] = {}
        self._closed: list[MissedRange] = []
        self._closed_oldest: dict[int, int] = {}  # partition -> first tick of a closed range not yet taken
        self.ticks: Counter[str] = Counter()

    def add(
        self,
        project_id: int,
        partition: int,
        first_ms: int,
        last_ms: int,
        interval_ms: int,
        reason: MissedReason,
        epoch: int,
        now_ms: int,
    ) -> None:
        """Count the ticks first, first + interval, ... last."""
        assert first_ms <= last_ms
        self.ticks[reason] += (last_ms - first_ms) // interval_ms + 1
        run = self._open.get(project_id)
        if run is not None:
            if (
                run.reason == reason
                and run.epoch == epoch
                and run.interval_ms == interval_ms
                and run.last_ms + interval_ms == first_ms
            ):
                run.last_ms = last_ms
                return
            self._close(project_id)
        self._open[project_id] = OpenRange(first_ms, last_ms, interval_ms, reason, epoch, partition, now_ms)

    def take(self, now_ms: int, *, everything: bool = False) -> list[MissedRange]:
        """The ranges that are to be reported now."""
        ripe = (pid for pid, run in self._open.items() if everything or now_ms - run.opened_ms >= HOLD_MS)
        return self._take(list(ripe if everything else islice(ripe, TAKE_MAX)))

    def take_of(self, partitions: set[int]) -> list[MissedRange]:
        """What is to be reported before these partitions are given up: all of theirs, and what is due anyhow."""
        return self._take([pid for pid, run in self._open.items() if run.partition in partitions])

    def _take(self, project_ids: list[int]) -> list[MissedRange]:
        for project_id in project_ids:
            self._close(project_id)
        taken, self._closed = self._closed, []
        self._closed_oldest.clear()
        return taken

    def unreported(self) -> dict[int, int]:
        """Per partition, the oldest tick that is counted here and not yet handed over."""
        oldest = dict(self._closed_oldest)
        for run in self._open.values():
            known = oldest.get(run.partition)
            if known is None or run.first_ms < known:
                oldest[run.partition] = run.first_ms
        return oldest

    def __len__(self) -> int:
        return len(self._open) + len(self._closed)

    def _close(self, project_id: int) -> None:
        run = self._open.pop(project_id)
        self._closed.append(MissedRange(project_id, run.first_ms, run.last_ms, run.interval_ms, run.reason, run.epoch))
        known = self._closed_oldest.get(run.partition)
        if known is None or run.first_ms < known:
            self._closed_oldest[run.partition] = run.first_ms


def given_up(results: list[PollResult], interval_ms_of: Callable[[int], int | None]) -> list[MissedRange]:
    """The ticks of results that are lost, as ranges; consecutive ticks are one where the interval is known."""
    ticks: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for result in results:
        if result.trigger == "tick":
            ticks[result.project_id].append((result.scheduled_at_ms, result.epoch))
    ranges = []
    for project_id, some in ticks.items():
        interval_ms = interval_ms_of(project_id) or 1
        some.sort()
        first_ms, epoch = some[0]
        last_ms = first_ms
        for tick_ms, epoch_of_tick in some[1:]:
            if tick_ms != last_ms + interval_ms:
                ranges.append(MissedRange(project_id, first_ms, last_ms, interval_ms, "overload", epoch))
                first_ms, epoch = tick_ms, epoch_of_tick
            last_ms = tick_ms
        ranges.append(MissedRange(project_id, first_ms, last_ms, interval_ms, "overload", epoch))
    return ranges
