"""Tick arithmetic against counting one by one, and against values that must never change."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.ticks import (
    PARTITIONS,
    UNIT_MS,
    first_tick_from,
    last_tick_before,
    partition_of,
    phase_ms,
    project_hash,
    ticks_in,
)

ids = st.integers(min_value=-(2**63), max_value=2**63 - 1)
intervals = st.integers(min_value=1, max_value=400)
instants = st.integers(min_value=0, max_value=3_000)


def is_tick(instant, phase, interval):
    return instant % interval == phase


@given(ids, st.integers(min_value=1, max_value=365 * 86_400_000))
def test_a_phase_lies_within_its_interval(project_id, interval):
    assert 0 <= phase_ms(project_id, interval) < interval
    assert 0 <= partition_of(project_id) < PARTITIONS


@given(ids, intervals, instants)
def test_the_first_tick_is_the_first(project_id, interval, instant):
    phase = phase_ms(project_id, interval)
    first = first_tick_from(instant, phase, interval)
    assert first >= instant
    assert is_tick(first, phase, interval)
    assert not any(is_tick(between, phase, interval) for between in range(instant, first))


@given(ids, intervals, instants)
def test_the_last_tick_is_strictly_before(project_id, interval, instant):
    phase = phase_ms(project_id, interval)
    last = last_tick_before(instant, phase, interval)
    assert last < instant
    assert is_tick(last, phase, interval)
    assert last + interval == first_tick_from(instant, phase, interval)


@given(ids, intervals, instants, instants)
def test_counting_agrees_with_counting_one_by_one(project_id, interval, since, until):
    phase = phase_ms(project_id, interval)
    expected = sum(is_tick(instant, phase, interval) for instant in range(since, until))
    assert ticks_in(since, until, phase, interval) == expected


@given(ids, intervals, st.lists(instants, min_size=3, max_size=3).map(sorted))
def test_counts_of_neighbouring_spans_add_up(project_id, interval, bounds):
    phase = phase_ms(project_id, interval)
    a, b, c = bounds
    assert ticks_in(a, b, phase, interval) + ticks_in(b, c, phase, interval) == ticks_in(a, c, phase, interval)


def test_a_tick_on_the_border_belongs_to_the_later_span():
    phase = phase_ms(7, 1_000)
    assert ticks_in(phase, phase + 1, phase, 1_000) == 1
    assert ticks_in(phase - 1_000 + 1, phase, phase, 1_000) == 0


def test_a_stored_schedule_is_still_the_schedule():
    """Rows written by an older release must lie on the grid that this one computes."""
    assert project_hash(1) == 0x2FBC593564DB792E
    assert [partition_of(n) for n in (1, 2, 3, 1_000_000)] == [763, 520, 1_241, 706]
    assert [phase_ms(n, 60_000) for n in (1, 2, 3, 1_000_000)] == [20_078, 24_547, 40_189, 11_680]


def test_phases_spread_the_load():
    """10,000 projects of one minute: no second has twice its share."""
    seconds = [0] * 60
    for project_id in range(1, 10_001):
        seconds[phase_ms(project_id, 60_000) // 1_000] += 1
    assert max(seconds) < 2 * 10_000 / 60
    assert min(seconds) > 10_000 / 60 / 2


def test_units_are_those_of_the_table():
    assert UNIT_MS == {"seconds": 1_000, "minutes": 60_000, "hours": 3_600_000}
