"""Result partitions: one table per UTC day, created ahead of time, dropped after the retention.

Creating attaches a table that was made beside (SHARE UPDATE EXCLUSIVE on poll_results: readers and COPY go on).
Dropping needs a short exclusive lock; who holds the table for longer than ``LOCK_TIMEOUT_MS`` wins, and the next round
tries again.  Missed ranges, ledger rows, rejects and ended spans beyond the retention are deleted in chunks; so is
the audit log, which is kept for AUDIT_DAYS at least.

A ledger row that is missing means that the database was set back, so one is deleted only when nothing can follow in
its stream: it has ended, or it has been idle for LEDGER_IDLE_DAYS.  A worker whose projects are all polled yearly
commits something once a year.

``Maintenance`` is a series of short steps on the store's connection, so that flushes come in between; nothing here
runs beside a flush, so the two can't deadlock.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import date, timedelta

import asyncpg
import msgspec

from cluster.database import Connection

DAY_MS = 86_400_000
DAYS_AHEAD = 3
LOCK_TIMEOUT_MS = 2_000
DELETE_CHUNK_ROWS = 5_000
LEDGER_IDLE_DAYS = 800  # more than two of the longest intervals (a year)
AUDIT_DAYS = 400  # at least: who changed what is asked for long after the results are gone
PREFIX = "poll_results_"
EPOCH = date(1970, 1, 1)

logger = logging.getLogger("writer.partitions")


class MissingPartitionError(Exception):
    """A flush has results of a day whose partition does not exist."""

    def __init__(self, day: int) -> None:
        super().__init__(f"no result partition for {name_of(day)}")
        self.day = day


def date_of(day: int) -> date:
    """The date of a day counted from 1970-01-01."""
    return EPOCH + timedelta(days=day)


def name_of(day: int) -> str:
    return f"{PREFIX}{date_of(day):%Y%m%d}"


def day_of_name(name: str) -> int | None:
    """The day of a partition's name; None: it is not one of ours."""
    digits = name.removeprefix(PREFIX)
    if digits == name or len(digits) != len("20000101") or not digits.isdecimal():
        return None
    try:
        return (date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) - EPOCH).days
    except ValueError:
        return None


def oldest_day(wall_ms: int, retention_days: int) -> int:
    """The first day that is kept: today and the ``retention_days`` before it."""
    return wall_ms // DAY_MS - retention_days


async def create(conn: Connection, day: int) -> bool:
    """Create a day's partition in a transaction of its own; False: it was there."""
    name = name_of(day)
    async with conn.transaction():
        await conn.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        await conn.execute("SELECT pg_advisory_xact_lock(hashtext('ringpoll result partitions'))")
        if await conn.fetchval("SELECT to_regclass($1)", name) is not None:
            return False
        await conn.execute(f"CREATE TABLE {name} (LIKE poll_results INCLUDING ALL)")
        await conn.execute(
            f"ALTER TABLE poll_results ATTACH PARTITION {name} FOR VALUES "
            f"FROM ('{date_of(day)} 00:00:00+00') TO ('{date_of(day + 1)} 00:00:00+00')"
        )
    logger.info("result partition %s created", name)
    return True


async def existing(conn: Connection) -> list[int]:
    """The days that have a partition, in order."""
    rows = await conn.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'poll_results'::regclass"
    )
    days = (day_of_name(row["relname"]) for row in rows)
    return sorted(day for day in days if day is not None)


async def drop(conn: Connection, day: int) -> bool:
    """Drop a day's partition; False: somebody is using it, so not now."""
    name = name_of(day)
    try:
        async with conn.transaction():
            await conn.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            await _keep_from(conn, day + 1)
            await conn.execute(f"DROP TABLE IF EXISTS {name}")
    except asyncpg.LockNotAvailableError:
        logger.warning("result partition %s is in use and can't be dropped now; trying again within the hour", name)
        return False
    logger.info("result partition %s dropped: it is older than the retention", name)
    return True


async def _keep_from(conn: Connection, day: int) -> None:
    """Note, before anything older is deleted, from when on the tables are complete; `cluster audit` begins there."""
    await conn.execute(
        "UPDATE result_retention SET kept_from = greatest(kept_from, $1::text::timestamptz), updated_at = now() "
        "WHERE kept_from IS NULL OR kept_from < $1::text::timestamptz",
        f"{date_of(day)} 00:00:00+00",
    )


# What is deleted by rows, and which rows are older than an instant.
_OLDER = {
    "missed_polls": "last_tick < {}",
    "ingest_stream": "greatest(ended_at, updated_at) < {0} AND "
    f"(ended_at IS NOT NULL OR updated_at < least({{0}}, now() - interval '{LEDGER_IDLE_DAYS} days'))",
    "ingest_reject": "rejected_at < {}",
    "project_spans": "until < {}",
    "state_changes": "changed_at < {}",
    "audit_log": f"at < least({{}}, now() - interval '{AUDIT_DAYS} days')",
}


async def delete_chunk(conn: Connection, table: str, day: int) -> bool:
    """Delete at most DELETE_CHUNK_ROWS rows of before a day; True: there may be more."""
    older = _OLDER[table].format("$1::text::timestamptz")
    async with conn.transaction():
        await _keep_from(conn, day)
        status = await conn.execute(
            f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608 - names of ours
            f"SELECT ctid FROM {table} WHERE {older} LIMIT {DELETE_CHUNK_ROWS}))",
            f"{date_of(day)} 00:00:00+00",
        )
    return bool(status == f"DELETE {DELETE_CHUNK_ROWS}")


Step = Callable[[Connection], Awaitable[bool]]  # True: call it again, there is more


class Maintenance(msgspec.Struct):
    """One round of upkeep.  ``steps`` are what is left of it."""

    steps: list[Step]

    @classmethod
    def plan(cls, wall_ms: int, retention_days: int) -> "Maintenance":
        today = wall_ms // DAY_MS
        oldest = oldest_day(wall_ms, retention_days)

        def create_day(day: int) -> Step:
            async def step(conn: Connection) -> bool:
                await create(conn, day)
                return False

            return step

        async def drop_one(conn: Connection) -> bool:
            expired = [day for day in await existing(conn) if day < oldest]
            return bool(expired) and await drop(conn, expired[0]) and len(expired) > 1

        def delete_from(table: str) -> Step:
            return lambda conn: delete_chunk(conn, table, oldest)

        ahead = [create_day(day) for day in range(today, today + DAYS_AHEAD + 1)]
        return cls([*ahead, drop_one, *(delete_from(table) for table in _OLDER)])

    async def run_step(self, conn: Connection) -> bool:
        """Do one step; False: the round is over."""
        if self.steps and not await self.steps[0](conn):
            self.steps.pop(0)
        return bool(self.steps)
