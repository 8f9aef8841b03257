"""Flushes into a real PostgreSQL: every path of the store, and the counts it reports."""

import asyncio
import contextlib
import random
import uuid
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cluster import database
from tests.writer.conftest import DAY_MS, NOW_MS, S1, S2, flush, missed, part, result
from writer import store as store_module
from writer.events import LedgerWentBack
from writer.store import Store, StoreError

S3 = str(uuid.UUID(int=3))


def at(ms):
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


async def test_every_column_arrives_as_sent(store, tables):
    failed = result(
        2, NOW_MS + 1, trigger="immediate", status="failure", status_code=None, response_time_ms=None, error_code="dns",
        error_message="no such host: ü€😀", first_byte_ms=None, transfer_ms=None, size_bytes=None,
        connection_reused=None, remote_address=None, dns_ms=1.5, attempts=3,
    )  # fmt: skip
    outcome = await store.commit(flush(part(1, [result(), failed, missed(NOW_MS + 1000, NOW_MS + 5000)])))
    assert (outcome.written, outcome.duplicates, outcome.rejects) == (2, 0, 0)
    assert outcome.positions == {S1: 1}
    one, two = await tables.conn.fetch("SELECT * FROM poll_results ORDER BY project_id")
    assert dict(one) == {
        "project_id": 1, "scheduled_at": at(NOW_MS), "polled_at": at(NOW_MS) + timedelta(microseconds=1_234),
        "trigger": "tick", "status": "success", "status_code": 200, "response_time_ms": 12.5, "error_code": None,
        "error_message": None, "dns_ms": None, "connect_ms": None, "tls_ms": None, "first_byte_ms": 9.25,
        "transfer_ms": 0.5, "size_bytes": 1234, "connection_reused": True, "remote_address": "127.0.0.1",
        "worker": "worker-1", "epoch": 7, "attempts": None,
    }  # fmt: skip
    assert (two["trigger"], two["status"], two["error_message"], two["dns_ms"]) == (
        "immediate", "failure", "no such host: ü€😀", 1.5,
    )  # fmt: skip
    assert two["attempts"] == 3
    assert [two[c] for c in ("status_code", "response_time_ms", "size_bytes", "connection_reused")] == [None] * 4
    [range_] = await tables.conn.fetch("SELECT * FROM missed_polls")
    assert dict(range_) == {
        "project_id": 1, "first_tick": at(NOW_MS + 1000), "last_tick": at(NOW_MS + 5000), "ticks": 5,
        "reason": "overload", "worker": "worker-1", "epoch": 7,
    }  # fmt: skip
    [ledger] = await tables.conn.fetch("SELECT * FROM ingest_stream")
    assert (str(ledger["stream_id"]), ledger["worker"], ledger["last_seq"], ledger["ended_at"]) == (
        S1,
        "worker-1",
        1,
        None,
    )


async def test_milliseconds_are_exact(store, tables):
    offsets = random.Random(4).sample(range(DAY_MS // 2), 1000)
    await store.commit(flush(part(1, [result(1, NOW_MS + offset) for offset in offsets])))
    assert [ms for _, ms in await tables.results()] == sorted(offsets)
    ragged = await tables.conn.fetchval(
        "SELECT count(*) FROM poll_results WHERE scheduled_at <> date_trunc('milliseconds', scheduled_at)"
    )
    assert ragged == 0


async def test_days_go_to_their_partitions_which_are_made_on_demand(store, tables):
    yesterday, today = NOW_MS - DAY_MS, NOW_MS
    midnight = NOW_MS // DAY_MS * DAY_MS
    times = [yesterday, midnight - 1, midnight, today]
    await store.commit(flush(part(1, [result(1, ms) for ms in times])))
    rows = await tables.conn.fetch(
        "SELECT tableoid::regclass::text AS t, count(*) FROM poll_results GROUP BY 1 ORDER BY 1"
    )
    names = [f"poll_results_{at(ms):%Y%m%d}" for ms in (yesterday, today)]
    assert [(row["t"], row["count"]) for row in rows] == [(names[0], 2), (names[1], 2)]
    assert await tables.ledger() == {S1: 1}


async def test_a_flush_over_many_days_without_partitions(store, tables):
    days = [NOW_MS - n * DAY_MS for n in range(30)]
    outcome = await store.commit(flush(part(1, [result(1, ms) for ms in days])))
    assert (outcome.written, outcome.rejects) == (30, 0)
    assert len(await tables.results()) == 30


# ---- the ledger -----------------------------------------------------------------------------------------------------


async def test_streams_advance_together(store, tables):
    await store.commit(flush(part(1, [result(1)], [result(2)]), part(1, [result(3)], stream=S2)))
    await store.commit(flush(part(3, [result(4)]), part(2, [result(5)], stream=S2)))
    assert await tables.ledger() == {S1: 3, S2: 2}
    assert len(await tables.results()) == 5
    unknown = str(uuid.UUID(int=9))
    assert await store.load_ledger([S1, S2, unknown]) == {S1: 3, S2: 2, unknown: 0}


async def test_a_stream_id_may_be_written_without_dashes(store):
    plain = uuid.UUID(int=77).hex
    await store.commit(flush(part(1, [result()], stream=plain)))
    assert await store.load_ledger([plain]) == {plain: 1}


async def test_the_same_flush_again_changes_nothing(store, tables):
    twice = flush(part(1, [result(1)], [result(2), missed(NOW_MS, NOW_MS, project_id=3)]))
    await store.commit(twice)
    outcome = await store.commit(twice)
    assert (outcome.positions, outcome.written, outcome.duplicates) == ({S1: 2}, 0, 0)
    assert len(await tables.results()) == 2
    assert len(await tables.missed()) == 1


async def test_what_is_in_already_is_left_out(store, tables):
    """The ledger stands in the middle of the flush for one stream, and where it should for the other."""
    await store.commit(flush(part(1, [result(1)], [result(2)])))
    outcome = await store.commit(
        flush(part(1, [result(1)], [result(2)], [result(3)], base_seq=0), part(1, [result(4)], stream=S2))
    )
    assert (outcome.positions, outcome.written, outcome.duplicates) == ({S1: 3, S2: 1}, 2, 0)
    assert [project_id for project_id, _ in await tables.results()] == [1, 2, 3, 4]


async def test_a_ledger_ahead_of_the_flush(store, tables):
    await store.commit(flush(part(1, [result(1)], [result(2)], [result(3)])))
    outcome = await store.commit(flush(part(1, [result(1)], base_seq=0), part(1, [result(5)], stream=S2)))
    assert (outcome.positions, outcome.written) == ({S1: 3, S2: 1}, 1)
    assert await tables.ledger() == {S1: 3, S2: 1}


@pytest.mark.parametrize("row", ["UPDATE ingest_stream SET last_seq = 1 WHERE stream_id = $1",
                                 "DELETE FROM ingest_stream WHERE stream_id = $1"])  # fmt: skip
async def test_a_ledger_that_went_back_commits_nothing(store, tables, caplog, row):
    await store.commit(flush(part(1, [result(1)], [result(2)]), part(1, [result(3)], stream=S2)))
    await tables.conn.execute(row, S1)
    position = (await store.load_ledger([S1]))[S1]
    later = flush(part(3, [result(4)]), part(2, [result(5)], stream=S2), part(1, [result(6)], stream=S3))
    outcome = await store.commit(later)
    assert outcome == LedgerWentBack(later.flush_id)
    assert [project_id for project_id, _ in await tables.results()] == [1, 2, 3], "nothing of it"
    assert (await tables.ledger()).get(S1, 0) == position
    assert [record.levelname for record in caplog.records if "went back" in record.message] == ["ERROR"]
    assert f"the database lost committed results; asking the workers for them again: {S1} of worker-1" in caplog.text
    assert f"went back from 2 to {position}" in caplog.text
    # What is sent again from where the ledger stands is committed.
    again = flush(part(position + 1, *[[result(n, NOW_MS + 1)] for n in range(position + 1, 4)]))
    assert (await store.commit(again)).positions == {S1: 3}


async def test_many_streams_that_went_back_are_one_line(store, tables, caplog):
    streams = [str(uuid.uuid4()) for _ in range(50)]
    await store.commit(flush(*(part(1, [result(n)], stream=stream) for n, stream in enumerate(streams))))
    await tables.conn.execute("DELETE FROM ingest_stream")
    later = flush(*(part(2, [result(n)], stream=stream) for n, stream in enumerate(streams)))
    assert await store.commit(later) == LedgerWentBack(later.flush_id)
    [line] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert f"{streams[0]} of worker-1 went back from 1 to 0" in line
    assert "and 47 more" in line
    assert len(line) < 500


async def test_one_stream_ahead_and_another_one_back(store, tables):
    await store.commit(flush(part(1, [result(1)], [result(2)]), part(1, [result(3)], [result(4)], stream=S2)))
    await tables.conn.execute("UPDATE ingest_stream SET last_seq = 1 WHERE stream_id = $1", S2)
    mixed = flush(part(1, [result(1)], base_seq=0), part(3, [result(5)], stream=S2))
    assert await store.commit(mixed) == LedgerWentBack(mixed.flush_id)


async def test_a_new_stream_is_no_set_back(store, tables):
    """base_seq 0 and no row: also when the worker no longer has its first batches."""
    outcome = await store.commit(flush(part(7, [result(1)], base_seq=0)))
    assert outcome.positions == {S1: 7}
    assert await tables.ledger() == {S1: 7}


async def test_an_end_is_noted(store, tables):
    await store.commit(flush(part(1, [result()])))
    await store.mark_ended([S1, S2])
    assert await tables.conn.fetchval("SELECT ended_at IS NOT NULL FROM ingest_stream") is True
    assert await tables.ledger() == {S1: 1}


async def test_two_writers_of_one_stream(database_url, tables):
    """An old writer's flush still on its way, and a new one's: each batch is in once."""
    stores = [Store(database_url, retention_days=90, wall_ms=lambda: NOW_MS) for _ in range(4)]
    same = [flush(part(1, *[[result(n)] for n in range(1, 50)])) for _ in stores]
    outcomes = await asyncio.gather(*(s.commit(f) for s, f in zip(stores, same, strict=True)))
    assert sorted(o.written for o in outcomes) == [0, 0, 0, 49]
    assert all(o.positions == {S1: 49} for o in outcomes)
    assert len(await tables.results()) == 49
    for s in stores:
        await s.close()


# ---- duplicates, refusals -------------------------------------------------------------------------------------------


async def test_a_tick_polled_twice_is_counted_and_kept_once(store, tables):
    await store.commit(flush(part(1, [result(1), result(2)])))
    outcome = await store.commit(
        flush(part(1, [result(1, status="failure"), result(3), result(3), missed(NOW_MS, NOW_MS)], stream=S2))
    )
    assert (outcome.written, outcome.duplicates, outcome.rejects) == (1, 2, 0)
    assert [project_id for project_id, _ in await tables.results()] == [1, 2, 3]
    assert await tables.conn.fetchval("SELECT status FROM poll_results WHERE project_id = 1") == "success"
    assert await tables.ledger() == {S1: 1, S2: 1}
    outcome = await store.commit(flush(part(2, [result(4)])))
    assert (outcome.written, outcome.duplicates) == (1, 0), "and the fast path is taken again"


POISON = [
    result(101, error_message="a\x00b", error_code="closed", status="failure"),  # no NUL in text
    result(102, status_code=70_000),  # not a smallint
    result(103, size_bytes=2**40),
    result(2**70),
    result(104, response_time_ms=1e300),  # not a real
    result(105, epoch=2**63),
    result(106, remote_address="\x00"),
]


@pytest.mark.parametrize("place", [0, 500, 999])
async def test_poison_is_set_aside_and_everything_else_committed(store, tables, place):
    records = [result(n, NOW_MS + 5) for n in range(1, 1001)]
    records[place:place] = POISON
    outcome = await store.commit(flush(part(1, records[:300], records[300:]), part(1, [result(9000)], stream=S2)))
    assert (outcome.written, outcome.duplicates, outcome.rejects) == (1001, 0, len(POISON))
    assert outcome.positions == {S1: 2, S2: 1}
    assert await tables.ledger() == {S1: 2, S2: 1}
    assert len(await tables.results()) == 1001
    rejects = await tables.rejects()
    assert {project_id for project_id, _, _ in rejects} == {101, 102, 103, None, 104, 105, 106}
    assert all(error and error.isprintable() for _, error, _ in rejects)
    [record] = [record for project_id, _, record in rejects if project_id == 102]
    assert (record["status_code"], record["scheduled_at_ms"]) == (70_000, NOW_MS)
    outcome = await store.commit(flush(part(3, [result(9001)])))
    assert outcome.written == 1


async def test_a_flush_of_nothing_but_poison_ends(store, tables, monkeypatch):
    """No transaction of it is long, and none has more savepoints than the server has locks for."""
    monkeypatch.setattr(store_module, "OPERATION_TIMEOUT_S", 4)
    bad = [[result(n, status_code=70_000) for n in range(first, first + 400)] for first in range(1, 3_201, 400)]
    good = [result(n, NOW_MS + 1) for n in range(30_001, 30_011)]
    outcome = await store.commit(flush(part(1, *bad, [*good, missed(NOW_MS, NOW_MS)]), part(1, good, stream=S2)))
    assert (outcome.written, outcome.duplicates, outcome.rejects) == (10, 10, 3_200)
    assert outcome.positions == {S1: 9, S2: 1}
    assert await tables.ledger() == {S1: 9, S2: 1}
    assert await tables.conn.fetchval("SELECT count(*) FROM ingest_reject") == 3_200


async def test_poison_that_was_committed_in_part_goes_on_where_it_stood(store, tables, monkeypatch):
    monkeypatch.setattr(store_module, "REFUSED_MAX", 2)
    batches = [[result(10 * n + k, status_code=70_000) for k in range(4)] + [result(10 * n + 9)] for n in range(6)]
    whole = flush(part(1, *batches))
    real, calls = store_module.ledger.advance, []

    async def failing(conn, parts):
        calls.append([batch.seq for one in parts for batch in one.batches])
        if calls[-1] == [4]:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        await real(conn, parts)

    monkeypatch.setattr(store_module.ledger, "advance", failing)
    with pytest.raises(StoreError):
        await store.commit(whole)
    assert await tables.ledger() == {S1: 3}
    monkeypatch.setattr(store_module.ledger, "advance", real)
    assert (await store.commit(whole)).positions == {S1: 6}
    assert await tables.conn.fetchval("SELECT count(*) FROM ingest_reject") == 24
    assert len(await tables.results()) == 6


async def test_results_out_of_time_are_rejected_one_by_one(store, tables):
    old = [result(1, NOW_MS - 91 * DAY_MS), result(2, 0), result(3, -(10**15)), result(4, 10**30)]
    ahead = [result(5, NOW_MS + DAY_MS + 1), result(6, 10**17)]
    kept = [result(7, NOW_MS - 90 * DAY_MS), result(8, NOW_MS + DAY_MS)]
    outcome = await store.commit(flush(part(1, old + ahead + kept)))
    assert (outcome.written, outcome.rejects) == (2, 6)
    rejects = {project_id: error for project_id, error, _ in await tables.rejects()}
    assert "older than the retention" in rejects[1]
    assert "in the future" in rejects[5]
    assert [project_id for project_id, _ in await tables.results()] == [7, 8]


async def test_ranges_that_are_none_are_rejected(store, tables):
    bad = [
        missed(NOW_MS, NOW_MS, 0),
        missed(NOW_MS, NOW_MS, -5),
        missed(NOW_MS, NOW_MS - 1000),
        missed(NOW_MS, NOW_MS + 1),
        missed(-5, NOW_MS, 1),
        missed(NOW_MS, NOW_MS + 10**15),
        missed(0, NOW_MS // 1000 * 1000, 1, reason="down"),  # more ticks than an int holds
        missed(0, NOW_MS // 1000 * 1000, 1),
    ]
    outcome = await store.commit(flush(part(1, [*bad, missed(NOW_MS, NOW_MS + 9000), result(2)])))
    assert (outcome.written, outcome.rejects) == (1, len(bad))
    assert await tables.missed() == [(1, 0, 9000, 10, "overload")]


# ---- claims ---------------------------------------------------------------------------------------------------------


async def test_a_claim_leaves_out_what_is_in_the_tables(store, tables):
    await store.commit(
        flush(
            part(
                1,
                [result(1, NOW_MS + 2000), result(1, NOW_MS + 2500), result(1, NOW_MS + 3000, trigger="immediate")],
                [missed(NOW_MS - 5000, NOW_MS), missed(NOW_MS + 6000, NOW_MS + 7000, reason="paused")],
                [result(2, NOW_MS + 4000), missed(NOW_MS + 4000, NOW_MS + 4000, project_id=3)],
            )
        )
    )
    before = await tables.missed()
    await store.commit(flush(part(4, [missed(NOW_MS, NOW_MS + 9000, reason="handover")])))
    added = [row for row in await tables.missed() if row not in before]
    assert added == [
        (1, 1000, 1000, 1, "handover"),
        (1, 3000, 5000, 3, "handover"),
        (1, 8000, 9000, 2, "handover"),
    ]


async def test_a_claim_sees_its_own_flush_and_other_claims(store, tables):
    await store.commit(
        flush(
            part(1, [result(1, NOW_MS + 1000), missed(NOW_MS + 3000, NOW_MS + 3000)]),
            part(1, [missed(NOW_MS, NOW_MS + 5000, reason="down")], stream=S2),
            part(1, [missed(NOW_MS + 4000, NOW_MS + 7000, reason="down")], stream=str(uuid.UUID(int=3))),
        )
    )
    assert await tables.missed() == [
        (1, 0, 0, 1, "down"),
        (1, 2000, 2000, 1, "down"),
        (1, 3000, 3000, 1, "overload"),
        (1, 4000, 5000, 2, "down"),
        (1, 6000, 7000, 2, "down"),
    ]


async def test_a_claim_of_which_nothing_remains(store, tables):
    await store.commit(flush(part(1, [result(1, NOW_MS)])))
    outcome = await store.commit(flush(part(2, [missed(NOW_MS, NOW_MS, reason="down")])))
    assert outcome.positions == {S1: 2}
    assert await tables.missed() == []


async def test_many_long_claims(store, tables):
    """Ten days of one-second ticks for 2,000 projects: 1.7 billion ticks, never enumerated."""
    ten_days = 10 * DAY_MS
    await store.commit(flush(part(1, [result(n, NOW_MS - 1000) for n in range(1, 2001)])))
    claims = [missed(NOW_MS - ten_days, NOW_MS, project_id=n, reason="down") for n in range(1, 2001)]
    async with asyncio.timeout(30):
        await store.commit(flush(part(2, claims)))
    assert await tables.conn.fetchval("SELECT sum(ticks) FROM missed_polls") == 2000 * (864_001 - 1)
    assert await tables.conn.fetchval("SELECT count(*) FROM missed_polls") == 4000


async def test_ranges_that_begin_together_are_merged_not_lost(store, tables):
    await store.commit(flush(part(1, [missed(NOW_MS, NOW_MS + 1000)])))
    await store.commit(flush(part(2, [missed(NOW_MS, NOW_MS + 5000), result(2)])))
    assert [row[1:4] for row in await tables.missed()] == [(0, 1000, 2), (2000, 5000, 4)]
    assert await tables.ledger() == {S1: 2}


# ---- when the database fails ----------------------------------------------------------------------------------------


async def kill_others(tables):
    await tables.conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


async def test_a_lost_connection_is_replaced(store, tables):
    await store.commit(flush(part(1, [result(1)], [result(1)])))  # the careful path and its temporary table, too
    await kill_others(tables)
    again = flush(part(3, [result(2)], [result(2)]))
    outcome = None
    for _ in range(2):  # the loss may have been noticed already: then the first attempt succeeds
        with contextlib.suppress(StoreError):
            outcome = outcome or await store.commit(again)
    assert outcome is not None
    assert (outcome.written, outcome.duplicates) == (1, 1)
    assert await tables.ledger() == {S1: 4}


class CutAtCommit:
    """A connection whose COMMIT is answered by silence: it happens or not, the client never learns."""

    def __init__(self, monkeypatch, *, happens):
        real = asyncpg.transaction.Transaction.commit
        self.cuts = 0

        async def commit(transaction):
            conn = transaction._connection
            if self.cuts or not await conn.fetchval("SELECT txid_current_if_assigned() IS NOT NULL"):
                return await real(transaction)
            self.cuts += 1
            if happens:
                await real(transaction)
            conn.terminate()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

        monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", commit)


@pytest.mark.parametrize("happens", [True, False])
async def test_an_unknown_outcome_of_the_commit_is_found_out(store, tables, monkeypatch, happens):
    await store.commit(flush(part(1, [result(1)])))
    cut = CutAtCommit(monkeypatch, happens=happens)
    doubtful = flush(part(2, [result(2), result(3)], [missed(NOW_MS, NOW_MS, project_id=4)]))
    with pytest.raises(StoreError):
        await store.commit(doubtful)
    assert cut.cuts == 1
    outcome = await store.commit(doubtful)
    assert (outcome.positions, outcome.written, outcome.duplicates) == ({S1: 3}, 2, 0)
    assert len(await tables.results()) == 3
    assert len(await tables.missed()) == 1


async def test_a_killed_backend_in_the_middle_of_a_flush(store, tables):
    await store.commit(flush(part(1, [result(1)])))
    blocker = tables.conn.transaction()
    await blocker.start()
    await tables.conn.execute("LOCK TABLE missed_polls IN ACCESS EXCLUSIVE MODE")
    waiting = asyncio.create_task(store.commit(flush(part(2, [result(2), missed(NOW_MS, NOW_MS)]))))
    async with asyncio.timeout(10):
        while not await tables.conn.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
    await kill_others(tables)
    with pytest.raises(StoreError):
        await waiting
    await blocker.rollback()
    assert await tables.ledger() == {S1: 1}
    assert len(await tables.results()) == 1


async def test_a_flush_that_takes_too_long_is_given_up(store, tables, monkeypatch):
    await store.commit(flush(part(1, [result(1)])))
    monkeypatch.setattr(store_module, "OPERATION_TIMEOUT_S", 0.3)
    blocker = tables.conn.transaction()
    await blocker.start()
    await tables.conn.execute("LOCK TABLE ingest_stream IN ACCESS EXCLUSIVE MODE")
    late = flush(part(2, [result(2)]))
    with pytest.raises(StoreError) as caught:
        await store.commit(late)
    assert caught.value.kind == "retry"
    await blocker.rollback()
    monkeypatch.setattr(store_module, "OPERATION_TIMEOUT_S", 30)
    assert (await store.commit(late)).written == 1
    assert await tables.ledger() == {S1: 2}


async def test_a_missing_schema_is_fatal_and_says_what_to_do(empty_database_url):
    store = Store(empty_database_url, retention_days=90, wall_ms=lambda: NOW_MS)
    for work in (lambda: store.commit(flush(part(1, [result()]))), lambda: store.load_ledger([S1])):
        with pytest.raises(StoreError, match="run `cluster migrate`") as caught:
            await work()
        assert caught.value.kind == "fatal"
    conn = await database.connect(empty_database_url)
    await database.migrate(conn)
    await conn.close()
    assert (await store.commit(flush(part(1, [result()])))).written == 1
    await store.close()


async def test_an_unreachable_database_is_retried(tmp_path):
    store = Store(f"postgresql://postgres@/x?host={tmp_path}", retention_days=90, wall_ms=lambda: NOW_MS)
    with pytest.raises(StoreError, match="cannot reach the database") as caught:
        await store.load_ledger([S1])
    assert caught.value.kind == "retry"
