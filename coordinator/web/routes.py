"""The one table of what is answered over HTTP: method, path, scope, types, handler.

The server, the OpenAPI document, the check of scopes and the list in API.md are all made of it, or held against it.
"""

from typing import Any, Literal

import msgspec
from aiohttp import web

from coordinator.web import cluster_endpoints as cluster_
from coordinator.web import shapes
from coordinator.web.call import Endpoint

API = "/api/v1"

Scope = Literal["none", "read", "write", "admin"]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """``body_as_map``: the handler takes the decoded map, and ``body`` only describes it."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    scope: Scope
    operation: str
    summary: str
    handler: Endpoint
    query: type[msgspec.Struct] | None = None
    body: Any = None
    body_as_map: bool = False
    answer: Any = None
    status: int = 200
    media_type: str = "application/json"


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET", path="/status", scope="read", operation="status", handler=cluster_.get_status,
        summary="the status document, as `cluster status --json` prints it", answer=shapes.StatusAnswer,
    ),
    Route(
        method="GET", path="/healthz", scope="none", operation="healthz", handler=cluster_.get_healthz,
        summary="200 while the coordinator's loop turns", media_type="text/plain",
    ),
    Route(
        method="GET", path="/readyz", scope="none", operation="readyz", handler=cluster_.get_readyz,
        summary="200 when everything works, else 503 and the reasons", answer=dict[str, Any],
    ),
    Route(
        method="GET", path="/metrics", scope="read", operation="metrics", handler=cluster_.get_metrics,
        summary="metrics for Prometheus", media_type="text/plain",
    ),
    Route(
        method="GET", path=f"{API}/workers", scope="read", operation="listWorkers", handler=cluster_.list_workers,
        summary="workers and their load", answer=shapes.WorkerPage,
    ),
    Route(
        method="GET", path=f"{API}/workers/{{name}}", scope="read", operation="getWorker",
        handler=cluster_.get_worker, summary="one worker", answer=shapes.WorkerAnswer,
    ),
    Route(
        method="POST", path=f"{API}/workers/{{name}}/drain", scope="admin", operation="drainWorker",
        handler=cluster_.drain_worker, summary="move a worker's projects to others and end it",
        answer=shapes.DrainAnswer,
    ),
    Route(
        method="GET", path=f"{API}/scale", scope="read", operation="getScale", handler=cluster_.get_scale,
        summary="how many workers and requests there are to be", answer=shapes.ScaleAnswer,
    ),
    Route(
        method="POST", path=f"{API}/scale", scope="admin", operation="setScale", handler=cluster_.set_scale,
        summary="set how many workers and requests there are to be", body=shapes.ScaleBody,
        answer=shapes.ScaleAnswer,
    ),
    Route(
        method="POST", path=f"{API}/reload", scope="admin", operation="reload", handler=cluster_.reload_projects,
        summary="read all projects from the table again", answer=shapes.ReloadAnswer,
    ),
    Route(
        method="GET", path=f"{API}/status", scope="read", operation="getStatus", handler=cluster_.get_status,
        summary="the status document", answer=shapes.StatusAnswer,
    ),
)  # fmt: skip

_BY_PLACE: dict[tuple[str, str], Route] = {(route.method, route.path): route for route in ROUTES}


def route_of(request: web.Request) -> Route | None:
    """The route by which a request is answered; None when there is none, or only with another method."""
    resource = request.match_info.route.resource
    if resource is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return _BY_PLACE.get((method, resource.canonical))
