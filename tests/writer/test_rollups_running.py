"""The rollups as a task: up to now, beside flushes that never wait, through errors, on a database that had results."""

import asyncio
import contextlib
import re
import time
from datetime import UTC, datetime

import asyncpg
import pytest

from cluster import database, history
from cluster.database import migrations
from cluster.rollup_times import DAY, HOUR, MINUTE, floor_to
from tests.conftest import execute_once
from tests.history.books import check_rollups, ms_of, polls_of, stand_at
from tests.writer.conftest import S1, flush, part, result
from writer import rollup_plan, rollup_steps
from writer.partitions import EPOCH, create
from writer.rollup_plan import Retention
from writer.rollups import Rollups
from writer.store import Store

DEADLINE_S = 30.0
KEEP = Retention(results=90, minutes=7, hours=400, days=1830)


@pytest.fixture
async def conn(database_url):
    conn = await database.connect(database_url)
    yield conn
    await conn.close()


@pytest.fixture
async def store(database_url):
    store = Store(database_url, retention_days=90, wall_ms=lambda: time.time_ns() // 1_000_000)
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def running(database_url):
    rollups = Rollups(database_url, KEEP)
    task = asyncio.create_task(rollups.run())
    try:
        yield rollups
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.wait({task})


async def until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE_S} s"
        await asyncio.sleep(0.02)


def now():
    return floor_to(MINUTE, datetime.now(UTC))


async def rolled_to(conn):
    return await conn.fetchval("SELECT rolled_to FROM rollup_progress WHERE next_id IS NULL")


def every_ten_seconds(since, count, project_id=1):
    return [result(project_id, ms_of(since) + n * 10_000, response_time_ms=float(n % 97)) for n in range(count)]


async def test_it_follows_what_is_accounted_for(database_url, conn, store):
    begin = now() - 4 * HOUR
    await stand_at(conn, begin)
    await store.commit(flush(part(1, every_ten_seconds(begin, 6 * 240))))
    accounted = now() - 7 * MINUTE
    await conn.execute("UPDATE cluster_state SET accounted_to = $1", accounted)
    async with running(database_url) as rollups:

        async def caught_up():
            return await rolled_to(conn) == accounted

        await until(caught_up, "all that is accounted for")
        assert await check_rollups(conn) == 6 * (240 - 7)
        await until(lambda: asyncio.sleep(0, rollups.lag_ms() < 8.5 * 60_000), "the lag to be heard of")
        assert rollups.lag_ms() >= 7 * 60_000
        # What comes late is made anew, as soon as some more has come or a while has passed.
        await store.commit(flush(part(2, [result(1, ms_of(begin) + 5_000), result(2, ms_of(begin))])))
        await conn.execute("UPDATE rollup_late SET noted_at = now() - interval '1 hour'")

        async def remade():
            return await conn.fetchval("SELECT count(*) FROM rollup_late") == 0

        await until(remade, "what is late")
        assert await check_rollups(conn) == 6 * (240 - 7) + 2


async def test_flushes_go_on_while_rollups_wait(database_url, conn, store):
    """Somebody holds their row, then a table, for long: no flush waits for either, late results or not."""
    begin = now() - 2 * HOUR
    await stand_at(conn, begin + HOUR)
    await store.commit(flush(part(1, every_ten_seconds(begin, 6 * 115))))
    holder = await database.connect(database_url)
    for lock in ("SELECT FROM rollup_progress FOR UPDATE", "LOCK TABLE rollup_hours IN ACCESS EXCLUSIVE MODE"):
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(lock)
        async with running(database_url):

            async def waiting():
                return await conn.fetchval(
                    "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND query LIKE '%rollup%' AND datname = current_database()"
                )

            await until(waiting, f"rollups to wait for {lock}")
            ledger = (await store.load_ledger([S1]))[S1]
            took_s = []
            for n in range(1, 11):
                began_s = time.monotonic()
                some = [result(1, ms_of(begin) + n + ledger), result(1, ms_of(begin + 119 * MINUTE) + n + ledger)]
                outcome = await store.commit(flush(part(ledger + n, some)))
                took_s.append(time.monotonic() - began_s)
                assert outcome.written == 2
            assert await waiting(), "they still wait"
            assert max(took_s) < 5, "a lock of theirs is waited for"
        await transaction.rollback()
    await holder.close()
    assert await conn.fetchval("SELECT count(*) FROM rollup_late") > 0
    await conn.execute("UPDATE rollup_late SET noted_at = now() - interval '1 hour'")
    async with running(database_url):

        async def made():
            late = await conn.fetchval("SELECT count(*) FROM rollup_late")
            return not late and (await rolled_to(conn) or begin) > begin + HOUR

        await until(made, "everything")
        await check_rollups(conn)


async def test_a_pass_waits_for_a_flush_that_does_not_know_of_it(database_url, conn, store):
    """The flush has asked how far is claimed, and has not committed yet: its results must not be left out."""
    begin = now() - 2 * HOUR
    await stand_at(conn, begin)
    await store.commit(flush(part(1, every_ten_seconds(begin, 6))))
    other = await database.connect(database_url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT pg_advisory_xact_lock(hashtext('ringpoll flush'))")
    assert await other.fetchval("SELECT claimed_to FROM rollup_progress") == begin
    await other.execute(
        "INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, response_time_ms, worker, "
        "epoch) VALUES (9, $1, $1, 'tick', 'success', 5, 'w', 1)",
        begin + MINUTE,
    )
    async with running(database_url):

        async def claimed():
            return await conn.fetchval("SELECT claimed_to > $1 FROM rollup_progress", begin)

        async def waits():
            return await conn.fetchval(
                "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )

        await until(claimed, "a pass")
        await until(waits, "it to wait for the flush")
        assert await conn.fetchval("SELECT count(*) FROM rollup_hours") == 0
        await transaction.commit()

        async def rolled():
            return (await rolled_to(conn) or begin) > begin

        await until(rolled, "the pass")
    await other.close()
    assert await check_rollups(conn) == 7
    assert await conn.fetchval("SELECT count(*) FROM rollup_hours WHERE project_id = 9") == 1


async def test_a_lost_connection_costs_a_while(database_url, conn, store, caplog):
    begin = now() - 3 * HOUR
    await stand_at(conn, begin)
    await store.commit(flush(part(1, every_ten_seconds(begin, 6 * 150))))
    await conn.execute("ALTER TABLE rollup_hours RENAME TO elsewhere")
    async with running(database_url):

        async def told():
            return "rollups stand still, trying again" in caplog.text

        await until(told, "the failure to be told")
        await conn.execute("ALTER TABLE elsewhere RENAME TO rollup_hours")

        async def rolled():
            return (await rolled_to(conn) or begin) > begin + HOUR

        await until(rolled, "the rollups to go on")
    assert len(re.findall("rollups stand still", caplog.text)) == 1
    await check_rollups(conn)


async def test_no_database_at_all(caplog):
    async with running("postgresql://nobody@127.0.0.1:1/none") as rollups:

        async def told():
            return "rollups stand still, trying again: cannot reach" in caplog.text

        await until(told, "the failure to be told")
        assert 0 <= rollups.lag_ms() < 60_000


async def test_retention_deletes_by_and_by(database_url, conn, monkeypatch):
    monkeypatch.setattr(rollup_steps, "EXPIRE_ROWS", 7)
    today = floor_to(DAY, datetime.now(UTC))
    for table, every, days in [("minutes", "6 hours", 9), ("hours", "12 hours", 405), ("days", "1 day", 1_840)]:
        await conn.execute(
            f"INSERT INTO rollup_{table} (at, project_id, polls, success, failure, unknown, sum_ms "
            f"{', by_minute' if table == 'hours' else ''}) SELECT at, 1, 1, 1, 0, 0, 5 "
            f"{', true' if table == 'hours' else ''} FROM "
            f"generate_series($1::timestamptz - $2 * interval '1 day', $1, interval '{every}') at",
            today,
            days,
        )
    await stand_at(conn, now())

    async def first(table):
        return await conn.fetchval(f"SELECT min(at) FROM rollup_{table}")

    async with running(database_url):
        for table, days in (("days", 1_830), ("hours", 400), ("minutes", 7)):

            async def kept(table=table, days=days):
                return await first(table) == today - days * DAY

            await until(kept, f"rollup_{table}")
    assert await conn.fetchval("SELECT minutes_kept_from FROM rollup_progress") == today - 7 * DAY


# ---- an upgrade -----------------------------------------------------------------------------------------------------


async def test_results_of_before_the_upgrade_are_rolled_up(empty_database_url, monkeypatch):
    monkeypatch.setattr(rollup_plan, "PATIENCE", 0 * HOUR)
    conn = await database.connect(empty_database_url)
    known = [each for each in migrations() if each.version <= 8]
    monkeypatch.setattr(database, "migrations", lambda: known)
    await database.migrate(conn)
    monkeypatch.undo()
    today = floor_to(DAY, datetime.now(UTC))
    for n in range(-9, 2):
        await create(conn, (today.date() - EPOCH).days + n)
    await conn.execute(
        """
        INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, response_time_ms, worker, epoch)
        SELECT p, at + p * interval '1 ms', at, 'tick', 'success', extract(minute FROM at), 'w', 1
        FROM generate_series(1, 3) p,
             generate_series(now() - interval '9 days', now() - interval '1 minute', interval '7 minutes') at
        WHERE at >= $1
        """,
        today - 9 * DAY,
    )
    assert await database.migrate(conn) != []
    assert await conn.fetchval("SELECT count(*) FROM rollup_late") in (9, 10), "a mark a day"
    assert await database.migrate(conn) == []
    until_now = datetime.now(UTC)
    await conn.execute("UPDATE rollup_late SET noted_at = now() - interval '1 hour'")
    async with running(empty_database_url):

        async def made():
            return await conn.fetchval("SELECT count(*) FROM rollup_late") == 0

        await until(made, "the days of before")

        async def summed():
            return await conn.fetchval("SELECT min(summed_to) > now() - interval '8 days' FROM rollup_sums")

        await until(summed, "quarters and weeks")
    await check_rollups(conn)
    polls = await polls_of(conn)
    read = await history.summary(conn, 2, until_now - 8 * DAY, until_now, "day")
    assert read.polls == sum(p["project_id"] == 2 and p["at"] >= floor_to(DAY, until_now - 8 * DAY) for p in polls)
    assert len(read.buckets) == 9
    await conn.close()


async def test_days_that_were_dropped_meanwhile_are_let_be(conn, store, database_url):
    """A mark of a day whose polls went: its rollups stay as they are."""
    day = floor_to(DAY, datetime.now(UTC)) - 3 * DAY
    await stand_at(conn, day)
    await store.commit(flush(part(1, every_ten_seconds(day, 60))))
    await rollup_steps.claim(conn, day + HOUR)
    while not (await rollup_steps.roll_chunk(conn, 5)).finished:
        pass
    await store.commit(flush(part(2, [result(1, ms_of(day) + 3)])))
    before = await conn.fetch("SELECT * FROM rollup_hours")
    await conn.execute("UPDATE result_retention SET kept_from = $1", day + DAY)
    assert not (await rollup_steps.remake_singles(conn)).finished
    assert await conn.fetch("SELECT * FROM rollup_hours") == before
    assert (await rollup_steps.remake_singles(conn)).finished
    # And a partition that is gone is not missed.
    await conn.execute("UPDATE result_retention SET kept_from = NULL")
    await store.commit(flush(part(3, [result(1, ms_of(day) + 4)])))
    await conn.execute(f"DROP TABLE poll_results_{day:%Y%m%d}")
    assert not (await rollup_steps.remake_singles(conn)).finished
    assert await conn.fetch("SELECT * FROM rollup_hours") == before


async def test_two_writers_roll_up_once(database_url, conn, store):
    begin = now() - 5 * HOUR
    await stand_at(conn, begin)
    for n in range(1, 5):
        await store.commit(flush(part(n, every_ten_seconds(begin, 6 * 300, project_id=n))))
    await conn.execute("UPDATE cluster_state SET accounted_to = $1", now())
    async with running(database_url), running(database_url):

        async def caught_up():
            return (await rolled_to(conn) or begin) >= begin + 4 * HOUR

        await until(caught_up, "both")
    while not (await rollup_steps.roll_chunk(conn, 5)).finished:
        pass
    await check_rollups(conn)


async def test_a_table_that_is_gone_is_named(database_url, caplog):
    await execute_once(database_url, "DROP TABLE rollup_progress")
    async with running(database_url):

        async def told():
            return "rollup_progress" in caplog.text

        await until(told, "the table")
    assert asyncpg.UndefinedTableError.sqlstate in caplog.text
