"""Every engine under the loop that every role runs; with PROBE_LOOPS=all under asyncio's own, too."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trustme
import uvloop
from probe_scripts import WAIT_S, Names, RawServer, Script, check, spec

from worker.probe.aiohttp_engine import AiohttpProber
from worker.probe.interface import ProbeOutcome, Prober, probe
from worker.probe.lean_engine import LeanProber


def pytest_asyncio_loop_factories(config, item):
    loops = {"uvloop": uvloop.new_event_loop}
    return loops | {"asyncio": asyncio.new_event_loop} if os.environ.get("PROBE_LOOPS") == "all" else loops


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "good.test").configure_cert(context)
    return context


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[RawServer]]]:
    servers = []

    async def start(script: Script | bytes, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> RawServer:
        server = RawServer(script, tls, host)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture(params=["lean", "aiohttp"])
async def make_prober(request, authority, names) -> AsyncIterator[Callable[..., Prober]]:
    made = []

    def make(**options: object) -> Prober:
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
        engine = {"lean": LeanProber, "aiohttp": AiohttpProber}[request.param]
        prober = engine(**{"body_limit_bytes": 1 << 20, "lookup": names, "tls": tls, **options})
        made.append(prober)
        return prober

    yield make
    for prober in made:
        await prober.close(0)


@pytest.fixture
async def prober(make_prober) -> Prober:
    return make_prober()


@pytest.fixture
def poll(prober) -> Callable[..., Awaitable[ProbeOutcome]]:
    """Poll once with the default prober; what holds for every outcome is checked here."""

    async def poll_once(url: str, **fields: object) -> ProbeOutcome:
        outcome = await asyncio.wait_for(probe(prober, spec(url, **fields)), WAIT_S)
        check(outcome)
        return outcome

    return poll_once
