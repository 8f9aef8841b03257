"""Rollups are what poll_results makes of them, whatever is flushed, comes late or is killed in between."""

import asyncio
import contextlib
import os
import random
from datetime import UTC, datetime, timedelta

import pytest

from cluster import database
from cluster.rollup_times import DAY, HOUR, MINUTE, WEEK, floor_to
from tests.history.books import at, check_rollups, ms_of, polls_of, stand_at, sum_all
from tests.writer.conftest import S1, S2, flush, part, result
from writer import rollup_late, rollup_steps
from writer.rollup_plan import SUMS
from writer.store import Store, StoreError

MIDNIGHT = floor_to(WEEK, datetime.now(UTC) - timedelta(days=1))  # of a Sunday on a Monday
BEGIN = MIDNIGHT - 2 * HOUR
SEEDS = int(os.environ.get("ROLLUP_SEEDS", "12"))


@pytest.fixture
async def conn(database_url):
    conn = await database.connect(database_url)
    await conn.execute(rollup_steps.SESSION)
    await stand_at(conn, BEGIN)
    yield conn
    await conn.close()


@pytest.fixture
async def store(database_url):
    store = Store(database_url, retention_days=90, wall_ms=lambda: ms_of(MIDNIGHT + 12 * HOUR))
    yield store
    await store.close()


async def roll_to(conn, instant, projects=3):
    """Whole passes up to an instant."""
    while (begin := await conn.fetchval("SELECT rolled_to FROM rollup_progress")) < instant:
        await rollup_steps.claim(conn, min(instant, begin + HOUR, floor_to(DAY, begin) + DAY))
        await rollup_steps.pass_flushes(conn)
        while not (await rollup_steps.roll_chunk(conn, projects)).finished:
            pass


async def remake_all(conn):
    while not (await rollup_steps.remake_singles(conn)).finished:
        pass
    await conn.execute("UPDATE rollup_late SET noted_at = now() - interval '1 hour'")
    while (job := await rollup_steps.pick_job(conn)) is not None:
        while not (await rollup_steps.remake_chunk(conn, job, 2)).finished:
            pass


def polls(rng, count, projects=6, since=BEGIN, until=MIDNIGHT + 3 * HOUR):
    """Each instant of a project once per call; now and then a project is polled often."""
    if rng.random() < 0.3:
        since += rng.randrange(28) * 10 * MINUTE
        until = since + 20 * MINUTE
    keys = {
        (rng.choice([1, 1, 1, 2, 2, *range(1, projects)]), rng.randrange(ms_of(since), ms_of(until)))
        for _ in range(count)
    }
    made = []
    for project_id, ms in keys:
        status = rng.choice(["success"] * 5 + ["failure", "unknown"])
        time_ms = (
            rng.choice([None, 5.0])
            if status == "failure"
            else None
            if status == "unknown"
            else rng.lognormvariate(3, 2)
        )
        made.append(result(project_id, ms, status=status, response_time_ms=time_ms, error_code=None))
    return made


async def test_a_pass_rolls_up_minutes_hours_and_days(conn, store):
    rng = random.Random(1)
    often = [result(7, ms_of(BEGIN) + n * 10_000 + 7, response_time_ms=n / 7) for n in range(6 * 290)]
    await store.commit(flush(part(1, polls(rng, 400) + often)))
    await roll_to(conn, MIDNIGHT + HOUR + 17 * MINUTE)
    assert await conn.fetchval("SELECT count(*) FROM rollup_late") == 0
    counted = await check_rollups(conn)
    assert 800 < counted < 2_000, "what is later is not rolled up yet"
    assert await conn.fetchval("SELECT count(*) FROM rollup_minutes WHERE project_id = 7") == 60 * 3 + 17
    assert await conn.fetchval("SELECT count(*) FROM rollup_hours WHERE by_minute AND project_id <> 7") < 5
    await roll_to(conn, MIDNIGHT + 3 * HOUR)
    assert await check_rollups(conn) == len(await polls_of(conn))
    await sum_all(conn)
    assert await conn.fetchval("SELECT count(DISTINCT at) FROM rollup_weeks") == 1
    await check_rollups(conn)


async def test_what_is_late_is_made_anew_at_every_level(conn, store):
    rng = random.Random(2)
    await store.commit(flush(part(1, polls(rng, 500))))
    await roll_to(conn, MIDNIGHT + 2 * HOUR + 5 * MINUTE)
    await sum_all(conn)
    late = polls(rng, 40)
    outcome = await store.commit(flush(part(2, late)))
    assert outcome.written == len(late)
    marks = await conn.fetch("SELECT DISTINCT first_id, since FROM rollup_late")
    before = {(r.project_id, floor_to(HOUR, at(r.scheduled_at_ms))) for r in late
              if at(r.scheduled_at_ms) < MIDNIGHT + 2 * HOUR + 5 * MINUTE}  # fmt: skip
    assert {(row["first_id"], row["since"]) for row in marks} == before
    with pytest.raises(AssertionError):
        await check_rollups(conn)
    await remake_all(conn)
    await check_rollups(conn)
    await roll_to(conn, MIDNIGHT + 3 * HOUR)
    assert await check_rollups(conn) == len(await polls_of(conn))
    assert await conn.fetchval("SELECT count(*) FROM rollup_late") == 0


def test_few_late_polls_are_noted_singly_many_by_the_hour(monkeypatch):
    monkeypatch.setattr(rollup_late, "SINGLE_MAX", 3)

    class Record:
        def __init__(self, project_id, ms):
            self.result = result(project_id, ms)

    hour = rollup_late.HOUR_MS
    records = [Record(7, 5), Record(7, 6), Record(9, hour + 1), Record(4, hour * 2)]
    assert rollup_late.late_hours(records, hour * 2) == [(0, 7, 7), (hour, 9, 9)]
    assert rollup_late.late_hours(records, hour * 2 + 1) == [(0, 7, 7), (hour, 9, 9), (hour * 2, 4, 4)]
    records += [Record(2, hour + 5)]
    assert rollup_late.late_hours(records, hour * 3) == [(0, 7, 7), (hour, 2, 9), (hour * 2, 4, 4)]


async def test_a_flush_of_nothing_late_notes_nothing(conn, store):
    await store.commit(flush(part(1, [result(1, ms_of(BEGIN)), result(2, ms_of(BEGIN + DAY))])))
    assert await conn.fetchval("SELECT count(*) FROM rollup_late") == 0


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_rollups_equal_brute_force_after_any_sequence(database_url, conn, store, monkeypatch, seed):
    """Flushes (late ones and repeated ones among them), passes cut into chunks, remakes, and connections killed."""
    rng = random.Random(seed)
    monkeypatch.setattr(rollup_late, "SINGLE_MAX", rng.choice([2, 5, 1_000]))
    monkeypatch.setattr(rollup_steps, "LATE_MARKS_MAX", rng.choice([3, 2_000]))
    seqs = {S1: 1, S2: 1}
    rolling = await database.connect(database_url)
    jobs = []

    async def kill(which):
        """At any moment of what runs meanwhile."""
        await asyncio.sleep(rng.uniform(0, 0.02))
        await conn.execute("SELECT pg_terminate_backend($1)", which)

    async def flush_some():
        stream = rng.choice([S1, S2])
        some = polls(rng, rng.choice([1, 5, 60]))
        one = flush(part(seqs[stream], some, stream=stream))
        for _ in range(3):  # an outcome that is not known
            with contextlib.suppress(StoreError):
                await store.commit(one)
                break
        else:
            pytest.fail("a flush found no way")
        seqs[stream] += 1

    async def roll():
        position = await rollup_steps.look(rolling)
        if position.next_id is None:
            to = position.rolled_to + rng.choice([1, 7, 60]) * MINUTE
            await rollup_steps.claim(rolling, min(to, floor_to(DAY, position.rolled_to) + DAY, MIDNIGHT + 3 * HOUR))
        await rollup_steps.pass_flushes(rolling)
        await rollup_steps.roll_chunk(rolling, rng.choice([1, 2, 10]))

    async def remake():
        await rolling.execute("UPDATE rollup_late SET noted_at = now() - interval '1 hour'")
        await rollup_steps.remake_singles(rolling)
        if not jobs and (job := await rollup_steps.pick_job(rolling)) is not None:
            jobs.append(job)
        if jobs and (await rollup_steps.remake_chunk(rolling, jobs[0], rng.choice([1, 3]))).finished:
            jobs.clear()

    async def add_up():
        await rollup_steps.sum_chunk(rolling, rng.choice(list(SUMS)), rng.choice([1, 3]))

    for _ in range(60):
        step = rng.choice([flush_some, flush_some, roll, roll, roll, remake, add_up])
        killed = rng.random() < 0.2 and step is not flush_some
        try:
            if killed:
                await asyncio.gather(step(), kill(rolling.get_server_pid()))
            elif rng.random() < 0.3 and step is not flush_some:
                await asyncio.gather(step(), flush_some())
            else:
                await step()
        except database.DATABASE_ERRORS:
            if not killed:
                raise
        if killed:
            rolling.terminate()
            jobs.clear()
            rolling = await database.connect(database_url)
    rolling.terminate()
    while not (await rollup_steps.roll_chunk(conn, 3)).finished:
        pass
    await remake_all(conn)
    await check_rollups(conn)
    await roll_to(conn, MIDNIGHT + 3 * HOUR)
    await remake_all(conn)
    await sum_all(conn)
    assert await check_rollups(conn) == len(await polls_of(conn)) > 0
