"""HTTP requests as the operator's Prometheus sees them: how many of which route and status, and how long they took.

``measure`` is the outermost middleware, so what it counts is what the client gets.  A route is its template
(``/api/v1/projects/{project_id}``), never a path: series are bounded by the table of routes, and what matches none is
one route, ``none``.  Answers that stay open (server-sent events) are counted when they end and while they are open, but
have no duration.
"""

import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = "none"
OTHER_METHOD = "other"
ABORTED = "aborted"  # the client went away, or the server stopped, before there was an answer
EVENT_STREAM = "text/event-stream"

RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestMetrics(Collector):
    """Of one server."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str], int] = {}  # method, route, status class
        self._durations: dict[tuple[str, str], list[int]] = {}  # method, route; by BOUNDS_S, not cumulative
        self._sums_s: dict[tuple[str, str], float] = {}
        self._open: dict[str, int] = {}  # by route

    @web.middleware
    async def measure(self, request: web.Request, handler: RequestHandler) -> web.StreamResponse:
        route = template_of(request)
        method = request.method if request.method in METHODS else OTHER_METHOD
        self._open[route] = self._open.get(route, 0) + 1
        began_s = time.perf_counter()
        status, streamed = ABORTED, False
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            status = _class_of(answer.status)
            raise
        except Exception:  # a cancellation is none
            status = "5xx"
            raise
        else:
            status, streamed = _class_of(response.status), response.content_type == EVENT_STREAM
            return response
        finally:
            self._open[route] -= 1
            timed = status != ABORTED and not streamed
            self.count(method, route, status, time.perf_counter() - began_s if timed else None)

    def count(self, method: str, route: str, status: str, took_s: float | None) -> None:
        """``took_s`` None: it has no duration."""
        self._open.setdefault(route, 0)
        self._requests[method, route, status] = self._requests.get((method, route, status), 0) + 1
        if took_s is None:
            return
        counts = self._durations.setdefault((method, route), [0] * (len(BOUNDS_S) + 1))
        counts[bisect_left(BOUNDS_S, took_s)] += 1
        self._sums_s[method, route] = self._sums_s.get((method, route), 0.0) + took_s

    def describe(self) -> Iterator[Metric]:
        return iter(())  # registering must not collect

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "ringpoll_http_requests",
            "Requests to the coordinator's HTTP server that were answered.",
            labels=["method", "route", "status"],
        )
        for key, count in sorted(self._requests.items()):
            requests.add_metric(key, count)
        yield requests
        open_now = GaugeMetricFamily(
            "ringpoll_http_requests_open", "Requests that are being answered, open event streams too.", labels=["route"]
        )
        for route, count in sorted(self._open.items()):
            open_now.add_metric([route], count)
        yield open_now
        durations = HistogramMetricFamily(
            "ringpoll_http_request_duration_seconds",
            "From a request's head to its answer, without event streams.",
            labels=["method", "route"],
        )
        for labels, counts in sorted(self._durations.items()):
            buckets: list[tuple[str, float]] = []
            seen = 0
            for bound, count in zip((*map(repr, BOUNDS_S), "+Inf"), counts, strict=True):
                seen += count
                buckets.append((bound, float(seen)))
            durations.add_metric(labels, buckets, self._sums_s[labels])
        yield durations


def template_of(request: web.Request) -> str:
    """The route of a request as the table of routes has it; bounded by it."""
    resource = request.match_info.route.resource
    return NO_ROUTE if resource is None else resource.canonical


def _class_of(status: int) -> str:
    return f"{status // 100}xx"
