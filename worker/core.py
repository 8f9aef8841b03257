"""A worker's decisions: composed of ``ticker`` (when), ``outbox`` (results), ``missed`` and ``link`` (the coordinator).

Pure (see cluster/core.py).  It stops in three steps: nothing new is started (``draining``), then everything found is
committed (``flushing``), then ``Exit``.  While the coordinator is away it keeps polling what it holds.
"""

from typing import Literal

import msgspec

from cluster.messages.control import (
    Cut,
    Grant,
    Heartbeat,
    HeldPartition,
    Hello,
    Leaving,
    Limits,
    PartitionGrant,
    Released,
    Remove,
    Reset,
    Retire,
    Revoke,
    Settle,
    Settled,
    SliceReached,
    SnapshotEnd,
    ToWorker,
    Upsert,
    WhoAreYou,
    WorkerStats,
)
from cluster.messages.results import PollResult
from cluster.project import ProjectSpec
from worker.events import (
    AbortPolls,
    CoordinatorSaid,
    Effect,
    Event,
    Exit,
    HeartbeatDue,
    PollsAborted,
    PollsFinished,
    StartPolls,
    StopRedirects,
    StopRequested,
    StreamOpened,
    StreamsAdopted,
    StreamTrimmed,
    TellCoordinator,
    Vitals,
    WalRead,
    WalWriteFailed,
    WalWritten,
    WriterSaid,
)
from worker.link import CoordinatorLink, Verdict
from worker.missed import GIVEN_UP_MAX, UNKNOWN_INTERVAL_MS, GivenUpLog, MissedLog, given_up
from worker.outbox import Mark, Outbox, earliest
from worker.ticker import Ticker

WAITING_PER_MESSAGE = 100_000  # polls in the cuts of one message: about 2 MiB
COMMIT_MAX_MS = 15_000  # at a stop, for the writer to commit what was found


class WorkerCore:
    def __init__(
        self,
        *,
        name: str,
        incarnation: str,
        pid: int,
        stream_id: str,
        grace_ms: int,
        now_ms: int,
        commit_max_ms: int = COMMIT_MAX_MS,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.stream_id = stream_id
        self.phase: Literal["polling", "draining", "flushing", "ended"] = "polling"
        self.missed = MissedLog()
        self.given_up = GivenUpLog()
        self.ticker = Ticker(self.missed)
        self.outbox = Outbox(stream_id, name, incarnation, now_ms)
        self.link = CoordinatorLink(now_ms)
        self._pid = pid
        self._grace_ms = grace_ms
        self._commit_max_ms = commit_max_ms
        self._unconfirmed: set[int] = set()  # held before the snapshot, not (yet) granted in it
        self._parts: dict[int, list[ProjectSpec]] = {}  # large partitions, arriving in parts
        self._cuts: dict[int, Cut] = {}  # the last cut of each partition given up, for a coordinator that asks again
        self._limits: Limits | None = None  # the newest, while its slice is not in force
        self._reached: SliceReached | None = None  # the newest limits in force here
        self._deadline_ms: int | None = None
        self._aborting = False
        self._stopped_at_ms = 0
        self._executed = 0
        self._by_status = {"success": 0, "failure": 0, "unknown": 0}
        self._local_causes: dict[str, int] = {}  # of those that are unknown
        self._dropped = 0
        self._vitals = Vitals()

    # ---- the core's interface -------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case PollsFinished(results, causes):
                for cause, count in causes.items():
                    self._local_causes[cause] = self._local_causes.get(cause, 0) + count
                effects += self._on_finished(results, now_ms)
            case CoordinatorSaid(message):
                self.ticker.advance_without_starting(now_ms)
                effects += self._on_coordinator(message, now_ms)
                self.ticker.start_waiting(now_ms)
            case WriterSaid(message):
                self.outbox.handle(message, now_ms)
            case WalWritten(stream_id, seq):
                self.outbox.written(stream_id, seq, now_ms)
            case WalWriteFailed():
                self.outbox.write_failed(now_ms)
            case WalRead(stream_id, entries):
                self.outbox.take_read(stream_id, entries)
            case StreamOpened(stream_id):
                self.outbox.opened(stream_id, now_ms)
            case StreamsAdopted(streams):
                self.outbox.adopt(streams, now_ms)
            case StreamTrimmed():
                self._on_trimmed(event, now_ms)
            case HeartbeatDue(vitals):
                self._vitals = vitals
                self.outbox.no_room = vitals.wal_full
                effects += self._heartbeat(now_ms)
            case PollsAborted(project_ids):
                self.ticker.aborted(project_ids, now_ms)
            case StopRequested():
                self._begin_stop(now_ms)
        return effects + self._after(now_ms)

    def next_timer(self) -> int | None:
        hello_at_ms = None if self.link.introduced or self.phase == "ended" else self.link.hello_at_ms
        return earliest(self.ticker.next_due(), self.outbox.next_timer(), hello_at_ms, self._deadline_ms)

    def handle_timer(self, now_ms: int) -> list[Effect]:
        self.ticker.advance(now_ms)
        self.outbox.handle_timer(now_ms)
        effects: list[Effect] = []
        if not self.link.introduced and now_ms >= self.link.hello_at_ms:
            effects.append(self._say_hello(now_ms))
        return effects + self._after(now_ms)

    def _after(self, now_ms: int) -> list[Effect]:
        """What follows from any step: results on their way, polls that may start, a slice that is reached, the next
        step of a stop.
        """
        effects = self._take_effects_of_outbox()
        if self.ticker.held_back != self.outbox.full:
            self.ticker.held_back = self.outbox.full
            self.ticker.start_waiting(now_ms)
        if self.ticker.starts:
            effects.append(StartPolls(self.ticker.starts))
            self.ticker.starts = []
        limits = self._limits
        if limits is not None and len(self.ticker.flights) <= limits.slice:
            self._limits = None
            self._reached = SliceReached(limits.session, limits.seq, limits.slice)
            effects.append(TellCoordinator(self._reached))
        if self.phase in ("draining", "flushing"):
            effects += self._continue_stop(now_ms)
        return effects

    # ---- polls ----------------------------------------------------------------------------------------------------

    def _on_finished(self, results: list[PollResult], now_ms: int) -> list[Effect]:
        self._executed += len(results)
        by_status = self._by_status
        for result in results:
            by_status[result.status] += 1
        moved = self.ticker.finished([result.project_id for result in results], now_ms)
        self.outbox.add(results, [], now_ms)
        return [TellCoordinator(Settled(moved))] if moved else []

    def _on_trimmed(self, event: StreamTrimmed, now_ms: int) -> None:
        """Results that were given up for room are missed ticks, but for those that the database has after all."""
        ranges = given_up(event.results, self.ticker.interval_ms_of)
        self._dropped += len(event.results)
        self.missed.ticks["overload"] += sum(entry.ticks for entry in ranges)
        ranges += event.missed
        if not ranges:
            self.outbox.trim(event.stream_id, event.first_seq)
            return
        self.given_up.add([entry for entry in ranges if entry.interval_ms > UNKNOWN_INTERVAL_MS])
        alone = [entry for entry in ranges if entry.interval_ms <= UNKNOWN_INTERVAL_MS]
        if len(self.given_up) > GIVEN_UP_MAX:
            alone += self.given_up.take()
        self.outbox.give_up(event.stream_id, event.first_seq, alone, now_ms)

    def _take_effects_of_outbox(self) -> list[Effect]:
        effects: list[Effect] = [*self.outbox.effects]
        self.outbox.effects.clear()
        return effects

    def _heartbeat(self, now_ms: int) -> list[Effect]:
        self.ticker.advance(now_ms)
        if not self.outbox.full:
            ranges = self.missed.take(now_ms)
            if self.outbox.delivering or self.outbox.empty:  # else they would fill the WAL in place of the results
                ranges += self.given_up.take()
            self.outbox.delivering = False
            self.outbox.add([], ranges, now_ms)
        lagging = self.ticker.outstanding()
        for partition, tick in [*self.missed.unreported().items(), *self.given_up.unreported().items()]:
            lagging[partition] = min(tick, lagging.get(partition, tick))
        at_ms = self._stopped_at_ms or now_ms
        oldest_ms = min([at_ms + 1, *lagging.values()])
        held = {partition: tick for partition, tick in lagging.items() if partition in self.ticker.partitions}
        self.outbox.mark(Mark(self.link.session, self.link.seq, at_ms, oldest_ms, held), now_ms)
        effects: list[Effect] = []
        if self.link.introduced:
            mark = self.outbox.committed_mark or Mark(0, 0, 0, now_ms, {})
            beat = Heartbeat(
                incarnation=self.incarnation,
                session=mark.session,
                seq=mark.seq,
                stats=self.stats(),
                committed_at_ms=mark.at_ms,
                oldest_ms=mark.oldest_ms,
                lagging=mark.lagging,
            )
            effects.append(TellCoordinator(beat))
            if self._reached is not None:  # said again: others wait for these slots
                effects.append(TellCoordinator(self._reached))
        return effects

    def stats(self) -> WorkerStats:
        vitals = self._vitals
        return WorkerStats(
            executed=self._executed,
            success=self._by_status["success"],
            failure=self._by_status["failure"],
            unknown=self._by_status["unknown"],
            missed=dict(self.missed.ticks),
            active_http=len(self.ticker.flights),
            queue_depth=self.ticker.waiting,
            projects=self.ticker.count,
            unacked_results=self.outbox.unacked_records,
            wal_bytes=self.outbox.unacked_bytes,
            wal_state="failing" if self.outbox.failing else "full" if self.outbox.full else "ok",
            wal_damaged=vitals.wal_damaged,
            wal_sync_failures=vitals.wal_sync_failures,
            wal_dropped=self._dropped,
            lateness_counts=vitals.lateness_counts,
            lateness_p50_ms=vitals.lateness_p50_ms,
            lateness_p99_ms=vitals.lateness_p99_ms,
            lateness_max_ms=vitals.lateness_max_ms,
            loop_lag_ms=vitals.loop_lag_ms,
            loop_lag_counts=vitals.loop_lag_counts,
            rss_bytes=vitals.rss_bytes,
            spans_dropped=vitals.spans_dropped,
            local_causes=dict(self._local_causes),
        )

    # ---- the coordinator ------------------------------------------------------------------------------------------

    def _say_hello(self, now_ms: int) -> Effect:
        self.link.say_hello(now_ms)
        held = [
            HeldPartition(index, held.epoch, held.resume_after_ms) for index, held in self.ticker.partitions.items()
        ]
        slice_ = max(self.ticker.slice, len(self.ticker.flights))
        draining = self.phase != "polling"
        cuts: list[Cut] = []
        polls = 0
        for cut in reversed(self._cuts.values()):  # the newest first, as far as a message goes
            polls += len(cut.waiting)
            if polls > WAITING_PER_MESSAGE:
                break
            cuts.append(self._still(cut))
        hello = Hello(self.name, self.incarnation, self._pid, self.stream_id, slice_, held, cuts, draining)
        return TellCoordinator(hello)

    def _on_coordinator(self, message: ToWorker, now_ms: int) -> list[Effect]:
        match message:
            case WhoAreYou():
                return [] if self.link.just_said_hello(now_ms) else [self._say_hello(now_ms)]
            case Retire():
                if not self.ticker.partitions:
                    self._begin_stop(now_ms)
                return []
            case _:
                pass
        epoch = None if isinstance(message, SnapshotEnd | Limits | Settle) else message.epoch
        verdict = self.link.accept(message, message.session, message.seq, epoch)
        effects: list[Effect] = []
        if verdict is Verdict.APPLY:
            effects += self._apply(message, now_ms)
        return effects + [TellCoordinator(answer) for answer in self.link.answer(verdict, now_ms)]

    def _apply(
        self, message: Reset | Grant | SnapshotEnd | Revoke | Upsert | Remove | Limits | Settle, now_ms: int
    ) -> list[Effect]:
        match message:
            case Reset():
                self._unconfirmed = set(self.ticker.partitions)
                self._parts.clear()
                self._limits = self._reached = None
            case Grant(partitions=grants):
                for grant in grants:
                    self._on_grant(grant, message.epoch, now_ms)
            case SnapshotEnd():
                given_up = sorted(self._unconfirmed)
                self._unconfirmed = set()
                return self._release(given_up, now_ms)
            case Revoke(partitions=indices):
                return self._release(indices, now_ms)
            case Upsert(projects=specs, immediate=immediate):
                first_polls = set(immediate)
                for spec in specs:
                    self.ticker.upsert(spec, spec.id in first_polls, now_ms)
            case Remove(projects=removed, ended=spans):
                for entry in removed:
                    self.ticker.remove(entry.project_id, entry.until_ms, now_ms)
                for span in spans:
                    self.ticker.account_ended(span, None, "handover", now_ms)
                if removed:
                    return [StopRedirects([entry.project_id for entry in removed])]
            case Limits(slice=slice_, max_per_host=per_host):
                self.ticker.limit(slice_, per_host, now_ms)
                self._limits, self._reached = message, None
            case Settle(finished=finished):
                self.ticker.settle(finished, now_ms)
        return []

    def _on_grant(self, grant: PartitionGrant, epoch: int, now_ms: int) -> None:
        specs = self._parts.pop(grant.partition, [])
        specs += grant.projects
        if not grant.last:
            self._parts[grant.partition] = specs
            return
        self._unconfirmed.discard(grant.partition)
        self._cuts.pop(grant.partition, None)
        self.ticker.grant(
            grant.partition,
            epoch,
            grant.resume_after_ms,
            grant.reason,
            specs,
            grant.waiting,
            grant.busy,
            grant.immediate,
            grant.ended,
            now_ms,
            unseen=grant.unseen,
        )

    def _release(self, indices: list[int], now_ms: int) -> list[Effect]:
        if not indices:
            return []
        cuts = []
        for index in indices:
            cut = self.ticker.revoke(index, now_ms) or self._still(self._cuts.get(index) or Cut(index, 0, None))
            self._unconfirmed.discard(index)
            self._cuts.pop(index, None)  # the newest last
            self._cuts[index] = msgspec.structs.replace(cut, fresh=False)
            cuts.append(cut)
        # First to the WAL what they still have to account for, so that it outlives this process and the coordinator.
        self.outbox.add([], self.missed.take_of(set(indices)) + self.given_up.take_of(set(indices)), now_ms)
        self.outbox.seal(now_ms)
        effects = self._take_effects_of_outbox()
        some: list[Cut] = []
        polls = 0
        for cut in cuts:
            some.append(cut)
            polls += len(cut.waiting)
            if polls >= WAITING_PER_MESSAGE:
                effects.append(TellCoordinator(Released(self.link.session, some)))
                some, polls = [], 0
        if some:
            effects.append(TellCoordinator(Released(self.link.session, some)))
        return effects

    def _still(self, cut: Cut) -> Cut:
        """A cut of before as it is now: polls that were in flight then may have ended, and nobody would settle them."""
        flights = self.ticker.flights
        busy = [
            entry
            for entry in cut.busy
            if (flight := flights.get(entry.project_id)) is not None and flight.until_ms == entry.until_ms
        ]
        return cut if len(busy) == len(cut.busy) else msgspec.structs.replace(cut, busy=busy)

    # ---- the end --------------------------------------------------------------------------------------------------

    def _begin_stop(self, now_ms: int) -> None:
        if self.phase != "polling":
            return
        self.phase = "draining"
        self.ticker.stop(now_ms)
        self._stopped_at_ms = now_ms
        self._deadline_ms = now_ms + self._grace_ms

    def _continue_stop(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        overdue = self._deadline_ms is not None and now_ms >= self._deadline_ms
        if self.phase == "draining":
            if self.ticker.flights:
                if overdue and not self._aborting:
                    self._aborting = True
                    self._deadline_ms = None
                    effects.append(AbortPolls())
                return effects
            self.phase = "flushing"
            self._deadline_ms = now_ms + self._commit_max_ms
            self.outbox.add([], self.missed.take(now_ms, everything=True) + self.given_up.take(), now_ms)
            self.outbox.mark(self._final_mark(), now_ms)
            overdue = False
        elif len(self.missed) or len(self.given_up):  # granted, or given up, meanwhile
            self.outbox.add([], self.missed.take(now_ms, everything=True) + self.given_up.take(), now_ms)
        if self.outbox.empty:
            self.phase = "ended"
            self._deadline_ms = None
            self.outbox.end()
            effects.append(TellCoordinator(Leaving(self.incarnation, self.stats(), self._stopped_at_ms)))
            effects.append(Exit(0, f"stopped after {self._executed} polls"))
        elif overdue:
            self.phase = "ended"
            self._deadline_ms = None
            if self.outbox.unacked_records:
                effects.append(Exit(1, self._what_is_left()))
            else:  # as far as this process knows; an adopted stream's writer was not there to confirm it
                effects.append(Exit(0, f"stopped after {self._executed} polls; nothing is known to wait in the WAL"))
        return self._take_effects_of_outbox() + effects

    def _what_is_left(self) -> str:
        lost = self.outbox.unwritten_records
        waiting = self.outbox.unacked_records - lost
        text = f"{waiting} results are not in the database yet; they wait in the WAL and are sent at the next start"
        return text if not lost else f"{text}, {lost} could not be written to the WAL and are lost"

    def _final_mark(self) -> Mark:
        return Mark(self.link.session, self.link.seq, self._stopped_at_ms, self._stopped_at_ms + 1, {})

    def check(self) -> None:
        """Invariants, for tests and simulation."""
        self.ticker.check()
