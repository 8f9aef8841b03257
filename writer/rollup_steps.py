"""The rollups' transactions (see writer.rollup_plan for when they are made, migration 0009 for the tables).

What makes them exact, whatever dies in between:

- A pass adds the polls of a stretch of time to hours and days, each project once: the mark of how far it is (next_id)
  moves in the transaction that adds.
- ``claim`` moves claimed_to; before the chunks of the pass look, ``pass_flushes`` waits until no flush is under way
  that may not have seen it.  So a flush either is committed by then, or notes what it stores of before claimed_to.
- What is late is made anew from all polls of its hours, and replaced.  Its marks are read before the polls are, and
  only those that were read are deleted: a mark that a flush makes meanwhile stays for the next time.
- Nothing is made anew from polls that may have been dropped.

Whoever changes rollups holds the row of rollup_progress.  No flush ever waits for it, nor for anything else here: the
flushes' own lock is only passed through.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

import asyncpg
import msgspec

from cluster.database import Connection
from cluster.rollup_sql import COLUMNS, FIGURES, MERGED, begin_of, weights_of
from cluster.rollup_times import DAY, HOUR, floor_to
from cluster.sketch import BOUNDS_MS
from writer.partitions import EPOCH, name_of
from writer.rollup_plan import SUMS, Position, Table

LOWEST_ID, HIGHEST_ID = -(2**63), 2**63 - 1
LATE_MARKS_MAX = 2_000  # of single projects, made anew at a time
EXPIRE_ROWS = 5_000
LATE_REST = timedelta(seconds=10)  # marks are gathered for so long
LATE_QUIET = timedelta(minutes=1)  # and those of many projects until no more come
LATE_LONGEST = timedelta(minutes=15)

SESSION = """
    SET jit = off; SET work_mem = '32MB'; SET enable_seqscan = off; SET enable_mergejoin = off;
    SET max_parallel_workers_per_gather = 0; SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '60s';
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
"""

_INTO = ", ".join(COLUMNS)
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS)
_ADDED = """
    polls = o.polls + excluded.polls, success = o.success + excluded.success, failure = o.failure + excluded.failure,
    unknown = o.unknown + excluded.unknown, sum_ms = o.sum_ms + excluded.sum_ms,
    min_ms = least(o.min_ms, excluded.min_ms), max_ms = greatest(o.max_ms, excluded.max_ms),
    sketch = coalesce(o.sketch + excluded.sketch, o.sketch, excluded.sketch)
"""


Progress: TypeAlias = asyncpg.Record
Key: TypeAlias = tuple[int, datetime, datetime]  # a project, and a stretch of time within a day


class LateJob(msgspec.Struct):
    """Hours of one day to be made anew of all projects in between, and how far that is."""

    marks: list[int]
    since: datetime
    until: datetime
    next_id: int
    last_id: int


class Done(msgspec.Struct, frozen=True):
    projects: int
    polls: int
    finished: bool


# ---- where it stands ------------------------------------------------------------------------------------------------

_RIPE = """
    SELECT since, until, min(first_id) AS next_id, max(last_id) AS last_id, array_agg(id) AS marks
    FROM rollup_late WHERE first_id < last_id
    GROUP BY since, until
    HAVING max(noted_at) <= now() - $1::interval OR min(noted_at) <= now() - $2::interval
    ORDER BY since DESC LIMIT 1
"""


async def look(conn: Connection) -> Position:
    row = await conn.fetchrow(
        f"""
        SELECT clock_timestamp() AS now, p.*, c.accounted_to, r.kept_from, l.since AS late_since,
               coalesce(l.single <= now() - $3::interval, false) OR EXISTS ({_RIPE}) AS late_due
        FROM rollup_progress p, cluster_state c, result_retention r, (
            SELECT min(since) AS since, min(noted_at) FILTER (WHERE first_id = last_id) AS single FROM rollup_late
        ) l
        """,  # noqa: S608 - no outside text
        LATE_QUIET,
        LATE_LONGEST,
        LATE_REST,
    )
    assert row is not None, "rollup_progress, cluster_state and result_retention have one row each"
    summed_to = {
        each["name"]: each["summed_to"] for each in await conn.fetch("SELECT name, summed_to FROM rollup_sums")
    }
    of_row = {name: row[name] for name in Position.__struct_fields__ if name != "summed_to"}
    return Position(**of_row, summed_to=summed_to)


async def _locked(conn: Connection) -> Progress:
    """The row of rollup_progress, for this transaction alone."""
    row: Progress | None = await conn.fetchrow("SELECT * FROM rollup_progress FOR UPDATE")
    assert row is not None, "rollup_progress has one row"
    return row


# ---- passes ---------------------------------------------------------------------------------------------------------


async def claim(conn: Connection, to: datetime) -> None:
    """Begin a pass, unless somebody else has."""
    await conn.execute(
        "UPDATE rollup_progress SET claimed_to = $1, next_id = $2, updated_at = now() "
        "WHERE next_id IS NULL AND rolled_to < $1",
        to,
        LOWEST_ID,
    )


async def pass_flushes(conn: Connection) -> None:
    """Returns when the flushes that are under way have ended.  Their lock (see writer.ledger) is let go at once."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtext('ringpoll flush'))")


async def skip(conn: Connection, to: datetime) -> None:
    await conn.execute(
        "UPDATE rollup_progress SET rolled_to = $1, claimed_to = $1, updated_at = now() "
        "WHERE next_id IS NULL AND rolled_to < $1",
        to,
    )


async def roll_chunk(conn: Connection, projects: int) -> Done:
    """Add the polls of the next projects of the pass that is under way."""
    async with conn.transaction():
        progress = await _locked(conn)
        if progress["next_id"] is None:
            return Done(0, 0, finished=True)
        since, until = progress["rolled_to"], progress["claimed_to"]
        ids = await _projects_of(conn, since, progress["next_id"], HIGHEST_ID, projects)
        polls = await _roll(conn, [(each, since, until) for each in ids], progress, _ADDED) if ids else 0
        finished = len(ids) < projects or ids[-1] == HIGHEST_ID
        if finished:
            await conn.execute("UPDATE rollup_progress SET rolled_to = claimed_to, next_id = NULL, updated_at = now()")
        else:
            await conn.execute("UPDATE rollup_progress SET next_id = $1, updated_at = now()", ids[-1] + 1)
    return Done(len(ids), polls, finished=finished)


async def _projects_of(conn: Connection, day: datetime, first_id: int, last_id: int, limit: int) -> list[int]:
    """The next projects that have polls of a day: from each, by key, to the one after it."""
    part = _partition(day)
    if await conn.fetchval("SELECT to_regclass($1)", part) is None:
        return []
    rows = await conn.fetch(
        f"""
        WITH RECURSIVE found AS (
            (SELECT project_id AS id, 1 AS n FROM {part} WHERE project_id >= $1 ORDER BY project_id LIMIT 1)
            UNION ALL
            SELECT (SELECT project_id FROM {part} WHERE project_id > found.id ORDER BY project_id LIMIT 1), n + 1
            FROM found WHERE id IS NOT NULL AND n < $3
        )
        SELECT id FROM found WHERE id <= $2
        """,  # noqa: S608 - a name of ours
        first_id,
        last_id,
        limit,
    )
    return [row[0] for row in rows]


def _partition(day: datetime) -> str:
    return name_of((day.date() - EPOCH).days)


# Whether an hour with so many polls, as far as it is within the stretch, is kept by minute, too.
_IS_BY_MINUTE = (
    "{hour} >= $7 AND 2 * {polls} >= "
    "3 * extract(epoch FROM least({hour} + interval '1 hour', $6) - greatest({hour}, $5)) / 60"
)

# Hours are added to, or replaced, whichever ``change`` says; minutes are whole, so they are as they are found.  Minutes
# are not joined to their hours: of what a CTE returns the planner expects one row, and would loop over both.
_ROLL = """
    WITH minutes AS MATERIALIZED (
        SELECT r.project_id, {minute} AS at, {figures}
        FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) AS k(id, since, until)
        CROSS JOIN LATERAL (
            SELECT project_id, scheduled_at, status, response_time_ms FROM {part}
            WHERE project_id = k.id AND scheduled_at >= k.since AND scheduled_at < k.until OFFSET 0
        ) r
        {weights}
        GROUP BY 1, 2
    ), hours AS MATERIALIZED (
        SELECT project_id, {hour} AS at, {merged}, {hour_by_minute} AS by_minute FROM minutes GROUP BY 1, 2
    ), put_minutes AS (
        INSERT INTO rollup_minutes (at, project_id, {into})
        SELECT at, project_id, {into}
        FROM (SELECT *, {minutes_by_minute} AS by_minute FROM minutes) m WHERE by_minute
        ON CONFLICT (at, project_id) DO UPDATE SET {replaced}
    ), put_hours AS (
        INSERT INTO rollup_hours AS o (at, project_id, by_minute, {into})
        SELECT at, project_id, by_minute, {into} FROM hours
        ON CONFLICT (at, project_id) DO UPDATE SET {change}, by_minute = {by_minute}
    ), put_days AS (
        INSERT INTO rollup_days AS o (at, project_id, {into})
        SELECT {day}, project_id, {merged} FROM hours WHERE {adding} GROUP BY 1, 2
        ON CONFLICT (at, project_id) DO UPDATE SET {change}
    )
    SELECT coalesce(sum(polls), 0)::bigint FROM hours
"""


async def _roll(conn: Connection, keys: Sequence[Key], progress: Progress, change: str) -> int:
    """Roll up the polls of projects and stretches within one day into minutes and hours, added also into days."""
    adding = change is _ADDED
    hour = begin_of("hour", "at")
    statement = _ROLL.format(
        minute=begin_of("minute", "r.scheduled_at"),
        hour=hour,
        hour_by_minute=_IS_BY_MINUTE.format(hour=hour, polls="sum(polls)"),
        minutes_by_minute=_IS_BY_MINUTE.format(hour=hour, polls=f"sum(polls) OVER (PARTITION BY project_id, {hour})"),
        day=begin_of("day", "at"),
        figures=FIGURES,
        merged=MERGED,
        weights=weights_of("$4::float8[]"),
        part=_partition(keys[0][1]),
        into=_INTO,
        replaced=_REPLACED,
        change=change,
        by_minute="o.by_minute AND excluded.by_minute" if adding else "excluded.by_minute",
        adding=str(adding).lower(),
    )
    polls: int = await conn.fetchval(
        statement,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        BOUNDS_MS,
        min(key[1] for key in keys),
        max(key[2] for key in keys),
        progress["minutes_kept_from"],
    )
    return polls


# ---- what is late ---------------------------------------------------------------------------------------------------


async def remake_singles(conn: Connection) -> Done:
    """Make the hours anew that have marks of single projects: those of one day, some at a time."""
    async with conn.transaction():
        progress = await _locked(conn)
        rows = await conn.fetch(
            f"""
            SELECT id, first_id, since, until FROM rollup_late l,
                (SELECT {begin_of("day", "since")} AS day FROM rollup_late WHERE first_id = last_id
                 ORDER BY id LIMIT 1) of_first
            WHERE first_id = last_id AND since >= day AND since < day + interval '1 day'
            ORDER BY id LIMIT {LATE_MARKS_MAX}
            """  # noqa: S608 - no outside text
        )
        if rows:
            keys = sorted({(row["first_id"], row["since"], row["until"]) for row in rows})
            await _remake(conn, keys, progress)
            await _forget_marks(conn, [row["id"] for row in rows])
    return Done(len(rows), 0, finished=not rows)


async def pick_job(conn: Connection) -> LateJob | None:
    """The newest hours that have marks of many projects, and no more are coming, or they have waited for long."""
    row = await conn.fetchrow(_RIPE, LATE_QUIET, LATE_LONGEST)
    if row is None:
        return None
    return LateJob(row["marks"], row["since"], row["until"], row["next_id"], row["last_id"])


async def remake_chunk(conn: Connection, job: LateJob, projects: int) -> Done:
    """Make the job's hours anew for its next projects; the last chunk deletes its marks.

    Marks were read when the job began, polls are from then on: what a flush adds meanwhile has a mark of its own.
    """
    async with conn.transaction():
        progress = await _locked(conn)
        ids = await _projects_of(conn, job.since, job.next_id, job.last_id, projects)
        if ids:
            await _remake(conn, [(each, job.since, job.until) for each in ids], progress)
        finished = len(ids) < projects or ids[-1] == HIGHEST_ID
        if finished:
            await _forget_marks(conn, job.marks)
    if ids and not finished:
        job.next_id = ids[-1] + 1
    return Done(len(ids), 0, finished=finished)


async def _forget_marks(conn: Connection, marks: list[int]) -> None:
    await conn.execute("DELETE FROM rollup_late WHERE id = ANY($1::bigint[])", marks)


async def _remake(conn: Connection, keys: Sequence[Key], progress: Progress) -> None:
    """Replace hours, and what they are part of.  Keys: of one day, each with whole hours."""
    # Of after what is rolled up for a project there is nothing to be replaced: its pass is still to come.
    under_way = progress["next_id"]
    cut: list[Key] = []
    for project_id, since, until in keys:
        passed = under_way is not None and project_id < under_way
        rolled_to = progress["claimed_to"] if passed else progress["rolled_to"]
        if since < rolled_to:
            cut.append((project_id, since, min(until, rolled_to)))
    day = floor_to(DAY, keys[0][1])
    # Taken while the partition is read in this transaction, it can't be dropped any more.
    part = _partition(day)
    if not cut or await conn.fetchval("SELECT to_regclass($1)", part) is None:
        return
    await conn.execute(f"LOCK TABLE {part} IN ACCESS SHARE MODE")
    kept_from = await conn.fetchval("SELECT kept_from FROM result_retention")
    if kept_from is not None and day < kept_from:
        return
    await _roll(conn, cut, progress, _REPLACED)
    ids = sorted({key[0] for key in cut})
    await _add_up(conn, "rollup_hours", "rollup_days", ids, [day + n * HOUR for n in range(24)])
    for table, made in SUMS.items():
        progress = await _sum_progress(conn, table)
        wholes: dict[datetime, set[int]] = {}
        for project_id, since, until in cut:
            for n in range(-(-(until - since) // HOUR)):
                whole = floor_to(made.whole, since + n * HOUR)
                if _is_summed(progress, whole, project_id):
                    wholes.setdefault(whole, set()).add(project_id)
        for whole, some in wholes.items():
            await _sum_up(conn, table, whole, sorted(some))


async def _sum_progress(conn: Connection, table: Table) -> Progress:
    row: Progress | None = await conn.fetchrow("SELECT * FROM rollup_sums WHERE name = $1", table)
    assert row is not None, "rollup_sums has a row for each"
    return row


def _is_summed(progress: Progress, whole: datetime, project_id: int) -> bool:
    summed_to, next_id = progress["summed_to"], progress["next_id"]
    return bool(whole < summed_to or (whole == summed_to and next_id is not None and project_id < next_id))


async def _sum_up(conn: Connection, table: Table, whole: datetime, ids: Sequence[int]) -> None:
    made = SUMS[table]
    await _add_up(conn, made.source, table, ids, [whole + n * made.part for n in range(made.whole // made.part)])


async def _add_up(conn: Connection, source: str, target: str, ids: Sequence[int], parts: Sequence[datetime]) -> None:
    """Make a rollup of each project from its parts, which all are there."""
    await conn.execute(
        f"""
        INSERT INTO {target} (at, project_id, {_INTO})
        SELECT $2::timestamptz[][1], k.id, {MERGED}
        FROM unnest($1::bigint[]) AS k(id) CROSS JOIN unnest($2::timestamptz[]) AS p(at)
        CROSS JOIN LATERAL (SELECT * FROM {source} WHERE at = p.at AND project_id = k.id OFFSET 0) s
        GROUP BY k.id
        ON CONFLICT (at, project_id) DO UPDATE SET {_REPLACED}
        """.replace("$2::timestamptz[][1]", "($2::timestamptz[])[1]"),  # noqa: S608 - names of ours
        ids,
        parts,
    )


# ---- quarters of days, and weeks ------------------------------------------------------------------------------------


async def sum_chunk(conn: Connection, table: Table, projects: int) -> Done:
    """Sum up the next quarter or week that is over, for its next projects."""
    made = SUMS[table]
    async with conn.transaction():
        rolled_to = (await _locked(conn))["rolled_to"]
        progress = await _sum_progress(conn, table)
        whole = progress["summed_to"]
        if whole + made.whole > rolled_to:
            return Done(0, 0, finished=True)
        rows = await conn.fetch(
            f"""
            SELECT DISTINCT project_id FROM unnest($1::timestamptz[]) AS d(at)
            CROSS JOIN LATERAL (SELECT project_id FROM {made.source} WHERE at = d.at AND project_id >= $2
                                ORDER BY project_id LIMIT $3) s
            ORDER BY 1 LIMIT $3
            """,  # noqa: S608 - a name of ours
            [whole + n * made.part for n in range(made.whole // made.part)],
            LOWEST_ID if progress["next_id"] is None else progress["next_id"],
            projects,
        )
        ids = [row[0] for row in rows]
        if ids:
            await _sum_up(conn, table, whole, ids)
        finished = len(ids) < projects or ids[-1] == HIGHEST_ID
        await conn.execute(
            "UPDATE rollup_sums SET summed_to = $1, next_id = $2 WHERE name = $3",
            whole + made.whole if finished else whole,
            None if finished else ids[-1] + 1,
            table,
        )
    return Done(len(ids), 0, finished=finished)


# ---- retention ------------------------------------------------------------------------------------------------------

_KEPT_FROM = {
    "rollup_minutes": "minutes_kept_from",
    "rollup_hours": "hours_kept_from",
    "rollup_quarters": "hours_kept_from",
    "rollup_days": "days_kept_from",
    "rollup_weeks": "days_kept_from",
}


async def expire(conn: Connection, table: Table, before: datetime) -> bool:
    """Delete at most EXPIRE_ROWS rows of before an instant; True: there may be more."""
    kept_from = _KEPT_FROM[table]
    async with conn.transaction():
        await _locked(conn)
        await conn.execute(
            f"UPDATE rollup_progress SET {kept_from} = $1 WHERE {kept_from} < $1",  # noqa: S608 - names of ours
            before,
        )
        status = await conn.execute(
            f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608 - names of ours
            f"SELECT ctid FROM {table} WHERE at < $1 ORDER BY at LIMIT {EXPIRE_ROWS}))",
            before,
        )
    return status == f"DELETE {EXPIRE_ROWS}"
