"""Totals since `cluster up` that survive every process and never go back, and what the writer last said.

Each incarnation reports totals of its own; those of the living are kept apart from the sum of the dead, so a report
that is repeated or late changes nothing.  Pure bookkeeping.
"""

from typing import Literal

import msgspec

from cluster.histogram import BUCKETS
from cluster.messages.control import WorkerStats, WriterHeartbeat
from coordinator.events import DurableState, Totals

WRITER_SILENT_MS = 3_500


def _add(totals: Totals, stats: WorkerStats) -> None:
    totals.executed += stats.executed
    totals.success += stats.success
    totals.failure += stats.failure
    totals.unknown += stats.unknown
    for reason, ticks in stats.missed.items():
        totals.missed[reason] = totals.missed.get(reason, 0) + ticks
    for cause, polls in stats.local_causes.items():
        totals.local_causes[cause] = totals.local_causes.get(cause, 0) + polls
    for index, count in enumerate(stats.lateness_counts[:BUCKETS]):
        totals.lateness_counts[index] += count


class Census:
    def __init__(self, restored: DurableState, now_ms: int) -> None:
        gone = restored.totals
        self._gone = msgspec.structs.replace(
            gone,
            missed=dict(gone.missed),
            local_causes=dict(gone.local_causes),
            lateness_counts=(list(gone.lateness_counts) + [0] * BUCKETS)[:BUCKETS],
        )
        self._counted = dict(restored.counted)
        self._rows_gone = restored.rows_gone
        self._duplicates_gone = restored.duplicates_gone
        self._rejects_gone = restored.rejects_gone
        self._writer: WriterHeartbeat | None = restored.writer_last
        self._writer_heard_ms = now_ms
        self._writer_alive = False  # heard by this coordinator, and not reported dead

    # ---- workers ----

    def heard(self, incarnation: str, stats: WorkerStats) -> None:
        self._counted[incarnation] = stats

    def knows(self, incarnation: str) -> bool:
        """Has it ever reported, to this coordinator or a former one of the same run?"""
        return incarnation in self._counted

    def gone(self, incarnation: str) -> None:
        stats = self._counted.pop(incarnation, None)
        if stats is not None:
            _add(self._gone, stats)

    def keep_only(self, incarnations: set[str]) -> None:
        """Everyone else is dead."""
        for incarnation in set(self._counted) - incarnations:
            self.gone(incarnation)

    def totals(self) -> Totals:
        sums = msgspec.structs.replace(
            self._gone,
            missed=dict(self._gone.missed),
            local_causes=dict(self._gone.local_causes),
            lateness_counts=list(self._gone.lateness_counts),
        )
        for stats in self._counted.values():
            _add(sums, stats)
        return sums

    # ---- the writer ----

    @property
    def writer_incarnation(self) -> str:
        return self._writer.incarnation if self._writer else ""

    def writer_heard(self, beat: WriterHeartbeat, now_ms: int) -> None:
        if self._writer is not None and self._writer.incarnation != beat.incarnation:
            self._fold_writer(self._writer)
        self._writer = beat
        self._writer_heard_ms = now_ms
        self._writer_alive = True

    def writer_started(self, now_ms: int) -> None:
        """A process of it is known to live, and is listened for from now on."""
        self._writer_heard_ms = now_ms
        self._writer_alive = True

    def writer_gone(self, incarnation: str) -> None:
        if incarnation == self.writer_incarnation:
            self._writer_alive = False

    def writer_silent_ms(self, now_ms: int) -> int | None:
        """None: no writer is known to live."""
        return now_ms - self._writer_heard_ms if self._writer_alive else None

    def writer_state(self, now_ms: int) -> Literal["running", "restarting", "waiting_for_database"]:
        if self._writer is None or not self._writer_alive or now_ms - self._writer_heard_ms > WRITER_SILENT_MS:
            return "restarting"
        return self._writer.state

    def writer(self) -> WriterHeartbeat | None:
        """The last heartbeat, its counts since `cluster up`."""
        if self._writer is None:
            return None
        return msgspec.structs.replace(
            self._writer,
            rows_written=self._writer.rows_written + self._rows_gone,
            duplicates=self._writer.duplicates + self._duplicates_gone,
            rejects=self._writer.rejects + self._rejects_gone,
        )

    def forgive(self, gap_ms: int) -> None:
        """We stood still ourselves: nobody else was silent meanwhile."""
        self._writer_heard_ms += gap_ms

    def _fold_writer(self, last: WriterHeartbeat) -> None:
        self._rows_gone += last.rows_written
        self._duplicates_gone += last.duplicates
        self._rejects_gone += last.rejects

    def durable(self) -> DurableState:
        return DurableState(
            totals=self._gone,
            counted=dict(self._counted),
            rows_gone=self._rows_gone,
            duplicates_gone=self._duplicates_gone,
            rejects_gone=self._rejects_gone,
            writer_last=self._writer,
        )
