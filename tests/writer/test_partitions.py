"""Result partitions and retention on a real PostgreSQL."""

import asyncio
import uuid

import asyncpg
import pytest

from cluster import database
from tests.writer.conftest import DAY_MS, NOW_MS, S1, flush, missed, part, result
from writer import partitions
from writer.partitions import Maintenance
from writer.store import Store

TODAY = NOW_MS // DAY_MS


async def maintain(store, retention_days=90, wall_ms=NOW_MS):
    round_ = Maintenance.plan(wall_ms, retention_days)
    steps = 1
    while await store.run(round_.run_step):
        steps += 1
        assert steps < 1000
    return steps


def test_names():
    assert partitions.name_of(0) == "poll_results_19700101"
    assert partitions.name_of(20_454) == "poll_results_20260101"
    assert partitions.day_of_name("poll_results_20260101") == 20_454
    for other in ("poll_results", "poll_results_", "poll_results_2026010", "poll_results_20261301",
                  "poll_results_archive", "x_20260101", "poll_results_202601011"):  # fmt: skip
        assert partitions.day_of_name(other) is None
    for day in (0, 1, 19_782, TODAY):
        assert partitions.day_of_name(partitions.name_of(day)) == day


async def test_today_and_three_days_ahead(store, tables):
    await maintain(store)
    assert await partitions.existing(tables.conn) == [TODAY, TODAY + 1, TODAY + 2, TODAY + 3]
    await maintain(store)
    assert await partitions.existing(tables.conn) == [TODAY, TODAY + 1, TODAY + 2, TODAY + 3]
    primary_keys = await tables.conn.fetchval(
        "SELECT count(*) FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indrelid "
        "WHERE h.inhparent = 'poll_results'::regclass AND i.indisprimary"
    )
    assert primary_keys == 4


async def test_a_partition_takes_its_day_and_no_other(tables):
    await partitions.create(tables.conn, TODAY)
    assert await partitions.create(tables.conn, TODAY) is False
    insert = (
        "INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, worker, epoch) "
        "VALUES (1, to_timestamp($1::float8 / 1000), now(), 'tick', 'success', 'w', 1)"
    )
    for ms in (TODAY * DAY_MS, (TODAY + 1) * DAY_MS - 1):
        await tables.conn.execute(insert, ms)
    for ms in (TODAY * DAY_MS - 1, (TODAY + 1) * DAY_MS):
        with pytest.raises(asyncpg.CheckViolationError):
            await tables.conn.execute(insert, ms)


async def test_whatever_the_time_zone(database_url, tables):
    """Days are UTC days, also when the database thinks otherwise."""
    name = database_url.split("?")[0].rpartition("/")[2]
    await tables.conn.execute(f"ALTER DATABASE {name} SET timezone = 'Pacific/Kiritimati'")
    store = Store(database_url, retention_days=90, wall_ms=lambda: NOW_MS)
    edges = [TODAY * DAY_MS, (TODAY + 1) * DAY_MS - 1]
    outcome = await store.commit(flush(part(1, [result(n, ms) for n, ms in enumerate(edges)])))
    assert outcome.written == 2
    assert await partitions.existing(tables.conn) == [TODAY]
    await store.close()


async def test_readers_do_not_block_creation(store, tables, database_url):
    await partitions.create(tables.conn, TODAY)
    reader = await database.connect(database_url)
    async with reader.transaction():
        await reader.fetch("SELECT count(*) FROM poll_results")
        async with asyncio.timeout(1.5):  # below the lock's time-out
            await maintain(store)
    await reader.close()
    assert len(await partitions.existing(tables.conn)) == 4


async def test_retention(store, tables, monkeypatch):
    monkeypatch.setattr(partitions, "DELETE_CHUNK_ROWS", 10)
    for day in (TODAY - 9, TODAY - 8, TODAY - 3, TODAY - 2):
        await partitions.create(tables.conn, day)
    old_ms = (TODAY - 8) * DAY_MS
    kept_ms = (TODAY - 2) * DAY_MS
    await store.commit(
        flush(
            part(1, [result(1, old_ms), result(2, kept_ms)]),
            part(2, [missed(old_ms + n * 1000, old_ms + n * 1000, project_id=n) for n in range(35)], base_seq=0,
                 stream="00000000-0000-0000-0000-000000000002"),
            part(1, [missed(kept_ms - 1000, kept_ms), missed(kept_ms + 5000, kept_ms + 5000)],
                 stream="00000000-0000-0000-0000-000000000003"),
        )
    )  # fmt: skip
    await tables.conn.execute(
        "UPDATE ingest_stream SET updated_at = now() - interval '30 days', ended_at = now() - interval '30 days' "
        "WHERE stream_id = $1",
        S1,
    )
    await tables.conn.execute(
        "INSERT INTO project_spans VALUES (1, now() - interval '30 days', now() - interval '20 days', 1000), "
        "(1, now() - interval '10 days', NULL, 1000)"
    )
    await tables.conn.execute(
        "INSERT INTO ingest_reject (rejected_at, stream_id, worker, error, record) "
        "VALUES (now() - interval '30 days', $1, 'w', 'x', '{}')", S1
    )  # fmt: skip
    await tables.conn.execute(
        "INSERT INTO state_changes (project_id, changed_at, state, began_at, polls) "
        "SELECT 1, now() - days * interval '1 day', 'down', now(), 1 FROM unnest(ARRAY[0, 30]) AS days"
    )
    await tables.conn.execute(
        "INSERT INTO audit_log (at, actor, action, subject) SELECT now() - days * interval '1 day', 'local', "
        "'project.create', days::text FROM unnest(ARRAY[399, 401]) AS days"
    )
    await maintain(store, retention_days=2)
    assert await tables.conn.fetchval("SELECT array_agg(subject) FROM audit_log") == ["399"]  # has a rule of its own
    assert await tables.conn.fetchval("SELECT count(*) FROM state_changes") == 1
    assert await partitions.existing(tables.conn) == [TODAY - 2, TODAY, TODAY + 1, TODAY + 2, TODAY + 3]
    assert [project_id for project_id, _ in await tables.results()] == [2]
    assert [(row[1] + NOW_MS, row[2] + NOW_MS) for row in await tables.missed()] == [
        (kept_ms - 1000, kept_ms),
        (kept_ms + 5000, kept_ms + 5000),
    ]
    assert len(await tables.ledger()) == 2
    assert await tables.rejects() == []
    assert await tables.conn.fetchval("SELECT count(*) FROM project_spans") == 1
    kept_from = await tables.conn.fetchval("SELECT extract(epoch FROM kept_from) FROM result_retention")
    assert int(kept_from) * 1000 == (TODAY - 2) * DAY_MS
    await maintain(store, retention_days=90)
    assert int(await tables.conn.fetchval("SELECT extract(epoch FROM kept_from) FROM result_retention")) == kept_from


async def test_a_stream_that_may_go_on_keeps_its_ledger_row(store, tables):
    """A missing row means that the database was set back; a worker may have nothing to commit for a year."""
    years, ended, recent = (str(uuid.UUID(int=n)) for n in (11, 12, 13))
    await store.commit(
        flush(*(part(1, [result(n)], stream=stream) for n, stream in enumerate((S1, years, ended, recent))))
    )
    for stream, idle_days, ended_days in ((S1, 370, None), (years, 801, None), (ended, 370, 3), (recent, 370, 1)):
        await tables.conn.execute(
            "UPDATE ingest_stream SET updated_at = now() - $2 * interval '1 day', "
            "ended_at = now() - $3 * interval '1 day' WHERE stream_id = $1", stream, idle_days, ended_days,
        )  # fmt: skip
    await maintain(store, retention_days=1)
    assert await tables.ledger() == {S1: 1, recent: 1}
    outcome = await store.commit(flush(part(2, [result(7)])))
    assert outcome.positions == {S1: 2}
    await maintain(store, retention_days=3650)
    assert await tables.ledger() == {S1: 2, recent: 1}


async def test_a_ledger_row_is_kept_as_long_as_the_results(store, tables):
    await store.commit(flush(part(1, [result()])))
    await tables.conn.execute("UPDATE ingest_stream SET updated_at = now() - interval '900 days'")
    await maintain(store, retention_days=1000)
    assert await tables.ledger() == {S1: 1}
    await maintain(store, retention_days=850)
    assert await tables.ledger() == {}


async def test_a_partition_in_use_is_dropped_later(store, tables, database_url, monkeypatch, caplog):
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT_MS", 100)
    await partitions.create(tables.conn, TODAY - 5)
    reader = await database.connect(database_url)
    async with reader.transaction():
        await reader.fetch("SELECT count(*) FROM poll_results")
        async with asyncio.timeout(5):
            await maintain(store, retention_days=2)
        assert TODAY - 5 in await partitions.existing(tables.conn)
        assert "is in use and can't be dropped now" in caplog.text
        assert (await store.commit(flush(part(1, [result()])))).written == 1
    await reader.close()
    await maintain(store, retention_days=2)
    assert TODAY - 5 not in await partitions.existing(tables.conn)


async def test_tables_of_others_are_left_alone(store, tables):
    await tables.conn.execute("CREATE TABLE poll_results_20010101 (x int)")
    await tables.conn.execute("CREATE TABLE poll_results_archive (LIKE poll_results)")
    await tables.conn.execute(
        "ALTER TABLE poll_results ATTACH PARTITION poll_results_archive "
        "FOR VALUES FROM ('2002-01-01Z') TO ('2002-02-01Z')"
    )
    await maintain(store, retention_days=2)
    assert await tables.conn.fetchval("SELECT to_regclass('poll_results_20010101')") is not None
    assert await tables.conn.fetchval("SELECT to_regclass('poll_results_archive')") is not None
