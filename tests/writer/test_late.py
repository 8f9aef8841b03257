"""Late streams on a real PostgreSQL: whatever the order in which streams speak of a tick, it is counted once.

The law after every flush:  polled = every tick whose result was stored;  missed = every tick of every range, less those
polled, each in one range, with the reason of who said so first.
"""

import asyncio
import itertools
import re
import uuid
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.messages.results import MissedRange, PollResult
from tests.examples import examples
from tests.writer.conftest import DAY_MS, NOW_MS, S2, flush, missed, part, result
from writer import store as store_module
from writer import taken
from writer.records import RESULT_COLUMNS
from writer.store import Store, open_connection

STEP_MS = 1_000
TICKS = 10
REASONS = ["overload", "overrun", "handover", "down", "paused"]
_fresh = itertools.count(1)


def ms(number):
    return NOW_MS + number * STEP_MS


# ---- any order ------------------------------------------------------------------------------------------------------


class Books:
    """What the tables have to say, by project and tick."""

    def __init__(self):
        self.rows = {}  # (project, tick) -> trigger of the first result
        self.claimed = {}  # (project, tick) -> reason of the first range since it was not polled

    def enter(self, parts):
        before = len(self.rows)
        records = [record for one in parts for batch in one.batches for record in (*batch.results, *batch.missed)]
        for record in records:
            if isinstance(record, PollResult):
                self.rows.setdefault((record.project_id, record.scheduled_at_ms), record.trigger)
        for record in records:
            if isinstance(record, MissedRange):
                for tick in range(record.first_tick_ms, record.last_tick_ms + 1, record.interval_ms):
                    self.claimed.setdefault((record.project_id, tick), record.reason)
        return len(self.rows) - before

    def missed(self):
        return {key: reason for key, reason in self.claimed.items() if self.rows.get(key) != "tick"}


async def missed_ticks(tables, projects):
    """Reasons by project and tick; each tick in one range only."""
    rows = await tables.conn.fetch(
        "SELECT project_id, (extract(epoch FROM first_tick) * 1000)::bigint AS first, "
        "(extract(epoch FROM last_tick) * 1000)::bigint AS last, ticks, reason FROM missed_polls "
        "WHERE project_id = ANY($1::bigint[])",
        projects,
    )
    found = Counter()
    reasons = {}
    for row in rows:
        step_ms = (row["last"] - row["first"]) // (row["ticks"] - 1) if row["ticks"] > 1 else 1
        assert row["last"] == row["first"] + (row["ticks"] - 1) * step_ms
        for tick in range(row["first"], row["last"] + 1, step_ms):
            found[row["project_id"], tick] += 1
            reasons[row["project_id"], tick] = row["reason"]
    assert not [key for key, count in found.items() if count > 1], "a tick in two ranges"
    return reasons


async def polled(tables, projects):
    rows = await tables.conn.fetch(
        "SELECT project_id, (extract(epoch FROM scheduled_at) * 1000)::bigint AS ms, trigger::text FROM poll_results "
        "WHERE project_id = ANY($1::bigint[])",
        projects,
    )
    return {(row["project_id"], row["ms"]): row["trigger"] for row in rows}


POLLS = st.builds(
    lambda project, tick, trigger: ("poll", project, tick, trigger),
    st.integers(0, 1),
    st.integers(0, TICKS - 1),
    st.sampled_from(["tick"] * 5 + ["immediate"]),
)
RANGES = st.builds(
    lambda project, first, count, reason: ("range", project, first, min(count, TICKS - first), reason),
    st.integers(0, 1),
    st.integers(0, TICKS - 1),
    st.integers(1, TICKS),
    st.sampled_from(REASONS),
)
PARTS = st.lists(st.one_of(POLLS, RANGES), max_size=6)
FLUSHES = st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=6)  # of the first and the second stream


def record_of(drawn, project):
    if drawn[0] == "poll":
        _, _, tick, trigger = drawn
        return result(project, ms(tick), trigger=trigger)
    _, _, first, count, reason = drawn
    return missed(ms(first), ms(first + count - 1), STEP_MS, project_id=project, reason=reason)


@settings(max_examples=examples(250), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=FLUSHES)
async def test_in_any_order_a_tick_is_polled_or_missed_and_counted_once(store, tables, drawn):
    number = next(_fresh)
    projects = [number * 2, number * 2 + 1]
    streams = [str(uuid.uuid4()) for _ in range(2)]
    positions = dict.fromkeys(streams, 0)
    books = Books()
    for both in drawn:
        parts = []
        for stream, records in zip(streams, both, strict=True):
            if records:
                made = [record_of(one, projects[one[1]]) for one in records]
                positions[stream] += 1
                parts.append(part(positions[stream], made, stream=stream))
        if not parts:
            continue
        new = books.enter(parts)
        results = sum(len(batch.results) for one in parts for batch in one.batches)
        outcome = await store.commit(flush(*parts))
        assert (outcome.written, outcome.duplicates, outcome.rejects) == (new, results - new, 0)
        assert await polled(tables, projects) == books.rows
        assert await missed_ticks(tables, projects) == books.missed()


# ---- each case ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False], ids=["one flush", "two flushes"])
async def test_a_result_takes_its_tick_out_of_a_missed_range(store, tables, together):
    ranges = [missed(ms(0), ms(4)), missed(ms(6), ms(6), project_id=2)]
    results = [result(1, ms(1)), result(2, ms(6)), result(1, ms(3), trigger="immediate")]
    if together:
        await store.commit(flush(part(1, [*results, *ranges])))
    else:
        await store.commit(flush(part(1, ranges)))
        await store.commit(flush(part(1, results, stream=S2)))
    assert await tables.missed() == [(1, 0, 0, 1, "overload"), (1, 2000, 4000, 3, "overload")]


async def test_what_remains_of_a_range_keeps_its_worker_and_epoch(store, tables):
    await store.commit(flush(part(1, [missed(ms(0), ms(4), reason="handover")], worker="worker-2")))
    await store.commit(flush(part(1, [result(1, ms(2))], stream=S2)))
    rows = await tables.conn.fetch("SELECT reason, worker, epoch, ticks FROM missed_polls ORDER BY first_tick")
    assert [tuple(row) for row in rows] == [("handover", "worker-2", 7, 2)] * 2


async def test_a_result_that_is_refused_leaves_its_tick_missed(store, tables):
    await store.commit(flush(part(1, [missed(ms(0), ms(2))])))
    outcome = await store.commit(flush(part(1, [result(1, ms(1), status_code=70_000)], stream=S2)))
    assert (outcome.written, outcome.rejects) == (0, 1)
    assert await tables.missed() == [(1, 0, 2000, 3, "overload")]


async def test_a_result_that_is_there_as_another_poll_leaves_its_tick_missed(store, tables):
    await store.commit(flush(part(1, [result(1, ms(1), trigger="immediate"), missed(ms(0), ms(2))])))
    outcome = await store.commit(flush(part(1, [result(1, ms(1)), result(1, ms(2))], stream=S2)))
    assert (outcome.written, outcome.duplicates) == (1, 1)
    assert await tables.missed() == [(1, 0, 1000, 2, "overload")]


async def test_a_range_over_ticks_polled_throughout(store, tables):
    """Over midnight, and looked up as one run of ticks."""
    midnight_ms = NOW_MS // DAY_MS * DAY_MS
    first_ms, last_ms = midnight_ms - 50_000, midnight_ms + 50_000
    await store.commit(flush(part(1, [result(1, at) for at in range(first_ms, last_ms + 1, STEP_MS)])))
    await store.commit(flush(part(1, [missed(first_ms - 1000, last_ms + 2000)], stream=S2)))
    assert await tables.missed() == [
        (1, first_ms - 1000 - NOW_MS, first_ms - 1000 - NOW_MS, 1, "overload"),
        (1, last_ms + 1000 - NOW_MS, last_ms + 2000 - NOW_MS, 2, "overload"),
    ]


async def test_polls_off_the_grid_take_nothing(store, tables):
    """Not even when they lie between ticks that were polled."""
    await store.commit(flush(part(1, [result(1, NOW_MS + at) for at in (2000, 3000, 3500, 4000, 5000)])))
    await store.commit(flush(part(2, [missed(ms(0), ms(6))])))
    assert await tables.missed() == [(1, 0, 1000, 2, "overload"), (1, 6000, 6000, 1, "overload")]


async def test_ranges_of_two_grids_take_from_each_other_only_what_they_have_in_common(store, tables):
    """Just after an interval was changed, while the worker had not heard of it."""
    await store.commit(flush(part(1, [missed(ms(0), ms(6), 2_000)])))
    await store.commit(flush(part(2, [missed(ms(3), ms(9), 3_000), missed(ms(0), ms(0), 7_000)])))
    assert await tables.missed() == [(1, 0, 6000, 4, "overload"), (1, 3000, 3000, 1, "overload"),
                                     (1, 9000, 9000, 1, "overload")]  # fmt: skip
    await store.commit(flush(part(1, [result(1, ms(4)), result(1, ms(3))], stream=S2)))
    assert await tables.missed() == [(1, 0, 2000, 2, "overload"), (1, 6000, 6000, 1, "overload"),
                                     (1, 9000, 9000, 1, "overload")]  # fmt: skip


# ---- at length ------------------------------------------------------------------------------------------------------


class Statements:
    """What the store asks of its connection."""

    def __init__(self, store, monkeypatch):
        self.texts = []
        run = store.run

        async def listening(work):
            async def wrapped(conn):
                with conn.query_logger(lambda query: self.texts.append(query.query)):
                    return await work(conn)

            return await run(wrapped)

        monkeypatch.setattr(store, "run", listening)

    def look_ups(self):
        return [text for text in self.texts if "missed_polls" in text and "LATERAL" in text]


@pytest.mark.parametrize("query", ["_STREAMS_CONCERNED", "_RANGES_OVERLAPPING", "_DELETE_RANGES", "_CLAIMS_CONCERNED",
                                   "_CLAIMS_TAKEN", "_PRESENT"])  # fmt: skip
async def test_rows_are_looked_up_however_small_the_tables_are(store, tables, database_url, query):
    """A plan is kept while the tables grow."""
    await store.commit(flush(part(1, [result(1), missed(ms(5), ms(9))])))
    await tables.conn.execute("ANALYZE poll_results, missed_polls")
    [partition] = await tables.conn.fetch("SELECT tableoid::regclass::text FROM poll_results")
    text = getattr(taken, query).format(partition[0])
    conn = await open_connection(database_url)
    await conn.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE look_up AS {text}")
    nulls = ", ".join(["NULL"] * len(set(re.findall(r"\$\d", text))))
    plan = "\n".join(row[0] for row in await conn.fetch(f"EXPLAIN EXECUTE look_up({nulls})"))
    await conn.close()
    assert "Index" in plan
    assert "Seq Scan" not in plan
    assert not re.search(r"(Hash|Merge) (Semi |Anti |Left )?Join", plan)


async def test_late_results_without_a_missed_range_cost_one_question(store, tables, monkeypatch):
    await store.commit(flush(part(1, [missed(ms(-900), ms(-800), project_id=n) for n in range(1, 200)])))
    statements = Statements(store, monkeypatch)
    await store.commit(flush(part(1, [result(n, ms(n)) for n in range(1, 500)], stream=S2)))
    [question] = statements.look_ups()
    assert "LIMIT 100" in question


async def test_ranges_of_others_at_the_time_are_not_touched(store, tables):
    await store.commit(flush(part(1, [missed(ms(n), ms(n + 1), project_id=n) for n in range(1, 400)])))
    before = await tables.missed()
    ids = await tables.conn.fetch("SELECT ctid::text FROM missed_polls ORDER BY project_id")
    await store.commit(flush(part(1, [result(n, ms(n + 2)) for n in range(1, 400)], stream=S2)))
    assert await tables.missed() == before
    assert await tables.conn.fetch("SELECT ctid::text FROM missed_polls ORDER BY project_id") == ids


async def test_an_outage_is_freed_flush_by_flush(store, tables, monkeypatch):
    """Each flush rewrites one range per project, however long it is."""
    projects, ticks, per_flush = 50, 600, 10
    await store.commit(flush(part(1, [missed(ms(0), ms(ticks - 1), project_id=n) for n in range(projects)])))
    rewritten = []
    store_ranges = taken.store_ranges

    async def counting(conn, ranges):
        rewritten.append(len(ranges))
        await store_ranges(conn, ranges)

    monkeypatch.setattr(taken, "store_ranges", counting)
    for seq, start in enumerate(range(0, ticks, per_flush), start=1):
        rows = [result(n, ms(tick)) for tick in range(start, start + per_flush) for n in range(projects)]
        await store.commit(flush(part(seq, rows, stream=S2)))
        left = ticks - start - per_flush
        assert [(row[0], row[3]) for row in await tables.missed()] == [(n, left) for n in range(projects) if left]
    assert rewritten == [projects] * (ticks // per_flush - 1) + [0]
    assert await tables.conn.fetchval("SELECT count(*) FROM poll_results") == projects * ticks


async def test_very_many_ranges_of_one_project_in_a_flush(store, tables):
    """20,000 of them, in proportion to their number: a minute would not do for each with each."""
    async with asyncio.timeout(30):
        await store.commit(flush(part(1, [missed(ms(n * 2), ms(n * 2)) for n in range(20_000)])))
        assert await tables.conn.fetchval("SELECT count(*) FROM missed_polls") == 20_000
        await store.commit(flush(part(1, [missed(ms(0), ms(39_999))], stream=S2)))
        assert await tables.conn.fetchval("SELECT sum(ticks) FROM missed_polls") == 40_000
        rows = [result(1, ms(n)) for n in range(0, 40_000, 3)]
        await store.commit(flush(part(2, rows, stream=S2)))
    assert await tables.conn.fetchval("SELECT sum(ticks) FROM missed_polls") == 40_000 - len(rows)


async def test_claims_in_chunks_see_each_other(store, tables, monkeypatch):
    monkeypatch.setattr(taken, "CLAIMS_PER_QUERY", 3)
    claims = [missed(ms(n), ms(n + 4), reason="down") for n in range(20)]
    await store.commit(flush(part(1, claims)))
    assert await missed_ticks(tables, [1]) == {(1, ms(n)): "down" for n in range(24)}


# ---- duplicates -----------------------------------------------------------------------------------------------------


async def test_after_duplicates_the_next_flush_does_not_run_into_them(store, tables, caplog):
    caplog.set_level("INFO", logger="writer.store")
    await store.commit(flush(part(1, [result(n) for n in range(1, 301)])))
    for seq in range(1, 4):
        rows = [result(n) for n in range(seq * 90, seq * 90 + 10)] + [result(1000 * seq + n) for n in range(10)]
        outcome = await store.commit(flush(part(seq, rows, stream=S2)))
        assert (outcome.written, outcome.duplicates) == (10, 10)
    assert caplog.text.count("is written carefully") == 1, "the first one"
    outcome = await store.commit(flush(part(4, [result(9001)], stream=S2)))
    assert (outcome.written, outcome.duplicates) == (1, 0)
    outcome = await store.commit(flush(part(5, [result(9001)], stream=S2)))
    assert (outcome.written, outcome.duplicates) == (0, 1)
    assert caplog.text.count("is written carefully") == 2, "one without duplicates ended it"


async def test_a_stranger_adds_the_same_result_between_look_and_write(store, tables, monkeypatch):
    await store.commit(flush(part(1, [result(1)], [result(1)])))  # from now on duplicates are expected
    absent = taken.absent
    strangers = iter(range(1))

    async def slow(conn, partition, records):
        found = await absent(conn, partition, records)
        for _ in strangers:
            columns = ", ".join(RESULT_COLUMNS[1:]).replace("worker", "'stranger'")
            await tables.conn.execute(f"INSERT INTO {partition} SELECT 5, {columns} FROM {partition}")
        return found

    monkeypatch.setattr("writer.store.absent", slow)
    outcome = await store.commit(flush(part(3, [result(n) for n in range(2, 9)])))
    assert (outcome.written, outcome.duplicates, outcome.rejects) == (6, 1, 0)
    assert await tables.conn.fetchval("SELECT worker FROM poll_results WHERE project_id = 5") == "stranger"


async def test_two_writers_take_turns(store, tables, database_url, monkeypatch):
    """The results of an old writer's last flush, and the claim in a new one's first, which must not overlook them."""
    other = Store(database_url, retention_days=90, wall_ms=lambda: NOW_MS)
    await other.load_ledger([S2])
    looked, go_on = asyncio.Event(), asyncio.Event()
    free = taken.free

    async def halting(conn, spreads, stored):
        await free(conn, spreads, stored)
        if spreads:
            looked.set()
            await go_on.wait()

    monkeypatch.setattr(store_module, "free", halting)
    async with asyncio.timeout(20):
        first = asyncio.create_task(store.commit(flush(part(1, [result(1, ms(n)) for n in range(5)]))))
        await looked.wait()
        claim = missed(ms(0), ms(9), reason="down")
        second = asyncio.create_task(other.commit(flush(part(1, [claim], stream=S2))))
        while not await tables.conn.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        ):
            await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(first, second)
    await other.close()
    assert await missed_ticks(tables, [1]) == {(1, ms(n)): "down" for n in range(5, 10)}
