"""The cluster over HTTP: workers, limits, reload; what is answered while the database is away or everything stops."""

import asyncio

import pytest
from aiohttp import ClientSession

from coordinator.web import feed as feed_module
from coordinator.web import server as server_module
from tests.coordinator_shell.waiting import until
from tests.web.conftest import Client, problem

AWAY = "postgresql://postgres@127.0.0.1:1/nothing"


async def test_workers_and_limits(api, sql, coordinator):
    await until(lambda: coordinator.service.view().totals.executed == 42)
    listed = (await api.get("/workers")).body
    assert [worker["name"] for worker in listed["items"]] == ["worker-1"]
    one = (await api.get("/workers/worker-1")).body
    assert one["name"] == "worker-1"
    problem(await api.get("/workers/worker-7"), 404, "unknown_worker")
    problem(await api.post("/workers/worker-7/drain"), 404, "unknown_worker")
    problem(await api.post("/workers/worker-1/drain"), 409, "last_worker")
    assert (await api.get("/scale")).body == {"workers": 1, "max_concurrent_http": 500}
    assert (await api.post("/scale", {"max_concurrent_http": 50})).body == {"workers": 1, "max_concurrent_http": 50}
    assert coordinator.service.view().max_concurrent_http == 50
    problem(await api.post("/scale", {"workers": 3}), 409, "no_supervisor")
    await sql.execute("INSERT INTO projects (url) VALUES ('http://a/')")
    assert set((await api.post("/reload")).body) == {"added", "changed", "removed"}
    assert (await api.get("/status")).body["max_concurrent_http"] == 50
    rows = await sql.fetch("SELECT action, subject, details FROM audit_log ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("cluster.scale", "cluster", '{"max_concurrent_http": 50}'),
        ("cluster.reload", "cluster", "{}"),
    ]


BAD = [
    ({}, ["workers"]),
    ({"workers": 0}, ["workers"]),
    ({"workers": 257, "max_concurrent_http": 10**30}, ["workers", "max_concurrent_http"]),
    ({"workers": True}, ["workers"]),
    ({"workers": "2"}, ["workers"]),
    ({"threads": 2}, ["threads"]),
]


async def test_bad_scales(api):
    import json  # noqa: PLC0415 - orjson has no integers of this size

    for body, fields in BAD:
        data = json.dumps(body).encode()
        answer = await api("POST", "/scale", data=data, headers={"Content-Type": "application/json"})
        problem(answer, 422, "invalid_request", *fields)


async def test_what_is_not_there_is_a_problem(api):
    problem(await api.get("/nothing"), 404, "not_found")
    answer = await api("PUT", "/projects", {})
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET,HEAD,POST".replace(",", ", ")


async def test_without_a_database_reading_and_writing_is_503_and_the_rest_goes_on(coordinators, database_url, session):
    """Only the API is cut off from it: the URL of its pool leads nowhere."""
    it = await coordinators(database_url)
    api = Client(session, f"http://{it.settings.http}/api/v1")
    made = await api.post("/projects", {"url": "http://a/"})
    pool = it.service.server._backend.pool
    await pool.close()
    pool._url = AWAY
    for path in ("/projects", f"/projects/{made.body['id']}", "/changes", "/overview"):
        answer = await api.get(path)
        problem(answer, 503, "database_unavailable")
        assert answer.headers["Retry-After"] == "1"
    assert (await api.get("/status")).status == 200
    assert (await api.post("/scale", {"max_concurrent_http": 60})).status == 200
    answer = await api.patch(f"/projects/{made.body['id']}", {"timeout_ms": 77})
    assert "was made" in problem(answer, 503, "database_unavailable")["detail"]
    await until(lambda: it.worker.projects[made.body["id"]].timeout_ms == 77)
    pool._url = database_url
    await pool.close()
    assert (await api.get(f"/projects/{made.body['id']}")).body["timeout_ms"] == 77


async def test_one_too_many(api, coordinator, monkeypatch):
    monkeypatch.setattr(server_module, "REQUESTS_MAX", 0)
    answer = await api.get("/scale")
    problem(answer, 503, "busy")
    assert answer.headers["Retry-After"] == "1"


# ---- events -----------------------------------------------------------------------------------------------------


class Listener:
    """Reads a stream of events; ``events`` are (name, data) as they came."""

    def __init__(self, session, base):
        self.events = []
        self.status = None
        self.ended = False
        self.task = asyncio.create_task(self._read(session, f"{base}/events"))

    async def _read(self, session, url):
        async with session.get(url, timeout=None) as answer:
            self.status = answer.status
            name = None
            async for line in answer.content:
                text = line.decode().rstrip("\n")
                if text.startswith("event: "):
                    name = text.removeprefix("event: ")
                elif text.startswith("data: "):
                    self.events.append((name, text.removeprefix("data: ")))
                elif text == ":":
                    self.events.append(("comment", ""))
        self.ended = True

    def names(self):
        return [name for name, _ in self.events]

    def data(self, name):
        import orjson  # noqa: PLC0415

        return [orjson.loads(data) for each, data in self.events if each == name]


@pytest.fixture
async def listen(api, session):
    made = []

    def make():
        made.append(Listener(session, api.base))
        return made[-1]

    yield make
    for each in made:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in made), return_exceptions=True)


async def test_events(api, sql, coordinator, listen, monkeypatch):
    monkeypatch.setattr(feed_module, "EVERY_S", 0.05)
    listeners = [listen() for _ in range(3)]
    for listener in listeners:
        await until(lambda listener=listener: listener.names().count("status") > 2)
        status = listener.data("status")[0]
        assert status["max_concurrent_http"] == 500
        assert "loop_lag_counts" not in status["coordinator"]
        assert "loop_lag_counts" not in status["workers"][0]
    made = await api.post("/projects", {"url": "http://a/"})
    await sql.execute(
        "INSERT INTO state_changes VALUES ($1, now(), 'down', now(), 1, 500, 'bad_status', 'text')", made.body["id"]
    )
    for listener in listeners:
        await until(lambda listener=listener: "change" in listener.names())
        (change,) = listener.data("change")
        assert (change["project_id"], change["state"], change["url"]) == (made.body["id"], "down", "http://a/")
        assert {"ids": [made.body["id"]]} in listener.data("projects")
    await api.patch(f"/projects/{made.body['id']}", {"name": "a name only"})
    await until(lambda: len(listeners[0].data("projects")) >= 2)
    feed = coordinator.service._feed
    for listener in listeners:
        listener.task.cancel()
    await until(lambda: not feed._subscribers)
    assert feed._task is None


async def test_old_changes_are_not_sent_again(sql, coordinator, listen, monkeypatch):
    monkeypatch.setattr(feed_module, "EVERY_S", 0.05)
    await sql.execute("INSERT INTO state_changes VALUES (1, now(), 'down', now(), 1, 500, NULL, NULL)")
    listener = listen()
    await until(lambda: listener.names().count("status") > 3)
    assert "change" not in listener.names()


async def test_many_projects_are_not_named(api, listen):
    listener = listen()
    await until(lambda: "status" in listener.names())
    await api.post("/projects/bulk", {"action": "create", "projects": [{"url": "http://a/"}] * 101})
    await until(lambda: {"ids": None} in listener.data("projects"))


async def test_a_slow_client_gets_what_is_newest():
    subscriber = feed_module.Subscriber()
    for n in range(1_000):
        subscriber.put_status(b"status %d;" % n)
        subscriber.put_change(b"change %d;" % n)
        subscriber.put_projects([n])
    chunk = await subscriber.next()
    assert chunk.count(b"status") == 1
    assert b"status 999;" in chunk
    assert chunk.count(b"change") == feed_module.CHANGES_KEPT
    assert b"change 999;" in chunk
    assert b'{"ids":null}' in chunk
    assert len(subscriber._ids) == 0


async def test_heartbeats_and_the_end(monkeypatch):
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.01)
    subscriber = feed_module.Subscriber()
    assert await subscriber.next() == b":\n\n"
    subscriber.end()
    assert await subscriber.next() is None


async def test_listeners_are_limited(api, listen, monkeypatch):
    monkeypatch.setattr(feed_module, "CLIENTS_MAX", 2)
    listeners = [listen(), listen()]
    for listener in listeners:
        await until(lambda listener=listener: listener.status == 200)
    problem(await api.get("/events"), 503, "busy")
    assert (await api("HEAD", "/events")).type == "text/event-stream"


async def test_streams_end_with_the_coordinator_and_do_not_hold_it_up(coordinators, database_url):
    it = await coordinators(database_url)
    async with ClientSession() as session:
        listeners = [Listener(session, f"http://{it.settings.http}/api/v1") for _ in range(5)]
        for listener in listeners:
            await until(lambda listener=listener: "status" in listener.names())
        # one that reads nothing
        host, port = it.settings.http.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /api/v1/events HTTP/1.1\r\nHost: {it.settings.http}\r\n\r\n".encode())
        await until(lambda: len(it.service._feed._subscribers) == 6)
        before = asyncio.get_running_loop().time()
        await it.stop()
        assert asyncio.get_running_loop().time() - before < 5
        for listener in listeners:
            await until(lambda listener=listener: listener.ended, what="a clean end")
        writer.close()
