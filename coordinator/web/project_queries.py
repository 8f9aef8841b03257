"""Projects as the API shows them: the queries, and rows made into maps.  It reads only.

- Pages go by key: the next one begins behind the last row's (sort value, id), however many were added or removed.
- A project is ``pending`` until something is known of it: its writer has neither followed its state nor seen its
  address, and no poll of the last PENDING_DAYS days is stored.
- ``last_result`` is looked up for the page only, in the newest result partition first.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.audit import invalid_rows
from cluster.database import Connection
from cluster.masking import masked_project
from cluster.project import FIELD_NAMES
from coordinator.project_requests import readable_fields
from coordinator.web.call import iso_ms, rounded_ms
from coordinator.web.paging import bad_cursor, instant_of_us, microseconds_of
from coordinator.web.shapes import ProjectNumber, ProjectsQuery

PENDING_DAYS = 2
MICROSECONDS_DIGITS = 18

# Only what follows is ever put into a statement; what people wrote goes in as arguments.
_POLLED = f"""(s.project_id IS NOT NULL
    OR EXISTS (SELECT FROM project_addresses a WHERE a.project_id = p.id)
    OR EXISTS (SELECT FROM poll_results r
               WHERE r.project_id = p.id AND r.scheduled_at > now() - interval '{PENDING_DAYS} days'))"""  # noqa: S608 - ours
STATE_SQL = f"""CASE WHEN NOT p.enabled THEN 'paused' WHEN s.state = 'down' THEN 'down'
    WHEN {_POLLED} THEN 'up' ELSE 'pending' END"""
_OF_STATE = {
    "paused": "NOT p.enabled",
    "down": "p.enabled AND s.state = 'down'",
    "up": f"p.enabled AND s.state IS DISTINCT FROM 'down' AND {_POLLED}",
    "pending": f"p.enabled AND s.project_id IS NULL AND NOT {_POLLED}",
}
_FROM = "projects p LEFT JOIN project_states s ON s.project_id = p.id"
_COLUMNS = ", ".join(f"p.{name}" for name in ("id", *FIELD_NAMES, "created_at", "updated_at"))
_WHOLE = f"{_COLUMNS}, p.xmin::text::bigint AS xmin, s.since AS state_since, {STATE_SQL} AS shown_state"
_LAST = """LEFT JOIN LATERAL (
    SELECT polled_at, status, status_code, response_time_ms, error_code, error_message
    FROM poll_results WHERE project_id = page.id ORDER BY scheduled_at DESC LIMIT 1) last ON true"""
_LAST_COLUMNS = """last.polled_at AS last_polled_at, last.status::text AS last_status,
    last.status_code AS last_status_code, last.response_time_ms AS last_response_time_ms,
    last.error_code AS last_error_code, last.error_message AS last_error_message"""
_LAST_NAMES = ("polled_at", "status", "status_code", "response_time_ms", "error_code", "error_message")
_ONE = f"SELECT page.*, {_LAST_COLUMNS} FROM (SELECT {_WHOLE} FROM {_FROM} WHERE p.id = $1) page {_LAST}"  # noqa: S608
_RARE_STATES = frozenset({"down", "pending"})


class ListPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a page of projects ends: what its cursor holds."""

    sort: str
    value: str
    id: ProjectNumber


class ProjectSelection(msgspec.Struct, frozen=True):
    """Which projects are meant: conditions, and their arguments from $1 on."""

    conditions: tuple[str, ...]
    arguments: tuple[Any, ...]

    @property
    def where(self) -> str:
        return f"WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


def selection_of(query: ProjectsQuery) -> ProjectSelection:
    conditions = []
    arguments: list[Any] = []
    if query.search is not None:
        # Letters of ASCII are alike in all languages, and quickly made small without one.
        collation = ' COLLATE "C"' if query.search.isascii() else ""
        arguments.append(query.search)
        found = [f"strpos(lower(p.{name}{collation}), lower($1{collation})) > 0" for name in ("url", "name")]
        conditions.append(f"({' OR '.join(found)})")
    if query.enabled is not None:
        conditions.append("p.enabled" if query.enabled else "NOT p.enabled")
    if query.state is not None:
        conditions.append(_OF_STATE[query.state])
    return ProjectSelection(tuple(conditions), tuple(arguments))


async def fetch_page(
    connection: Connection, query: ProjectsQuery, selection: ProjectSelection, after: ListPlace | None
) -> list[Any]:
    """Rows of a page, and one more if there is another page."""
    column = query.sort.removeprefix("-")
    descending = query.sort.startswith("-")
    arguments = list(selection.arguments)
    conditions = list(selection.conditions)
    sign, order = ("<", "DESC") if descending else (">", "ASC")
    if after is not None:
        if column == "id":
            arguments.append(after.id)
            conditions.append(f"p.id {sign} ${len(arguments)}")
        else:
            arguments += [_key(column, after.value), after.id]
            conditions.append(f"(p.{column}, p.id) {sign} (${len(arguments) - 1}, ${len(arguments)})")
    arguments.append(query.limit + 1)
    by = f"p.id {order}" if column == "id" else f"p.{column} {order}, p.id {order}"
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    chosen = f"SELECT p.id FROM {_FROM} {where} ORDER BY {by} LIMIT ${len(arguments)}"  # noqa: S608 - ours
    if column != "id" and (query.search is not None or query.state in _RARE_STATES):
        # Not along an index: where few are meant, that is a walk through the whole table out of its order.
        chosen = (
            f"WITH meant AS MATERIALIZED (SELECT p.id, p.{column} FROM {_FROM} {where}) "  # noqa: S608 - ours
            f"SELECT p.id FROM meant p ORDER BY {by} LIMIT ${len(arguments)}"
        )
    return await connection.fetch(
        f"SELECT page.*, {_LAST_COLUMNS} "  # noqa: S608 - ours
        f"FROM (SELECT {_WHOLE} FROM ({chosen}) chosen JOIN {_FROM} ON p.id = chosen.id) page {_LAST} "
        f"ORDER BY {by.replace('p.', 'page.')}",
        *arguments,
    )


async def count_projects(connection: Connection, selection: ProjectSelection) -> int:
    count: int = await connection.fetchval(
        f"SELECT count(*) FROM {_FROM} {selection.where}",  # noqa: S608 - ours
        *selection.arguments,
    )
    return count


async def fetch_project(connection: Connection, project_id: int) -> Any | None:
    return await connection.fetchrow(_ONE, project_id)


async def reasons_of(
    connection: Connection, rows: Sequence[Any], known: dict[int, str], known_max: int
) -> dict[int, str]:
    """Why some of the projects can't be polled.  ``known``: all reasons, if there are less than ``known_max``."""
    if len(known) < known_max:
        return known
    return await invalid_rows(connection, [row["id"] for row in rows if row["enabled"]])


def _key(column: str, value: str) -> Any:
    """The sort value of a cursor, as the column has it."""
    if column == "name":
        if "\x00" in value:
            raise bad_cursor()
        return value
    if not value.isdecimal() or len(value) > MICROSECONDS_DIGITS:
        raise bad_cursor()
    return instant_of_us(int(value))


def place_of(row: Any, sort: str) -> ListPlace:
    column = sort.removeprefix("-")
    value = row[column]
    if column == "id":
        value = ""
    elif column != "name":
        value = str(microseconds_of(value))
    return ListPlace(sort, value, row["id"])


def project_map(row: Any, reasons: dict[int, str], *, reveal: bool = False) -> dict[str, Any]:
    """As the API shows it."""
    fields = readable_fields(row)
    shown = fields if reveal else masked_project(fields)
    enabled = row["enabled"]
    return {
        "id": row["id"],
        **shown,
        "created_at": iso_ms(row["created_at"]),
        "updated_at": iso_ms(row["updated_at"]),
        "state": row["shown_state"],
        "state_since": iso_ms(row["state_since"]) if enabled else None,
        "invalid_reason": reasons.get(row["id"]) if enabled else None,
        "last_result": None
        if row["last_polled_at"] is None
        else rounded_ms({name: row[f"last_{name}"] for name in _LAST_NAMES})
        | {"polled_at": iso_ms(row["last_polled_at"])},
    }


async def fetch_standings(connection: Connection, ids: Sequence[int]) -> dict[int, Any]:
    """Names and states of many projects."""
    rows = await connection.fetch(
        f"SELECT p.id, p.name, {STATE_SQL} AS shown_state FROM {_FROM} WHERE p.id = ANY($1::bigint[])",  # noqa: S608
        ids,
    )
    return {row["id"]: row for row in rows}
