"""What the rollups do next, decided from where they stand."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from cluster.rollup_times import DAY, HOUR, MINUTE, QUARTER, WEEK, ceil_to, floor_to
from writer.rollup_plan import (
    CHUNK_FIRST,
    CHUNK_MAX,
    CHUNK_S,
    PERIOD_MAX_S,
    TABLES,
    ChunkSize,
    Claim,
    Expire,
    Position,
    RemakeChunk,
    Rest,
    Retention,
    RollChunk,
    RollupPlan,
    Skip,
    SumChunk,
)

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
S = timedelta(seconds=1)
KEEP = Retention(results=90, minutes=7, hours=400, days=1830)


def position(**changes):
    base = Position(
        now=NOON, rolled_to=NOON - 5 * MINUTE, claimed_to=NOON - 5 * MINUTE, next_id=None,
        summed_to={"rollup_quarters": NOON, "rollup_weeks": NOON}, accounted_to=NOON, kept_from=None, late_since=None,
        late_due=False,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def rested(plan=None):
    """A plan that has nothing to expire for now."""
    plan = plan or RollupPlan(KEEP)
    quiet = position(rolled_to=NOON)
    while isinstance(plan.next(quiet), Expire):
        plan.expired(more=False)
    return plan


@pytest.mark.parametrize(
    ("changes", "to"),
    [
        ({}, NOON - MINUTE),  # two seconds ago, cut to the minute
        ({"now": NOON + 30 * S}, NOON),
        ({"accounted_to": NOON - 3 * MINUTE + S}, NOON - 3 * MINUTE),
        ({"accounted_to": NOON + HOUR}, NOON - MINUTE),  # another clock
        ({"accounted_to": NOON - HOUR, "rolled_to": NOON - HOUR}, NOON - 15 * MINUTE),  # patience is over
        ({"accounted_to": None, "rolled_to": NOON - 20 * MINUTE}, NOON - 15 * MINUTE),
        ({"rolled_to": NOON - 9 * HOUR}, NOON - 8 * HOUR),  # an hour at most
        ({"rolled_to": floor_to(DAY, NOON) - 10 * MINUTE}, floor_to(DAY, NOON)),  # within a day
    ],
)
def test_a_pass_ends(changes, to):
    if "rolled_to" in changes:
        changes["claimed_to"] = changes["rolled_to"]
    assert rested().next(position(**changes)) == Claim(to)


@pytest.mark.parametrize(
    "changes",
    [
        {"rolled_to": NOON - 30 * S},
        {"rolled_to": NOON - MINUTE},
        {"rolled_to": NOON - 5 * MINUTE, "accounted_to": NOON - 5 * MINUTE + 30 * S},
        {"accounted_to": None},
        {"rolled_to": NOON + HOUR},  # the clock was set back
    ],
)
def test_no_pass_is_due(changes):
    assert isinstance(rested().next(position(**changes)), Rest)


def test_what_is_under_way_goes_first():
    plan = rested()
    under_way = position(next_id=7, claimed_to=NOON, late_due=True, late_since=NOON - DAY)
    assert plan.next(under_way) == RollChunk(CHUNK_FIRST)
    assert isinstance(plan.next(position(late_due=True)), Claim), "then the next pass"
    quiet = position(rolled_to=NOON, late_due=True, late_since=NOON - DAY)
    assert plan.next(quiet) == RemakeChunk(CHUNK_FIRST)


def test_what_is_over_is_summed_up_unless_it_is_about_to_change():
    plan = rested()
    behind = {"rollup_quarters": NOON - QUARTER, "rollup_weeks": NOON}
    over = position(rolled_to=NOON, summed_to=behind)
    assert plan.next(over) == SumChunk("rollup_quarters", CHUNK_FIRST)
    assert isinstance(plan.next(msgspec.structs.replace(over, late_since=NOON - MINUTE)), Rest)
    assert isinstance(plan.next(msgspec.structs.replace(over, late_since=NOON)), SumChunk)
    assert isinstance(plan.next(msgspec.structs.replace(over, rolled_to=NOON - S)), Rest)


def test_it_goes_on_from_where_results_are_kept():
    late = position(rolled_to=NOON - 100 * DAY, kept_from=NOON - 90 * DAY)
    assert rested().next(late) == Skip(NOON - 90 * DAY)
    assert isinstance(rested().next(position(kept_from=NOON - 90 * DAY)), Claim)
    assert isinstance(rested().next(position(kept_from=NOON + DAY)), Claim), "a clock that was wrong"


def test_a_few_polls_of_each_project_make_passes_rare_and_many_make_them_frequent():
    plan = rested()
    minutes = []
    for polls in [1, 3, 6, 6, 6, 20, 40, 80, 200, 400]:
        plan.chunk_done(RollChunk(50), 0.01, 100, 100 * polls)
        plan.pass_done()
        for n in range(1, 20):
            begin = NOON - n * MINUTE
            if isinstance(plan.next(position(rolled_to=begin, claimed_to=begin, now=NOON + 3 * S)), Claim):
                minutes.append(n)
                break
    assert minutes == [2, 4, 8, 15, 15, 15, 8, 4, 2, 1]
    assert PERIOD_MAX_S == 15 * 60


def test_chunks_follow_the_time_they_take():
    size = ChunkSize()
    for _ in range(20):
        size.took(CHUNK_S / 4, size.projects)
    assert size.projects == CHUNK_MAX
    size.took(CHUNK_S / 4, 3)
    assert size.projects == CHUNK_MAX
    for _ in range(20):
        size.took(CHUNK_S * 3, size.projects)
    assert size.projects == 1
    size.took(CHUNK_S / 2, 0)
    assert size.projects == 1, "a chunk of nothing says nothing"
    size.took(CHUNK_S * 1.5, 1)
    assert size.projects == 1


def test_each_table_is_expired_once_an_hour():
    plan = RollupPlan(KEEP)
    quiet = position(rolled_to=NOON)
    seen = []
    while isinstance(action := plan.next(quiet), Expire):
        seen.append(action)
        plan.expired(more=len(seen) == 1)
    assert [each.table for each in seen] == [TABLES[-1], *reversed(TABLES)], "again while there is more"
    later = NOON + 59 * MINUTE
    assert isinstance(plan.next(position(now=later, rolled_to=later)), Rest)
    later = NOON + HOUR
    assert isinstance(plan.next(position(now=later, rolled_to=later)), Expire)
    earlier = NOON - 5 * HOUR
    assert isinstance(RollupPlan(KEEP).next(position(now=earlier, rolled_to=NOON)), Expire)


def test_nothing_is_dropped_before_what_it_is_made_of():
    today = floor_to(DAY, NOON)
    assert {table: (today - KEEP.before(table, NOON)).days for table in TABLES} == {
        "rollup_minutes": 7, "rollup_hours": 400, "rollup_quarters": 400, "rollup_days": 1830,
        "rollup_weeks": (today - floor_to(WEEK, today - 1830 * DAY)).days,
    }  # fmt: skip
    short = Retention(results=90, minutes=7, hours=1, days=1)
    for table in TABLES[1:4]:
        assert short.before(table, NOON) == today - 90 * DAY
    assert Retention(results=1, minutes=30, hours=1, days=1).before("rollup_hours", NOON) == today - 30 * DAY


@pytest.mark.parametrize("width", [MINUTE, HOUR, QUARTER, DAY, WEEK], ids=str)
def test_begins_and_ends(width):
    begin = floor_to(width, NOON + 7 * S)
    assert begin <= NOON + 7 * S < begin + width
    assert ceil_to(width, begin) == floor_to(width, begin) == begin
    assert ceil_to(width, begin + S) == begin + width
    assert floor_to(WEEK, NOON) == datetime(2026, 3, 2, tzinfo=UTC)
