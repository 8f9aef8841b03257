"""Projects over HTTP: that they are polled at once, what is refused and how it is said, pages, and edits that meet."""

import asyncio

import pytest

from cluster.project import FIELD_NAMES
from coordinator.web import server as server_module
from tests.coordinator_shell.waiting import until
from tests.web.conftest import problem
from tests.web.test_history_api import store_days


async def test_a_project_is_polled_when_its_creation_is_answered(api, coordinator):
    made = await api.post("/projects", {"url": "http://a.example/", "interval": "5m", "name": "Ä"})
    assert (made.status, made.headers["Location"]) == (201, f"/api/v1/projects/{made.body['id']}")
    project_id = made.body["id"]
    await until(lambda: project_id in coordinator.worker.projects, timeout_s=1.0)
    assert set(FIELD_NAMES) < set(made.body)
    assert (made.body["interval"], made.body["unit"], made.body["name"]) == (5, "minutes", "Ä")
    assert (made.body["state"], made.body["last_result"], made.body["invalid_reason"]) == ("pending", None, None)
    read = await api.get(f"/projects/{project_id}")
    assert read.body == made.body
    assert read.headers["ETag"] == made.headers["ETag"]
    assert made.body["created_at"].endswith("Z")
    assert len(made.body["created_at"]) == len("2026-01-31T12:00:00.000Z")


async def test_a_patch_merges(api, coordinator):
    made = await api.post(
        "/projects",
        {
            "url": "http://a.example/",
            "interval": "5m",
            "timeout_ms": 7,
            "headers": {"A": "1", "B": "2", "Cookie": "secret"},
        },
    )
    path = f"/projects/{made.body['id']}"
    changed = await api.patch(
        path, {"timeout_ms": None, "interval": 30, "headers": {"A": None, "C": "3"}, "name": "new"}
    )
    assert changed.status == 200, changed.body
    assert (changed.body["timeout_ms"], changed.body["name"]) == (30_000, "new")
    assert (changed.body["interval"], changed.body["unit"]) == (30, "minutes")
    assert changed.body["headers"] == {"B": "2", "C": "3", "Cookie": "***"}
    await until(lambda: coordinator.worker.projects[made.body["id"]].timeout_ms == 30_000, timeout_s=1.0)
    spec = coordinator.worker.projects[made.body["id"]]
    assert dict(spec.headers)["Cookie"] == "secret"
    again = await api.patch(path, {"interval": "2h"})
    assert (again.body["interval"], again.body["unit"]) == (2, "hours")
    same = await api.patch(path, {"interval": 2})
    assert same.headers["ETag"] == again.headers["ETag"]  # nothing was changed
    assert (await api.patch(path, {"headers": None})).body["headers"] is None


async def test_disabling_is_answered_when_nobody_polls_any_more(api, coordinator):
    made = await api.post("/projects", {"url": "http://a.example/"})
    project_id = made.body["id"]
    await until(lambda: project_id in coordinator.worker.projects)
    for stop in (
        lambda: api.post(f"/projects/{project_id}/disable"),
        lambda: api.patch(f"/projects/{project_id}", {"enabled": False}),
        lambda: api.post("/projects/bulk", {"action": "disable", "ids": [project_id]}),
    ):
        stopped = await stop()
        assert stopped.status == 200, stopped.body
        assert project_id not in coordinator.worker.projects
        assert (await api.get(f"/projects/{project_id}")).body["state"] == "paused"
        started = await api.post(f"/projects/{project_id}/enable")
        assert (started.status, started.body["enabled"]) == (200, True)
        await until(lambda: project_id in coordinator.worker.projects, timeout_s=1.0)
    assert (await api.delete(f"/projects/{project_id}")).status == 204
    assert project_id not in coordinator.worker.projects
    problem(await api.get(f"/projects/{project_id}"), 404, "unknown_project")
    problem(await api.delete(f"/projects/{project_id}"), 404, "unknown_project")


async def test_secrets_are_hidden_and_their_masks_refused(api, coordinator):
    secrets = {
        "url": "http://ann:pass@a.example/",
        "headers": {"X-Api-Key": "key", "Accept": "*/*"},
        "body": "content",
        "bearer_token": "token",
        "proxy": "http://u:p@proxy.example:3128",
        "method": "POST",
    }
    del secrets["bearer_token"]  # the URL has a user
    made = await api.post("/projects", secrets)
    path = f"/projects/{made.body['id']}"
    masked = {
        "url": "http://ann:***@a.example/",
        "headers": {"X-Api-Key": "***", "Accept": "*/*"},
        "body": "***",
        "proxy": "http://u:***@proxy.example:3128",
    }
    assert masked.items() <= made.body.items()
    (listed,) = (await api.get("/projects")).body["items"]
    assert masked.items() <= listed.items()
    shown = await api.get(f"{path}?reveal=true")
    assert secrets.items() <= shown.body.items()
    for name, value in masked.items():
        problem(await api.patch(path, {name: value}), 422, "invalid_request", name)
        problem(await api.post("/projects", {"url": "http://b/", name: value}), 422, "invalid_request", name)
    assert (await api.patch(path, {"headers": {"Accept": "text/html"}})).status == 200
    other = await api.post("/projects", {"url": "http://b.example/", "basic_auth": "ann:pass"})
    assert other.body["basic_auth"] == "ann:***"
    problem(
        await api.patch(f"/projects/{other.body['id']}", {"basic_auth": "ann:***"}),
        422,
        "invalid_request",
        "basic_auth",
    )
    assert (await api.get(f"{path}?reveal=true")).body["headers"]["X-Api-Key"] == "key"


BAD_PROJECTS = [
    ({}, ["url"]),
    ({"url": "ftp://a/"}, ["url"]),
    ({"url": "http://a/\x00"}, ["url"]),
    ({"url": 7}, ["url"]),
    ({"url": None}, ["url"]),
    ({"url": "http://a/", "colour": 1, "size": 2}, ["colour", "size"]),
    ({"url": "http://a/", "name": "x\x00"}, ["name"]),
    ({"url": "http://a/", "name": "x" * 201}, ["name"]),
    ({"url": "http://a/", "interval": 10**30}, ["interval"]),
    ({"url": "http://a/", "interval": 2**31}, ["interval"]),
    ({"url": "http://a/", "interval": 2**64}, ["interval"]),
    ({"url": "http://a/", "interval": -1}, ["interval"]),
    ({"url": "http://a/", "interval": 1.5}, ["interval"]),
    ({"url": "http://a/", "interval": True}, ["interval"]),
    ({"url": "http://a/", "interval": "soon"}, ["interval"]),
    ({"url": "http://a/", "interval": "5m", "unit": "hours"}, ["interval"]),
    ({"url": "http://a/", "unit": "days"}, ["unit"]),
    ({"url": "http://a/", "timeout_ms": 600_001}, ["timeout_ms"]),
    ({"url": "http://a/", "body": "a\x00"}, ["body"]),
    ({"url": "http://a/", "headers": {"A": 1}}, ["headers"]),
    ({"url": "http://a/", "headers": {"A": "\x00"}}, ["headers"]),
    ({"url": "http://a/", "headers": ["A"]}, ["headers"]),
    ({"url": "http://a/", "assertions": [{"type": "nonsense"}]}, ["assertions"]),
    ({"url": "http://a/", "assertions": [{"type": "body", "op": "contains", "value": "\x00"}]}, ["assertions"]),
    ({"url": "http://a/", "enabled": "yes"}, ["enabled"]),
    ({"url": "http://a/", "ip_version": 5}, ["ip_version"]),
    ({"url": "http://a/", "server_name": "a"}, ["server_name"]),
    ({"url": "http://a/", "retries": 11}, ["retries"]),
]


async def test_a_project_that_is_none_names_its_field(api, sql):
    made = await api.post("/projects", {"url": "http://a/"})
    for body, fields in BAD_PROJECTS:
        await refused_as_project(api, made.body["id"], body, fields)
    assert await sql.fetchval("SELECT count(*) FROM projects") == 1


async def refused_as_project(api, project_id, body, fields):
    """As a new one, as a change of one, as one of many."""
    headers = {"Content-Type": "application/json"}
    answer = await api("POST", "/projects", data=_json(body), headers=headers)
    problem(answer, 422, "invalid_request", *fields)
    changes = dict(body) or {"url": None}
    if changes.get("url") == "http://a/":
        del changes["url"]
    answer = await api("PATCH", f"/projects/{project_id}", data=_json(changes), headers=headers)
    problem(answer, 422, "invalid_request", *fields)
    bulk = {"action": "create", "projects": [{"url": "http://a/"}, body]}
    answer = await api("POST", "/projects/bulk", data=_json(bulk), headers=headers)
    problem(answer, 422, "invalid_request", *(f"projects[1].{field}" for field in fields))


def _json(content):
    import json  # noqa: PLC0415 - orjson has no integers of this size

    return json.dumps(content).encode()


BAD_QUERIES = [
    ("?limit=0", ["limit"]),
    ("?limit=501", ["limit"]),
    ("?limit=x", ["limit"]),
    (f"?limit={10**30}", ["limit"]),
    ("?limit=1&limit=2", ["limit"]),
    ("?state=sleepy", ["state"]),
    ("?sort=colour", ["sort"]),
    ("?enabled=perhaps", ["enabled"]),
    ("?search=", ["search"]),
    ("?search=%00", ["search"]),
    ("?search=" + "a" * 201, ["search"]),
    ("?colour=red", ["colour"]),
    ("?cursor=", ["cursor"]),
    ("?cursor=!", ["cursor"]),
    ("?cursor=AAAA", ["cursor"]),
    ("?cursor=WyJuYW1lIiwiYSIsMV0", ["cursor"]),  # of another sort
    ("?sort=name&cursor=WyJuYW1lIiwiXHUwMDAwIiwxXQ", ["cursor"]),  # a NUL
    ("?sort=created_at&cursor=WyJjcmVhdGVkX2F0IiwiOTk5OTk5OTk5OTk5OTk5OTk5IiwxXQ", ["cursor"]),  # a year 33658
    ("?summary=1y", ["summary"]),
    ("?summary=null&state=null&limit=null", ["summary", "state", "limit"]),
    ("?limit=0&state=x&colour=1", ["limit", "state", "colour"]),
]


async def test_bad_queries_name_their_parameter(api):
    for path, fields in BAD_QUERIES:
        problem(await api.get(f"/projects{path}"), 422, "invalid_request", *fields)


async def test_ids_that_are_none_and_ids_of_nothing(api):
    for bad in ("x", str(2**63), "1.5", "%00", "1x", "%F0%9F%98%80"):
        problem(await api.get(f"/projects/{bad}"), 422, "invalid_request", "id")
    for missing in ("0", "-1", str(2**63 - 1), "77"):
        problem(await api.get(f"/projects/{missing}"), 404, "unknown_project")
        for path in ("enable", "disable"):
            problem(await api.post(f"/projects/{missing}/{path}"), 404, "unknown_project")
        problem(await api.patch(f"/projects/{missing}", {"name": "a"}), 404, "unknown_project")


BAD_BODIES = [
    (b"{", "application/json", 400, "malformed"),
    (b"", "application/json", 400, "malformed"),
    (b'{"url": "http://a/\xff"}', "application/json", 400, "malformed"),
    (b'{"url": NaN}', "application/json", 400, "malformed"),
    (b'{"a":' * 5_000, "application/json", 400, "malformed"),
    (b"[]", "application/json", 422, "invalid_request"),
    (b"null", "application/json", 422, "invalid_request"),
    (b'{"url": "http://a/"}', "text/plain", 415, "unsupported_media_type"),
    (b'{"url": "http://a/"}', "application/json; charset=utf-16", 415, "unsupported_media_type"),
    (b"url=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    (b" " * (9 << 20), "application/json", 413, "too_large"),
]


async def test_bad_bodies(api, sql):
    for path in ("/projects", "/projects/bulk"):
        for data, content_type, status, code in BAD_BODIES:
            problem(await api("POST", path, data=data, headers={"Content-Type": content_type}), status, code)
    assert await sql.fetchval("SELECT count(*) FROM projects") == 0


async def test_strangers_have_little_room(api):
    """Who logs in has not said yet who they are."""
    body = {"user": "ann", "password": "x" * (64 << 10)}
    problem(await api.post("/session", body), 413, "too_large")


async def test_a_body_that_is_too_large_and_comes_in_chunks(api):
    async def chunks():
        for _ in range(9 * 16):
            yield b" " * (64 << 10)

    answer = await api("POST", "/projects", data=chunks(), headers={"Content-Type": "application/json"})
    problem(answer, 413, "too_large")


@pytest.mark.parametrize("reset", [True, False])
async def test_who_leaves_in_the_middle_of_a_body_is_no_bug_of_ours(coordinator, caplog, reset):
    server = coordinator.service.server
    _, writer = await _begin_post(coordinator, b"Content-Length: 100\r\n\r\n{")
    await until(lambda: server._in_progress[False] == 1)
    writer.transport.abort() if reset else writer.close()
    await until(lambda: server._in_progress[False] == 0)
    assert [record.message for record in caplog.records if record.name == "coordinator.web"] == []


async def test_chunks_that_are_none_are_refused(coordinator, caplog):
    reader, writer = await _begin_post(coordinator, b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n")
    assert (await reader.readline()).split()[1] == b"400"
    writer.close()
    assert [record.message for record in caplog.records if record.name == "coordinator.web"] == []


async def test_slow_strangers_are_in_nobody_elses_way(coordinator, api, monkeypatch):
    monkeypatch.setattr(server_module, "STRANGERS_MAX", 3)
    monkeypatch.setattr(server_module, "REQUESTS_MAX", 3)
    slow = [await _begin_post(coordinator, b"Content-Length: 100\r\n\r\n{", "/session") for _ in range(3)]
    await until(lambda: coordinator.service.server._in_progress[True] == 3)
    problem(await api.post("/session", {"user": "ann", "password": "x"}), 503, "busy")
    assert (await api.get("/projects")).status == 200
    busy = [await _begin_post(coordinator, b"Content-Length: 100\r\n\r\n{") for _ in range(3)]
    await until(lambda: coordinator.service.server._in_progress[False] == 3)
    problem(await api.get("/projects"), 503, "busy")
    assert (await api.get("/session")).status == 200
    assert (await api.get("/../../healthz")).status == 200
    for _, writer in slow + busy:
        writer.transport.abort()


async def _begin_post(coordinator, rest, path="/projects"):
    reader, writer = await asyncio.open_connection(*coordinator.settings.http.split(":"))
    writer.write(
        b"POST /api/v1%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%b" % (path.encode(), rest)
    )
    await writer.drain()
    return reader, writer


# ---- edits that meet --------------------------------------------------------------------------------------------


async def test_of_two_edits_of_one_version_one_wins(api):
    made = await api.post("/projects", {"url": "http://a/"})
    path, etag = f"/projects/{made.body['id']}", made.headers["ETag"]
    answers = await asyncio.gather(
        *(api.patch(path, {"name": f"n{each}"}, headers={"If-Match": etag}) for each in range(8))
    )
    won = [answer for answer in answers if answer.status == 200]
    assert len(won) == 1
    for answer in answers:
        if answer is not won[0]:
            problem(answer, 412, "precondition_failed", "If-Match")
    now = await api.get(path)
    assert (now.body["name"], now.headers["ETag"]) == (won[0].body["name"], won[0].headers["ETag"])


@pytest.mark.parametrize("method", ["PATCH", "DELETE", "enable", "disable"])
async def test_if_match(api, sql, method):
    made = await api.post("/projects", {"url": "http://a/"})
    path, etag = f"/projects/{made.body['id']}", made.headers["ETag"]

    def ask(match):
        headers = {"If-Match": match}
        if method == "PATCH":
            return api.patch(path, {"name": match[-40:].strip('"\\*')}, headers=headers)
        if method == "DELETE":
            return api.delete(path, headers=headers)
        return api.post(f"{path}/{method}", headers=headers)

    await sql.execute("UPDATE projects SET name = 'other'")
    for stale in (etag, f"W/{etag}", '"nonsense"', '""'):
        problem(await ask(stale), 412, "precondition_failed", "If-Match")
    for bad in ("nonsense", '"', '"a" "b"', "*, *"):
        problem(await ask(bad), 422, "invalid_request", "If-Match")
    assert await sql.fetchval("SELECT name FROM projects WHERE enabled") == "other"
    fresh = (await api.get(path)).headers["ETag"]
    assert fresh != etag
    assert (await ask(f'"x", {fresh}')).status in {200, 204}


async def test_a_row_that_someone_else_holds(api, sql):
    made = await api.post("/projects", {"url": "http://a/"})
    async with sql.transaction():
        await sql.execute("SELECT FROM projects FOR UPDATE")
        problem(await api.patch(f"/projects/{made.body['id']}", {"name": "a"}), 409, "locked")


# ---- many -------------------------------------------------------------------------------------------------------


async def test_bulk_is_all_or_nothing(api, sql, coordinator):
    made = await api.post(
        "/projects/bulk",
        {"action": "create", "projects": [{"url": f"http://a/{n}", "name": f"p{n}"} for n in range(30)]},
    )
    assert made.status == 200, made.body
    ids = made.body["ids"]
    names = await sql.fetch("SELECT id, name FROM projects")
    assert {row["id"]: row["name"] for row in names} == {each: f"p{n}" for n, each in enumerate(ids)}
    await until(lambda: set(ids) <= set(coordinator.worker.projects), timeout_s=1.0)
    for action in ("disable", "enable", "delete"):
        problem(await api.post("/projects/bulk", {"action": action, "ids": [ids[0], 999]}), 404, "unknown_project")
    assert await sql.fetchval("SELECT count(*) FROM projects WHERE enabled") == 30
    answer = await api.post("/projects/bulk", {"action": "delete", "ids": [*ids[:10], ids[0]]})
    assert answer.body == {"action": "delete", "ids": ids[:10]}
    assert not set(ids[:10]) & set(coordinator.worker.projects)
    assert await sql.fetchval("SELECT count(*) FROM projects") == 20


BAD_BULKS = [
    ({}, ["action", "ids"]),
    ({"action": "explode", "ids": [1]}, ["action"]),
    ({"action": "enable"}, ["ids"]),
    ({"action": "enable", "ids": []}, ["ids"]),
    ({"action": "enable", "ids": ["1"]}, ["ids"]),
    ({"action": "enable", "ids": [2**63]}, ["ids"]),
    ({"action": "enable", "ids": [1], "projects": []}, ["projects"]),
    ({"action": "create", "projects": []}, ["projects"]),
    ({"action": "create", "projects": [7]}, ["projects"]),
    ({"action": "create", "ids": [7]}, ["ids", "projects"]),
    ({"action": ["create"], "ids": [7]}, ["action"]),
]


async def test_bad_bulk_requests(api):
    for body, fields in BAD_BULKS:
        problem(await api.post("/projects/bulk", body), 422, "invalid_request", *fields)


async def test_the_audit_log_has_who_changed_what(api, sql):
    made = await api.post("/projects", {"url": "http://a/"})
    path = f"/projects/{made.body['id']}"
    await api.patch(path, {"name": "a", "timeout_ms": 5})
    await api.patch(path, {"name": "a"})  # which changes nothing
    await api.post(f"{path}/disable")
    await api.post(f"{path}/enable")
    await api.delete(path)
    await api.post("/projects/bulk", {"action": "create", "projects": [{"url": "http://a/"}, {"url": "http://b/"}]})
    rows = await sql.fetch("SELECT actor, action, subject, address, details FROM audit_log ORDER BY id")
    subject = f"project:{made.body['id']}"
    assert [(row["action"], row["subject"]) for row in rows] == [
        ("project.create", subject),
        ("project.update", subject),
        ("project.disable", subject),
        ("project.enable", subject),
        ("project.delete", subject),
        ("project.create", "projects"),
    ]
    assert {(row["actor"], row["address"]) for row in rows} == {("local", "127.0.0.1")}
    assert rows[1]["details"] == '{"fields": ["name", "timeout_ms"]}'


# ---- lists ------------------------------------------------------------------------------------------------------


async def every(api, query):
    """All pages: the ids, and how many pages there were."""
    ids, pages, cursor = [], 0, ""
    while cursor is not None:
        answer = await api.get(f"/projects?{query}{f'&cursor={cursor}' if cursor else ''}")
        assert answer.status == 200, answer.body
        ids += [item["id"] for item in answer.body["items"]]
        cursor = answer.body["next_cursor"]
        pages += 1
    return ids, pages


@pytest.fixture
async def many(sql, coordinator):
    """Fifty of each state; names repeat, so that ids have to decide."""
    await sql.execute(
        "INSERT INTO projects (id, url, name, enabled, interval, unit) "
        "SELECT n, 'http://' || CASE WHEN n % 2 = 0 THEN 'Even' ELSE 'odd' END || '.example/' || n, 'name ' || n % 7, "
        "n % 4 <> 0, 365, 'hours' FROM generate_series(1, 200) n"
    )
    await sql.execute("UPDATE projects SET name = '100% \\_ß' WHERE id = 3")
    await sql.execute("INSERT INTO project_states SELECT n, 'down', now(), 0 FROM generate_series(1, 200, 4) n")
    await sql.execute("INSERT INTO project_addresses SELECT n, '10.0.0.1', now() FROM generate_series(2, 200, 4) n")


async def test_pages_show_each_project_once(api, many):
    for sort in ("id", "-id", "name", "-name", "created_at", "-updated_at"):
        await shown_once(api, sort)


async def shown_once(api, sort):
    ids, pages = await every(api, f"sort={sort}&limit=32")
    assert (len(ids), set(ids), pages) == (200, set(range(1, 201)), 7)
    if sort == "-id":
        assert ids == sorted(ids, reverse=True)


async def test_filters(api, many):
    for state, remainder in (("down", 1), ("up", 2), ("pending", 3), ("paused", 0)):
        ids, _ = await every(api, f"state={state}&limit=20")
        assert ids == [each for each in range(1, 201) if each % 4 == remainder], state
        answer = await api.get(f"/projects?state={state}&limit=1&total=true")
        assert answer.body["total"] == 50
        assert answer.body["items"][0]["state"] == state
    assert len((await every(api, "enabled=false"))[0]) == 50
    assert len((await every(api, "search=eVeN.EXAMPLE"))[0]) == 100
    assert (await every(api, "search=100%25+\\_ß"))[0] == [3]
    assert (await every(api, "search=%25"))[0] == [3]
    assert (await every(api, "search=n_me"))[0] == []
    assert len((await every(api, "search=even&state=up&sort=-name&limit=7"))[0]) == 50
    answer = await api.get("/projects?limit=3")
    assert "total" not in answer.body


async def test_a_list_shows_the_newest_result(api, sql, coordinator):
    await store_days(sql)
    made = await api.post("/projects", {"url": "http://a/"})
    await sql.execute(
        "INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, status_code, "
        "response_time_ms, worker, epoch) SELECT $1, at, at, 'tick', 'success', 200, 12.5, 'w', 1 "
        "FROM generate_series(now() - interval '1 hour', now(), interval '10 minutes') at",
        made.body["id"],
    )
    (listed,) = (await api.get("/projects")).body["items"]
    newest = await sql.fetchval("SELECT max(polled_at) FROM poll_results")
    assert listed["last_result"] == {
        "polled_at": newest.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "status": "success",
        "status_code": 200,
        "response_time_ms": 12.5,
        "error_code": None,
        "error_message": None,
    }
    assert listed["state"] == "up"
    (listed,) = (await api.get("/projects?summary=24h")).body["items"]
    assert (listed["summary"]["polls"], listed["summary"]["uptime"]) == (7, 1.0)
    assert len(listed["summary"]["bars"]) <= 48
    assert "buckets" not in listed["summary"]


async def test_a_row_that_cannot_be_polled_says_why(api, sql, coordinator):
    await sql.execute("""INSERT INTO projects (id, url, assertions) VALUES (5, 'http://a/', '[{"type": "x"}]')""")
    shown = await until(lambda: _invalid(api))
    assert "assertion" in shown["invalid_reason"]
    mended = await api.patch("/projects/5", {"assertions": None})
    assert mended.body["invalid_reason"] is None
    await until(lambda: 5 in coordinator.worker.projects, timeout_s=1.0)


async def _invalid(api):
    shown = (await api.get("/projects/5")).body
    return shown if shown["invalid_reason"] else None
