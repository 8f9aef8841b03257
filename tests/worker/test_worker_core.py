"""The worker's core as sequence diagrams: what it is told, what it answers; invariants are checked after each step."""

import pytest
from msgspec.structs import replace

from cluster.messages.control import (
    Ack,
    BusyProject,
    Grant,
    Hello,
    Leaving,
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
    Upsert,
    WhoAreYou,
)
from cluster.messages.results import Batch, StreamEnd, StreamHello, WhichStream
from cluster.ticks import partition_of
from tests.worker.play import GRACE_MS, OTHER, SESSION, A, B, C, Play, of
from tests.worker.stage import IDS, START_MS, P, spec, tick_after
from worker.core import COMMIT_MAX_MS
from worker.events import AdoptedStream, PollsAborted, StopRedirects, StreamsAdopted
from worker.link import HELLO_AGAIN_MS, HELLO_ONCE_MS
from worker.outbox import SEAL_MS, WRITE_AGAIN_MS


@pytest.fixture
def play():
    return Play()


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


def test_asked_twice_before_an_answer_it_says_hello_once(play):
    """A hello that it need not have said would have everything told anew once more."""
    play.joined(spec(A))
    play.later(1_000)
    play.heard()
    play.tell(WhoAreYou())
    play.later(HELLO_ONCE_MS - 1)
    play.tell(WhoAreYou())
    assert len(of(Hello, play.heard())) == 1
    play.later(1)
    play.tell(WhoAreYou())
    assert len(of(Hello, play.heard())) == 1
    play.reset(session=play.session + 1)
    play.tell(WhoAreYou())
    assert len(of(Hello, play.heard())) == 1


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


def test_asked_again_it_names_only_polls_that_still_run(play):
    """The answer was lost, and so was the word that they had finished: nobody would settle them any more."""
    play.joined(spec(A), spec(B))
    play.later(1_000)
    play.revoke(P)
    (first,) = of(Released, play.heard())
    assert {entry.project_id for entry in first.cuts[0].busy} == {A, B}
    play.finish(A)
    play.heard()
    play.revoke(P)
    (second,) = of(Released, play.heard())
    assert [entry.project_id for entry in second.cuts[0].busy] == [B]
    play.finish(B)
    play.tell(WhoAreYou())
    (hello,) = of(Hello, play.heard())
    assert [cut.busy for cut in hello.released] == [[]]


def test_a_hello_says_from_where_it_took_its_partitions_over(play):
    play.reset().limits(5).grant(spec(A), after=START_MS - 5_000).grant(spec(A), after=START_MS)
    play.tell(WhoAreYou())
    (hello,) = of(Hello, play.heard())
    assert [held.resume_after_ms for held in hello.held] == [START_MS - 5_000]


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


def test_redirects_of_a_removed_project_are_followed_no_further(play):
    play.joined(spec(A), spec(B))
    play.later(1_000)
    play.numbered(lambda session, seq: Remove(session, seq, 1, [RemovedProject(A, play.now)]))
    assert of(StopRedirects, play.effects) == [StopRedirects([A])]
    play.numbered(lambda session, seq: Remove(session, seq, 1, []))
    assert len(of(StopRedirects, play.effects)) == 1


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


def test_what_unknown_polls_came_to_grief_on_is_counted_by_cause(play):
    play.joined(spec(A), spec(B)).welcome()
    play.later(1_000)
    play.finish(A, status="unknown", local_causes={"network": 1})
    assert play.beat().stats.local_causes == {"network": 1}
    play.finish(B, status="unknown", local_causes={"network": 1, "stall": 1})
    assert play.beat().stats.local_causes == {"network": 2, "stall": 1}


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
    play.tell_core(PollsAborted([A]))
    play.commit()
    assert [leave.status for leave in play.exits] == [0]
    (entry,) = [entry for batch in of(Batch, play.written) for entry in batch.missed]
    assert (entry.project_id, entry.reason) == (A, "down")


def test_when_nothing_is_acknowledged_it_leaves_with_1_and_says_where_the_rest_waits(play):
    play.joined().welcome()
    play.later(1_000).finish()
    play.stop()
    play.later(COMMIT_MAX_MS - 1)
    assert play.exits == []
    play.later(1)
    (leave,) = play.exits
    assert leave.status == 1
    assert leave.text == "1 results are not in the database yet; they wait in the WAL and are sent at the next start"
    assert of(Leaving, play.heard()) == [], "it can't say that all is committed"


def test_nothing_waits_of_an_adopted_stream_that_its_worker_had_seen_acknowledged(play):
    """Nobody was there to confirm it, which is no reason to leave with 1."""
    play.tell_core(StreamsAdopted([AdoptedStream("s9", "worker-9", 1, 12, 12, 100, 5_000, 100, 5_000)]))
    play.joined()
    play.stop()
    play.later(COMMIT_MAX_MS)
    (leave,) = play.exits
    assert leave.status == 0
    assert leave.text == "stopped after 0 polls; nothing is known to wait in the WAL"


def test_what_could_not_even_be_written_is_said_to_be_lost(play):
    play.joined(spec(A), spec(B)).welcome()
    play.later(1_000).finish(A).later(SEAL_MS)
    play.disk.failing = True
    play.finish(B)
    play.stop()
    play.later(COMMIT_MAX_MS)
    (leave,) = play.exits
    assert leave.status == 1
    assert "1 results are not in the database yet; they wait in the WAL" in leave.text
    assert "1 could not be written to the WAL and are lost" in leave.text


def test_a_wal_that_is_mended_before_the_end_loses_nothing(play):
    play.joined().welcome()
    play.later(1_000)
    play.disk.failing = True
    play.finish().stop()
    play.later(3_000)
    assert play.exits == []
    play.disk.failing = False
    play.later(WRITE_AGAIN_MS).commit()
    assert [leave.status for leave in play.exits] == [0]


def test_time_to_commit_is_configurable():
    play = Play(commit_max_ms=500).joined().welcome()
    play.later(1_000).finish()
    play.stop().later(500)
    assert [leave.status for leave in play.exits] == [1]


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
