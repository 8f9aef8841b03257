"""What is read of history is what poll_results and missed_polls say, rolled up or not."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from cluster import history
from cluster.errors import InvalidInputError
from cluster.rollup_times import DAY, HOUR, MINUTE, WEEK, ceil_to, floor_to
from cluster.sketch import RELATIVE_ERROR
from tests.history.books import Tally, polls_of, stand_at, sum_all
from writer import partitions, rollup_steps

MIDNIGHT = floor_to(WEEK, datetime.now(UTC) - timedelta(days=9)) + 2 * DAY
SINCE = MIDNIGHT - 7 * HOUR
SHARES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


@pytest.fixture
async def filled(conn):
    """Two days of polls: project 1 each 7 s (in part), 2 each 11 minutes, 3 hardly, 4 nothing, 5 unknown only."""
    rng = random.Random(5)
    await conn.execute("INSERT INTO projects (id, url) SELECT n, 'http://a/' FROM generate_series(1, 5) n")
    for n in range(-8, 4):
        await partitions.create(conn, (MIDNIGHT.date() - partitions.EPOCH).days + n)
    rows = []

    def poll(project_id, at, status=None):
        status = status or rng.choice(["success"] * 9 + ["failure", "unknown"])
        time_ms = rng.lognormvariate(3, 1.5) if status == "success" else 17.0 if status == "failure" else None
        rows.append((project_id, at, at, "tick", status, time_ms, "worker-1", 1))

    for n in range(3 * 3600 // 7):
        poll(1, MIDNIGHT - 2 * HOUR + n * timedelta(seconds=7, milliseconds=13))
    for n in range(48 * 60 // 11):
        poll(2, MIDNIGHT - DAY + n * 11 * MINUTE + timedelta(milliseconds=517))
    for n in range(5):
        poll(3, MIDNIGHT - 6 * DAY + n * 31 * HOUR)
    poll(5, MIDNIGHT - HOUR, "unknown")
    await conn.copy_records_to_table(
        "poll_results",
        records=rows,
        columns=("project_id", "scheduled_at", "polled_at", "trigger", "status", "response_time_ms", "worker", "epoch"),
    )
    await stand_at(conn, MIDNIGHT - 7 * DAY)
    return conn


async def roll_to(conn, instant, *, cut_at=None):
    """``cut_at``: leave the last pass where it is to do this project next."""
    while (begin := await conn.fetchval("SELECT rolled_to FROM rollup_progress")) < instant:
        to = min(instant, begin + HOUR, floor_to(DAY, begin) + DAY)
        await rollup_steps.claim(conn, to)
        while True:
            done = await rollup_steps.roll_chunk(conn, 1)
            next_id = await conn.fetchval("SELECT next_id FROM rollup_progress")
            if to == instant and cut_at is not None and next_id is not None and next_id >= cut_at:
                return
            if done.finished:
                break
    await sum_all(conn)


def close(value, exact):
    if exact is None:
        return value is None
    return value is not None and abs(value - exact) <= RELATIVE_ERROR * exact * 1.000001


def check_figures(read, polls):
    tally = Tally(polls)
    assert (read.polls, read.success, read.failure, read.unknown) == tally.row()[:4]
    for name, share in SHARES.items():
        assert close(getattr(read, name), tally.quantile(share)), (name, read, tally.quantile(share))
    if hasattr(read, "mean_ms"):
        times = tally.times_ms
        assert read.mean_ms == (pytest.approx(sum(times) / len(times)) if times else None)
        assert (read.min_ms, read.max_ms) == ((times[0], times[-1]) if times else (None, None))
    if hasattr(read, "uptime"):
        counted = tally.success + tally.failure
        assert read.uptime == (tally.success / counted if counted else None)


def some(polls, project_id, since, until):
    return [poll for poll in polls if poll["project_id"] == project_id and since <= poll["at"] < until]


RANGES = {
    "minute": [
        (-2 * HOUR, HOUR),
        (-HOUR + timedelta(seconds=13), timedelta(seconds=30)),
        (-3 * HOUR, -2 * HOUR + MINUTE),
    ],
    "hour": [(-26 * HOUR, 26 * HOUR), (-90 * MINUTE, 31 * MINUTE), (-HOUR, -HOUR + timedelta(seconds=1))],
    "day": [(-7 * DAY, 2 * DAY), (-DAY, timedelta()), (-30 * HOUR, 30 * HOUR)],
}


@pytest.mark.parametrize(
    ("rolled_to", "cut_at"),
    [
        (-7 * DAY, None), (-75 * MINUTE, None), (timedelta(), None), (17 * MINUTE, None), (47 * MINUTE, 2),
        (2 * DAY, None),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("resolution", ["minute", "hour", "day"])
async def test_a_summary_is_what_the_polls_say(filled, rolled_to, cut_at, resolution):
    await roll_to(filled, MIDNIGHT + rolled_to, cut_at=cut_at)
    polls = await polls_of(filled)
    width = history.WIDTH[resolution]
    for since, until in ((MIDNIGHT + low, MIDNIGHT + high) for low, high in RANGES[resolution]):
        for project_id in range(1, 7):
            read = await history.summary(filled, project_id, since, until, resolution)
            wide = floor_to(width, since), ceil_to(width, until)
            check_figures(read, some(polls, project_id, *wide))
            begins = sorted({floor_to(width, poll["at"]) for poll in some(polls, project_id, *wide)})
            assert [bucket.at for bucket in read.buckets] == begins
            for bucket in read.buckets:
                check_figures(bucket, some(polls, project_id, bucket.at, bucket.at + width))
            assert (read.since, read.until, read.resolution, read.missed) == (since, until, resolution, 0)


@pytest.mark.parametrize("rolled_to", [-7 * DAY, 17 * MINUTE, 2 * DAY], ids=str)
@pytest.mark.parametrize("length", [HOUR, DAY, 7 * DAY, 30 * DAY, 90 * DAY], ids=str)
async def test_bars_are_equal_parts_of_the_range(filled, rolled_to, length):
    await roll_to(filled, MIDNIGHT + rolled_to)
    polls = await polls_of(filled)
    until = MIDNIGHT + 50 * MINUTE + timedelta(seconds=5)
    since = until - length
    found = await history.bars(filled, [1, 2, 4, 99], since, until)
    assert set(found) == {1, 2, 4, 99}
    for project_id, read in found.items():
        width = history.WIDTH[read.resolution]
        wide = floor_to(width, since), ceil_to(width, until)
        check_figures(read, some(polls, project_id, *wide))
        buckets = (wide[1] - wide[0]) // width
        in_each = -(-buckets // 48)
        assert len(read.bars) == -(-buckets // in_each) <= 48
        for n, (count, failures, p50_ms) in enumerate(read.bars):
            begin = wide[0] + n * in_each * width
            tally = Tally(some(polls, project_id, begin, min(begin + in_each * width, wide[1])))
            assert (count, failures) == (tally.polls, tally.failure)
            assert close(p50_ms, tally.quantile(0.5))


@pytest.mark.parametrize("rolled_to", [-7 * DAY, 17 * MINUTE, 2 * DAY, 8 * DAY], ids=str)
@pytest.mark.parametrize("length", [HOUR, DAY, 7 * DAY, 30 * DAY], ids=str)
async def test_an_overview_is_of_all_projects(filled, rolled_to, length, monkeypatch):
    await roll_to(filled, MIDNIGHT + rolled_to)
    polls = await polls_of(filled)
    until = MIDNIGHT + 50 * MINUTE + timedelta(seconds=5)
    since = until - length
    width = HOUR if length <= 2 * DAY else DAY
    read = await history.overview(filled, since, until)
    assert [row.id for row in read] == [1, 2, 3, 4, 5]
    for row in read:
        check_figures(row, some(polls, row.id, floor_to(width, since), ceil_to(width, until)))
    assert [row.id for row in await history.overview(filled, since, until, 2, 2)] == [3, 4]
    assert await history.overview(filled, since, until, 5, 2) == []
    # Of many projects, only what is rolled up counts.
    monkeypatch.setattr(history, "TAIL_PROJECTS_MAX", 4)
    for row in await history.overview(filled, since, until):
        check_figures(
            row, some(polls, row.id, floor_to(width, since), min(MIDNIGHT + rolled_to, ceil_to(width, until)))
        )


async def test_whole_weeks_are_read_as_such(filled):
    await roll_to(filled, MIDNIGHT + 8 * DAY)
    assert await filled.fetchval("SELECT count(*) FROM rollup_weeks") > 0
    before = await history.overview(filled, MIDNIGHT - 20 * DAY, MIDNIGHT + 6 * DAY)
    await filled.execute("DELETE FROM rollup_days WHERE at < (SELECT max(at) + interval '7 days' FROM rollup_weeks)")
    assert await history.overview(filled, MIDNIGHT - 20 * DAY, MIDNIGHT + 6 * DAY) == before


async def test_an_empty_range_and_nothing_at_all(conn):
    read = await history.summary(conn, 1, MIDNIGHT, MIDNIGHT, "hour")
    assert (read.polls, read.uptime, read.p50_ms, read.buckets, read.missed) == (0, None, None, [], 0)
    assert (await history.summary(conn, 1, MIDNIGHT - DAY, MIDNIGHT)).buckets == []
    assert await history.overview(conn, MIDNIGHT - DAY, MIDNIGHT) == []
    assert await history.bars(conn, [], MIDNIGHT - DAY, MIDNIGHT) == {}
    assert (await history.bars(conn, [1], MIDNIGHT, MIDNIGHT))[1].bars == []


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda c: history.summary(c, 1, MIDNIGHT, MIDNIGHT - DAY), r"since \(.*\) is after until"),
        (lambda c: history.bars(c, [1], MIDNIGHT, MIDNIGHT - DAY), "is after until"),
        (lambda c: history.overview(c, MIDNIGHT, MIDNIGHT - DAY), "is after until"),
        (lambda c: history.summary(c, 1, MIDNIGHT - DAY, MIDNIGHT, "week"), "resolution must be .* not 'week'"),
        (lambda c: history.summary(c, 1, MIDNIGHT - 90 * DAY, MIDNIGHT, "minute"), "more than 5000 buckets"),
        (lambda c: history.bars(c, list(range(501)), MIDNIGHT - DAY, MIDNIGHT), "at most 500 projects"),
        (lambda c: history.overview(c, MIDNIGHT - DAY, MIDNIGHT, None, 0), "limit must be"),
        (lambda c: history.overview(c, MIDNIGHT - 2000 * DAY, MIDNIGHT), "three years"),
    ],
)
async def test_what_can_not_be_asked(conn, call, why):
    with pytest.raises(InvalidInputError, match=why):
        await call(conn)


def test_what_auto_means():
    def of(length):
        return history.resolution_of(MIDNIGHT - length, MIDNIGHT)

    assert [of(length) for length in (HOUR, 6 * HOUR, DAY, 15 * DAY, 16 * DAY, 1_800 * DAY)] == [
        "minute", "minute", "hour", "hour", "day", "day",
    ]  # fmt: skip


# ---- missed ---------------------------------------------------------------------------------------------------------


async def test_missed_ticks_lie_in_the_buckets_of_their_instants(filled):
    rng = random.Random(9)
    ticks, ranges = [], []
    begin = MIDNIGHT - 5 * HOUR
    for _ in range(40):
        step = rng.choice([timedelta(seconds=1), timedelta(seconds=7), 3 * MINUTE, 5 * HOUR])
        count = rng.choice([1, 2, 100, 1_000])
        ranges.append((2, begin, begin + (count - 1) * step, count, "down", "worker-1", 1))
        ticks += [begin + n * step for n in range(count)]
        begin = ticks[-1] + timedelta(seconds=rng.randrange(1, 500))
        if begin > MIDNIGHT + DAY:
            break
    columns = ("project_id", "first_tick", "last_tick", "ticks", "reason", "worker", "epoch")
    await filled.copy_records_to_table("missed_polls", records=ranges, columns=columns)
    for resolution, (since, until) in [
        (r, (MIDNIGHT + low, MIDNIGHT + high)) for r, some_ranges in RANGES.items() for low, high in some_ranges
    ]:
        width = history.WIDTH[resolution]
        wide = floor_to(width, since), ceil_to(width, until)
        read = await history.summary(filled, 2, since, until, resolution)
        expected = [tick for tick in ticks if wide[0] <= tick < wide[1]]
        assert read.missed == len(expected)
        by_bucket = {bucket.at: bucket.missed for bucket in read.buckets if bucket.missed}
        assert sum(by_bucket.values()) == len(expected)
        for at, count in by_bucket.items():
            assert count == sum(at <= tick < at + width for tick in expected)
        assert (await history.bars(filled, [1, 2], since, until))[1].missed == 0


# ---- retention ------------------------------------------------------------------------------------------------------


async def test_history_outlives_the_polls(filled):
    await roll_to(filled, MIDNIGHT + 2 * DAY)
    before = await history.summary(filled, 1, MIDNIGHT - DAY, MIDNIGHT + 2 * DAY, "hour")
    fine = await history.summary(filled, 1, MIDNIGHT - HOUR, MIDNIGHT, "minute")
    await filled.execute("TRUNCATE poll_results")
    assert await history.summary(filled, 1, MIDNIGHT - DAY, MIDNIGHT + 2 * DAY, "hour") == before
    assert before.polls > 1_000
    assert await history.summary(filled, 1, MIDNIGHT - HOUR, MIDNIGHT, "minute") == fine
    assert fine.polls > 400
    slow = await history.summary(filled, 2, MIDNIGHT - HOUR, MIDNIGHT, "minute")
    assert slow.polls == 0, "its minutes were its polls"


async def test_minutes_that_were_dropped_are_read_from_the_polls(filled):
    await roll_to(filled, MIDNIGHT + 2 * DAY)
    fine = await history.summary(filled, 1, MIDNIGHT - HOUR, MIDNIGHT, "minute")
    while await rollup_steps.expire(filled, "rollup_minutes", MIDNIGHT):
        pass
    assert await filled.fetchval("SELECT count(*) FROM rollup_minutes WHERE at < $1", MIDNIGHT) == 0
    assert await filled.fetchval("SELECT count(*) FROM rollup_minutes") > 0
    assert (await history.summary(filled, 1, MIDNIGHT - HOUR, MIDNIGHT, "minute")).buckets == fine.buckets
