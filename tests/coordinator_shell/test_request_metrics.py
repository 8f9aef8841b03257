"""What is counted of HTTP requests: by template, never by path, whatever comes."""

import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from coordinator.web.request_metrics import RequestMetrics
from tests.coordinator_shell.test_http_server import free_port
from tests.coordinator_shell.test_metrics import Samples
from tests.coordinator_shell.waiting import until

REQUESTS = "ringpoll_http_requests_total"
OPEN = "ringpoll_http_requests_open"
COUNT = "ringpoll_http_request_duration_seconds_count"


class App:
    def __init__(self):
        self.metrics = RequestMetrics()
        self.registry = CollectorRegistry()
        self.registry.register(self.metrics)
        self.release = asyncio.Event()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.app = web.Application(middlewares=[self.metrics.measure])
        self.app.router.add_get("/projects/{id}", self.project)
        self.app.router.add_get("/bug", self.bug)
        self.app.router.add_get("/events", self.events)
        self.app.router.add_get("/held", self.held)

    async def project(self, request):
        if request.match_info["id"] == "refused":
            raise web.HTTPConflict
        return web.Response(status=404 if request.match_info["id"] == "unknown" else 200)

    async def bug(self, request):
        raise ZeroDivisionError

    async def events(self, request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await self.release.wait()
        return response

    async def held(self, request):
        await self.release.wait()
        return web.Response()

    def scrape(self):
        return Samples(generate_latest(self.registry).decode())

    def count(self, name, **labels):
        return sum(
            each.value for each in self.scrape().samples if each.name == name and labels.items() <= each.labels.items()
        )


@pytest.fixture
async def app():
    made = App()
    runner = web.AppRunner(made.app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(made.url.rpartition(":")[2])).start()
    yield made
    made.release.set()
    await runner.cleanup()


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


async def test_requests_are_counted_by_template_and_class_of_status(app, http):
    for path in ("1", "2", "3", "unknown", "refused"):
        async with http.get(f"{app.url}/projects/{path}") as answer:
            await answer.read()
    async with http.post(f"{app.url}/projects/1") as answer:
        assert answer.status == 405
    route = "/projects/{id}"
    assert app.count(REQUESTS, method="GET", route=route, status="2xx") == 3
    assert app.count(REQUESTS, method="GET", route=route, status="4xx") == 2
    assert app.count(REQUESTS, method="POST", route="none", status="4xx") == 1
    assert app.count(COUNT, method="GET", route=route) == 5
    assert app.count("ringpoll_http_request_duration_seconds_sum", route=route) > 0
    assert app.count(OPEN) == 0


async def test_a_bug_is_a_5xx(app, http):
    async with http.get(f"{app.url}/bug") as answer:
        assert answer.status == 500
    assert app.count(REQUESTS, route="/bug", status="5xx") == 1


async def test_whatever_is_asked_for_makes_no_further_series(app, http):
    for at in range(50):
        async with http.request(("PROPFIND", "LOCK", "TRACE")[at % 3], f"{app.url}/nothing/{at}") as answer:
            await answer.read()
    series = [each for each in app.scrape().samples if each.name == REQUESTS]
    assert [(each.labels, each.value) for each in series] == [
        ({"method": "other", "route": "none", "status": "4xx"}, 50.0)
    ]


async def test_an_event_stream_is_open_then_counted_and_has_no_duration(app, http):
    async with http.get(f"{app.url}/events") as answer:
        await answer.content.readany()
        assert app.count(OPEN, route="/events") == 1
        assert app.count(REQUESTS) == 0
        app.release.set()
        await answer.read()
    await until(lambda: app.count(OPEN, route="/events") == 0)
    assert app.count(REQUESTS, route="/events", status="2xx") == 1
    assert app.count(COUNT) == 0


async def test_a_client_that_goes_away_is_counted_as_such(app, http):
    asking = asyncio.ensure_future(http.get(f"{app.url}/held"))
    await until(lambda: app.count(OPEN, route="/held") == 1)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await until(lambda: app.count(REQUESTS, route="/held", status="aborted") == 1)
    assert app.count(COUNT) == 0
