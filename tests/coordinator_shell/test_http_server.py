"""The HTTP server: what is at each path, and that bad requests leave neither tracebacks nor damage."""

import asyncio
import logging
import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from cluster.errors import ClusterError
from coordinator.requests import RequestDesk
from coordinator.status import ClusterCollector, ShellCounts
from coordinator.web.call import Backend
from coordinator.web.feed import EventFeed
from coordinator.web.pool import ApiPool
from coordinator.web.server import WebServer
from tests.coordinator_shell.test_status_document import view

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
PATHS = ("/", "/status", "/healthz", "/readyz", "/metrics")


def free_port(family=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Served:
    def __init__(self, address):
        self.view = view()
        self.started = True
        registry = CollectorRegistry()
        registry.register(ClusterCollector(lambda: self.view, lambda: ShellCounts(uptime_s=3.0)))
        self.server = WebServer(
            address,
            Backend(
                view=lambda: self.view,
                counts=lambda: ShellCounts(uptime_s=3.0),
                started=lambda: self.started,
                desk=RequestDesk(None, None, lambda: self.view, NOWHERE, supervised=True),
                pool=ApiPool(NOWHERE),
                registry=registry,
                feed=EventFeed(lambda: None, None),
            ),
        )
        self.url = f"http://{address}"


@pytest.fixture
async def served():
    made = Served(f"127.0.0.1:{free_port()}")
    await made.server.start()
    yield made
    await made.server.close()


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


async def test_status_is_the_document(served, http):
    async with http.get(served.url + "/status") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        document = await answer.json()
    assert (document["epoch"], document["uptime_s"]) == (5, 3.0)


async def test_health_and_readiness(served, http):
    async with http.get(served.url + "/healthz") as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")
    async with http.get(served.url + "/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"ready": True, "reasons": []})
    served.view = view(database_up=False, workers=[])
    async with http.get(served.url + "/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["reasons"] == ["the database does not answer", "0 of 2 workers run"]
    async with http.get(served.url + "/healthz") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", ["/status", "/metrics"])
async def test_before_there_is_anything_to_show_it_is_unavailable(served, http, path):
    """Totals of 0 would be totals that went back."""
    served.started = False
    async with http.get(served.url + path) as answer:
        assert (answer.status, answer.content_type) == (503, "application/json")
        assert answer.headers["Retry-After"] == "1"
        assert (await answer.json())["code"] == "starting"
    for other, status in (("/healthz", 200), ("/", 200)):
        async with http.get(served.url + other) as answer:
            assert answer.status == status
    served.started = True
    async with http.get(served.url + path) as answer:
        assert answer.status == 200


async def test_the_index_lists_every_path(served, http):
    async with http.get(served.url + "/") as answer:
        assert set(PATHS) < set((await answer.json())["endpoints"])


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text; version=1.0.0", "nonsense;;q=x"])
async def test_metrics(served, http, accept):
    async with http.get(served.url + "/metrics", headers={"Accept": accept}) as answer:
        assert answer.status == 200
        text = await answer.text()
    assert "ringpoll_projects 20" in text
    assert text.endswith("# EOF\n") == accept.startswith("application/openmetrics")


@pytest.mark.parametrize("path", PATHS)
async def test_head(served, http, path):
    async with http.head(served.url + path) as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_what_is_not_there_and_what_is_not_possible(served, http):
    async with http.get(served.url + "/nothing%0a") as answer:
        assert (answer.status, answer.content_type) == (404, "application/json")
        assert (await answer.json())["code"] == "not_found"
    async with http.post(served.url + "/status", data=b"x") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert (await answer.json())["type"] == "error"


async def test_a_bug_is_logged_and_answered(served, http, caplog):
    served.view = None
    async with http.get(served.url + "/status") as answer:
        assert answer.status == 500
        assert (await answer.json())["code"] == "internal"
    assert "a bug in the answer to GET /status" in caplog.text


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"b" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /status HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"\r\n\r\n\x00\x00",
    ],
)
async def test_bad_requests_leave_no_traceback(served, http, caplog, raw):
    caplog.set_level(logging.DEBUG)
    host, port = served.server.addresses[0]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(raw)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert answer == b"" or answer.split()[1][:1] in {b"4", b"2", b"5"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    async with http.get(served.url + "/healthz") as healthy:
        assert healthy.status == 200


async def test_ipv6(http):
    try:
        port = free_port(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    made = Served(f"[::1]:{port}")
    await made.server.start()
    async with http.get(made.url + "/healthz") as answer:
        assert answer.status == 200
    await made.server.close()


@pytest.mark.parametrize("address", ["{taken}", "203.0.113.1:8700", "no-such-host.invalid:8700"])
async def test_an_address_that_cannot_be_served_is_one_line(served, address):
    host, port = served.server.addresses[0]
    other = Served(address.format(taken=f"{host}:{port}"))
    with pytest.raises(ClusterError, match=r"cannot serve HTTP on .*--http") as caught:
        await other.server.start()
    assert caught.value.code == "http_unavailable"
    await other.server.close()
