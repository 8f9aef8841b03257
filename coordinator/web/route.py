"""What a route is: one line of the table in routes.py."""

from typing import Any, Literal

import msgspec

from cluster.access.scopes import RouteScope
from coordinator.web.call import Endpoint

API = "/api/v1"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """``body_as_map``: the handler takes the decoded map, and ``body`` only describes it."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    scope: RouteScope
    operation: str
    summary: str
    handler: Endpoint
    query: type[msgspec.Struct] | None = None
    body: Any = None
    body_as_map: bool = False
    answer: Any = None
    status: int = 200
    media_type: str = "application/json"
    etag: bool = False  # of the answer
    if_match: bool = False  # is heard
