"""Traces of HTTP requests: a span each, in the trace its client names (``traceparent``), by route and never by path.

Not of what a machine asks for every few seconds (``QUIET``), nor of event streams, which last as long as a page is
open.
"""

import time

from aiohttp import web

from cluster.tracing import SpanAttributes, Tracing
from coordinator.web.request_metrics import EVENT_STREAM, RequestHandler, template_of

QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/status"})


class RequestTracing:
    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    @web.middleware
    async def trace(self, request: web.Request, handler: RequestHandler) -> web.StreamResponse:
        route = template_of(request)
        if route in QUIET:
            return await handler(request)
        began_ns = time.time_ns()
        status, streamed = 500, False
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            status = answer.status
            raise
        else:
            status, streamed = response.status, response.content_type == EVENT_STREAM
            return response
        finally:
            if not streamed:
                attributes: SpanAttributes = {
                    "http.request.method": request.method,
                    "http.route": route,
                    "http.response.status_code": status,
                    "http.request.body.size": request.content_length,
                }
                self._tracing.record(
                    f"{request.method} {route}",
                    began_ns,
                    time.time_ns(),
                    attributes,
                    kind="server",
                    error=f"status {status}" if status >= 500 else None,
                    headers=request.headers,
                )
