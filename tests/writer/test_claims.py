"""subtract and RangeIndex: against models that enumerate, and at lengths that nobody could enumerate."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cluster.messages.results import MissedRange
from writer.claims import COMMON_TICKS_MAX, RangeIndex, TakenRange, subtract


def claim(first, last, step, reason="down"):
    return MissedRange(7, first, last, step, reason, 3)


def ticks_of(ranges):
    return [tick for r in ranges for tick in range(r.first_tick_ms, r.last_tick_ms + 1, r.interval_ms)]


def taken(first, count, step):
    return TakenRange(first, first + (count - 1) * step, step)


RANGES = st.builds(taken, st.integers(-100, 400), st.integers(1, 40), st.integers(1, 9))


@given(
    first=st.integers(-50, 50),
    step=st.integers(1, 9),
    count=st.integers(1, 40),
    ticks=st.lists(st.integers(-100, 400), max_size=30),
    ranges=st.lists(RANGES, max_size=8),
)
def test_against_enumeration(first, step, count, ticks, ranges):
    whole = claim(first, first + (count - 1) * step, step)
    remaining = subtract(whole, ticks, ranges)
    gone = {tick for r in ranges for tick in range(r.first_ms, r.last_ms + 1, r.step_ms)} | set(ticks)
    assert ticks_of(remaining) == [tick for tick in ticks_of([whole]) if tick not in gone]
    for part in remaining:
        assert (part.project_id, part.interval_ms, part.reason, part.epoch) == (7, step, "down", 3)
    for before, after in itertools.pairwise(remaining):
        assert after.first_tick_ms - before.last_tick_ms > step, "parts that touch are one part"


def test_astronomical_lengths():
    whole = claim(5, 5 + 10**15 * 1_000, 1_000)
    middle = 5 + 10**14 * 1_000
    remaining = subtract(whole, [5, middle], [TakenRange(middle + 1_000, middle + 10**14 * 1_000, 1_000)])
    assert [(r.first_tick_ms, r.last_tick_ms) for r in remaining] == [
        (1_005, middle - 1_000),
        (middle + 10**14 * 1_000 + 1_000, whole.last_tick_ms),
    ]
    assert sum(r.ticks for r in remaining) == whole.ticks - 2 - 10**14


def test_two_grids_that_have_very_many_ticks_in_common():
    """Then one takes everything between its ends from the other."""
    whole = claim(0, 10**15, 1_000)
    common = COMMON_TICKS_MAX * 10**6
    remaining = subtract(whole, [], [TakenRange(3_000, 3_000 + common * 7_000, 7_000)])
    assert [(r.first_tick_ms, r.last_tick_ms) for r in remaining] == [(0, 2_000), (common * 7_000 + 4_000, 10**15)]
    few = TakenRange(3_000, 3_000 + (COMMON_TICKS_MAX - 1) * 7_000, 7_000)
    assert len(subtract(whole, [], [few])) == COMMON_TICKS_MAX + 1


def test_nothing_taken_leaves_the_claim_itself():
    whole = claim(0, 9_000, 1_000)
    assert subtract(whole, [], []) == [whole]
    ranges = [TakenRange(9_001, 20_001, 1_000), TakenRange(-5_000, -1_000, 1_000), TakenRange(1_001, 1_999, 2)]
    assert subtract(whole, [500, 10_000], ranges) == [whole]


def test_everything_taken_leaves_nothing():
    assert subtract(claim(0, 9_000, 1_000), [], [TakenRange(0, 9_000, 1_000)]) == []
    assert subtract(claim(0, 9_000, 1_000), [], [TakenRange(-500, 9_500, 500)]) == []
    assert subtract(claim(0, 0, 1_000), [0], []) == []
    assert subtract(claim(0, 0, 1_000), [], [TakenRange.of(0, 0, 1)]) == []


@given(claims=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from([2, 3])), max_size=30))
def test_an_index_of_ranges_knows_what_earlier_ones_took(claims):
    """As the store uses it: of each claim, what is in no earlier one is added."""
    index = RangeIndex()
    seen = set()
    for first, count, step in claims:
        whole = claim(first, first + (count - 1) * step, step)
        parts = subtract(whole, (), index.reaching_into(whole))
        assert ticks_of(parts) == [tick for tick in ticks_of([whole]) if tick not in seen]
        seen.update(ticks_of(parts))
        for part in parts:
            index.add(part)


def test_an_index_finds_only_what_reaches_into_the_claim():
    index = RangeIndex()
    for n in range(1_000):
        index.add(claim(n * 10_000, n * 10_000 + 2_000, 1_000))
    found = index.reaching_into(claim(502_000, 520_000, 1_000))
    assert found == [TakenRange(500_000 + n * 10_000, 502_000 + n * 10_000, 1_000) for n in range(3)]
