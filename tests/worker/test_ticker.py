"""The schedule in virtual time, as short stories: due, waiting, overrun, overload, hosts, stalls, changes, moves."""

import pytest

from cluster.messages.control import BusyProject, EndedSpan, WaitingPoll
from cluster.ticks import phase_ms
from tests.worker.stage import IDS, START_MS, Actor, P, ids_in, spec, tick_after
from worker.ticker import BUSY_GRACE_MS, host_of

A, B, C, D = IDS[:4]
NOW = START_MS + 100
T = tick_after(NOW, A)  # the first tick of project A


def begun(*specs, slice_=100, per_host=0, now=NOW):
    """A worker that holds the partition; everything before now is accounted for."""
    actor = Actor("a", slice_, per_host)
    actor.grant(specs or [spec(A)], now, after=now)
    return actor


def shown(starts):
    return [(start.spec.id, start.scheduled_at_ms, start.trigger) for start in starts]


# ---- ticks ----------------------------------------------------------------------------------------------------------


def test_a_project_is_polled_on_its_ticks():
    actor = begun()
    assert actor.ticker.next_due() == T
    assert actor.advance(T - 1) == []
    assert shown(actor.advance(T)) == [(A, T, "tick")]
    actor.finish(A, T + 50)
    assert actor.ticker.next_due() == T + 1_000
    assert shown(actor.advance(T + 1_000)) == [(A, T + 1_000, "tick")]
    assert actor.misses() == []


def test_a_poll_carries_the_epoch_of_its_grant():
    actor = Actor("a")
    actor.grant([spec(A)], NOW, after=NOW, epoch=7)
    assert actor.advance(T)[0].epoch == 7
    actor.finish(A, T)
    actor.grant([spec(A)], T + 1, after=0, epoch=9)
    assert actor.advance(T + 1_000)[0].epoch == 9


def test_a_tick_while_the_poll_runs_is_an_overrun():
    actor = begun()
    actor.advance(T)
    assert actor.advance(T + 1_000) == []
    assert actor.advance(T + 2_000) == []
    actor.finish(A, T + 2_500)
    assert shown(actor.advance(T + 3_000)) == [(A, T + 3_000, "tick")]
    assert actor.misses() == [(A, T + 1_000, "overrun"), (A, T + 2_000, "overrun")]


def test_without_a_slot_a_due_tick_waits_and_keeps_its_time():
    actor = begun(spec(A), spec(B), slice_=1)
    first, second = sorted([(tick_after(NOW, A), A), (tick_after(NOW, B), B)])
    actor.advance(second[0])
    assert list(actor.flights) == [first[1]]
    actor.finish(first[1], second[0] + 300)
    assert shown(actor.started) == [(first[1], first[0], "tick"), (second[1], second[0], "tick")]
    assert actor.misses() == []


def test_when_the_next_tick_comes_first_the_older_is_an_overload_and_the_newer_takes_its_place():
    actor = begun(spec(A), spec(B), spec(C), slice_=0)
    actor.advance(NOW + 999)
    order = list(actor.waiting())
    line = sorted(order, key=lambda project_id: tick_after(NOW, project_id))
    actor.advance(NOW + 999 + 1_000)
    actor.limit(NOW + 2_000, 3)
    assert [start.spec.id for start in actor.started] == line, "the order of those who waited longest"
    assert sorted(actor.misses()) == sorted((n, tick_after(NOW, n), "overload") for n in (A, B, C))
    assert {start.scheduled_at_ms for start in actor.started} == {tick_after(NOW, n) + 1_000 for n in (A, B, C)}


def test_a_short_interval_does_not_starve_in_an_overload():
    """Its newer tick stands where its older one stood."""
    actor = begun(spec(A, 1_000), spec(B, 3_000), spec(C, 3_000), slice_=0)
    actor.advance(NOW + 3_000)
    now = NOW + 3_000
    for _ in range(3):
        now += 1
        actor.limit(now, 1)
        (running,) = actor.flights
        actor.limit(now, 0)
        actor.finish(running, now)
    assert {start.spec.id for start in actor.started} == {A, B, C}


def test_ticks_passed_while_the_loop_stood_still_are_an_overload_but_for_the_newest():
    actor = begun()
    actor.advance(T + 10_500)
    assert shown(actor.started) == [(A, T + 10_000, "tick")]
    assert [tick for _, tick, _ in actor.misses()] == [T + 1_000 * n for n in range(10)]
    assert {reason for _, _, reason in actor.misses()} == {"overload"}
    assert len(actor.ranges) == 1


def test_ticks_passed_while_the_loop_stood_still_and_a_poll_ran():
    actor = begun()
    actor.advance(T)
    actor.advance(T + 3_500)
    assert actor.misses() == [(A, T + 1_000, "overload"), (A, T + 2_000, "overload"), (A, T + 3_000, "overrun")]


# ---- immediate polls ------------------------------------------------------------------------------------------------


def test_a_new_project_is_polled_at_once_and_then_on_its_ticks():
    actor = begun()
    new = spec(B, since_ms=NOW + 5)
    starts = actor.upsert(new, NOW + 8, immediate=True)
    assert shown(starts) == [(B, NOW + 8, "immediate")]
    actor.finish(B, NOW + 20)
    due = tick_after(NOW + 8, B)
    assert (B, due, "tick") in shown(actor.advance(due))


def test_an_immediate_poll_never_takes_the_key_of_a_tick():
    due = tick_after(NOW + 5, B)
    actor = begun()
    actor.upsert(spec(B, since_ms=due - 2), due, immediate=True)
    keys = {(start.scheduled_at_ms, start.trigger) for start in actor.started if start.spec.id == B}
    keys |= {(tick, "missed") for project_id, tick, _ in actor.misses() if project_id == B}
    assert keys == {(due - 1, "immediate"), (due, "missed")}


def test_an_immediate_poll_waits_for_a_slot_and_its_tick_meanwhile_is_an_overrun():
    actor = begun(slice_=0)
    actor.upsert(spec(B, since_ms=NOW), NOW, immediate=True)
    due = tick_after(NOW + 1, B)
    actor.advance(due)
    assert actor.misses() == [(B, due, "overrun")]
    actor.limit(due + 1, 5)
    assert (B, NOW, "immediate") in shown(actor.started)


def test_projects_of_a_starting_cluster_have_no_immediate_poll():
    actor = Actor("a")
    assert actor.grant([spec(A)], NOW, after=None, reason="down") == []
    assert shown(actor.advance(T)) == [(A, T, "tick")]


# ---- the slice, and hosts -------------------------------------------------------------------------------------------


def test_a_lower_slice_lets_polls_finish_and_starts_none_until_it_is_reached():
    actor = begun(spec(A), spec(B), spec(C))
    actor.advance(NOW + 1_000)
    assert len(actor.flights) == 3
    actor.limit(NOW + 1_000, 1)
    actor.advance(NOW + 1_999)
    actor.finish(A, NOW + 1_999)
    actor.finish(B, NOW + 1_999)
    assert len(actor.started) == 3
    actor.advance(NOW + 2_999)
    actor.finish(C, NOW + 2_999)
    assert len(actor.started) == 4


def test_a_host_at_its_limit_holds_back_only_its_own_polls():
    actor = begun(spec(A, host="x"), spec(B, host="x"), spec(C, host="y"), per_host=1)
    actor.advance(NOW + 1_000)
    running = set(actor.flights)
    assert C in running
    assert len(running) == 2
    (first,) = running - {C}
    actor.finish(first, NOW + 1_000)
    assert set(actor.flights) == {A, B, C} - {first}


def test_who_was_held_back_by_its_host_goes_to_the_front_of_the_line():
    actor = begun(spec(A, host="x"), spec(B, host="x"), spec(C, host="y"), spec(D, host="y"), slice_=2, per_host=1)
    actor.advance(NOW + 1_000)
    x, y = (next(n for n in pair if n in actor.flights) for pair in ((A, B), (C, D)))
    actor.finish(x, NOW + 1_000)
    assert ({A, B} - {x}).pop() in actor.flights
    actor.finish(y, NOW + 1_000)
    assert ({C, D} - {y}).pop() in actor.flights


def test_a_higher_host_limit_frees_who_waited():
    actor = begun(*(spec(n, host="x") for n in (A, B, C)), per_host=1)
    actor.advance(NOW + 1_000)
    assert len(actor.flights) == 1
    actor.limit(NOW + 1_000, 100, 2)
    assert len(actor.flights) == 2
    actor.limit(NOW + 1_000, 100, 0)
    assert len(actor.flights) == 3


def test_a_project_that_moves_to_another_host_leaves_the_line_of_the_old_one():
    """Two wait for room at x and are given a free host: both are polled, whoever finishes at x."""
    actor = begun(spec(A, host="x"), spec(B, host="x"), spec(C, host="x"), per_host=1)
    actor.advance(NOW + 1_000)
    (running,) = actor.flights
    for moved in {A, B, C} - {running}:
        actor.upsert(spec(moved, host=f"free-{moved}"), NOW + 1_000)
    actor.finish(running, NOW + 1_001)
    assert {start.spec.id for start in actor.started} == {A, B, C}


def test_who_waits_for_a_host_is_not_forgotten_when_the_next_in_line_is_removed():
    """P runs at x, X and Y wait there; the slice shrinks, P ends, X (now first in line) is removed: Y's turn comes."""
    p, x, y, q = IDS[:4]
    actor = Actor("a", 2, 1)
    actor.grant([spec(p, host="x")], NOW, after=NOW)
    actor.advance(NOW + 1_000)
    for one in (x, y):
        actor.upsert(spec(one, since_ms=NOW + 1_000, host="x"), NOW + 1_000, immediate=True)
    actor.upsert(spec(q, since_ms=NOW + 1_000, host="y"), NOW + 1_000, immediate=True)
    assert set(actor.flights) == {p, q}
    actor.limit(NOW + 1_001, 1, 1)
    actor.finish(p, NOW + 1_002)
    assert set(actor.flights) == {q}
    actor.remove(x, NOW + 1_003)
    actor.finish(q, NOW + 1_004)
    assert set(actor.flights) == {y}


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://Example.com/x", "example.com:80"),
        ("HTTPS://example.com", "example.com:443"),
        ("http://example.com:8080/?a=b", "example.com:8080"),
        ("http://user:secret@example.com/", "example.com:80"),
        ("http://[::1]:99/", "::1:99"),
        ("http://[broken", "http://[broken"),
        ("http://h:99999/", "http://h:99999/"),
        ("http://h:99999/one/of/many", "http://h:99999/one/of/many"),
        ("http://h?where=/x", "h:80"),
        (f"http://{'u' * 400}@h/x", "h:80"),
    ],
)
def test_hosts_are_told_apart_by_name_and_port(url, host):
    assert host_of(url) == host


# ---- changes --------------------------------------------------------------------------------------------------------


def test_an_unchanged_project_keeps_its_ticks():
    actor = begun()
    actor.advance(T)
    actor.finish(A, T + 1)
    actor.upsert(spec(A), T + 2)
    assert actor.ticker.next_due() == T + 1_000
    assert actor.misses() == []


def test_a_change_that_is_not_the_interval_keeps_the_ticks_and_counts_for_the_next_poll():
    actor = begun()
    actor.advance(T)
    actor.upsert(spec(A, host="elsewhere"), T + 2)
    actor.finish(A, T + 3)
    (start,) = actor.advance(T + 1_000)
    assert start.spec.url == "http://elsewhere/" + str(A)


def test_a_new_interval_goes_on_from_its_beginning():
    actor = begun()
    actor.advance(T)
    actor.finish(A, T + 1)
    since = T + 300
    actor.upsert(spec(A, 700, since), since + 5)
    due = tick_after(since, A, 700)
    actor.advance(due)
    assert shown(actor.started)[-1] == (A, due, "tick")
    assert actor.misses() == []


def test_a_removed_project_is_not_polled_again_and_what_waited_is_paused():
    actor = begun(slice_=0)
    actor.advance(T)
    actor.remove(A, T + 10)
    actor.limit(T + 11, 100)
    actor.advance(T + 5_000)
    assert actor.started == []
    assert actor.misses() == [(A, T, "paused")]
    assert actor.ticker.count == 0
    assert actor.ticker.next_due() is None or actor.advance(T + 60_000) == []


def test_ticks_before_a_removal_that_were_not_taken_are_paused():
    actor = begun()
    actor.remove(A, T + 2_500)
    assert actor.misses() == [(A, T + 1_000 * n, "paused") for n in range(3)]


def test_a_project_that_comes_back_while_its_poll_runs_is_not_polled_twice_at_once():
    actor = begun()
    actor.advance(T)
    actor.remove(A, T + 10)
    actor.upsert(spec(A, since_ms=T + 20), T + 20, immediate=True)
    assert len(actor.started) == 1
    actor.advance(T + 1_000)
    assert actor.misses() == [(A, T + 1_000, "overrun")]
    actor.finish(A, T + 1_001)
    assert shown(actor.advance(T + 2_000)) == [(A, T + 2_000, "tick")]


def test_changes_of_what_is_not_held_are_ignored():
    actor = begun()
    stranger = next(n for n in range(1, 10_000) if n not in ids_in(P, 20))
    actor.upsert(spec(stranger), NOW, immediate=True)
    actor.remove(stranger, NOW)
    assert actor.ticker.count == 1
    assert actor.started == []


# ---- moves ----------------------------------------------------------------------------------------------------------


def test_a_planned_move_hands_over_what_waits_and_what_runs():
    old = begun(spec(A), spec(B), spec(C), slice_=1)
    old.advance(NOW + 1_000)
    (running,) = old.flights
    cut = old.revoke(NOW + 1_005)
    assert (cut.partition, cut.epoch, cut.cut_ms) == (P, 1, NOW + 1_005)
    assert [entry.project_id for entry in cut.busy] == [running]
    assert {poll.project_id for poll in cut.waiting} == {A, B, C} - {running}
    assert old.ticker.partitions == {}
    assert old.ticker.count == 0

    new = Actor("b")
    starts = new.grant(
        [spec(A), spec(B), spec(C)], NOW + 1_010, after=cut.cut_ms, waiting=cut.waiting, busy=cut.busy, epoch=2
    )
    assert {start.spec.id for start in starts} == {A, B, C} - {running}
    moved = old.finish(running, NOW + 1_200)
    assert moved == cut.busy, "the new owner is told by the very entry it was given"
    new.ticker.settle(moved, NOW + 1_201)
    assert new.misses() == old.misses() == []
    due = tick_after(NOW + 1_202, running)
    assert (running, due, "tick") in shown(new.advance(due))


def test_a_tick_while_the_former_owners_poll_runs_is_an_overrun():
    old = begun()
    old.advance(T)
    cut = old.revoke(T + 10)
    new = Actor("b")
    new.grant([spec(A)], T + 20, after=cut.cut_ms, busy=cut.busy)
    assert new.advance(T + 1_000) == []
    assert new.misses() == [(A, T + 1_000, "overrun")]


def test_a_former_owner_that_never_answers_holds_nobody_up_for_ever():
    new = Actor("b")
    until = NOW + 5_000 + BUSY_GRACE_MS
    new.grant([spec(A)], NOW, after=NOW, busy=[BusyProject(A, until)])
    for tick in range(T, until + 1, 1_000):
        assert new.advance(tick) == []
    new.advance(until)
    assert new.advance(tick_after(until + 1, A)) != []


def test_a_settlement_that_is_old_news_is_ignored():
    new = Actor("b")
    new.grant([spec(A)], NOW, after=NOW, busy=[BusyProject(A, NOW + 9_000)])
    new.ticker.settle([BusyProject(A, NOW + 8_000), BusyProject(B, NOW + 9_000)], NOW)
    assert new.advance(T) == []
    new.ticker.settle([BusyProject(A, NOW + 9_000)], T + 1)
    new.ticker.settle([BusyProject(A, NOW + 9_000)], T + 1)
    assert new.advance(T + 1_000) != []


def test_a_poll_elsewhere_that_a_new_session_does_not_list_has_ended():
    """Its end was told to a coordinator that died; nobody says it again."""
    still, over = BusyProject(A, NOW + 9_000), BusyProject(A, NOW + 8_000)
    new = Actor("b")
    new.grant([spec(A)], NOW, after=NOW, busy=[still, over])
    new.grant([spec(A)], NOW, after=NOW, busy=[still])
    assert new.advance(T) == []
    new.grant([spec(A)], T + 10, after=NOW)
    assert shown(new.advance(T + 1_000)) == [(A, T + 1_000, "tick")]


def test_a_partition_that_comes_back_while_its_poll_still_runs():
    actor = begun()
    actor.advance(T)
    cut = actor.revoke(T + 10)
    actor.grant([spec(A)], T + 20, after=cut.cut_ms, waiting=cut.waiting, busy=cut.busy, epoch=3)
    assert actor.advance(T + 1_000) == []
    assert actor.misses() == [(A, T + 1_000, "overrun")]
    assert actor.finish(A, T + 1_100) == cut.busy, "the coordinator would tell the next owner that it still runs"
    assert shown(actor.advance(T + 2_000)) == [(A, T + 2_000, "tick")]


def test_revoking_what_is_not_held_says_so():
    assert Actor("a").revoke(NOW) is None


def test_after_a_death_the_newest_tick_is_polled_at_once_and_older_ones_are_missed():
    new = Actor("b")
    now = T + 3_400
    (start,) = new.grant([spec(A)], now, after=T, reason="handover")
    assert start.scheduled_at_ms == T + 3_000
    assert new.misses() == [(A, T + 1_000, "handover"), (A, T + 2_000, "handover")]


def test_the_tick_that_was_due_at_the_takeover_is_missed_for_its_reason():
    new = Actor("b", slice_=0)
    new.grant([spec(A)], T + 400, after=T - 1_000, reason="handover")
    assert new.waiting() == {A: T}
    new.advance(T + 1_000)
    new.advance(T + 2_000)
    assert new.misses() == [(A, T, "handover"), (A, T + 1_000, "overload")]


def test_after_a_stop_of_the_cluster_the_claim_is_down():
    new = Actor("b", slice_=0)
    new.grant([spec(A)], T + 400, after=T - 2_000, reason="down")
    new.advance(T + 1_000)
    assert new.misses() == [(A, T - 1_000, "down"), (A, T, "down")]


def test_a_stop_of_the_cluster_is_down_time():
    new = Actor("b")
    (start,) = new.grant([spec(A)], T + 10 * 86_400_000 + 1, after=T, reason="down")
    assert start.scheduled_at_ms == T + 10 * 86_400_000
    new.misses()
    (entry,) = new.ranges
    assert (entry.first_tick_ms, entry.last_tick_ms, entry.reason) == (T + 1_000, start.scheduled_at_ms - 1_000, "down")


def test_a_span_that_ended_meanwhile_is_accounted_for():
    new = Actor("b")
    ended = EndedSpan(A, NOW, T + 2_500, 1_000)
    new.grant([], T + 5_000, after=T, ended=[ended])
    assert new.misses() == [(A, T + 1_000, "handover"), (A, T + 2_000, "handover")]


def test_a_span_that_ended_before_the_cut_is_not_counted_again():
    new = Actor("b")
    new.grant([], T + 5_000, after=T + 4_000, ended=[EndedSpan(A, NOW, T + 2_500, 1_000)])
    assert new.misses() == []


def test_who_waited_when_its_project_ended_is_paused():
    new = Actor("b")
    new.grant([], T + 50, after=T + 20, waiting=[WaitingPoll(A, T, "tick"), WaitingPoll(B, T + 3, "immediate")])
    assert new.misses() == [(A, T, "paused")]


def test_a_grant_of_what_is_held_takes_only_what_changed():
    actor = begun(spec(A), spec(B))
    actor.advance(T)
    actor.grant([spec(A), spec(C, since_ms=T + 1)], T + 2, after=0, epoch=5, immediate=[C])
    assert set(actor.ticker.partitions[P].projects) == {A, C}
    assert actor.ticker.partitions[P].epoch == 5
    assert actor.ticker.partitions[P].projects[A].next_ms == T + 1_000


# ---- the end, and books ---------------------------------------------------------------------------------------------


def test_a_stop_starts_nothing_and_counts_what_waits_as_down():
    actor = begun(spec(A), spec(B), slice_=1)
    actor.advance(NOW + 1_000)
    (running,) = actor.flights
    actor.ticker.stop(NOW + 1_000)
    (waited,) = {A, B} - {running}
    actor.finish(running, NOW + 1_500)
    assert actor.advance(NOW + 10_000) == []
    assert actor.ticker.next_due() is None
    assert actor.misses() == [(waited, tick_after(NOW, waited), "down")]


def test_polls_broken_off_are_down():
    actor = begun()
    actor.advance(T)
    actor.ticker.stop(T + 1)
    actor.ticker.aborted([A], T + 30_000)
    assert actor.misses() == [(A, T, "down")]


def test_a_partition_taken_from_a_worker_that_has_stopped_is_cut_where_it_stopped():
    """Ticks after its stop are nobody's yet: a later cut would lose them."""
    actor = begun()
    actor.ticker.stop(T - 1)
    cut = actor.revoke(T + 5_000)
    assert cut.cut_ms < T


def test_outstanding_names_the_oldest_that_has_not_ended():
    actor = begun(spec(A), spec(B), slice_=1)
    assert actor.ticker.outstanding() == {}
    actor.advance(NOW + 1_000)
    assert actor.ticker.outstanding() == {P: min(tick_after(NOW, A), tick_after(NOW, B))}
    (running,) = actor.flights
    actor.finish(running, NOW + 1_000)
    assert actor.ticker.outstanding() == {P: max(tick_after(NOW, A), tick_after(NOW, B))}


def test_the_interval_of_a_project_is_known_while_it_is_held():
    actor = begun(spec(A, 5_000))
    assert actor.ticker.interval_ms_of(A) == 5_000
    assert actor.ticker.interval_ms_of(B) is None
    assert actor.ticker.interval_ms_of(ids_in((P + 1) % 4096, 1)[0]) is None
    actor.revoke(NOW)
    assert actor.ticker.interval_ms_of(A) is None


def test_while_nothing_may_start_ticks_are_still_taken():
    actor = begun()
    actor.ticker.held_back = True
    actor.advance(T)
    actor.advance(T + 1_000)
    assert actor.started == []
    actor.ticker.held_back = False
    actor.ticker.start_waiting(T + 1_001)
    actor.collect(T + 1_001)
    assert shown(actor.started) == [(A, T + 1_000, "tick")]
    assert actor.misses() == [(A, T, "overload")]


def test_memory_does_not_grow_with_changes():
    """Ten thousand changes of an interval leave a heap of the size of the schedule."""
    actor = begun()
    for number in range(10_000):
        actor.ticker.upsert(spec(A, 3_600_000 + number, NOW), False, NOW)
        actor.ticker.remove(B, NOW, NOW)
        actor.ticker.upsert(spec(B, 3_600_000, NOW), False, NOW)
    assert len(actor.ticker._heap) < 5_000
    assert len(actor.ticker._slots) <= 3
    assert phase_ms(A, 1_000) < 1_000
