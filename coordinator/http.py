"""The coordinator's HTTP server: ``ROUTES`` is the one table of what it answers.

Answers are JSON but for /healthz and /metrics.  What isn't understood is answered with ``{"type": "error", ...}`` and
doesn't reach the log with a traceback; heads and bodies are bounded.  It reads the cluster and changes nothing.

Totals never go back: while the coordinator has no core yet to ask for them, /status and /metrics are 503.
"""

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

import cluster
from cluster.config import split_address
from cluster.errors import ClusterError
from coordinator.events import View
from coordinator.metrics import ClusterCollector
from coordinator.status import ShellCounts, document, not_ready

BODY_BYTES_MAX = 64 << 10
LINE_BYTES_MAX = 8_190
KEEP_ALIVE_S = 30.0
CLOSE_S = 1.0
RETRY_AFTER_S = 1

logger = logging.getLogger("coordinator.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StatusServer:
    """``start`` binds the address, or raises ClusterError."""

    def __init__(
        self,
        address: str,
        view: Callable[[], View],
        counts: Callable[[], ShellCounts],
        *,
        started: Callable[[], bool],
    ) -> None:
        self._address = address
        self._started = started
        self._view = view
        self._counts = counts
        self._registry = CollectorRegistry()
        self._registry.register(ClusterCollector(view, counts))
        self._runner: web.AppRunner | None = None
        # path, what it is, handler; the API and the page come here
        self._routes: tuple[tuple[str, str, Handler], ...] = (
            ("/", "this list", self._index),
            ("/status", "the status document, as `cluster status --json` prints it", self._status),
            ("/healthz", "200 while the coordinator's loop turns", self._healthz),
            ("/readyz", "200 when everything works, else 503 and the reasons", self._readyz),
            ("/metrics", "metrics for Prometheus", self._metrics),
        )

    async def start(self) -> None:
        host, port = split_address(self._address)
        app = web.Application(middlewares=[_errors_as_json], client_max_size=BODY_BYTES_MAX)
        for path, _, handler in self._routes:
            app.router.add_get(path, handler)  # HEAD too
        quiet = logging.getLogger("coordinator.http.protocol")
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
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise ClusterError(
                f"cannot serve HTTP on {self._address}: {why}; choose another with --http", code="http_unavailable"
            ) from error
        self._runner = runner

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [] if self._runner is None else [address[:2] for address in self._runner.addresses]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _index(self, _request: web.Request) -> web.Response:
        endpoints = {path: text for path, text, _ in self._routes}
        return to_json({"name": "ringpoll", "version": cluster.__version__, "endpoints": endpoints})

    async def _status(self, _request: web.Request) -> web.Response:
        if not self._started():
            return _starting()
        return to_json(document(self._view(), self._counts()))

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reasons = not_ready(self._view())
        return to_json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self._started():
            return _starting()
        encode, content_type = choose_encoder(",".join(request.headers.getall("Accept", [])))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


def to_json(content: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS) + b"\n",
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _starting() -> web.Response:
    text = "the coordinator is starting and does not know its totals yet; try again"
    response = to_json({"type": "error", "code": "starting", "message": text}, 503)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as answer:
        if answer.status < 400:
            raise
        error = {"type": "error", "code": answer.reason.lower().replace(" ", "_"), "message": _explain(answer, request)}
        response = to_json(error, answer.status)
        if isinstance(answer, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(answer.allowed_methods))
        return response
    except Exception:
        logger.exception("a bug in the answer to %s %s", request.method, request.path)
        text = "the coordinator could not answer; its log says why"
        return to_json({"type": "error", "code": "internal", "message": text}, 500)


def _explain(answer: web.HTTPException, request: web.Request) -> str:
    match answer.status:
        case 404:
            return f"there is nothing at {request.path[:200]}; / lists what there is"
        case 405:
            return f"{request.method[:20]} is not possible at {request.path[:200]}"
        case _:
            return answer.reason
