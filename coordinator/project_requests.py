"""What people ask of projects, one transaction each: add, enable, disable, delete.

The core hears of a change in the same step, not by the notification that follows it.  Every failure is a ClusterError
that says whether something was changed.
"""

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from cluster.database import Connection
from cluster.errors import ClusterError
from cluster.project import FIELD_NAMES, JSON_FIELDS, ProjectFields
from coordinator.project_rows import Applied, fetch_ends, fetch_projects
from coordinator.projects import ProjectSource

LOCK_TIMEOUT_MS = 3_000  # how long a request waits for a row that someone else holds

_PLACES = ", ".join(f"${number}" for number, _ in enumerate(FIELD_NAMES, start=1))
_INSERT = f"INSERT INTO projects ({', '.join(FIELD_NAMES)}) VALUES ({_PLACES}) RETURNING id"  # noqa: S608 - our names
_CATCH_UP = """
    SELECT setval(pg_get_serial_sequence('projects', 'id'), greatest(max(id), 1)) FROM projects"""


class Requester(msgspec.Struct, frozen=True):
    """Who asks, for the audit log.  ``address``: of the client, if it has one."""

    actor: str
    address: str | None = None


class ProjectRequests:
    def __init__(self, source: ProjectSource) -> None:
        self._source = source

    async def insert(self, fields: ProjectFields) -> int:
        """Add a project; it is polled when this returns.  Returns its id."""
        async with self._source.step() as connection:
            try:
                project_id, rows = await _insert(connection, fields)
            except asyncpg.UniqueViolationError:  # rows with ids of their own were brought in: the sequence is behind
                await connection.execute(_CATCH_UP)
                project_id, rows = await _insert(connection, fields)
            self._source.apply_rows(rows)
        return project_id

    async def enable(self, project_id: int) -> None:
        """Enable a row if it is disabled, and load it."""
        async with self._source.step() as connection:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                enabled = await connection.fetchval("SELECT enabled FROM projects WHERE id = $1", project_id)
                if enabled is None:
                    raise ClusterError(
                        f"there is no project {project_id} in table projects; `cluster projects list` shows them",
                        code="unknown_project",
                    )
                if not enabled:
                    await connection.execute(
                        "UPDATE projects SET enabled = true WHERE id = $1 AND NOT enabled", project_id
                    )
                rows = await fetch_projects(connection, [project_id])
            usable = self._source.apply_rows(rows)
        if rows and not usable:
            why = self._source.invalid.get(project_id, "see the log")
            raise ClusterError(f"project {project_id} can't be polled: {why}", code="invalid_project")
        if not rows:
            raise ClusterError(f"project {project_id} was disabled or deleted again by somebody else", code="conflict")

    async def remove(self, ids: Sequence[int], *, delete: bool, token: int) -> None:
        """Disable or delete all of these, or none; the core confirms ``token`` when nobody polls them any more."""
        async with self._source.step() as connection:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                rows = await connection.fetch(
                    "SELECT id FROM projects WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE", ids
                )
                unknown = sorted(set(ids) - {row["id"] for row in rows})
                if unknown:
                    shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
                    raise ClusterError(
                        f"there is no project {shown} in table projects; nothing was changed", code="unknown_project"
                    )
                if delete:
                    await connection.execute("DELETE FROM projects WHERE id = ANY($1::bigint[])", ids)
                else:
                    await connection.execute(
                        "UPDATE projects SET enabled = false WHERE id = ANY($1::bigint[]) AND enabled", ids
                    )
                removed = await fetch_ends(connection, ids, self._source.now_ms())
            self._source.apply_removed(removed, token)

    async def reload(self) -> Applied:
        return await self._source.reload()


async def _insert(connection: Connection, fields: ProjectFields) -> tuple[int, list[Any]]:
    """The new id, and the row as it is to be polled, if it is enabled."""
    values = {name: getattr(fields, name) for name in FIELD_NAMES}
    for name in JSON_FIELDS:
        if values[name] is not None:
            values[name] = msgspec.json.encode(values[name]).decode()
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        project_id: int = await connection.fetchval(_INSERT, *values.values())
        return project_id, await fetch_projects(connection, [project_id])
