"""The target of ``cluster up --demo``: a local HTTP server with a few behaviours, and 100 projects that poll it.

It serves on 127.0.0.1, on port 8701 or the next free one, and sees to it that the table has a project for each of
``DEMO_PROJECTS``, known by its name: one that is there keeps its row and only gets the server's address of today, so a
second demo has 100 projects still.  Nothing is deleted, neither now nor at the end.  They are added when the cluster is
ready to poll, so a first demo shows no tick that was due before.

    /ok/N       200 at once                       /slow/N     200 after 0.3 to 1.2 s
    /flaky/N    503 for every fifth request       /failing/N  500

Runs as ``python -m cluster.demo``, started by the supervisor.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from collections import Counter

import aiohttp
import msgspec
from aiohttp import web

from cluster import database, runtime
from cluster.errors import ClusterError
from cluster.project import ProjectFields
from cluster.settings import Settings

HOST = "127.0.0.1"
PORT_FIRST = 8_701
PORTS_TRIED = 50
INTERVAL_S = 5
FLAKY_EVERY = 5
RETRY_S = 0.5
RETRY_MAX_S = 10.0
READY_WAIT_S = 30.0
READY_POLL_S = 0.1

logger = logging.getLogger("cluster.demo")


class DemoProject(msgspec.Struct, frozen=True):
    name: str
    path: str


DEMO_PROJECTS = tuple(
    DemoProject(f"demo {behaviour} {number:02}", f"/{behaviour}/{number}")
    for behaviour, count in (("ok", 70), ("slow", 10), ("flaky", 10), ("failing", 10))
    for number in range(1, count + 1)
)


class DemoTarget:
    def __init__(self) -> None:
        self._flaky: Counter[str] = Counter()

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/ok/{number}", self._ok)
        application.router.add_get("/slow/{number}", self._slow)
        application.router.add_get("/flaky/{number}", self._be_flaky)
        application.router.add_get("/failing/{number}", self._fail)
        return application

    async def _ok(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "path": request.path})

    async def _slow(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        await asyncio.sleep(0.2 + 0.1 * (int(number) % 11 if number.isdecimal() else 0))
        return web.json_response({"ok": True, "path": request.path})

    async def _be_flaky(self, request: web.Request) -> web.Response:
        self._flaky[request.path] += 1
        if self._flaky[request.path] % FLAKY_EVERY == 0:
            return web.Response(status=503, text="try again\n")
        return web.Response(text="ok\n")

    async def _fail(self, _request: web.Request) -> web.Response:
        return web.Response(status=500, text="always broken\n")


def listen(first: int = PORT_FIRST) -> socket.socket:
    """A socket on the first free port."""
    for port in range(first, first + PORTS_TRIED):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(1_024)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise ClusterError(f"the demo cannot listen on {HOST}:{port}: {error.strerror}") from error
            continue
        return listener
    raise ClusterError(f"the demo found no free port from {first} to {first + PORTS_TRIED - 1}")


async def upsert_projects(conn: database.Connection, port: int) -> tuple[int, int]:
    """How many projects were added, and how many got the server's address of today."""
    async with conn.transaction():
        await conn.execute("LOCK TABLE projects IN SHARE ROW EXCLUSIVE MODE")  # no second demo in between
        names = [each.name for each in DEMO_PROJECTS]
        rows = await conn.fetch("SELECT id, name, url FROM projects WHERE name = ANY($1::text[]) ORDER BY id", names)
        known = {row["name"]: row for row in reversed(rows)}
        urls = {each.name: f"http://{HOST}:{port}{each.path}" for each in DEMO_PROJECTS}
        new = [ProjectFields(url=urls[name], name=name, interval=INTERVAL_S) for name in names if name not in known]
        moved = [(row["id"], urls[name]) for name, row in known.items() if row["url"] != urls[name]]
        await conn.execute(
            "INSERT INTO projects (name, url, interval, unit) "
            "SELECT name, url, $3, 'seconds' FROM unnest($1::text[], $2::text[]) AS new(name, url)",
            [fields.name for fields in new],
            [fields.url for fields in new],
            INTERVAL_S,
        )
        await conn.execute(
            "UPDATE projects p SET url = moved.url FROM unnest($1::bigint[], $2::text[]) AS moved(id, url) "
            "WHERE p.id = moved.id",
            [project_id for project_id, _ in moved],
            [url for _, url in moved],
        )
    return len(new), len(moved)


async def run_demo(context: runtime.RoleContext) -> int:
    url = context.settings.database_url
    if url is None:
        raise ClusterError("the demo needs a database; start it with `cluster up --demo`")
    listener = listen()
    port = int(listener.getsockname()[1])
    runner = web.AppRunner(DemoTarget().application(), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, shutdown_timeout=1.0).start()
        logger.info("the demo's target is at http://%s:%d", HOST, port)
        adding = asyncio.create_task(_add_projects(url, port, context.settings))
        await context.stopping.wait()
        adding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await adding
    finally:
        await runner.cleanup()
    return 0


async def _until_ready(settings: Settings) -> None:
    """Wait for the cluster to poll, but not for ever: a worker that does not start must not hide the demo."""
    host, _, port = settings.http.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - bound to all, asked on this one
    scheme = "http" if settings.http_cert is None else "https"
    url = f"{scheme}://{host}:{port}/readyz"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_WAIT_S), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(url, ssl=False) as response:  # a certificate names no loopback
                        if response.status == web.HTTPOk.status_code:
                            return
                await asyncio.sleep(READY_POLL_S)


async def _add_projects(url: str, port: int, settings: Settings) -> None:
    """Retries until the database has taken them."""
    await _until_ready(settings)
    delay_s = RETRY_S
    while True:
        try:
            conn = await database.connect(url)
            try:
                added, moved = await upsert_projects(conn, port)
            finally:
                await conn.close(timeout=5)
        except (ClusterError, *database.DATABASE_ERRORS) as error:
            logger.warning("cannot add the demo's projects yet: %s", database.describe(error))
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)
        else:
            logger.info("the demo has %d projects, %d of them new, %d moved", len(DEMO_PROJECTS), added, moved)
            return


if __name__ == "__main__":
    sys.exit(runtime.role_process("demo", run_demo))
