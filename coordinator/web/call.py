"""One request to the API, decoded, and what its handler may use."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from cluster.access.scopes import Scope, covers
from coordinator.events import View
from coordinator.project_requests import Requester
from coordinator.requests import RequestDesk
from coordinator.status import ShellCounts, document
from coordinator.web.access import IDENTITY, Access, Identity, access_on_loopback
from coordinator.web.feed import EventFeed
from coordinator.web.pool import ApiPool
from coordinator.web.problems import ProblemError, to_json


class Backend(msgspec.Struct, frozen=True):
    """The coordinator, as seen from HTTP.  ``started``: whether there is a core to ask."""

    view: Callable[[], View]
    counts: Callable[[], ShellCounts]
    started: Callable[[], bool]
    desk: RequestDesk
    pool: ApiPool
    registry: CollectorRegistry
    feed: EventFeed
    access: Access = msgspec.field(default_factory=access_on_loopback)

    def expect_started(self) -> None:
        """Totals never go back: before they are known there are none."""
        if not self.started():
            raise ProblemError("starting", "the coordinator is starting and does not know its totals yet; try again")

    def status(self) -> dict[str, Any]:
        self.expect_started()
        return document(self.view(), self.counts())


class Call(msgspec.Struct, frozen=True):
    """``query`` and ``body`` are of the types that the route declares, None where it declares none."""

    request: web.Request
    backend: Backend
    path: Mapping[str, Any]
    query: Any = None
    body: Any = None

    @property
    def requester(self) -> Requester:
        return Requester(self.identity.actor, self.request.remote)

    @property
    def identity(self) -> Identity:
        """Who asks, and what they may do; of a route with a scope."""
        return self.request[IDENTITY]

    def expect_scope(self, scope: Scope, what: str) -> None:
        """Of what asks for more than its route does."""
        if not covers(self.identity.scope, scope):
            raise ProblemError("forbidden", f"the scope {scope} is needed {what}")


Endpoint: TypeAlias = Callable[[Call], Awaitable[web.StreamResponse]]

__all__ = ["Backend", "Call", "Endpoint", "iso_ms", "rounded_ms", "to_json"]


def iso_ms(instant: datetime | None) -> str | None:
    """As the API writes instants: ISO 8601, UTC, milliseconds, Z.  ``instant`` is in UTC."""
    return None if instant is None else instant.isoformat(timespec="milliseconds")[:23] + "Z"


def rounded_ms(found: Mapping[str, Any]) -> dict[str, Any]:
    """Durations to the microsecond: a column of type real has no more, and would be shown with 17 digits."""
    return {
        name: round(value, 3) if name.endswith("_ms") and type(value) is float else value
        for name, value in found.items()
    }
