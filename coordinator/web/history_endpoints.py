"""Endpoints about what was: results, missed ticks, summaries, changes of state, the overview of many projects.

Pages go by key, the newest first.  What is known of a project that was deleted is shown as long as it is kept.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from cluster import history
from cluster.database import Connection
from cluster.errors import ClusterError, InvalidInputError
from cluster.masking import masked_url
from coordinator.web.call import Call, iso_ms, rounded_ms
from coordinator.web.history_maps import period_s, summary_map
from coordinator.web.paging import instant_of_us, microseconds_of, read_cursor, write_cursor
from coordinator.web.pool import ApiPool
from coordinator.web.problems import FieldError, invalid_fields, to_json
from coordinator.web.project_queries import fetch_standings
from coordinator.web.shapes import ProjectNumber

FIRST_YEAR = 1980
LAST_YEAR = 2200
USUAL_PERIOD = "24h"
CHANGES_WINDOW = timedelta(minutes=10)
CHANGES_SEEN = 500

_RESULTS = """
    SELECT project_id, scheduled_at, polled_at, trigger::text AS trigger, status::text AS status, status_code,
           response_time_ms, error_code, error_message, dns_ms, connect_ms, tls_ms, first_byte_ms, transfer_ms,
           size_bytes, connection_reused, remote_address, worker, epoch
    FROM poll_results WHERE project_id = $1"""
_MISSED = """
    SELECT first_tick, last_tick, ticks, reason, worker, epoch FROM missed_polls WHERE project_id = $1"""
_CHANGES = """
    SELECT c.project_id, p.name, p.url, c.changed_at, c.state, c.began_at, c.polls, c.status_code, c.error_code,
           c.error_message
    FROM state_changes c LEFT JOIN projects p ON p.id = c.project_id"""


class InstantPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a page of one project's rows ends."""

    at_us: int


class ChangePlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a page of changes ends."""

    at_us: int
    project_id: ProjectNumber


class IdPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a page of the overview ends."""

    id: ProjectNumber


class Statement:
    """A query that grows by its conditions, and their arguments."""

    def __init__(self, select: str, *arguments: Any, conditions: bool = True) -> None:
        self._text = select
        self._arguments = list(arguments)
        self._word = "AND" if conditions else "WHERE"

    def where(self, condition: str, *values: Any) -> None:
        """``{}`` in a condition of ours stands for a value."""
        places = []
        for value in values:
            self._arguments.append(value)
            places.append(f"${len(self._arguments)}")
        self._text += f" {self._word} {condition.format(*places)}"
        self._word = "AND"

    async def fetch(self, connection: Connection, order: str, limit: int) -> list[Any]:
        return await connection.fetch(f"{self._text} ORDER BY {order} LIMIT {int(limit)}", *self._arguments)


async def list_results(call: Call) -> web.StreamResponse:
    statement = Statement(_RESULTS, call.path["id"])
    if call.query.status is not None:
        statement.where("status = {}::text::poll_status", call.query.status)
    return await _list_ticks(call, statement, "scheduled_at", "scheduled_at", "polled_at")


async def list_missed(call: Call) -> web.StreamResponse:
    return await _list_ticks(call, Statement(_MISSED, call.path["id"]), "first_tick", "last_tick", "last_tick")


async def _list_ticks(call: Call, statement: Statement, key: str, last: str, other: str) -> web.StreamResponse:
    """Of one project, the newest ``key`` first, within the range; ``last``: where a row ends, ``other``: an instant."""
    query = call.query
    since, until = _range(query)
    if since is not None:
        statement.where(f"{last} >= {{}}", since)
    if until is not None:
        statement.where(f"{key} < {{}}", until)
    if query.cursor is not None:
        statement.where(f"{key} < {{}}", instant_of_us(read_cursor(query.cursor, InstantPlace).at_us))
    async with call.backend.pool.connection() as connection:
        rows = await statement.fetch(connection, f"{key} DESC", query.limit + 1)
        if not rows:
            await _expect_project(connection, call.path["id"])
    return _page(
        [_shown(row, key, other) for row in rows[: query.limit]],
        InstantPlace(microseconds_of(rows[query.limit - 1][key])) if len(rows) > query.limit else None,
    )


async def list_changes(call: Call) -> web.StreamResponse:
    query = call.query
    since, until = _range(query)
    statement = Statement(_CHANGES, conditions=False)
    if query.project_id is not None:
        statement.where("c.project_id = {}", query.project_id)
    if since is not None:
        statement.where("c.changed_at >= {}", since)
    if until is not None:
        statement.where("c.changed_at < {}", until)
    if query.state is not None:
        statement.where("c.state = {}", query.state)
    if query.cursor is not None:
        place = read_cursor(query.cursor, ChangePlace)
        statement.where("(c.changed_at, c.project_id) < ({}, {})", instant_of_us(place.at_us), place.project_id)
    async with call.backend.pool.connection() as connection:
        rows = await statement.fetch(connection, "c.changed_at DESC, c.project_id DESC", query.limit + 1)
    last = rows[query.limit - 1] if len(rows) > query.limit else None
    return _page(
        [change_map(row) for row in rows[: query.limit]],
        None if last is None else ChangePlace(microseconds_of(last["changed_at"]), last["project_id"]),
    )


def changes_reader(pool: ApiPool) -> Callable[[], Awaitable[list[dict[str, Any]]]]:
    """Reads the newest changes of all projects of the last CHANGES_WINDOW, oldest first."""

    async def read() -> list[dict[str, Any]]:
        statement = Statement(_CHANGES, conditions=False)
        statement.where("c.changed_at > {}", datetime.now(UTC) - CHANGES_WINDOW)
        async with pool.connection() as connection:
            rows = await statement.fetch(connection, "c.changed_at DESC, c.project_id DESC", CHANGES_SEEN)
        return [change_map(row) for row in reversed(rows)]

    return read


def change_map(row: Any) -> dict[str, Any]:
    return _shown(row, "changed_at", "began_at") | {"url": row["url"] and masked_url(row["url"])}


async def get_summary(call: Call) -> web.StreamResponse:
    query = call.query
    given_since, given_until = _range(query)
    if query.period is not None and (given_since or given_until):
        raise invalid_fields([FieldError("period", "is in the place of since and until; leave one of them out")])
    until = given_until or datetime.now(UTC)
    since = given_since or until - timedelta(seconds=period_s(query.period or USUAL_PERIOD))
    if since > until:
        raise invalid_fields([FieldError("since", "is after now, and no until is given")])
    async with call.backend.pool.connection() as connection:
        try:
            found = await history.summary(connection, call.path["id"], since, until, query.resolution)
        except InvalidInputError as error:
            raise invalid_fields([FieldError("resolution", str(error))]) from error
        if not found.polls and not found.missed:
            await _expect_project(connection, call.path["id"])
    return to_json(summary_map(found))


async def get_overview(call: Call) -> web.StreamResponse:
    query = call.query
    after = None if query.cursor is None else read_cursor(query.cursor, IdPlace).id
    until = datetime.now(UTC)
    since = until - timedelta(seconds=period_s(query.period))
    async with call.backend.pool.connection() as connection:
        rows = await history.overview(connection, since, until, after, query.limit)
        standings = await fetch_standings(connection, [row.id for row in rows])
    items = []
    for row in rows:
        standing = standings.get(row.id)
        if standing is not None:  # it was deleted meanwhile
            items.append(
                rounded_ms(
                    {
                        "id": row.id,
                        "name": standing["name"],
                        "state": standing["shown_state"],
                        "uptime": row.uptime,
                        "polls": row.polls,
                        "failures": row.failure,
                        "p50_ms": row.p50_ms,
                        "p95_ms": row.p95_ms,
                        "p99_ms": row.p99_ms,
                    }
                )
            )
    return _page(items, IdPlace(rows[-1].id) if len(rows) == query.limit else None)


def _range(query: Any) -> tuple[datetime | None, datetime | None]:
    errors = [
        FieldError(name, f"must be of the years {FIRST_YEAR} to {LAST_YEAR}")
        for name in ("since", "until")
        if (given := getattr(query, name)) is not None and not FIRST_YEAR <= given.year <= LAST_YEAR
    ]
    if not errors and query.since is not None and query.until is not None and query.since > query.until:
        errors.append(FieldError("since", "must not be after until"))
    if errors:
        raise invalid_fields(errors)
    return (
        None if query.since is None else query.since.astimezone(UTC),
        None if query.until is None else query.until.astimezone(UTC),
    )


def _page(items: list[dict[str, Any]], place: msgspec.Struct | None) -> web.StreamResponse:
    return to_json({"items": items, "next_cursor": None if place is None else write_cursor(place)})


def _shown(row: Any, *instants: str) -> dict[str, Any]:
    return rounded_ms(row) | {name: iso_ms(row[name]) for name in instants}


async def _expect_project(connection: Connection, project_id: int) -> None:
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM projects WHERE id = $1)", project_id):
        raise ClusterError(f"there is no project {project_id}", code="unknown_project")
