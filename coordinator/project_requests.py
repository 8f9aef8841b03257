"""What people ask of projects, one transaction each: add, change, enable, disable, delete.

The core hears of a change in the same step, not by the notification that follows it.  The audit log gets its row in the
transaction of the change.  Every failure is a ClusterError that says whether something was changed; what a ``guard``
raises passes, and then nothing was.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg
import msgspec

from cluster.access.audit_log import AuditEntry, record
from cluster.database import Connection
from cluster.errors import ClusterError
from cluster.project import FIELD_NAMES, JSON_FIELDS, ProjectFields
from coordinator.project_rows import Applied, fetch_ends, fetch_projects
from coordinator.projects import ProjectSource

LOCK_TIMEOUT_MS = 3_000  # how long a request waits for a row that someone else holds
APPLY_ROWS = 500  # handed to the core between two turns of the loop
IDS_SHOWN_MAX = 10

_NAMES = ", ".join(FIELD_NAMES)
_INSERT = f"""
    INSERT INTO projects ({_NAMES})
    SELECT {_NAMES} FROM jsonb_populate_recordset(NULL::projects, $1::text::jsonb) RETURNING id"""  # noqa: S608 - our names
_CATCH_UP = """
    SELECT setval(pg_get_serial_sequence('projects', 'id'), greatest(max(id), 1)) FROM projects"""
_LOCKED = "SELECT id, enabled, updated_at, xmin::text::bigint AS xmin FROM projects WHERE id = ANY($1::bigint[])"
_WHOLE = f"SELECT id, {_NAMES}, updated_at, xmin::text::bigint AS xmin FROM projects WHERE id = $1 FOR UPDATE"  # noqa: S608

T = TypeVar("T")

Guard = Callable[[Any], None]  # sees a locked row (id, enabled, updated_at, xmin), and raises to leave all as it was
Change = Callable[[dict[str, Any]], ProjectFields]  # sees the fields as they are, and says how they are to be


class Requester(msgspec.Struct, frozen=True):
    """Who asks, for the audit log.  ``address``: of the client, if it has one."""

    actor: str
    address: str | None = None


ADMIN_SOCKET = Requester("admin socket")


class ProjectRequests:
    def __init__(self, source: ProjectSource) -> None:
        self._source = source

    async def insert(self, fields: ProjectFields, requester: Requester = ADMIN_SOCKET) -> int:
        """Add a project; it is polled when this returns.  Returns its id."""
        return (await self.insert_all([fields], requester))[0]

    async def insert_all(self, projects: Sequence[ProjectFields], requester: Requester) -> list[int]:
        """Add all of these, or none.  Returns their ids, in the same order."""
        async with self._source.step() as connection:
            try:
                ids, rows = await _insert(connection, projects, requester)
            except asyncpg.UniqueViolationError:  # rows with ids of their own were brought in: the sequence is behind
                await connection.execute(_CATCH_UP)
                ids, rows = await _insert(connection, projects, requester)
            await self._apply(rows)
        return ids

    async def enable(self, project_id: int, requester: Requester = ADMIN_SOCKET) -> None:
        """Enable a row if it is disabled, and load it."""
        rows, usable = await self.enable_all([project_id], requester)
        if rows and not usable:
            why = self._source.invalid.get(project_id, "see the log")
            raise ClusterError(f"project {project_id} can't be polled: {why}", code="invalid_project")
        if not rows:
            raise ClusterError(f"project {project_id} was disabled or deleted again by somebody else", code="conflict")

    async def enable_all(self, ids: Sequence[int], requester: Requester, guard: Guard | None = None) -> tuple[int, int]:
        """Enable all of these, or none.  Returns how many are enabled now, and how many of them can be polled."""
        async with self._source.step() as connection:
            async with connection.transaction():
                await _lock(connection, ids, guard)
                switched = await connection.fetch(
                    "UPDATE projects SET enabled = true WHERE id = ANY($1::bigint[]) AND NOT enabled RETURNING id", ids
                )
                await _note(connection, requester, "enable", sorted(row["id"] for row in switched))
                rows = await fetch_projects(connection, ids)
            return len(rows), await self._apply(rows)

    async def update(
        self, project_id: int, change: Change, requester: Requester, *, token: int, guard: Guard | None = None
    ) -> bool:
        """Change fields of a project.  Returns whether that ends its polling: then the core confirms ``token``."""
        async with self._source.step() as connection:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                row = await connection.fetchrow(_WHOLE, project_id)
                if row is None:
                    raise unknown_projects([project_id])
                if guard is not None:
                    guard(row)
                before = readable_fields(row)
                fields = change(before)
                changed = [name for name in FIELD_NAMES if getattr(fields, name) != before[name]]
                if changed:
                    places = ", ".join(f"{name} = ${number}" for number, name in enumerate(changed, start=2))
                    await connection.execute(
                        f"UPDATE projects SET {places} WHERE id = $1",  # noqa: S608 - our names
                        project_id,
                        *(_stored(name, getattr(fields, name)) for name in changed),
                    )
                    await _note(connection, requester, "update", [project_id], {"fields": changed})
                ends = before["enabled"] and not fields.enabled
                removed = await fetch_ends(connection, [project_id], self._source.now_ms()) if ends else []
                rows = await fetch_projects(connection, [project_id])
            if ends:
                self._source.apply_removed(removed, token)
            else:
                await self._apply(rows)
        return ends

    async def remove(
        self,
        ids: Sequence[int],
        *,
        delete: bool,
        token: int,
        requester: Requester = ADMIN_SOCKET,
        guard: Guard | None = None,
    ) -> None:
        """Disable or delete all of these, or none; the core confirms ``token`` when nobody polls them any more."""
        async with self._source.step() as connection:
            async with connection.transaction():
                await _lock(connection, ids, guard)
                if delete:
                    await connection.execute("DELETE FROM projects WHERE id = ANY($1::bigint[])", ids)
                    await _note(connection, requester, "delete", ids)
                else:
                    switched = await connection.fetch(
                        "UPDATE projects SET enabled = false WHERE id = ANY($1::bigint[]) AND enabled RETURNING id", ids
                    )
                    await _note(connection, requester, "disable", sorted(row["id"] for row in switched))
                removed = await fetch_ends(connection, ids, self._source.now_ms())
            self._source.apply_removed(removed, token)

    async def reload(self) -> Applied:
        return await self._source.reload()

    async def _apply(self, rows: Sequence[Any]) -> int:
        """Within a step; how many of them can be polled."""
        usable = 0
        for part in _slices(rows):
            usable += len(self._source.apply_rows(part))
            await asyncio.sleep(0)
        return usable


def unknown_projects(unknown: Sequence[int]) -> ClusterError:
    shown = ", ".join(map(str, unknown[:IDS_SHOWN_MAX])) + (" ..." if len(unknown) > IDS_SHOWN_MAX else "")
    return ClusterError(f"there is no project {shown} in table projects; nothing was changed", code="unknown_project")


def readable_fields(row: Any) -> dict[str, Any]:
    """The fields of a row, as people write them."""
    return {
        name: msgspec.json.decode(row[name]) if name in JSON_FIELDS and isinstance(row[name], str) else row[name]
        for name in FIELD_NAMES
    }


async def _lock(connection: Connection, ids: Sequence[int], guard: Guard | None) -> None:
    """All of them, in order of their ids."""
    await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
    rows = await connection.fetch(f"{_LOCKED} ORDER BY id FOR UPDATE", ids)
    unknown = sorted(set(ids) - {row["id"] for row in rows})
    if unknown:
        raise unknown_projects(unknown)
    if guard is not None:
        for row in rows:
            guard(row)


async def _insert(
    connection: Connection, projects: Sequence[ProjectFields], requester: Requester
) -> tuple[list[int], list[Any]]:
    """The new ids, and the rows as they are to be polled, of those that are enabled."""
    written = msgspec.json.encode([{name: getattr(fields, name) for name in FIELD_NAMES} for fields in projects])
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        ids = [row["id"] for row in await connection.fetch(_INSERT, written.decode())]
        await _note(connection, requester, "create", ids)
        return ids, await fetch_projects(connection, ids)


async def _note(
    connection: Connection,
    requester: Requester,
    verb: str,
    ids: Sequence[int],
    details: dict[str, Any] | None = None,
) -> None:
    """In the audit log: one row, whatever the number of projects; none when nothing was changed."""
    if not ids:
        return
    subject = f"project:{ids[0]}" if len(ids) == 1 else "projects"
    found = details or ({} if len(ids) == 1 else {"ids": list(ids)})
    await record(
        connection,
        AuditEntry(
            actor=requester.actor,
            action=f"project.{verb}",
            subject=subject,
            address=requester.address,
            details=found,
        ),
    )


def _stored(name: str, value: Any) -> Any:
    return msgspec.json.encode(value).decode() if name in JSON_FIELDS and value is not None else value


def _slices(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), APPLY_ROWS):
        yield rows[start : start + APPLY_ROWS]
