"""The worker's core and its WAL: written first, held back when it is full, given up, adopted, released."""

from cluster.messages.control import Released
from cluster.messages.results import Batch, Committed, MissedRange, StreamEnd, StreamHello, decode_to_writer
from cluster.ticks import partition_of
from tests.worker.play import OTHER, A, B, Play, of
from tests.worker.stage import IDS, START_MS, P, spec, tick_after
from tests.worker.wal_double import missed, result
from worker import outbox as outbox_module
from worker import outgoing as outgoing_module
from worker.events import OpenStream, ReadWal, StreamsAdopted, StreamTrimmed, TellCoordinator, TellWriter, WriteWal
from worker.outbox import SEAL_MS, WRITE_AGAIN_MS


def test_totals_of_the_wal():
    play = Play().joined(spec(A), spec(B)).welcome()
    play.later(1_000).finish(A).later(SEAL_MS)
    stats = play.beat(wal_damaged=2, wal_sync_failures=3).stats
    (entry,) = play.disk.streams["s1"].values()
    assert (stats.unacked_results, stats.wal_bytes, stats.wal_state) == (1, len(entry.body), "ok")
    assert (stats.wal_damaged, stats.wal_sync_failures, stats.wal_dropped) == (2, 3, 0)
    play.commit()
    assert (play.beat().stats.unacked_results, play.beat().stats.wal_bytes) == (0, 0)


def test_a_result_is_in_the_wal_within_a_moment_and_only_then_sent():
    play = Play().joined().welcome()
    play.later(1_000)
    due = play.now
    play.finish()
    play.at(due + SEAL_MS)
    kinds = [type(effect) for effect in play.effects if isinstance(effect, TellWriter | WriteWal)]
    assert kinds[-2:] == [WriteWal, TellWriter]
    assert [row.project_id for row in of(Batch, play.written)[-1].results] == [A]


def test_a_wal_that_fails_holds_polling_back_until_it_can_be_written_again():
    play = Play().joined(spec(A), spec(B)).welcome()
    play.later(1_000)
    play.disk.failing = True
    play.finish(A).later(SEAL_MS)
    assert play.beat().stats.wal_state == "failing"
    before = len(play.started)
    play.later(5_000)
    assert len(play.started) == before
    assert of(Batch, play.written) == []
    assert set(play.running) == {B}, "what runs may finish"
    play.finish(B)
    play.disk.failing = False
    play.later(WRITE_AGAIN_MS)
    assert len(play.started) == before + 2
    assert {start.spec.id for start in play.started[before:]} == {A, B}
    assert all(start.scheduled_at_ms > play.now - 2_000 for start in play.started[before:]), "their newest ticks"
    assert {row.project_id for batch in of(Batch, play.written) for row in batch.results} == {A, B}
    assert play.beat().stats.wal_state == "ok"
    assert play.core.missed.ticks == {"overload": 5, "overrun": 5}, "the ticks between are counted"


def test_a_full_wal_holds_polling_back_and_room_lets_it_go_on():
    play = Play().joined().welcome()
    play.later(1_000).finish()
    assert play.beat(wal_full=True).stats.wal_state == "full"
    before = len(play.started)
    for _ in range(3):
        play.later(1_000).beat(wal_full=True)
    assert len(play.started) == before
    play.beat(wal_full=False)
    assert len(play.started) == before + 1
    assert play.started[-1].scheduled_at_ms > play.now - 1_000, "the newest tick, not the oldest"


def test_a_wal_that_is_too_slow_is_full(monkeypatch):
    """Nothing is started while so much waits for it."""
    play = Play().joined().welcome()
    monkeypatch.setattr(outbox_module, "UNWRITTEN_BYTES_MAX", 50)
    monkeypatch.setattr(play.disk, "perform", lambda effect: None)
    play.later(1_000).finish().later(SEAL_MS)
    assert play.core.ticker.held_back
    assert play.beat().stats.wal_state == "full"


def test_while_the_wal_is_full_nothing_more_goes_there():
    """Missed ranges grow where they are, one of each project, and results are what was in flight."""
    play = Play().joined(*(spec(n) for n in IDS[:5])).welcome()
    play.later(1_000).finish()
    play.beat(wal_full=True)

    def outage(seconds):
        for _ in range(seconds):
            play.later(1_000).beat(wal_full=True)
        return play.core.outbox.unacked_records + len(play.core.missed)

    after_a_minute = outage(60)
    assert outage(600) <= after_a_minute
    assert play.core.missed.ticks["overload"] > 5 * 600, "counted all the same"


def test_an_outage_of_the_database_costs_disk_and_no_memory(monkeypatch):
    monkeypatch.setattr(outgoing_module, "WINDOW_BYTES", 2_000)
    play = Play().joined(*(spec(n) for n in IDS[:5])).welcome()
    live = play.core.outbox.live
    for _ in range(300):
        play.later(1_000).finish().beat()
    assert len(play.disk.streams["s1"]) >= 300
    assert sum(len(entry.body) for entry in live._window) < 2_000 + 1_000
    assert not live.sealed
    assert len(play.started) > 5 * 295, "polling goes on"
    play.welcome()
    while not live.drained:
        seen = live.acked_seq
        play.commit()
        assert live.acked_seq > seen
    assert of(ReadWal, play.effects)
    rows = [row for batch in of(Batch, play.written) for row in batch.results]
    assert len({(row.project_id, row.scheduled_at_ms) for row in rows}) == len(play.started)


def test_after_an_outage_new_results_go_to_a_stream_of_their_own(monkeypatch):
    monkeypatch.setattr(outbox_module, "PARK_BYTES", 2_000)
    play = Play().joined(*(spec(n) for n in IDS[:5])).welcome()
    for _ in range(30):
        play.later(1_000).finish().beat()
    play.writer_says(Committed("s1", 1))
    assert of(OpenStream, play.effects) == [OpenStream()]
    play.later(10)
    assert of(StreamHello, play.written)[-1] == StreamHello("s2", "worker-1", "i1", 1)
    play.welcome(stream_id="s2").later(1_000).finish().beat()
    assert [batch.stream_id for batch in of(Batch, play.written)][-1] == "s2"
    marked = play.beat().committed_at_ms
    play.commit("s2")
    assert play.beat().committed_at_ms == marked, "the older results are not in the database"
    play.commit("s1")
    assert play.beat().committed_at_ms > marked


def test_results_given_up_for_room_are_missed_ticks():
    play = Play().joined(spec(A), spec(B)).welcome()
    ticks = [tick_after(START_MS, A) + n * 1_000 for n in range(4)]
    dropped = [result(A, scheduled_at_ms=tick, epoch=1) for tick in (ticks[0], ticks[1], ticks[3])]
    dropped += [result(B, scheduled_at_ms=START_MS, trigger="immediate"), result(999, scheduled_at_ms=5_000)]
    play.tell_core(StreamTrimmed("s1", 1, dropped, [missed(7)]))
    play.commit().beat()
    ranges = play.reported()
    assert [(r.project_id, r.first_tick_ms, r.last_tick_ms, r.ticks) for r in ranges] == [
        (999, 5_000, 5_000, 1),
        (A, ticks[0], ticks[1], 2),
        (A, ticks[3], ticks[3], 1),
        (7, 1_000, 1_000, 1),
    ]
    assert {r.reason for r in ranges} == {"overload"}
    stats = play.beat().stats
    assert stats.wal_dropped == 5
    assert stats.missed == {"overload": 4}, "a range that was dropped was counted before"


def test_a_claim_that_was_given_up_stays_a_claim():
    play = Play().joined().welcome()
    play.tell_core(StreamTrimmed("s1", 1, [], [missed(7, "handover")]))
    play.beat()
    (entry,) = play.reported()
    assert entry.reason == "handover"
    assert not any(play.beat().stats.missed.values()), "it was counted by whoever made it"


def test_while_nothing_is_delivered_ranges_for_what_was_given_up_wait_in_memory_and_are_merged():
    """Written at once they would fill the WAL, be given up, and be written again: as many as there were results."""
    play = Play().joined(*(spec(n) for n in IDS)).welcome()
    play.limits(0)  # nothing of its own comes between
    written = len(play.disk.streams.get("s1", {}))
    first = {n: tick_after(START_MS, n) for n in IDS}
    for lap in range(100):
        gone = [result(n, scheduled_at_ms=first[n] + 2 * lap * 1_000, epoch=lap) for n in IDS]
        over = [MissedRange(n, at := first[n] + (2 * lap + 1) * 1_000, at, 1_000, "overrun", lap) for n in IDS]
        play.core.outbox.add([result(1)], [], play.now)  # something waits for the writer
        play.tell_core(StreamTrimmed("s1", 1, gone, over))
        play.beat()
        assert play.reported() == []
        assert len(play.core.given_up) <= len(IDS)
    assert len(play.disk.streams["s1"]) - written <= 101, "only what was new"
    assert play.core.given_up.unreported()[P] == min(first.values())
    play.commit().beat()
    at = {r.project_id: (r.first_tick_ms, r.ticks, r.interval_ms) for r in play.reported() if r.last_tick_ms}
    assert {n: at[n] for n in IDS} == {n: (first[n], 200, 1_000) for n in IDS}


def test_ranges_for_what_was_given_up_hold_the_marks_back_until_they_are_committed():
    play = Play().joined().welcome()
    play.later(1_000).finish()
    tick = play.started[0].scheduled_at_ms
    play.tell_core(StreamTrimmed("s1", 1, [result(A, scheduled_at_ms=tick)], []))
    play.later(SEAL_MS).beat()
    play.commit()
    assert play.beat().oldest_ms <= tick
    play.commit()
    assert play.beat().oldest_ms > tick


def test_what_was_given_up_is_in_the_wal_before_its_partition_is_released_and_before_the_end():
    for end in (lambda play: play.revoke(P), lambda play: play.stop()):
        play = Play().joined(size=0).welcome()
        play.core.outbox.add([result(1)], [], play.now)
        play.tell_core(StreamTrimmed("s1", 1, [result(A, scheduled_at_ms=START_MS)], []))
        end(play)
        ranges = [each for e in play.disk.streams["s1"].values() for each in decode_to_writer(e.body).missed]
        assert [(each.project_id, each.first_tick_ms) for each in ranges] == [(A, START_MS)]
        assert len(play.core.given_up) == 0


def test_acknowledged_segments_that_expire_are_no_loss():
    play = Play().joined().welcome()
    play.later(1_000).finish().later(SEAL_MS).commit()
    play.written.clear()
    play.tell_core(StreamTrimmed("s1", 2))
    assert play.written == []
    assert play.beat().stats.wal_dropped == 0


def test_what_was_given_up_is_not_claimed_to_be_committed():
    """The coordinator goes on from what a heartbeat says; so that has to wait for the ranges."""
    play = Play().joined().welcome()
    play.later(1_000).finish()
    tick = play.started[0].scheduled_at_ms
    play.beat()
    (entry,) = play.disk.streams["s1"].values()
    batch = decode_to_writer(entry.body)
    play.disk.failing = True
    play.tell_core(StreamTrimmed("s1", 2, batch.results, batch.missed))
    assert play.beat().committed_at_ms < tick
    play.disk.failing = False
    play.later(WRITE_AGAIN_MS).welcome(1).commit()
    assert play.beat().committed_at_ms >= tick


def test_streams_of_the_dead_are_delivered_with_its_name():
    play = Play().joined().welcome()
    dead = Play(name="worker-7", incarnation="i0", stream_id="s0", disk=play.disk)
    dead.joined().later(1_000).finish().later(SEAL_MS)
    play.tell_core(StreamsAdopted([play.disk.adopted("s0", worker="worker-7")]))
    play.later(0)
    assert of(StreamHello, play.written)[-1] == StreamHello("s0", "worker-7", "i1", 1, 0, "worker-1")
    assert play.beat().stats.unacked_results == 1
    play.stop()
    assert play.exits == [], "it is to be delivered first"
    play.welcome(stream_id="s0").commit("s0")
    assert [leave.status for leave in play.exits] == [0]
    assert StreamEnd("s0") in play.written


def test_what_released_partitions_have_to_account_for_is_in_the_wal_before_they_are_released():
    """So that it outlives this process, whoever has to answer for it."""
    play = Play().joined(spec(A), spec(B), size=1).welcome()
    play.later(3_000)
    assert len(play.core.missed) > 0, "overruns, overloads"
    play.effects.clear()
    play.revoke(P)
    kinds = [type(effect) for effect in play.effects]
    told = [effect.message for effect in play.effects if isinstance(effect, TellCoordinator)]
    released_at = next(i for i, e in enumerate(play.effects) if e == TellCoordinator(of(Released, told)[0]))
    assert kinds.index(WriteWal) < released_at
    written = [entry for e in play.disk.streams["s1"].values() for entry in decode_to_writer(e.body).missed]
    assert {entry.project_id for entry in written} == {A, B}
    assert len(play.core.missed) == 0


def test_missed_ticks_of_what_it_keeps_are_not_hurried_by_a_release():
    other = next(n for n in range(1, 100_000) if partition_of(n) == OTHER)
    play = Play().reset().limits(0).grant(spec(A)).grant(spec(other), partition=OTHER).snapshot_end()
    play.later(2_000)
    play.revoke(P)
    assert play.core.missed.unreported().keys() == {OTHER}
