"""subtract: against a model that enumerates, and at lengths that nobody could enumerate."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cluster.messages.results import MissedRange
from writer.claims import subtract


def claim(first, last, step, reason="down"):
    return MissedRange(7, first, last, step, reason, 3)


def ticks_of(ranges):
    return [tick for r in ranges for tick in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)]


@given(
    first=st.integers(-50, 50),
    step=st.integers(1, 7),
    count=st.integers(1, 40),
    ticks=st.lists(st.integers(-100, 400), max_size=30),
    ranges=st.lists(st.tuples(st.integers(-100, 400), st.integers(0, 100)), max_size=8),
)
def test_against_enumeration(first, step, count, ticks, ranges):
    whole = claim(first, first + (count - 1) * step, step)
    bounds = [(start, start + length) for start, length in ranges]
    remaining = subtract(whole, ticks, bounds)
    expected = [t for t in ticks_of([whole]) if t not in ticks and not any(low <= t <= high for low, high in bounds)]
    assert ticks_of(remaining) == expected
    for part in remaining:
        assert (part.project_id, part.interval_ms, part.reason, part.epoch) == (7, step, "down", 3)
    for before, after in itertools.pairwise(remaining):
        assert after.first_tick_ms - before.last_tick_ms > step, "parts that touch are one part"


def test_astronomical_lengths():
    whole = claim(5, 5 + 10**15 * 1_000, 1_000)
    middle = 5 + 10**14 * 1_000
    remaining = subtract(whole, [5, middle], [(middle + 1_000, middle + 10**14 * 1_000)])
    assert [(r.first_tick_ms, r.last_tick_ms) for r in remaining] == [
        (1_005, middle - 1_000),
        (middle + 10**14 * 1_000 + 1_000, whole.last_tick_ms),
    ]
    assert sum(r.ticks for r in remaining) == whole.ticks - 2 - 10**14


def test_nothing_taken_leaves_the_claim_itself():
    whole = claim(0, 9_000, 1_000)
    assert subtract(whole, [], []) == [whole]
    assert subtract(whole, [500, 10_000], [(9_001, 20_000), (-5, -1), (1_001, 1_999)]) == [whole]


def test_everything_taken_leaves_nothing():
    assert subtract(claim(0, 9_000, 1_000), [], [(0, 9_000)]) == []
    assert subtract(claim(0, 0, 1_000), [0], []) == []
