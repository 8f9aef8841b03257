"""Ticks that were due and not polled, gathered into ranges.

A range grows while the project's next tick is missed for the same reason; it is handed over at most ``HOLD_MS`` after
it was opened, so that the table is never far behind.  Bounded by the number of projects: one open range each, and
closed ones only until they are taken.  While nobody takes them, because the WAL is full, there may be CLOSED_MAX, then
those that follow each other become one: its reason is that of most of its ticks.  Nothing is polled meanwhile, so one
of each project and interval is what remains.

Ticks whose results were given up for room (``GivenUpLog``) wait in memory and are merged all the time: as many ranges
in the WAL as there were results would free nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice

import msgspec

from cluster.messages.results import MissedRange, MissedReason, PollResult
from cluster.ticks import partition_of

HOLD_MS = 2_000
TAKE_MAX = 50_000  # ranges closed at a time: some tens of milliseconds of the loop
CLOSED_MAX = 20_000  # closed and not taken, before they are merged
UNKNOWN_INTERVAL_MS = 1  # of one tick that is known to nobody here any more; such ranges can't be merged
GIVEN_UP_MAX = 200_000  # ranges in memory for what was given up: some 30 MB
CLAIMS: tuple[MissedReason, ...] = ("handover", "down")  # that somebody else may have polled or counted


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
        self._merge_at = CLOSED_MAX
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
        self._merge_at = CLOSED_MAX
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
        if len(self._closed) >= self._merge_at:
            self._closed = merged(self._closed)
            self._merge_at = max(CLOSED_MAX, 2 * len(self._closed))
        known = self._closed_oldest.get(run.partition)
        if known is None or run.first_ms < known:
            self._closed_oldest[run.partition] = run.first_ms


class GivenUpLog:
    """The ticks of what was given up for room, until they are taken.

    What is added is mostly the next of its project, and joins its newest range: that costs nothing but what is added.
    """

    def __init__(self) -> None:
        self._newest: dict[int, MissedRange] = {}  # by project
        self._older: list[MissedRange] = []
        self._late = 0  # of the older, those that came after newer ones: they may follow others
        self._merge_at = CLOSED_MAX
        self._oldest: dict[int, int] = {}  # by partition

    def add(self, ranges: list[MissedRange]) -> None:
        for entry in ranges:
            newest = self._newest.get(entry.project_id, entry)
            if newest is entry or follows(newest, entry):
                self._newest[entry.project_id] = entry if newest is entry else joined(newest, entry)
            elif entry.first_tick_ms >= newest.first_tick_ms:
                self._older.append(newest)
                self._newest[entry.project_id] = entry
            else:
                self._older.append(entry)
                self._late += 1
            partition = partition_of(entry.project_id)
            self._oldest[partition] = min(entry.first_tick_ms, self._oldest.get(partition, entry.first_tick_ms))
        if self._late and (len(self._older) >= self._merge_at or len(self) > GIVEN_UP_MAX):
            self._older = merged(self._older)
            self._late = 0
            self._merge_at = max(CLOSED_MAX, 2 * len(self._older))

    def take(self) -> list[MissedRange]:
        taken = merged([*self._older, *self._newest.values()])
        self._newest = {}
        self._older = []
        self._late = 0
        self._merge_at = CLOSED_MAX
        self._oldest = {}
        return taken

    def take_of(self, partitions: set[int]) -> list[MissedRange]:
        """What is to be reported before these partitions are given up: everything, as they are seldom."""
        return self.take() if partitions & self._oldest.keys() else []

    def unreported(self) -> dict[int, int]:
        """As of ``MissedLog``."""
        return self._oldest

    def __len__(self) -> int:
        return len(self._newest) + len(self._older)


def merged(ranges: list[MissedRange]) -> list[MissedRange]:
    """The same ticks in fewer ranges, by project and time: where one goes on from another, but claims stay apart."""
    found: list[MissedRange] = []
    for entry in sorted(ranges, key=lambda each: (each.project_id, each.first_tick_ms)):
        if found and follows(found[-1], entry):
            found[-1] = joined(found[-1], entry)
        else:
            found.append(entry)
    return found


def follows(last: MissedRange, entry: MissedRange) -> bool:
    return (
        last.project_id == entry.project_id
        and last.interval_ms == entry.interval_ms
        and last.last_tick_ms + entry.interval_ms == entry.first_tick_ms
        and (last.reason in CLAIMS) == (entry.reason in CLAIMS)
    )


def joined(last: MissedRange, entry: MissedRange) -> MissedRange:
    """Of two that follow each other."""
    longer = last if last.ticks >= entry.ticks else entry
    epoch = max(last.epoch, entry.epoch)
    return MissedRange(
        entry.project_id, last.first_tick_ms, entry.last_tick_ms, entry.interval_ms, longer.reason, epoch
    )


def given_up(results: list[PollResult], interval_ms_of: Callable[[int], int | None]) -> list[MissedRange]:
    """The ticks of results that are lost, as ranges; consecutive ticks are one where the interval is known."""
    ticks: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for result in results:
        if result.trigger == "tick":
            ticks[result.project_id].append((result.scheduled_at_ms, result.epoch))
    ranges = []
    for project_id, some in ticks.items():
        interval_ms = interval_ms_of(project_id) or UNKNOWN_INTERVAL_MS
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
