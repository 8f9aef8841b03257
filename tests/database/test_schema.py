"""The schema: what the CHECKs take and refuse, spans kept by the triggers, notifications."""

import asyncio
import json
from datetime import timedelta

import asyncpg
import pytest

from cluster import database
from cluster.project import ID_MAX

ID_IN_TABLE_MAX = (1 << 62) + (1 << 61)
INSERT = "INSERT INTO projects (url) VALUES ('http://h/') RETURNING id"


@pytest.fixture
async def conn(database_url):
    conn = await database.connect(database_url)
    yield conn
    await conn.close()


async def spans(conn, project_id):
    return await conn.fetch(
        "SELECT since, until, interval_ms FROM project_spans WHERE project_id = $1 ORDER BY since", project_id
    )


async def check_spans(conn):
    """What must hold of all spans at all times."""
    wrong = await conn.fetch(
        """
        SELECT p.id FROM projects p FULL JOIN (SELECT * FROM project_spans WHERE until IS NULL) s ON s.project_id = p.id
        WHERE (p.enabled IS TRUE) <> (s.project_id IS NOT NULL)
           OR s.interval_ms <> ringpoll_interval_ms(p.interval, p.unit)
        """
    )
    assert wrong == []
    overlapping = await conn.fetch(
        """
        SELECT project_id FROM (SELECT *, lead(since) OVER (PARTITION BY project_id ORDER BY since) AS next
                                FROM project_spans) s
        WHERE next IS NOT NULL AND (until IS NULL OR until > next)
        """
    )
    assert overlapping == []
    ragged = await conn.fetchval(
        "SELECT count(*) FROM project_spans WHERE since <> date_trunc('milliseconds', since) "
        "OR until <> date_trunc('milliseconds', until)"
    )
    assert ragged == 0


# ---- CHECKs ---------------------------------------------------------------------------------------------------------

GOOD = [
    ("url", "http://h"),
    ("url", "https://user:pw@example.org:8443/a%2Fb?x=1#f"),
    ("url", "HTTP://[::1]:80/"),
    ("url", "http://h/" + "a" * 4087),
    ("method", "GET"),
    ("method", "M-SEARCH"),
    ("headers", "{}"),
    ("headers", "null"),
    ("headers", '{"Accept": "*/*"}'),
    ("body", ""),
    ("body", "ü" * 65536),
    ("expected_status", "200"),
    ("expected_status", "2xx, 301,400 - 404"),
    ("interval", 1),
    ("interval", 31_536_000),
    ("unit", "seconds"),
    ("timeout_ms", 1),
    ("timeout_ms", 600_000),
    ("name", "ü" * 200),
    ("assertions", "null"),
    ("assertions", "[]"),
    ("assertions", '[{"ms": 5, "type": "response_time_below"}]'),
]
BAD = [
    ("url", ""),
    ("url", "h"),
    ("url", "ftp://h/"),
    ("url", "http://"),
    ("url", "http:///path"),
    ("url", "http://?q"),
    ("url", "http://h/a b"),
    ("url", "http://h/a\nb"),
    ("url", "http://h/a\x01b"),
    ("url", "http://h/\n"),
    ("url", " http://h/"),
    ("url", "http://h/" + "a" * 4088),
    ("method", ""),
    ("method", "GE T"),
    ("method", "GET\n"),
    ("method", "G" * 33),
    ("headers", "[]"),
    ("headers", '"x"'),
    ("headers", '{"Accept": 1}'),
    ("headers", '{"Accept": null}'),
    ("headers", '{"Accept": ["a"]}'),
    ("body", "x" * 65537),
    ("expected_status", ""),
    ("expected_status", "2x"),
    ("expected_status", "600"),
    ("expected_status", "099"),
    ("expected_status", "200,"),
    ("expected_status", "200-"),
    ("expected_status", "200 301"),
    ("expected_status", ",".join(["200"] * 251)),
    ("interval", 0),
    ("interval", -1),
    ("interval", 31_536_001),
    ("unit", "days"),
    ("unit", ""),
    ("timeout_ms", 0),
    ("timeout_ms", 600_001),
    ("name", "x" * 201),
    ("assertions", "{}"),
    ("assertions", '"status 2xx"'),
    ("enabled", None),
    ("url", None),
]


async def insert(conn, column, value):
    columns = {"url": "http://h/"} | {column: value}
    names = ", ".join(columns)
    marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    return await conn.fetchval(f"INSERT INTO projects ({names}) VALUES ({marks}) RETURNING id", *columns.values())


async def test_good_values_are_taken(conn):
    for column, value in GOOD:
        project_id = await insert(conn, column, value)
        assert await conn.fetchval(f"SELECT {column} FROM projects WHERE id = $1", project_id) == value
    await check_spans(conn)


async def test_bad_values_are_refused_and_change_nothing(conn):
    taken = []
    for column, value in BAD:
        try:
            await insert(conn, column, value)
        except (asyncpg.CheckViolationError, asyncpg.NotNullViolationError):
            continue
        taken.append((column, value))
    assert taken == []
    assert await conn.fetchval("SELECT count(*) FROM projects") == 0
    assert await conn.fetchval("SELECT count(*) FROM project_spans") == 0


@pytest.mark.parametrize(
    ("interval", "unit", "good"),
    [(525_600, "minutes", True), (525_601, "minutes", False), (8_760, "hours", True), (8_761, "hours", False),
     (2_147_483_647, "hours", False)],
)  # fmt: skip
async def test_the_longest_interval(conn, interval, unit, good):
    statement = "INSERT INTO projects (url, interval, unit) VALUES ('http://h/', $1, $2) RETURNING id"
    if good:
        project_id = await conn.fetchval(statement, interval, unit)
        assert (await spans(conn, project_id))[0]["interval_ms"] == 365 * 86_400_000
    else:
        with pytest.raises(asyncpg.CheckViolationError):
            await conn.execute(statement, interval, unit)


# ---- spans ----------------------------------------------------------------------------------------------------------


async def test_insert_opens_a_span_now(conn):
    before = await conn.fetchval("SELECT date_trunc('milliseconds', clock_timestamp())")
    project_id = await conn.fetchval(
        "INSERT INTO projects (url, interval, unit) VALUES ('http://h/', 5, 'minutes') RETURNING id"
    )
    after = await conn.fetchval("SELECT clock_timestamp()")
    [span] = await spans(conn, project_id)
    assert before <= span["since"] <= after
    assert span["until"] is None
    assert span["interval_ms"] == 300_000


async def test_a_disabled_project_has_no_span(conn):
    project_id = await conn.fetchval("INSERT INTO projects (url, enabled) VALUES ('http://h/', false) RETURNING id")
    assert await spans(conn, project_id) == []
    await conn.execute("DELETE FROM projects WHERE id = $1", project_id)
    assert await spans(conn, project_id) == []
    await check_spans(conn)


async def test_disable_enable_delete(conn):
    project_id = await conn.fetchval(INSERT)
    await pause(conn)
    await conn.execute("UPDATE projects SET enabled = false WHERE id = $1", project_id)
    [span] = await spans(conn, project_id)
    assert span["until"] > span["since"]
    await pause(conn)
    await conn.execute("UPDATE projects SET enabled = true WHERE id = $1", project_id)
    first, second = await spans(conn, project_id)
    assert second["since"] > first["until"]
    assert second["until"] is None
    await pause(conn)
    await conn.execute("DELETE FROM projects WHERE id = $1", project_id)
    first, second = await spans(conn, project_id)
    assert second["until"] > second["since"]
    await check_spans(conn)


async def test_a_change_of_the_interval_cuts_the_span(conn):
    project_id = await conn.fetchval(INSERT)
    await pause(conn)
    await conn.execute("UPDATE projects SET interval = 30 WHERE id = $1", project_id)
    await pause(conn)
    await conn.execute("UPDATE projects SET interval = 1, unit = 'minutes' WHERE id = $1", project_id)
    one, two, three = await spans(conn, project_id)
    assert (one["interval_ms"], two["interval_ms"], three["interval_ms"]) == (60_000, 30_000, 60_000)
    assert one["until"] == two["since"]
    assert two["until"] == three["since"]
    await check_spans(conn)


async def test_other_changes_leave_the_span_alone(conn):
    project_id = await conn.fetchval(INSERT)
    before = await spans(conn, project_id)
    await conn.execute("UPDATE projects SET name = 'x', url = 'http://i/', interval = 1, unit = 'minutes'")
    assert await spans(conn, project_id) == before
    assert await conn.fetchval("SELECT updated_at > created_at FROM projects")


async def test_toggles_within_one_millisecond(conn):
    """Many toggles in one statement batch: spans stay disjoint, at most one is open, none is lost."""
    project_id = await conn.fetchval(INSERT)
    toggles = "".join(
        f"UPDATE projects SET enabled = NOT enabled WHERE id = {project_id};"
        f"UPDATE projects SET interval = interval % 7 + 1 WHERE id = {project_id};"
        for _ in range(201)
    )
    await conn.execute(toggles)
    await check_spans(conn)
    assert await conn.fetchval("SELECT enabled FROM projects") is False
    await conn.execute(toggles)
    await check_spans(conn)
    found = await spans(conn, project_id)
    assert sum(span["until"] is None for span in found) == 1


async def test_a_reenabled_project_in_the_millisecond_of_its_end(conn):
    """The clock is set back, so to speak: the new span begins where the last one ends, never before."""
    project_id = await conn.fetchval(INSERT)
    await conn.execute("UPDATE projects SET enabled = false")
    ahead = await conn.fetchval("UPDATE project_spans SET until = until + interval '1 hour' RETURNING until")
    await conn.execute("UPDATE projects SET enabled = true")
    assert (await spans(conn, project_id))[-1]["since"] == ahead
    await conn.execute("UPDATE projects SET enabled = false")  # empty: [ahead, ahead)
    await conn.execute("UPDATE projects SET enabled = true, interval = 7")
    await check_spans(conn)
    assert len(await spans(conn, project_id)) == 2


async def test_deleted_and_inserted_again_under_its_id(conn):
    project_id = await conn.fetchval(INSERT)
    await conn.execute("DELETE FROM projects")
    await conn.execute("INSERT INTO projects (id, url, interval) VALUES ($1, 'http://h/', 9)", project_id)
    await check_spans(conn)


async def test_a_change_of_the_id(conn):
    await conn.execute("INSERT INTO projects (id, url) VALUES (1, 'http://h/')")
    await pause(conn)
    await conn.execute("UPDATE projects SET id = 2")
    [old], [new] = await spans(conn, 1), await spans(conn, 2)
    assert old["until"] == new["since"]
    await check_spans(conn)


async def test_truncate_ends_every_span(conn):
    await conn.execute("INSERT INTO projects (url) SELECT 'http://h/' FROM generate_series(1, 10)")
    await conn.execute("TRUNCATE projects")
    assert await conn.fetchval("SELECT count(*) FROM project_spans WHERE until IS NULL") == 0
    await check_spans(conn)


async def test_upsert(conn):
    await conn.execute("INSERT INTO projects (id, url) VALUES (1, 'http://h/')")
    await pause(conn)
    await conn.execute(
        "INSERT INTO projects (id, url, interval) VALUES (1, 'http://h/', 5), (2, 'http://h/', 5) "
        "ON CONFLICT (id) DO UPDATE SET interval = excluded.interval"
    )
    assert [span["interval_ms"] for span in await spans(conn, 1)] == [60_000, 5_000]
    await check_spans(conn)


async def test_a_rolled_back_change_leaves_no_trace(conn):
    project_id = await conn.fetchval(INSERT)
    before = await spans(conn, project_id)
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute("UPDATE projects SET enabled = false")
    await transaction.rollback()
    assert await spans(conn, project_id) == before


async def test_bulk(conn):
    """Statement triggers: 50,000 rows in well under what row triggers would take, and right."""
    async with asyncio.timeout(60):
        await conn.execute("INSERT INTO projects (url) SELECT 'http://h/' || n FROM generate_series(1, 50000) n")
        await conn.execute("UPDATE projects SET interval = 30 WHERE id % 2 = 0")
        await conn.execute("UPDATE projects SET enabled = false WHERE id % 3 = 0")
        await conn.execute("UPDATE projects SET enabled = true")
        await check_spans(conn)
        await conn.execute("DELETE FROM projects")
    await check_spans(conn)
    assert await conn.fetchval("SELECT count(*) FROM project_spans WHERE until IS NULL") == 0


# ---- notifications --------------------------------------------------------------------------------------------------


@pytest.fixture
async def heard(database_url):
    listener = await database.connect(database_url)
    payloads = []
    await listener.add_listener("ringpoll_projects", lambda _conn, _pid, _channel, payload: payloads.append(payload))
    yield payloads
    await listener.close()


async def wait_for(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def ids_of(payloads):
    return sorted(i for payload in payloads for i in json.loads(payload))


async def test_insert_update_delete_notify(conn, heard):
    project_id = await conn.fetchval(INSERT)
    await wait_for(lambda: heard == [f"[{project_id}]"])
    heard.clear()
    await conn.execute("UPDATE projects SET name = 'x'")
    await wait_for(lambda: heard == [f"[{project_id}]"])
    heard.clear()
    await conn.execute("DELETE FROM projects")
    await wait_for(lambda: heard == [f"[{project_id}]"])


async def test_ids_leave_room_for_those_that_follow(conn):
    assert ID_IN_TABLE_MAX - ID_MAX > 1 << 60
    await conn.execute("INSERT INTO projects (id, url) VALUES ($1, 'http://h/')", ID_IN_TABLE_MAX)
    for beyond in (ID_IN_TABLE_MAX + 1, (1 << 63) - 1):
        with pytest.raises(asyncpg.CheckViolationError, match="projects_id_max"):
            await conn.execute("INSERT INTO projects (id, url) VALUES ($1, 'http://h/')", beyond)
    with pytest.raises(asyncpg.CheckViolationError, match="projects_id_max"):
        await conn.execute("UPDATE projects SET id = id + 1")


async def test_both_ids_of_a_changed_id(conn, heard):
    await conn.execute("INSERT INTO projects (id, url) VALUES (1, 'http://h/')")
    await wait_for(lambda: heard == ["[1]"])
    heard.clear()
    await conn.execute("UPDATE projects SET id = 2")
    await wait_for(lambda: ids_of(heard) == [1, 2])


async def test_many_ids_come_in_chunks_that_fit(conn, heard):
    last = ID_IN_TABLE_MAX  # the longest ids there are
    await conn.execute(
        "INSERT INTO projects (id, url) SELECT $1::bigint - n, 'http://h/' FROM generate_series(0, 999) n", last
    )
    await wait_for(lambda: len(ids_of(heard)) == 1000)
    assert len(heard) == 3
    assert all(len(payload) < 8000 for payload in heard)
    assert ids_of(heard) == [last - n for n in range(999, -1, -1)]


@pytest.mark.parametrize("rows", [350, 351, 7000])
async def test_chunk_bounds(conn, heard, rows):
    await conn.execute("INSERT INTO projects (url) SELECT 'http://h/' FROM generate_series(1, $1::int)", rows)
    await wait_for(lambda: len(ids_of(heard)) == rows)
    assert len(set(ids_of(heard))) == rows


async def test_very_many_are_a_star(conn, heard):
    await conn.execute("INSERT INTO projects (url) SELECT 'http://h/' FROM generate_series(1, 7001)")
    await wait_for(lambda: heard == ["*"])
    heard.clear()
    await conn.execute("TRUNCATE projects")
    await wait_for(lambda: heard == ["*"])


async def test_a_statement_without_rows_says_nothing(conn, heard):
    await conn.execute("UPDATE projects SET name = 'x'")
    await conn.execute("DELETE FROM projects")
    await conn.execute("INSERT INTO projects (url, enabled) VALUES ('http://h/', false)")
    project_id = await conn.fetchval(INSERT)  # the first that is heard
    await wait_for(lambda: heard != [])
    assert heard == [f"[{project_id}]"]


async def pause(conn):
    """Until the database's clock shows a later millisecond."""
    start = await conn.fetchval("SELECT clock_timestamp()")
    async with asyncio.timeout(5):
        while await conn.fetchval("SELECT clock_timestamp()") - start < timedelta(milliseconds=2):
            pass
