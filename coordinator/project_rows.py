"""Rows of ``projects`` as the core wants them: the queries, and what they return made into records.

It reads and converts; when to read is ``ProjectSource``'s part.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Self

import asyncpg
import msgspec

from cluster.database import Connection
from cluster.errors import InvalidInputError
from cluster.messages.control import EndedSpan, RemovedProject
from cluster.project import SPEC_SELECT, encode_spec, spec_from_row
from cluster.ticks import EPOCH, instant_of, milliseconds_of
from coordinator.events import ProjectRecord
from coordinator.throttle import ThrottledLog

QUERY_TIMEOUT_S = 30.0
INVALID_KEPT_MAX = 1_000
FIRST_ID = -(1 << 63)

_SELECT = f"""
    SELECT {SPEC_SELECT}, p.name,
           (SELECT s.since FROM project_spans s WHERE s.project_id = p.id AND s.until IS NULL) AS since
    FROM projects p WHERE p.enabled"""  # noqa: S608 - our own column names
_CHUNK = f"{_SELECT} AND p.id > $1 ORDER BY p.id LIMIT $2"
_BY_ID = f"{_SELECT} AND p.id = ANY($1::bigint[])"
_ENDS = "SELECT project_id, max(until) AS until FROM project_spans WHERE project_id = ANY($1::bigint[]) GROUP BY 1"
_PULSE = """
    UPDATE cluster_state
    SET accounted_to = greatest(accounted_to, $1), epoch = greatest(epoch, $2), updated_at = now()"""

_ENDED = """
    SELECT project_id, since, until, interval_ms FROM project_spans
    WHERE until > $1 AND until > since AND (project_id, since) > ($2, $3) ORDER BY project_id, since LIMIT $4"""
_ENDED_OF = """
    SELECT project_id, since, until, interval_ms FROM project_spans
    WHERE until > $1 AND until > since AND project_id = ANY($2::bigint[])"""

# What the server, or the way to it, may do to us; anything else is a bug of ours and ends the process.
DATABASE_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)

logger = logging.getLogger("coordinator.projects")


class Applied(msgspec.Struct):
    """What the core found new, different, and gone in a change."""

    added: list[int] = []
    changed: list[int] = []
    removed: list[int] = []

    def __iadd__(self, other: "Applied") -> Self:
        self.added += other.added
        self.changed += other.changed
        self.removed += other.removed
        return self

    def __len__(self) -> int:
        return len(self.added) + len(self.changed) + len(self.removed)


class ClusterMemory(msgspec.Struct, frozen=True):
    """What the database remembers of a cluster (table cluster_state)."""

    epoch: int
    accounted_to_ms: int | None


class RowReader:
    """Makes records; keeps which rows can't be polled, and why (``invalid``, at most a thousand)."""

    def __init__(self) -> None:
        self.invalid: dict[int, str] = {}
        self._before: dict[int, str] = {}
        self._throttled = ThrottledLog(logger)

    def read_everything(self) -> None:
        """All rows follow: what isn't found invalid again is no more."""
        self._before, self.invalid = self.invalid, {}

    def records(self, rows: Iterable[Any]) -> tuple[list[ProjectRecord], list[int]]:
        """Rows as records, and the ids of those that can't be polled."""
        records = []
        unusable = []
        for row in rows:
            try:
                spec = spec_from_row(row)
            except (InvalidInputError, ValueError, TypeError, KeyError) as error:
                unusable.append(row["id"])
                self._note(row["id"], str(error))
            else:
                records.append(ProjectRecord(spec.id, 1000 / spec.interval_ms, encode_spec(spec)))
        return records, unusable

    def forget(self, project_ids: Iterable[int]) -> None:
        """These rows are usable, or no more."""
        for project_id in project_ids:
            self.invalid.pop(project_id, None)

    def _note(self, project_id: int, why: str) -> None:
        before = self.invalid.get(project_id) or self._before.get(project_id)
        if len(self.invalid) < INVALID_KEPT_MAX:
            self.invalid[project_id] = why
        if before != why:
            self._throttled.warning(f"project {project_id} can't be polled: {why}")


async def fetch_chunk(connection: Connection, after: int, rows_max: int) -> list[Any]:
    return await connection.fetch(_CHUNK, after, rows_max, timeout=QUERY_TIMEOUT_S)


async def fetch_projects(connection: Connection, ids: Sequence[int]) -> list[Any]:
    """Those of them that are enabled."""
    return await connection.fetch(_BY_ID, ids, timeout=QUERY_TIMEOUT_S)


async def fetch_ends(connection: Connection, ids: Sequence[int], now_ms: int) -> list[RemovedProject]:
    """Until when projects that are disabled or deleted were due."""
    if not ids:
        return []
    ends = {
        row["project_id"]: milliseconds_of(row["until"])
        for row in await connection.fetch(_ENDS, ids, timeout=QUERY_TIMEOUT_S)
        if row["until"] is not None
    }
    return [RemovedProject(project_id, ends.get(project_id, now_ms)) for project_id in ids]


async def fetch_ended(connection: Connection, after_ms: int, last: EndedSpan | None, rows_max: int) -> list[EndedSpan]:
    """Spans that ended after an instant, in order of their key; those that follow ``last``."""
    key = (FIRST_ID, EPOCH) if last is None else (last.project_id, instant_of(last.since_ms))
    rows = await connection.fetch(_ENDED, instant_of(after_ms), *key, rows_max, timeout=QUERY_TIMEOUT_S)
    return [_ended(row) for row in rows]


async def fetch_ended_of(connection: Connection, after_ms: int, ids: Sequence[int]) -> list[EndedSpan]:
    """Spans of these projects that ended after an instant."""
    rows = await connection.fetch(_ENDED_OF, instant_of(after_ms), ids, timeout=QUERY_TIMEOUT_S)
    return [_ended(row) for row in rows]


async def fetch_memory(connection: Connection) -> ClusterMemory:
    row = await connection.fetchrow("SELECT epoch, accounted_to FROM cluster_state", timeout=QUERY_TIMEOUT_S)
    if row is None:
        return ClusterMemory(0, None)
    accounted_to = row["accounted_to"]
    return ClusterMemory(row["epoch"], None if accounted_to is None else milliseconds_of(accounted_to))


async def write_progress(connection: Connection, horizon_ms: int | None, epoch: int, timeout_s: float) -> None:
    accounted_to = None if horizon_ms is None else instant_of(horizon_ms)
    await connection.execute(_PULSE, accounted_to, epoch, timeout=timeout_s)


def _ended(row: Any) -> EndedSpan:
    return EndedSpan(
        row["project_id"], milliseconds_of(row["since"]), milliseconds_of(row["until"]), row["interval_ms"]
    )


def monitoring_line(row: Any) -> str:
    unit = row["unit"] if row["interval"] != 1 else row["unit"].removesuffix("s")
    return f"({row['name'] or _without_secrets(row['url'])}) every {row['interval']} {unit}"


def _without_secrets(url: str) -> str:
    """For logs: neither credentials nor a query."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].partition('#')[0].rpartition('@')[2]}"
