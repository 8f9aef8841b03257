"""The coordinator's HTTP server: ``routes.ROUTES`` is the one table of what it answers.

- What isn't understood is answered with a problem (see problems.py) and doesn't reach the log with a traceback.
- Heads and bodies are bounded; at most REQUESTS_MAX requests are in progress, one more is told ``busy``.
- Totals never go back: while the coordinator has no core yet to ask for them, /status and /metrics are 503.
- Every query parameter and body of the API is of the type that its route declares before a handler sees it.
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

import cluster
from cluster.access.server_tls import ServerCertificate
from cluster.config import split_address
from cluster.errors import ClusterError
from coordinator.web.call import Backend, Call
from coordinator.web.decoding import BODY_BYTES_MAX, decode_body, decode_path, decode_query, read_json
from coordinator.web.docs_endpoints import OPENAPI
from coordinator.web.openapi import openapi_json
from coordinator.web.page_files import PageFiles, wants_page
from coordinator.web.problems import API_PREFIX, Handler, ProblemError, errors_as_problems, to_json
from coordinator.web.route import Route
from coordinator.web.routes import ROUTES, scope_of
from coordinator.web.shapes import PATH_TYPES, NoQuery

LINE_BYTES_MAX = 8_190
KEEP_ALIVE_S = 30.0
NOT_A_WORD = "{id:(?!bulk$)[^{}/]+}"  # so that PATCH of /projects/bulk is told what is possible there
CLOSE_S = 1.0
REQUESTS_MAX = 512
STRANGERS_MAX = 64
STRANGERS_BODY_BYTES_MAX = 64 << 10  # of who has not said yet who they are


class WebServer:
    """``start`` binds the address, or raises ClusterError.

    ``middlewares``: within those of errors and of access.  ``observers``: middlewares around these, which see what the
    client gets.
    """

    def __init__(
        self,
        address: str,
        backend: Backend,
        *,
        middlewares: Sequence[Any] = (),
        observers: Sequence[Any] = (),
        certificate: ServerCertificate | None = None,
    ) -> None:
        self._address = address
        self._backend = backend
        self._page = PageFiles()
        self._middlewares = [*observers, errors_as_problems, backend.access.middleware(scope_of), *middlewares]
        self._certificate = certificate
        self._watching: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self._in_progress = {False: 0, True: 0}  # of strangers: True

    async def start(self) -> None:
        host, port = split_address(self._address)
        app = web.Application(middlewares=self._middlewares)
        app.on_response_prepare.append(self._backend.access.secure_answer)
        app.router.add_get("/", self._index)
        app.router.add_get("/static/{version}/{name}", self._page.static)
        app[OPENAPI] = openapi_json(ROUTES)
        for route in ROUTES:
            path = route.path.replace("{id}", NOT_A_WORD)
            if route.method == "GET":
                app.router.add_get(path, self._bound(route))  # HEAD too
            else:
                app.router.add_route(route.method, path, self._bound(route))
        quiet = logging.getLogger("coordinator.web.protocol")
        quiet.setLevel(logging.CRITICAL)  # bad requests are the client's fault, and are answered
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=quiet,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            shutdown_timeout=CLOSE_S,
        )
        await runner.setup()
        try:
            context = None if self._certificate is None else self._certificate.context
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as error:
            await runner.cleanup()
            why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise ClusterError(
                f"cannot serve HTTP on {self._address}: {why}; choose another with --http", code="http_unavailable"
            ) from error
        self._runner = runner
        if self._certificate is not None:
            self._watching = asyncio.get_running_loop().create_task(self._certificate.watch())

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [] if self._runner is None else [address[:2] for address in self._runner.addresses]

    async def close(self) -> None:
        """Streams end, requests in progress have CLOSE_S."""
        self._backend.feed.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._backend.pool.close()
        await self._backend.access.close()

    async def _index(self, request: web.Request) -> web.Response:
        if wants_page(request):
            return await self._page.index(request)
        endpoints = {route.path: route.summary for route in ROUTES if route.method == "GET"}
        return to_json(
            {"name": "ringpoll", "version": cluster.__version__, "endpoints": {"/": "this list", **endpoints}}
        )

    def _bound(self, route: Route) -> Handler:
        is_api = route.path.startswith(API_PREFIX)
        is_stranger = route.scope == "none"  # who asks has not said yet who they are

        async def handle(request: web.Request) -> web.StreamResponse:
            path = decode_path(PATH_TYPES, request)
            query = None
            if route.query is not None:
                query = decode_query(route.query, request)
            elif is_api:
                decode_query(NoQuery, request)
            if is_stranger and route.body is None:  # such as /healthz: answered whatever else goes on
                return await route.handler(Call(request, self._backend, path, query))
            with self._slot(is_stranger):  # from before its body is in memory
                body = None
                if route.body is not None:
                    body = await read_json(request, STRANGERS_BODY_BYTES_MAX if is_stranger else BODY_BYTES_MAX)
                    if not route.body_as_map:
                        body = decode_body(route.body, body)
                return await route.handler(Call(request, self._backend, path, query, body))

        return handle

    @contextlib.contextmanager
    def _slot(self, is_stranger: bool) -> Iterator[None]:
        """Strangers have slots of their own, so that they can't take those of others by being slow."""
        most = STRANGERS_MAX if is_stranger else REQUESTS_MAX
        if self._in_progress[is_stranger] >= most:
            raise ProblemError("busy", f"{most} requests are in progress; try again")
        self._in_progress[is_stranger] += 1
        try:
            yield
        finally:
            self._in_progress[is_stranger] -= 1
