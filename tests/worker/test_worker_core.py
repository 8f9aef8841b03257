"""The worker's core as sequence diagrams: what it is told, what it answers; invariants are checked after each step."""

import pytest
from msgspec.structs import replace

from cluster.messages.control import (
    Ack,
    BusyProject,
    Grant,
    Heartbeat,
    Hello,
    Leaving,
    Limits,
    PartitionGrant,
    Released,
    Remove,
    RemovedProject,
    Reset,
    Resync,
    Retire,
    Revoke,
    Settle,
    Settled,
    SliceReached,
    SnapshotEnd,
    Upsert,
    WhoAreYou,
)
from cluster.messages.results import (
    Batch,
    Committed,
    PollResult,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    WhichStream,
    decode_to_writer,
)
from cluster.ticks import partition_of
from tests.worker.stage import IDS, START_MS, P, spec, tick_after
from worker import outbox as outbox_module
from worker.core import COMMIT_MAX_MS, WorkerCore
from worker.events import (
    AbortPolls,
    CoordinatorSaid,
    Exit,
    HeartbeatDue,
    PollsAborted,
    PollsFinished,
    StartPolls,
    StopRequested,
    TellCoordinator,
    TellWriter,
    Vitals,
    WriterSaid,
)
from worker.link import HELLO_AGAIN_MS

A, B, C = IDS[:3]
GRACE_MS = 30_000
SESSION = 1_000_001
OTHER = (P + 1) % 4096


class Play:
    """One core and a clock.  What it says is collected until it is looked at."""

    def __init__(self):
        self.now = START_MS
        self.core = WorkerCore(
            name="worker-1", incarnation="i1", pid=10, stream_id="s1", grace_ms=GRACE_MS, now_ms=self.now
        )
        self.session = SESSION
        self.seq = 0
        self.epoch = 1
        self.said = []  # to the coordinator
        self.written = []  # to the writer, decoded
        self.running = {}  # project -> PollStart
        self.started = []
        self.exits = []
        self.aborts = 0

    def take(self, effects):
        for effect in effects:
            match effect:
                case TellCoordinator(message):
                    self.said.append(message)
                case TellWriter(body):
                    self.written.append(decode_to_writer(body))
                case StartPolls(polls):
                    for poll in polls:
                        assert poll.spec.id not in self.running
                        self.running[poll.spec.id] = poll
                    self.started += polls
                case AbortPolls():
                    self.aborts += 1
                case Exit():
                    self.exits.append(effect)
        self.core.check()
        return self

    def heard(self):
        """What the coordinator was told since it was last asked, acks of the ordinary kind left out."""
        said, self.said = self.said, []
        return [message for message in said if not isinstance(message, Ack)]

    # ---- the coordinator

    def tell(self, message):
        return self.take(self.core.handle(CoordinatorSaid(message), self.now))

    def numbered(self, make):
        self.seq += 1
        return self.tell(make(self.session, self.seq))

    def reset(self, *, session=None, epoch=None):
        self.session = session or self.session
        self.epoch = epoch or self.epoch
        self.seq = 1
        return self.tell(Reset(self.session, 1, self.epoch))

    def grant(self, *specs, after=None, partition=P, **more):
        grant = PartitionGrant(partition, self.now if after is None else after, "handover", list(specs), **more)
        return self.numbered(lambda session, seq: Grant(session, seq, self.epoch, [grant]))

    def limits(self, size, per_host=0):
        return self.numbered(lambda session, seq: Limits(session, seq, size, per_host))

    def revoke(self, *partitions):
        return self.numbered(lambda session, seq: Revoke(session, seq, self.epoch, list(partitions)))

    def snapshot_end(self):
        return self.numbered(SnapshotEnd)

    def joined(self, *specs, size=10):
        """A session with one partition."""
        self.reset().limits(size).grant(*(specs or [spec(A)])).snapshot_end()
        self.said.clear()
        return self

    # ---- time, polls, writer

    def at(self, now_ms):
        """Time passes; timers ring when they are due."""
        rings = 0
        while (due := self.core.next_timer()) is not None and due <= now_ms:
            rings = rings + 1 if due <= self.now else 0
            assert rings < 100, f"its timer rings again and again at {due}: a loop that never sleeps"
            self.now = max(self.now, due)
            self.take(self.core.handle_timer(self.now))
        self.now = now_ms
        return self

    def later(self, duration_ms):
        return self.at(self.now + duration_ms)

    def finish(self, *project_ids, status="success"):
        results = []
        for project_id in project_ids or list(self.running):
            poll = self.running.pop(project_id)
            results.append(
                PollResult(
                    project_id,
                    poll.scheduled_at_ms,
                    self.now * 1_000,
                    poll.trigger,
                    status,
                    200,
                    1.0,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    0,
                    None,
                    None,
                    poll.epoch,
                    poll.doubtful,
                )
            )
        return self.take(self.core.handle(PollsFinished(results), self.now))

    def beat(self):
        self.take(self.core.handle(HeartbeatDue(Vitals()), self.now))
        return next((m for m in reversed(self.said) if isinstance(m, Heartbeat)), None)

    def writer_says(self, message):
        return self.take(self.core.handle(WriterSaid(message), self.now))

    def welcome(self, committed=0):
        return self.writer_says(StreamWelcome("s1", committed, 1 << 20))

    def commit(self):
        batches = [message for message in self.written if isinstance(message, Batch)]
        return self.writer_says(Committed("s1", batches[-1].seq)) if batches else self

    def stop(self):
        return self.take(self.core.handle(StopRequested(), self.now))


@pytest.fixture
def play():
    return Play()


def of(kind, messages):
    return [message for message in messages if isinstance(message, kind)]


# ---- introduction ---------------------------------------------------------------------------------------------------


def test_it_says_hello_until_a_session_is_opened(play):
    play.at(START_MS)
    (hello,) = of(Hello, play.heard())
    assert hello == Hello("worker-1", "i1", 10, "s1", 0, [], draining=False)
    play.later(2 * HELLO_AGAIN_MS)
    assert len(of(Hello, play.heard())) == 2
    play.reset()
    play.said.clear()
    play.later(10 * HELLO_AGAIN_MS)
    assert of(Hello, play.heard()) == []


def test_asked_who_it_is_it_names_what_it_holds_and_the_slice_it_works_by(play):
    play.joined(spec(A))
    play.tell(WhoAreYou())
    (hello,) = of(Hello, play.heard())
    assert [(held.partition, held.epoch) for held in hello.held] == [(P, 1)]
    assert hello.slice == 10


def test_a_slice_that_is_not_reached_yet_is_not_hidden(play):
    """Five in flight and a slice of two: five slots are still in use."""
    play.joined(*(spec(n) for n in IDS[:5]), size=5)
    play.later(1_000)
    play.limits(2)
    play.tell(WhoAreYou())
    (hello,) = of(Hello, play.heard())
    assert hello.slice == 5


def test_heartbeats_begin_with_the_session(play):
    assert play.beat() is None
    play.reset()
    assert play.beat() is not None


# ---- the sequence ---------------------------------------------------------------------------------------------------


def test_every_message_is_acknowledged(play):
    play.reset().limits(5).grant(spec(A)).snapshot_end()
    assert of(Ack, play.said) == [Ack(SESSION, seq) for seq in (1, 2, 3, 4)]


def test_a_repeated_message_is_acknowledged_again_and_does_nothing(play):
    play.joined()
    grant = PartitionGrant(P, play.now, "handover", [spec(A), spec(B)])
    play.tell(Grant(SESSION, 3, 1, [grant]))
    assert play.said == [Ack(SESSION, 4)]
    assert set(play.core.ticker.partitions[P].projects) == {A}


def test_a_gap_asks_for_a_new_session_and_changes_nothing(play):
    play.joined()
    play.tell(Revoke(SESSION, play.seq + 2, 1, [P]))
    assert play.heard() == [Resync(SESSION)]
    assert P in play.core.ticker.partitions


def test_a_coordinator_that_was_replaced_is_refused(play):
    play.reset(session=5 * 1_000_000 + 1, epoch=5).limits(3).grant(spec(A)).snapshot_end()
    play.said.clear()
    play.tell(Reset(4 * 1_000_000 + 9, 1, 4))
    play.tell(Revoke(SESSION, 2, 1, [P]))
    assert play.said == []
    assert P in play.core.ticker.partitions
    assert play.core.link.refused == 2


def test_a_new_session_keeps_what_it_grants_again_and_gives_up_the_rest(play):
    play.reset().limits(5).grant(spec(A)).grant(partition=OTHER).snapshot_end()
    schedule = play.core.ticker.partitions[P].projects[A]
    play.said.clear()
    play.reset(session=SESSION + 1).limits(5).grant(spec(A), after=0)
    assert OTHER in play.core.ticker.partitions, "not before the snapshot is complete"
    play.snapshot_end()
    (released,) = of(Released, play.heard())
    assert [(cut.partition, cut.cut_ms) for cut in released.cuts] == [(OTHER, play.now)]
    assert play.core.ticker.partitions[P].projects[A] is schedule, "no tick was lost or doubled"
    assert play.started == []


def test_a_session_that_broke_off_gives_nothing_up(play):
    """Reset, half a snapshot, then another session: what the first did not mention is still held."""
    play.reset().limits(5).grant(spec(A)).grant(partition=OTHER).snapshot_end()
    play.reset(session=SESSION + 1).limits(5)
    play.reset(session=SESSION + 2).limits(5).grant(spec(A), after=0)
    assert set(play.core.ticker.partitions) == {P, OTHER}
    play.snapshot_end()
    assert set(play.core.ticker.partitions) == {P}


def test_while_the_coordinator_is_away_it_keeps_polling(play):
    play.joined()
    for _ in range(5):
        play.later(1_000)
        play.finish()
    assert len(play.started) == 5


# ---- partitions -----------------------------------------------------------------------------------------------------


def test_a_partition_in_parts_is_taken_when_the_last_is_there(play):
    play.reset().limits(5)
    play.grant(spec(A), last=False).grant(spec(B), last=False)
    assert play.core.ticker.partitions == {}
    play.grant(spec(C))
    assert set(play.core.ticker.partitions[P].projects) == {A, B, C}


def test_parts_of_a_session_that_broke_off_are_forgotten(play):
    play.reset().limits(5).grant(spec(A), last=False)
    play.reset(session=SESSION + 1).limits(5).grant(spec(B))
    assert set(play.core.ticker.partitions[P].projects) == {B}


def test_a_revoke_is_answered_with_the_cut(play):
    play.joined(spec(A), spec(B), size=1)
    play.later(1_000)
    (running,) = play.running
    play.revoke(P)
    (released,) = of(Released, play.heard())
    (cut,) = released.cuts
    assert released.session == SESSION
    assert (cut.partition, cut.epoch, cut.cut_ms) == (P, 1, play.now)
    assert {poll.project_id for poll in cut.waiting} == {A, B} - {running}
    assert [entry.project_id for entry in cut.busy] == [running]
    play.finish(running)
    assert play.heard() == [Settled(cut.busy)]


def test_asked_again_it_gives_the_same_cut(play):
    """The answer was lost: ticks since then belong to somebody else already."""
    play.joined()
    play.revoke(P)
    (first,) = of(Released, play.heard())
    play.later(5_000)
    play.revoke(P)
    (second,) = of(Released, play.heard())
    assert [replace(cut, fresh=True) for cut in second.cuts] == first.cuts


def test_asked_for_what_it_never_had_it_says_so(play):
    play.joined()
    play.revoke(OTHER)
    (released,) = of(Released, play.heard())
    assert [(cut.partition, cut.cut_ms) for cut in released.cuts] == [(OTHER, None)]


def test_a_cut_is_forgotten_when_the_partition_comes_back(play):
    play.joined()
    play.revoke(P)
    play.later(2_000)
    play.grant(spec(A))
    play.heard()
    play.revoke(P)
    (released,) = of(Released, play.heard())
    assert released.cuts[0].cut_ms == play.now


def test_ticks_due_at_the_moment_of_a_revoke_are_in_the_cut(play):
    """The loop was late: what was due before the revoke is started or waits, never in between."""
    play.joined()
    due = tick_after(play.now + 1, A)
    play.now = due + 3
    play.revoke(P)
    (released,) = of(Released, play.heard())
    (cut,) = released.cuts
    assert [(poll.project_id, poll.scheduled_at_ms) for poll in cut.waiting] == [(A, due)]
    assert play.started == []


def test_a_settled_poll_frees_the_project(play):
    entry = BusyProject(A, START_MS + 60_000)
    play.reset().limits(5).grant(spec(A), busy=[entry]).snapshot_end()
    play.later(1_000)
    assert play.started == []
    play.numbered(lambda session, seq: Settle(session, seq, [entry]))
    play.later(1_000)
    assert len(play.started) == 1


# ---- projects -------------------------------------------------------------------------------------------------------


def test_a_new_project_is_polled_at_once(play):
    play.joined()
    new = spec(B, since_ms=play.now)
    play.numbered(lambda session, seq: Upsert(session, seq, 1, [new], [B]))
    assert [(poll.spec.id, poll.trigger) for poll in play.started] == [(B, "immediate")]


def test_a_removed_project_is_not_started_after_the_ack(play):
    play.joined(spec(A), size=0)
    play.later(1_000)
    play.numbered(lambda session, seq: Remove(session, seq, 1, [RemovedProject(A, play.now)]))
    assert of(Ack, play.said)[-1].seq == play.seq
    play.limits(10)
    play.later(5_000)
    assert play.started == []


# ---- slices ---------------------------------------------------------------------------------------------------------


def test_a_larger_slice_is_reached_at_once(play):
    play.reset().limits(7)
    assert of(SliceReached, play.heard()) == [SliceReached(SESSION, 2, 7)]


def test_a_smaller_slice_is_reached_when_so_few_are_in_flight(play):
    play.joined(*(spec(n) for n in IDS[:4]), size=4)
    play.later(1_000)
    assert len(play.running) == 4
    play.limits(2)
    assert of(SliceReached, play.heard()) == []
    first, second, *_ = play.running
    play.finish(first)
    assert of(SliceReached, play.heard()) == []
    play.finish(second)
    assert of(SliceReached, play.heard()) == [SliceReached(SESSION, play.seq, 2)]
    play.finish(next(iter(play.running)))
    assert of(SliceReached, play.heard()) == [], "said once"


def test_only_the_newest_limits_are_answered(play):
    play.joined(*(spec(n) for n in IDS[:4]), size=4)
    play.later(1_000)
    play.limits(2).limits(1)
    play.finish(*list(play.running)[:3])
    assert of(SliceReached, play.heard()) == [SliceReached(SESSION, play.seq, 1)]


def test_never_more_in_flight_than_the_slice(play):
    play.joined(*(spec(n) for n in IDS), size=3)
    for _ in range(4):
        play.later(700)
        assert len(play.running) == 3
        play.finish(next(iter(play.running)))
        assert len(play.running) <= 3


# ---- results --------------------------------------------------------------------------------------------------------


def test_results_go_to_the_writer_once_it_is_there(play):
    play.joined()
    play.later(1_000).finish().later(200)
    assert of(Batch, play.written) == []
    assert of(StreamHello, play.written)[0] == StreamHello("s1", "worker-1", "i1", 1)
    play.welcome()
    (batch,) = of(Batch, play.written)
    assert [row.project_id for row in batch.results] == [A]


def test_a_restarted_writer_gets_again_what_it_has_not_committed(play):
    play.joined().welcome()
    play.later(1_000).finish().later(200)
    play.written.clear()
    play.writer_says(WhichStream())
    assert of(StreamHello, play.written)
    play.welcome()
    assert [batch.seq for batch in of(Batch, play.written)] == [1]


def test_what_is_committed_is_what_a_heartbeat_claims(play):
    play.joined().welcome()
    play.later(1_000).finish()
    made_at = play.now
    first = play.beat()
    assert first.committed_at_ms < made_at, "its result is not committed yet"
    play.commit()
    second = play.beat()
    assert second.committed_at_ms >= made_at
    assert (second.session, second.seq) == (SESSION, play.seq)
    assert second.lagging == {}


def test_a_poll_in_flight_holds_its_partition_back(play):
    play.joined().welcome()
    play.later(1_000)
    tick = play.running[A].scheduled_at_ms
    play.beat()
    play.commit()
    beat = play.beat()
    assert beat.lagging == {P: tick}
    assert beat.oldest_ms <= tick


def test_missed_ticks_that_are_not_handed_over_hold_their_partition_back(play):
    play.joined().welcome()
    play.later(1_000)
    tick = play.running[A].scheduled_at_ms
    play.at(tick + 1_000)
    play.finish()
    play.beat()
    play.commit()
    beat = play.beat()
    assert beat.lagging == {P: tick + 1_000}, "the overrun is still being gathered"
    for _ in range(4):
        play.later(1_000)
        play.finish()
        play.beat()
        play.commit()
    assert play.beat().stats.missed == {"overrun": 1}
    (entry,) = [entry for batch in of(Batch, play.written) for entry in batch.missed]
    assert (entry.first_tick_ms, entry.reason) == (tick + 1_000, "overrun")


def test_a_released_poll_still_holds_the_oldest_back(play):
    """It is in nobody's partition here, but the horizon must wait for it."""
    play.joined().welcome()
    play.later(1_000)
    tick = play.running[A].scheduled_at_ms
    play.revoke(P)
    play.beat()
    play.commit()
    play.later(5_000)
    beat = play.beat()
    assert beat.lagging == {}
    assert beat.oldest_ms <= tick


def test_totals_and_gauges(play):
    play.joined(spec(A), spec(B), spec(C)).welcome()
    play.later(1_000)
    play.finish(A)
    play.finish(B, status="failure")
    stats = play.beat().stats
    assert (stats.executed, stats.success, stats.failure, stats.unknown) == (2, 1, 1, 0)
    assert (stats.active_http, stats.queue_depth, stats.projects, stats.unacked_results) == (1, 0, 3, 2)


def full(play, monkeypatch, *project_ids):
    """One result of each project is kept, and that is all the outbox takes; nothing is in flight."""
    monkeypatch.setattr(outbox_module, "KEPT_BYTES_MAX", 1)
    play.joined(*(spec(n) for n in project_ids)).welcome()
    for due in sorted(tick_after(play.now, n) for n in project_ids):
        play.at(due)
        play.finish()
    play.later(120)
    play.finish()
    assert play.core.outbox.full
    return play


def test_a_full_outbox_holds_polling_back_and_an_ack_lets_it_go_on(play, monkeypatch):
    full(play, monkeypatch, A)
    before = len(play.started)
    play.later(3_000)
    assert len(play.started) == before
    play.commit()
    assert len(play.started) == before + 1
    assert play.started[-1].scheduled_at_ms > play.now - 1_000, "the newest tick, not the oldest"


def test_an_outage_of_any_length_has_flat_memory(play, monkeypatch):
    """The outbox is full and nobody acknowledges: ten minutes later there is not more to keep than a minute later."""
    full(play, monkeypatch, *IDS[:5])

    def kept():
        return play.core.outbox.unacked_records + len(play.core.missed)

    def outage(seconds):
        for _ in range(seconds):
            play.later(1_000)
            play.beat()

    outage(60)
    after_a_minute = kept()
    outage(600)
    assert kept() <= after_a_minute + 5
    assert play.core.missed.ticks["overload"] > 5 * 600, "counted all the same"


# ---- the end --------------------------------------------------------------------------------------------------------


def test_a_stop_with_nothing_to_do_is_quick(play):
    play.joined().welcome()
    play.stop()
    assert [leave.status for leave in play.exits] == [0]
    (leaving,) = of(Leaving, play.heard())
    assert (leaving.incarnation, leaving.committed_at_ms) == ("i1", play.now)
    assert play.written[-1] == StreamEnd("s1")
    assert play.core.next_timer() is None


def test_a_stop_finishes_what_runs_commits_it_and_leaves(play):
    play.joined(spec(A), spec(B)).welcome()
    play.later(1_000)
    play.stop()
    stopped_at = play.now
    assert play.exits == []
    play.later(2_000)
    assert len(play.started) == 2, "nothing new is started"
    play.finish(A)
    assert play.exits == []
    play.finish(B)
    assert play.exits == [], "it is not committed yet"
    assert len([row for batch in of(Batch, play.written) for row in batch.results]) == 2
    play.commit()
    assert [leave.status for leave in play.exits] == [0]
    (leaving,) = of(Leaving, play.heard())
    assert leaving.committed_at_ms == stopped_at
    assert leaving.stats.executed == 2


def test_what_waits_at_a_stop_is_committed_as_down(play):
    play.joined(spec(A), spec(B), size=1).welcome()
    play.later(1_000)
    (running,) = play.running
    play.stop()
    play.finish(running).commit()
    entries = [entry for batch in of(Batch, play.written) for entry in batch.missed]
    assert [(entry.project_id, entry.reason) for entry in entries] == [(({A, B} - {running}).pop(), "down")]
    assert [leave.status for leave in play.exits] == [0]


def test_what_does_not_finish_within_the_grace_is_broken_off(play):
    play.joined().welcome()
    play.later(1_000)
    play.stop()
    play.later(GRACE_MS - 1)
    assert play.aborts == 0
    play.later(1)
    assert play.aborts == 1
    play.later(500)
    assert play.aborts == 1
    play.take(play.core.handle(PollsAborted([A]), play.now))
    play.commit()
    assert [leave.status for leave in play.exits] == [0]
    (entry,) = [entry for batch in of(Batch, play.written) for entry in batch.missed]
    assert (entry.project_id, entry.reason) == (A, "down")


def test_when_nothing_is_acknowledged_it_leaves_with_1_and_says_how_many_are_lost(play):
    play.joined().welcome()
    play.later(1_000).finish()
    play.stop()
    play.later(COMMIT_MAX_MS - 1)
    assert play.exits == []
    play.later(1)
    (leave,) = play.exits
    assert leave.status == 1
    assert "1 results could not be committed" in leave.text
    assert of(Leaving, play.heard()) == [], "it can't say that all is committed"


def test_it_leaves_once(play):
    play.joined().welcome()
    play.stop().stop()
    play.later(100_000)
    play.beat()
    play.commit()
    assert len(play.exits) == 1


def test_a_stop_before_any_session_ends_at_once(play):
    play.stop()
    assert [leave.status for leave in play.exits] == [0]


def test_retired_it_stops_only_when_it_holds_nothing(play):
    play.joined().welcome()
    play.tell(Retire())
    assert play.exits == []
    assert play.core.phase == "polling"
    play.revoke(P)
    play.tell(Retire())
    assert [leave.status for leave in play.exits] == [0]


def test_a_hello_while_it_stops_says_so(play):
    play.joined()
    play.later(1_000)
    play.stop()
    play.tell(WhoAreYou())
    (hello,) = of(Hello, play.heard())
    assert hello.draining


def test_a_partition_granted_while_it_stops_is_not_swallowed(play):
    """A move was under way: ticks before its stop that came with the grant are polled or counted before it leaves."""
    play.joined().welcome()
    play.later(1_000)
    play.stop()
    stopped_at = play.now
    other = next(n for n in range(1, 100_000) if partition_of(n) == OTHER)
    play.later(10)
    play.grant(spec(other, since_ms=START_MS - 60_000), partition=OTHER, after=stopped_at - 5_000)
    play.finish(A).commit().later(500)
    play.commit()
    assert len(play.exits) == 1
    (leaving,) = of(Leaving, play.heard())
    due = set(range(tick_after(stopped_at - 4_999, other), leaving.committed_at_ms + 1, 1_000))
    entries = [entry for batch in of(Batch, play.written) for entry in batch.missed if entry.project_id == other]
    missed = {tick for e in entries for tick in range(e.first_tick_ms, e.last_tick_ms + 1, e.interval_ms)}
    rows = {
        row.scheduled_at_ms for batch in of(Batch, play.written) for row in batch.results if row.project_id == other
    }
    assert due <= missed | rows, f"it says that all up to {leaving.committed_at_ms} is committed"
