"""Missed ticks as ranges: every tick in exactly one range, ranges of a project never overlap."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.messages.results import MissedRange
from cluster.ticks import partition_of
from tests.worker.wal_double import result
from worker import missed as missed_module
from worker.missed import HOLD_MS, GivenUpLog, MissedLog, given_up, merged

P = 5


def add(log, first, last, reason="overload", *, project=1, interval=1_000, epoch=1, now=0, partition=P):
    log.add(project, partition, first, last, interval, reason, epoch, now)


def shown(ranges):
    return [(r.project_id, r.first_tick_ms, r.last_tick_ms, r.reason) for r in ranges]


def test_a_range_grows_while_the_next_tick_is_missed_for_the_same_reason():
    log = MissedLog()
    for tick in (1_000, 2_000, 3_000):
        add(log, tick, tick)
    (taken,) = log.take(0, everything=True)
    assert (taken.first_tick_ms, taken.last_tick_ms, taken.ticks) == (1_000, 3_000, 3)
    assert len(log) == 0


def test_a_range_is_handed_over_when_it_is_old_enough():
    log = MissedLog()
    add(log, 1_000, 1_000, now=500)
    add(log, 2_000, 2_000, now=1_500)
    assert log.take(500 + HOLD_MS - 1) == []
    assert shown(log.take(500 + HOLD_MS)) == [(1, 1_000, 2_000, "overload")]


def test_another_reason_a_gap_an_interval_or_an_epoch_ends_it():
    log = MissedLog()
    add(log, 1_000, 1_000)
    add(log, 2_000, 2_000, "overrun")
    add(log, 4_000, 4_000, "overrun")
    add(log, 4_500, 4_500, "overrun", interval=500)
    add(log, 5_000, 5_000, "overrun", interval=500, epoch=2)
    assert [r.first_tick_ms for r in log.take(0, everything=True)] == [1_000, 2_000, 4_000, 4_500, 5_000]


def test_closed_ranges_do_not_wait():
    log = MissedLog()
    add(log, 1_000, 1_000, now=0)
    add(log, 2_000, 2_000, "overrun", now=0)
    assert shown(log.take(1)) == [(1, 1_000, 1_000, "overload")]


def test_what_is_not_handed_over_is_known_by_partition():
    log = MissedLog()
    add(log, 3_000, 3_000)
    add(log, 4_000, 4_000, "overrun")
    add(log, 9_000, 9_000, project=2, partition=7)
    assert log.unreported() == {P: 3_000, 7: 9_000}
    log.take(0)
    assert log.unreported() == {P: 4_000, 7: 9_000}
    log.take(0, everything=True)
    assert log.unreported() == {}


def test_a_range_of_ten_days_is_one_entry():
    log = MissedLog()
    add(log, 0, 864_000_000 - 1_000, "down")
    assert log.ticks == {"down": 864_000}
    assert len(log) == 1


# ---- before partitions are given up ---------------------------------------------------------------------------------


def test_what_partitions_still_have_to_account_for_is_taken_at_once_and_the_rest_stays():
    log = MissedLog()
    add(log, 1_000, 1_000, project=1, partition=5, now=100)
    add(log, 1_500, 1_500, project=2, partition=6, now=100)
    add(log, 1_700, 1_700, project=3, partition=7, now=100)
    assert shown(log.take_of({5, 7})) == [(1, 1_000, 1_000, "overload"), (3, 1_700, 1_700, "overload")]
    assert log.unreported() == {6: 1_500}
    assert log.take_of({5, 7}) == []
    assert shown(log.take(0, everything=True)) == [(2, 1_500, 1_500, "overload")]


def test_ranges_that_are_closed_go_with_them():
    log = MissedLog()
    add(log, 1_000, 1_000, project=1, partition=5)
    add(log, 2_000, 2_000, "overrun", project=1, partition=5)
    add(log, 1_500, 1_500, project=2, partition=6)
    add(log, 2_500, 2_500, "overrun", project=2, partition=6)
    taken = log.take_of({5})
    assert sorted(shown(taken)) == [
        (1, 1_000, 1_000, "overload"),
        (1, 2_000, 2_000, "overrun"),
        (2, 1_500, 1_500, "overload"),
    ]
    assert log.unreported() == {6: 2_500}
    assert len(log) == 1


def test_a_range_that_was_taken_begins_anew():
    log = MissedLog()
    add(log, 1_000, 1_000)
    log.take_of({P})
    add(log, 2_000, 2_000)
    assert shown(log.take_of({P})) == [(1, 2_000, 2_000, "overload")]
    assert log.ticks == {"overload": 2}


# ---- while the WAL is full ------------------------------------------------------------------------------------------


def test_closed_ranges_that_nobody_takes_are_merged_and_none_of_their_ticks_is_lost(monkeypatch):
    monkeypatch.setattr(missed_module, "CLOSED_MAX", 50)
    log = MissedLog()
    for tick in range(10_000):
        for project in (1, 2, 3):
            add(log, tick * 1_000, tick * 1_000, ["overrun", "overload"][tick % 2], project=project, epoch=tick)
        assert len(log) <= 2 * 50 + 3
    assert log.unreported() == {P: 0}
    taken = log.take(0, everything=True)
    assert sum(entry.ticks for entry in taken) == 30_000
    assert sorted(t for r in taken for t in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)) == sorted(
        3 * [tick * 1_000 for tick in range(10_000)]
    )


def ranged(first, last, reason="overload", *, project=1, interval=1_000, epoch=1):
    return MissedRange(project, first, last, interval, reason, epoch)


def test_ranges_that_follow_each_other_are_one_with_the_reason_of_most_of_its_ticks():
    some = [ranged(3_000, 3_000, "overrun", epoch=4), ranged(1_000, 2_000, epoch=3), ranged(1_000, 1_000, project=2)]
    assert merged(some) == [ranged(1_000, 3_000, epoch=4), ranged(1_000, 1_000, project=2)]


@pytest.mark.parametrize(
    "other",
    [
        ranged(2_000, 2_000, "down"),  # a claim may be somebody else's
        ranged(2_000, 2_000, interval=500),
        ranged(3_000, 3_000),
        ranged(1_000, 1_000),
        ranged(2_000, 2_000, project=2),
    ],
)
def test_ranges_that_are_not_the_same_are_kept_apart(other):
    some = [ranged(1_000, 1_000), other]
    assert merged(some) == some


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from(["overrun", "down"])), unique=True))
def test_merged_ranges_have_the_same_ticks(ticks):
    def flat(ranges):
        return sorted(
            (r.project_id, t, r.reason)
            for r in ranges
            for t in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)
        )

    some = [ranged(tick * 1_000, tick * 1_000, reason, project=project) for project, tick, reason in ticks]
    assert flat(merged(some)) == flat(some)


# ---- what was given up, until it is taken ---------------------------------------------------------------------------


@pytest.fixture
def merges(monkeypatch):
    """How many ranges were sorted and merged, each time."""
    counts = []
    real = missed_module.merged
    monkeypatch.setattr(missed_module, "merged", lambda ranges: counts.append(len(ranges)) or real(ranges))
    return counts


def test_what_is_given_up_one_after_the_other_costs_no_more_than_itself(merges):
    log = GivenUpLog()
    for tick in range(50):
        log.add([ranged(tick * 1_000, tick * 1_000, project=project) for project in range(1_000)])
        assert len(log) == 1_000
    assert merges == [], "all of them were gone through, on the event loop"
    assert log.take() == [ranged(0, 49_000, project=project) for project in range(1_000)]


def test_ranges_that_can_t_be_joined_are_not_gone_through_again_and_again(merges, monkeypatch):
    monkeypatch.setattr(missed_module, "CLOSED_MAX", 50)
    log = GivenUpLog()
    for tick in range(1_000):
        log.add([ranged(tick * 5_000, tick * 5_000, project=project) for project in (1, 2)])
    for tick in reversed(range(1_000)):
        log.add([ranged(tick * 5_000 + 2_000, tick * 5_000 + 2_000, project=project) for project in (1, 2)])
    assert sum(merges) <= 3 * len(log)
    assert sum(entry.ticks for entry in log.take()) == 4_000


def test_what_comes_late_is_merged_before_there_is_too_much_of_it(monkeypatch):
    monkeypatch.setattr(missed_module, "GIVEN_UP_MAX", 100)
    log = GivenUpLog()
    log.add([ranged(1_000_000, 1_000_000)])
    for tick in reversed(range(1_000)):
        log.add([ranged(tick * 1_000, tick * 1_000)])
        assert len(log) <= 100
    assert log.take() == [ranged(0, 1_000_000)]


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from(["overrun", "down"]), st.booleans()),
        unique_by=lambda each: each[:2],
    )
)
def test_what_is_given_up_in_any_order_has_the_same_ticks(ticks):
    def flat(ranges):
        return sorted(
            (r.project_id, t, r.reason)
            for r in ranges
            for t in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)
        )

    some = [ranged(tick * 1_000, tick * 1_000, reason, project=project) for project, tick, reason, _ in ticks]
    log = GivenUpLog()
    taken = []
    waiting = []
    for entry, (*_, take) in zip(some, ticks, strict=True):
        log.add([entry])
        waiting.append(entry)
        oldest = {}
        for each in waiting:
            partition = partition_of(each.project_id)
            oldest[partition] = min(each.first_tick_ms, oldest.get(partition, each.first_tick_ms))
        assert log.unreported() == oldest
        if take:
            ranges = log.take()
            assert shown(ranges) == shown(merged(waiting))
            taken += ranges
            waiting = []
            assert (len(log), log.unreported()) == (0, {})
    assert flat(taken + log.take()) == flat(some)


# ---- results that are lost ------------------------------------------------------------------------------------------


def lost(*ticks, project=1, trigger="tick", epoch=1):
    return [result(project, scheduled_at_ms=tick, trigger=trigger, epoch=epoch) for tick in ticks]


def spans(ranges):
    return [(r.project_id, r.first_tick_ms, r.last_tick_ms, r.interval_ms) for r in ranges]


def test_consecutive_ticks_that_are_lost_are_one_range():
    ranges = given_up(lost(3_000, 1_000, 2_000, 5_000), {1: 1_000}.get)
    assert spans(ranges) == [(1, 1_000, 3_000, 1_000), (1, 5_000, 5_000, 1_000)]
    assert {(r.reason, r.epoch) for r in ranges} == {("overload", 1)}


def test_without_a_known_interval_each_tick_stands_alone():
    ranges = given_up(lost(1_000, 2_000), {}.get)
    assert spans(ranges) == [(1, 1_000, 1_000, 1), (1, 2_000, 2_000, 1)]
    assert [r.ticks for r in ranges] == [1, 1]


def test_ticks_of_an_interval_that_was_changed_since_stand_alone():
    assert [r.ticks for r in given_up(lost(1_000, 1_500, 2_000), {1: 60_000}.get)] == [1, 1, 1]


def test_what_is_no_tick_is_owed_to_nobody():
    results = lost(1_000, trigger="immediate") + lost(1_500, trigger="manual") + lost(2_000)
    assert spans(given_up(results, {1: 1_000}.get)) == [(1, 2_000, 2_000, 1_000)]
    assert given_up([], {}.get) == []


def test_projects_are_kept_apart():
    results = lost(1_000, project=1) + lost(1_500, project=2) + lost(2_000, project=1) + lost(2_500, project=2)
    ranges = given_up(results, {1: 1_000, 2: 500}.get)
    assert sorted(spans(ranges)) == [(1, 1_000, 2_000, 1_000), (2, 1_500, 1_500, 500), (2, 2_500, 2_500, 500)]


@pytest.mark.parametrize("interval", [1_000, 7_000, None])
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 30)), unique=True, max_size=60))
def test_each_tick_that_is_lost_is_in_one_range(interval, ticks):
    results = [row for project, tick in ticks for row in lost(tick * 1_000, project=project)]
    ranges = given_up(results, lambda project_id: interval)
    found = [(r.project_id, t) for r in ranges for t in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)]
    assert sorted(found) == sorted((project, tick * 1_000) for project, tick in ticks)


steps = st.lists(
    st.tuples(
        st.integers(min_value=1, max_value=3),  # project
        st.integers(min_value=1, max_value=4),  # ticks
        st.integers(min_value=0, max_value=2),  # ticks that were polled before these
        st.sampled_from(["overload", "overrun", "handover", "down", "paused"]),
        st.booleans(),  # take what is due afterwards
    ),
    max_size=80,
)


@given(steps)
def test_every_tick_is_in_exactly_one_range(script):
    log = MissedLog()
    next_tick = {1: 1_000, 2: 1_500, 3: 1_700}
    expected = []
    taken = []
    now = 0
    for project, ticks, polled, reason, take in script:
        now += 700
        first = next_tick[project] + polled * 1_000
        last = first + (ticks - 1) * 1_000
        next_tick[project] = last + 1_000
        add(log, first, last, reason, project=project, now=now, partition=project)
        expected += [(project, tick, reason) for tick in range(first, last + 1, 1_000)]
        if take:
            taken += log.take(now)
        oldest = log.unreported()
        gone = {(r.project_id, t) for r in taken for t in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)}
        left = [(p, t) for p, t, _ in expected if (p, t) not in gone]
        assert oldest == {p: min(t for q, t in left if q == p) for p in {q for q, _ in left}}
        assert len(log._open) <= 3
    taken += log.take(now, everything=True)
    found = [
        (r.project_id, t, r.reason) for r in taken for t in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)
    ]
    assert sorted(found) == sorted(expected)
    assert Counter(reason for _, _, reason in expected) == log.ticks
