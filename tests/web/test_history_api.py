"""What was, over HTTP: results, missed ticks, changes of state, summaries, the overview."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.web.conftest import problem

DAY_AGO = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=20)


async def store_days(sql):
    """Room for results of any day, and nothing rolled up yet."""
    await sql.execute("CREATE TABLE all_days PARTITION OF poll_results DEFAULT")
    week = "date_trunc('week', now() - interval '7 days', 'UTC')"
    await sql.execute(f"UPDATE rollup_progress SET rolled_to = {week}, claimed_to = {week}")
    await sql.execute(f"UPDATE rollup_sums SET summed_to = {week}")


def at(minutes):
    return (DAY_AGO + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


@pytest.fixture
async def past(sql, coordinator):
    """Project 1 with 200 results, one a minute, each tenth a failure; 30 ranges missed; 7 changes of 2 projects."""
    await store_days(sql)
    await sql.execute(
        "INSERT INTO projects (id, url, name, enabled) SELECT n, 'http://u:p@a/' || n, 'p' || n, false "
        "FROM generate_series(1, 3) n"
    )
    await sql.execute(
        "INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, status_code, "
        "response_time_ms, worker, epoch) "
        "SELECT 1, at, at, 'tick', CASE WHEN n % 10 = 0 THEN 'failure' ELSE 'success' END::poll_status, 200, n, 'w', 1 "
        "FROM generate_series(0, 199) n, LATERAL (SELECT $1::timestamptz + n * interval '1 minute') x(at)",
        DAY_AGO,
    )
    await sql.execute(
        "INSERT INTO missed_polls SELECT 1, at, at + interval '2 minutes', 3, 'overload', 'w', 1 "
        "FROM generate_series(0, 29) n, LATERAL (SELECT $1::timestamptz + n * interval '5 minutes') x(at)",
        DAY_AGO,
    )
    await sql.execute(
        "INSERT INTO state_changes SELECT 1 + n % 2, $1::timestamptz + n / 2 * interval '1 hour', "
        "CASE WHEN n % 4 < 2 THEN 'down' ELSE 'up' END, $1, 1, 500, 'bad_status', 'text' FROM generate_series(0, 6) n",
        DAY_AGO,
    )


async def every(api, path, query=""):
    items, cursor = [], None
    while True:
        answer = await api.get(f"{path}?limit=17{query}{f'&cursor={cursor}' if cursor else ''}")
        assert answer.status == 200, answer.body
        items += answer.body["items"]
        cursor = answer.body["next_cursor"]
        if cursor is None:
            return items


async def test_results(api, past):
    items = await every(api, "/projects/1/results")
    assert [item["response_time_ms"] for item in items] == list(range(199, -1, -1))
    assert items[0]["scheduled_at"] == at(199).replace("Z", ".000Z")
    assert len(items[0]) == 19
    items = await every(api, "/projects/1/results", f"&since={at(10)}&until={at(100)}&status=failure")
    assert [item["response_time_ms"] for item in items] == [90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert await every(api, "/projects/2/results") == []
    problem(await api.get("/projects/9/results"), 404, "unknown_project")


async def test_durations_have_the_digits_they_mean(api, past, sql):
    """A real of the table is 11.3367 to people, and 11.336705207824707 to a double."""
    await sql.execute("UPDATE poll_results SET response_time_ms = 11.3367052, first_byte_ms = 2.0000001")
    item = (await api.get("/projects/1/results?limit=1")).body["items"][0]
    assert (item["response_time_ms"], item["first_byte_ms"], item["dns_ms"]) == (11.337, 2.0, None)
    assert (await api.get("/projects/1")).body["last_result"]["response_time_ms"] == 11.337
    summary = (await api.get("/projects/1/summary?period=24h")).body
    assert (summary["p50_ms"], summary["min_ms"], summary["mean_ms"]) == (11.337, 11.337, 11.337)
    assert {bucket["p99_ms"] for bucket in summary["buckets"]} <= {11.337, None}
    assert (await api.get("/overview?period=24h")).body["items"][0]["p50_ms"] == 11.337
    listed = (await api.get("/projects?summary=24h&limit=1")).body["items"][0]["summary"]
    assert {p50 for _, _, p50 in listed["bars"]} == {11.337, None}


async def test_missed(api, past):
    items = await every(api, "/projects/1/missed")
    assert len(items) == 30
    assert items[0]["first_tick"] == at(145).replace("Z", ".000Z")
    assert (items[0]["ticks"], items[0]["reason"]) == (3, "overload")
    assert len(await every(api, "/projects/1/missed", f"&since={at(11)}&until={at(21)}")) == 3
    problem(await api.get("/projects/9/missed"), 404, "unknown_project")


async def test_changes(api, past):
    items = await every(api, "/changes")
    assert [(item["project_id"], item["state"]) for item in items] == [
        (1, "up"),
        (2, "down"),
        (1, "down"),
        (2, "up"),
        (1, "up"),
        (2, "down"),
        (1, "down"),
    ]
    assert {item["url"] for item in items} == {"http://u:***@a/1", "http://u:***@a/2"}
    assert len(await every(api, "/changes", "&project_id=2")) == 3
    assert len(await every(api, "/changes", "&state=down")) == 4
    first = await api.get("/changes?limit=1")
    second = await api.get(f"/changes?limit=6&cursor={first.body['next_cursor']}")
    assert first.body["items"] + second.body["items"] == items


async def test_a_summary(api, past):
    found = (await api.get("/projects/1/summary")).body
    assert (found["polls"], found["success"], found["failure"], found["uptime"]) == (200, 180, 20, 0.9)
    assert found["missed"] == 90
    assert found["resolution"] == "hour"
    assert sum(bucket["polls"] for bucket in found["buckets"]) == 200
    assert {len(bucket["at"]) for bucket in found["buckets"]} == {24}
    some = (await api.get(f"/projects/1/summary?since={at(0)}&until={at(60)}&resolution=minute")).body
    assert (some["resolution"], some["polls"]) == ("minute", 60)
    assert (some["since"], some["until"]) == (at(0).replace("Z", ".000Z"), at(60).replace("Z", ".000Z"))
    assert (await api.get("/projects/2/summary?period=90d")).body["uptime"] is None
    problem(await api.get("/projects/9/summary"), 404, "unknown_project")


async def test_the_overview(api, past):
    first = (await api.get("/overview?limit=2")).body
    assert [item["id"] for item in first["items"]] == [1, 2]
    one = first["items"][0]
    assert (one["name"], one["state"], one["polls"], one["failures"], one["uptime"]) == ("p1", "paused", 200, 20, 0.9)
    second = (await api.get(f"/overview?limit=2&period=7d&cursor={first['next_cursor']}")).body
    assert [item["id"] for item in second["items"]] == [3]
    assert second["next_cursor"] is None


BAD = [
    ("/projects/1/results?since=yesterday", ["since"]),
    ("/projects/1/results?since=2026-01-01T00:00:00", ["since"]),  # without a zone
    ("/projects/1/results?since=0001-01-01T00:00:00%2B14:00", ["since"]),
    ("/projects/1/results?until=9999-12-31T23:59:59-14:00", ["until"]),
    ("/projects/1/results?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", ["since"]),
    ("/projects/1/results?since=1767225600", ["since"]),
    ("/projects/1/results?status=good", ["status"]),
    ("/projects/1/results?cursor=W10", ["cursor"]),
    ("/projects/1/results?cursor=Wy0xXQ", ["cursor"]),  # before 1970
    ("/projects/1/results?cursor=WzFlMzBd", ["cursor"]),
    ("/projects/1/missed?limit=1000", ["limit"]),
    ("/projects/1/missed?status=failure", ["status"]),
    ("/projects/1/summary?period=2h", ["period"]),
    ("/projects/1/summary?period=24h&since=2026-01-01T00:00:00Z", ["period"]),
    ("/projects/1/summary?since=2199-01-01T00:00:00Z", ["since"]),
    ("/projects/1/summary?since=2000-01-01T00:00:00Z&resolution=minute", ["resolution"]),
    ("/projects/1/summary?resolution=week", ["resolution"]),
    ("/overview?limit=10001", ["limit"]),
    ("/overview?cursor=W10", ["cursor"]),
    ("/changes?state=pending", ["state"]),
    ("/changes?project_id=a", ["project_id"]),
    ("/changes?cursor=WzFd", ["cursor"]),
    ("/workers?limit=5", ["limit"]),
    ("/status?a=b", ["a"]),
    ("/events?a=b", ["a"]),
]


async def test_bad_queries_name_their_parameter(api, past):
    for path, fields in BAD:
        problem(await api.get(path), 422, "invalid_request", *fields)
