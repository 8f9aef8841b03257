"""History of projects as people look at it: uptime, counts and response times over hours to years.

- Instants are aware datetimes.  A range is widened to whole buckets of its resolution (UTC): ``since`` down, ``until``
  up; ``since`` and ``until`` of the answer are those that were asked for.
- Response times are those of successful polls, so that a fast refusal does not look like speed; quantiles are within
  2 % (cluster.sketch).  ``uptime`` is success / (success + failure): ``unknown`` says nothing of the target.
- Rollups (migration 0009) and the polls that are not in them yet are read in one statement, so each poll counts once.
  Only an overview of more than TAIL_PROJECTS_MAX projects leaves the latter out: it is some minutes old.
- What was dropped by retention is not there: minutes of a project that is polled once a minute or less are read from
  its polls, so they go with them, and so do missed ticks.

It keeps nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from cluster.database import Connection
from cluster.errors import InvalidInputError
from cluster.rollup_sql import COLUMNS, FIGURES, begin_of, weights_of
from cluster.rollup_times import DAY, HOUR, MINUTE, QUARTER, WEEK, ceil_to, floor_to
from cluster.sketch import BOUNDS_MS, COUNT_MAX, quantiles_of_wire

Resolution = Literal["minute", "hour", "day"]
WIDTH: dict[Resolution, timedelta] = {"minute": MINUTE, "hour": HOUR, "day": DAY}
BUCKETS_MAX = 5_000
BARS_MAX = 48
IDS_MAX = 500
OVERVIEW_MAX = 10_000
AUTO_MINUTES = 6 * HOUR  # up to here minutes, up to the next hours, beyond days
AUTO_HOURS = 15 * DAY
BARS_MINUTES = 2 * HOUR
BARS_HOURS = 10 * DAY
OVERVIEW_HOURS = 2 * DAY  # beyond, days
SUMMED: dict[Resolution, tuple[str, timedelta]] = {"hour": ("rollup_quarters", QUARTER), "day": ("rollup_weeks", WEEK)}
TAIL_PROJECTS_MAX = 1_000
YIELD_ROWS = 500  # of an overview; then others have their turn
SHARES = (0.5, 0.95, 0.99)


class Bucket(msgspec.Struct, frozen=True):
    """What the polls of one minute, hour or day say.  ``*_ms`` are None where no poll succeeded."""

    at: datetime  # its begin
    polls: int
    success: int
    failure: int
    unknown: int
    missed: int
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class RangeSummary(msgspec.Struct, frozen=True):
    """What the polls of one project in a range say."""

    since: datetime
    until: datetime
    resolution: Resolution
    polls: int
    success: int
    failure: int
    unknown: int
    missed: int
    uptime: float | None  # 0..1; None: neither success nor failure
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Summary(RangeSummary, frozen=True):
    """Of one project.  ``buckets``: those with polls or missed ticks, oldest first."""

    buckets: list[Bucket]


Bar = tuple[int, int, float | None]  # polls, failures, p50_ms


class ListSummary(RangeSummary, frozen=True):
    """Of one project among many.  ``bars``: equal parts of the range, the last may be shorter; oldest first."""

    bars: list[Bar]


class OverviewRow(msgspec.Struct, frozen=True):
    id: int
    polls: int
    success: int
    failure: int
    unknown: int
    uptime: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


def resolution_of(since: datetime, until: datetime, wanted: str = "auto") -> Resolution:
    """The resolution that ``auto`` means, or the one wanted.  Raises InvalidInputError."""
    _check_range(since, until)
    length = until - since
    resolution: Resolution
    if wanted == "auto":
        resolution = "minute" if length <= AUTO_MINUTES else "hour" if length <= AUTO_HOURS else "day"
    elif wanted in WIDTH:
        resolution = wanted
    else:
        raise InvalidInputError(f"resolution must be minute, hour, day or auto, not {wanted[:50]!r}")
    if length / WIDTH[resolution] > BUCKETS_MAX:
        raise InvalidInputError(
            f"{resolution}s from {since.isoformat()} to {until.isoformat()} are more than {BUCKETS_MAX} buckets; "
            "ask for a shorter range or a coarser resolution"
        )
    return resolution


def _check_range(since: datetime, until: datetime) -> None:
    if since > until:
        raise InvalidInputError(f"since ({since.isoformat()}) is after until ({until.isoformat()})")


class _Part(msgspec.Struct, frozen=True):
    """What the polls of a project in one part of a range say."""

    polls: int
    success: int
    failure: int
    unknown: int
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @property
    def uptime(self) -> float | None:
        counted = self.success + self.failure
        return self.success / counted if counted else None


_NOTHING = _Part(0, 0, 0, 0, None, None, None, None, None, None)
_FIGURES = ("polls", "success", "failure", "unknown", "mean_ms", "min_ms", "max_ms", "p50_ms", "p95_ms", "p99_ms")


def _part_of(row: Any) -> _Part:
    quantiles = quantiles_of_wire(row["sketch"], SHARES)
    low, high = row["min_ms"], row["max_ms"]
    if low is not None and high is not None:
        quantiles = [None if each is None else min(max(each, low), high) for each in quantiles]
    success = row["success"]
    mean = row["sum_ms"] / success if success else None
    return _Part(row["polls"], success, row["failure"], row["unknown"], mean, low, high, *quantiles)


# ---- one project, or a page of them ---------------------------------------------------------------------------------


async def summary(
    conn: Connection, project_id: int, since: datetime, until: datetime, resolution: str = "auto"
) -> Summary:
    """One project over a range, with its buckets.  Raises InvalidInputError for a range that is none or too fine."""
    chosen = resolution_of(since, until, resolution)
    begins = _begins(since, until, chosen)
    async with _reading(conn):
        parts = await _parts(conn, [project_id], begins, chosen, begins)
        missed = await _missed(conn, [project_id], begins, WIDTH[chosen])
    whole = parts.get((project_id, None), _NOTHING)
    buckets = []
    for n, at in enumerate(begins):
        part, ticks = parts.get((project_id, n)), missed.get((project_id, n), 0)
        if part is not None or ticks:
            buckets.append(Bucket(at=at, missed=ticks, **_figures(part or _NOTHING)))
    return Summary(
        since=since,
        until=until,
        resolution=chosen,
        missed=sum(missed.values()),
        uptime=whole.uptime,
        buckets=buckets,
        **_figures(whole),
    )


async def bars(
    conn: Connection, ids: Sequence[int], since: datetime, until: datetime, count: int = BARS_MAX
) -> dict[int, ListSummary]:
    """Each of at most IDS_MAX projects over a range, with at most ``count`` (1 to BARS_MAX) bars."""
    _check_range(since, until)
    if len(ids) > IDS_MAX or not 1 <= count <= BARS_MAX:
        raise InvalidInputError(f"at most {IDS_MAX} projects and 1 to {BARS_MAX} bars at a time")
    length = until - since
    chosen: Resolution = "minute" if length <= BARS_MINUTES else "hour" if length <= BARS_HOURS else "day"
    resolution_of(since, until, chosen)
    begins = _begins(since, until, chosen)
    in_each = max(1, -(-len(begins) // count))
    bar_begins = begins[::in_each]
    async with _reading(conn):
        parts = await _parts(conn, ids, begins, chosen, bar_begins)
        missed = await _missed(conn, ids, begins, WIDTH[chosen])
    missed_of = dict.fromkeys(ids, 0)
    for (project_id, _), ticks in missed.items():
        missed_of[project_id] += ticks
    found = {}
    for project_id in ids:
        whole = parts.get((project_id, None), _NOTHING)
        of_bars = [parts.get((project_id, n), _NOTHING) for n in range(len(bar_begins))]
        found[project_id] = ListSummary(
            since=since,
            until=until,
            resolution=chosen,
            missed=missed_of[project_id],
            uptime=whole.uptime,
            bars=[(part.polls, part.failure, part.p50_ms) for part in of_bars],
            **_figures(whole),
        )
    return found


def _begins(since: datetime, until: datetime, resolution: Resolution) -> list[datetime]:
    """Of the buckets of a range; none for an empty one."""
    width = WIDTH[resolution]
    first = floor_to(width, since)
    return [first + n * width for n in range(-(-(until - first) // width))] if since < until else []


def _figures(part: _Part) -> dict[str, Any]:
    return {name: getattr(part, name) for name in _FIGURES}


@contextlib.asynccontextmanager
async def _reading(conn: Connection) -> AsyncIterator[None]:
    """Compiling such queries takes longer than they do, and so does spilling thousands of sketches to a disk."""
    async with conn.transaction():
        await conn.execute("SET LOCAL jit = off; SET LOCAL work_mem = '64MB'")
        yield


_SUMMED = """
    sum(polls)::bigint AS polls, sum(success)::bigint AS success, sum(failure)::bigint AS failure,
    sum(unknown)::bigint AS unknown, sum(sum_ms) AS sum_ms, min(min_ms) AS min_ms, max(max_ms) AS max_ms,
    numeric_send(sum(sketch)) AS sketch
"""
_ROLLED = ", ".join(f"s.{name}" for name in COLUMNS)

# How far each project is rolled up, and the polls from there on.
_PROJECTS = """
    SELECT k.id, CASE WHEN g.next_id > k.id THEN g.claimed_to ELSE g.rolled_to END AS rolled_to, g.minutes_kept_from
    FROM unnest($1::bigint[]) AS k(id), rollup_progress g
"""


def _polls(source: str, since: str, until: str, every: Resolution) -> str:
    return f"""
        SELECT r.id, {begin_of(every, "r.scheduled_at")} AS at, {FIGURES}
        FROM (SELECT p.id, r.* FROM {source} CROSS JOIN LATERAL (
            SELECT scheduled_at, status, response_time_ms FROM poll_results
            WHERE project_id = p.id AND scheduled_at >= {since} AND scheduled_at < {until} OFFSET 0
        ) r) r
        {weights_of("$5::float8[]")}
        GROUP BY 1, 2
    """  # noqa: S608 - no outside text


_TAIL = {every: _polls("projects p", "greatest(p.rolled_to, $3)", "$4", every) for every in WIDTH}
_COARSE = """
    SELECT p.id, s.at, {rolled} FROM projects p CROSS JOIN unnest($2::timestamptz[]) AS b(at)
    CROSS JOIN LATERAL (SELECT * FROM {table} WHERE at = b.at AND project_id = p.id OFFSET 0) s
"""
# Where an hour's minutes are not all there, its polls may be.
_FINE_POLLS = _polls(
    "(SELECT * FROM hours WHERE NOT by_minute) p",
    "greatest(p.at, $3)",
    "least(p.at + interval '1 hour', $4::timestamptz, p.rolled_to)",
    "minute",
)
_FINE = f"""
    SELECT p.id, s.at, {_ROLLED} FROM hours p
    CROSS JOIN generate_series(
        greatest(p.at, $3), least(p.at + interval '1 hour', $4::timestamptz) - interval '1 minute', interval '1 minute'
    ) AS b(at)
    CROSS JOIN LATERAL (SELECT * FROM rollup_minutes WHERE at = b.at AND project_id = p.id OFFSET 0) s
    WHERE p.by_minute
    UNION ALL
    {_FINE_POLLS}
"""  # noqa: S608
_HOURS = """,
    hours AS MATERIALIZED (
        SELECT p.*, s.at, s.by_minute AND s.at >= p.minutes_kept_from AS by_minute
        FROM projects p CROSS JOIN unnest($2::timestamptz[]) AS b(at)
        CROSS JOIN LATERAL (SELECT * FROM rollup_hours WHERE at = b.at AND project_id = p.id OFFSET 0) s
    )
"""
_PARTS = {
    every: f"""
        WITH projects AS MATERIALIZED ({_PROJECTS}) {_HOURS if every == "minute" else ""}
        SELECT id, width_bucket(at, $6::timestamptz[]) - 1 AS part, {_SUMMED}
        FROM ({_FINE if every == "minute" else _COARSE.format(rolled=_ROLLED, table=f"rollup_{every}s")}
              UNION ALL {_TAIL[every]}) each
        GROUP BY GROUPING SETS ((1, 2), (1))
    """  # noqa: S608
    for every in WIDTH
}


async def _parts(
    conn: Connection, ids: Sequence[int], begins: Sequence[datetime], every: Resolution, parts: Sequence[datetime]
) -> dict[tuple[int, int | None], _Part]:
    """By project and index in ``parts``, which begin where some of the buckets do; None: of all of them."""
    if not begins:
        return {}
    rolled = sorted({floor_to(HOUR, at) for at in begins}) if every == "minute" else begins
    until = begins[-1] + WIDTH[every]
    rows = await conn.fetch(_PARTS[every], ids, rolled, begins[0], until, BOUNDS_MS, parts)
    return {(row["id"], row["part"]): _part_of(row) for row in rows}


# ---- missed ticks ---------------------------------------------------------------------------------------------------

# Ranges of one grid don't overlap, and hardly ever more than two grids do: of those that begin before, a few are asked.
_MISSED = """
    WITH ranges AS (
        SELECT m.*, width_bucket(m.first_tick, $4::timestamptz[]) AS first_part,
               width_bucket(m.last_tick, $4::timestamptz[]) AS last_part
        FROM unnest($1::bigint[]) AS k(id)
        CROSS JOIN LATERAL (
            (SELECT project_id, first_tick, last_tick, ticks FROM missed_polls
             WHERE project_id = k.id AND first_tick < $2 ORDER BY first_tick DESC LIMIT 3)
            UNION ALL
            (SELECT project_id, first_tick, last_tick, ticks FROM missed_polls
             WHERE project_id = k.id AND first_tick >= $2 AND first_tick < $3 OFFSET 0)
        ) m
        WHERE m.last_tick >= $2
    )
    SELECT project_id, first_part - 1 AS part, sum(ticks)::bigint AS ticks, NULL AS first_tick, NULL AS last_tick
    FROM ranges WHERE first_part = last_part AND last_tick < $3 GROUP BY 1, 2
    UNION ALL
    SELECT project_id, NULL, ticks, first_tick, last_tick FROM ranges WHERE first_part < last_part OR last_tick >= $3
"""


async def _missed(
    conn: Connection, ids: Sequence[int], begins: Sequence[datetime], width: timedelta
) -> dict[tuple[int, int], int]:
    """Missed ticks by project and bucket."""
    found: dict[tuple[int, int], int] = {}
    if not begins:
        return found
    for row in await conn.fetch(_MISSED, ids, begins[0], begins[-1] + width, begins):
        project_id, part, ticks, first, last = row
        counts = {part: ticks} if part is not None else _spread(first, last, ticks, begins, width)
        for n, count in counts.items():
            found[project_id, n] = found.get((project_id, n), 0) + count
    return found


def _spread(
    first: datetime, last: datetime, ticks: int, begins: Sequence[datetime], width: timedelta
) -> dict[int, int]:
    """How many ticks of a range lie in each bucket."""
    step = (last - first) / (ticks - 1) if ticks > 1 else width

    def before(instant: datetime) -> int:
        return min(ticks, max(0, -((first - instant) // step)))

    low = max(0, (first - begins[0]) // width)
    high = min(len(begins) - 1, (last - begins[0]) // width)
    counts = {n: before(begins[n] + width) - before(begins[n]) for n in range(low, high + 1)}
    return {n: count for n, count in counts.items() if count}


# ---- many projects --------------------------------------------------------------------------------------------------

_OVERVIEW = f"""
    WITH projects AS MATERIALIZED ({_PROJECTS})
    SELECT id, {_SUMMED}
    FROM (
        SELECT project_id AS id, {", ".join(COLUMNS)} FROM {{table}}
        WHERE at = ANY($2::timestamptz[]) AND project_id BETWEEN $6 AND $7
        UNION ALL
        SELECT project_id, {", ".join(COLUMNS)} FROM {{summed}}
        WHERE at = ANY($8::timestamptz[]) AND project_id BETWEEN $6 AND $7
        UNION ALL
        SELECT id, {", ".join(COLUMNS)} FROM ({{tail}}) tail
    ) each
    GROUP BY 1
"""  # noqa: S608


async def overview(
    conn: Connection, since: datetime, until: datetime, after_id: int | None = None, limit: int = OVERVIEW_MAX
) -> list[OverviewRow]:
    """The next ``limit`` projects after an id, by id; one without polls has zeros.

    The range is widened to whole hours, one of more than OVERVIEW_HOURS to whole days.
    """
    _check_range(since, until)
    if not 1 <= limit <= OVERVIEW_MAX:
        raise InvalidInputError(f"limit must be from 1 to {OVERVIEW_MAX}")
    if (until - since).total_seconds() > COUNT_MAX:  # a poll each second: a sketch has no room for more
        raise InvalidInputError("an overview has at most three years")
    every: Resolution = "hour" if until - since <= OVERVIEW_HOURS else "day"
    begins = _begins(since, until, every)
    async with _reading(conn):
        rows = await conn.fetch(
            "SELECT id FROM projects WHERE $1::bigint IS NULL OR id > $1 ORDER BY id LIMIT $2", after_id, limit
        )
        ids = [row[0] for row in rows]
        if not ids or not begins:
            return [_overview_row(project_id, _NOTHING) for project_id in ids]
        summed, width = SUMMED[every]
        summed_to = await conn.fetchval("SELECT summed_to FROM rollup_sums WHERE name = $1", summed)
        wholes = _wholes(width, begins[0], min(begins[-1] + WIDTH[every], summed_to))
        rest = [at for at in begins if not wholes or not wholes[0] <= at < wholes[-1] + width]
        found = await conn.fetch(
            _OVERVIEW.format(table=f"rollup_{every}s", summed=summed, tail=_TAIL[every]),
            ids if len(ids) <= TAIL_PROJECTS_MAX else [],
            rest,
            begins[0],
            begins[-1] + WIDTH[every],
            BOUNDS_MS,
            ids[0],
            ids[-1],
            wholes,
        )
    parts = await _parts_of_many(found)
    return [_overview_row(project_id, parts.get(project_id, _NOTHING)) for project_id in ids]


async def _parts_of_many(rows: Sequence[Any]) -> Mapping[int, _Part]:
    parts = {}
    for start in range(0, len(rows), YIELD_ROWS):
        for row in rows[start : start + YIELD_ROWS]:
            parts[row["id"]] = _part_of(row)
        await asyncio.sleep(0)
    return parts


def _wholes(width: timedelta, since: datetime, until: datetime) -> list[datetime]:
    """Where the quarters or weeks begin that lie in a range."""
    first = ceil_to(width, since)
    return [first + n * width for n in range(max(0, (until - first) // width))]


def _overview_row(project_id: int, part: _Part) -> OverviewRow:
    return OverviewRow(
        id=project_id,
        polls=part.polls,
        success=part.success,
        failure=part.failure,
        unknown=part.unknown,
        uptime=part.uptime,
        p50_ms=part.p50_ms,
        p95_ms=part.p95_ms,
        p99_ms=part.p99_ms,
    )
