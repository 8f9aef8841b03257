"""History of projects as people look at it: uptime, counts and response times over hours to years.

- Instants are aware datetimes.  A range is widened to whole buckets of its resolution (UTC): ``since`` down, ``until``
  up; ``since`` and ``until`` of the answer are those that were asked for.
- Response times are those of successful polls, so that a fast refusal does not look like speed.  ``uptime`` is
  success / (success + failure): polls with status ``unknown`` say nothing of the target.

It reads, and keeps nothing.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from cluster.database import Connection
from cluster.errors import InvalidInputError

Resolution = Literal["minute", "hour", "day"]
RESOLUTION_S: dict[Resolution, int] = {"minute": 60, "hour": 3_600, "day": 86_400}
BUCKETS_MAX = 5_000
BARS_MAX = 48
IDS_MAX = 500
OVERVIEW_MAX = 10_000
AUTO_MINUTES_S = 6 * 3_600  # up to here minutes, up to the next hours, beyond days
AUTO_HOURS_S = 15 * 86_400


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


class Summary(msgspec.Struct, frozen=True):
    """Of one project.  ``buckets``: those with polls or missed ticks, oldest first."""

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
    buckets: list[Bucket]


Bar = tuple[int, int, float | None]  # polls, failures, p50_ms


class ListSummary(msgspec.Struct, frozen=True):
    """Of one project among many.  ``bars``: equal parts of the range, oldest first, the empty ones too."""

    since: datetime
    until: datetime
    resolution: Resolution
    polls: int
    success: int
    failure: int
    unknown: int
    missed: int
    uptime: float | None
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
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
    if since > until:
        raise InvalidInputError(f"since ({since.isoformat()}) is after until ({until.isoformat()})")
    length_s = (until - since).total_seconds()
    resolution: Resolution
    if wanted == "auto":
        resolution = "minute" if length_s <= AUTO_MINUTES_S else "hour" if length_s <= AUTO_HOURS_S else "day"
    elif wanted in RESOLUTION_S:
        resolution = wanted
    else:
        raise InvalidInputError(f"resolution must be minute, hour, day or auto, not {wanted[:50]!r}")
    if length_s / RESOLUTION_S[resolution] > BUCKETS_MAX:
        raise InvalidInputError(
            f"{resolution}s from {since.isoformat()} to {until.isoformat()} are more than {BUCKETS_MAX} buckets; "
            "ask for a shorter range or a coarser resolution"
        )
    return resolution


_FIGURES = """
    count(*) AS polls, count(*) FILTER (WHERE status = 'success') AS success,
    count(*) FILTER (WHERE status = 'failure') AS failure, count(*) FILTER (WHERE status = 'unknown') AS unknown,
    avg(response_time_ms) FILTER (WHERE status = 'success') AS mean_ms,
    min(response_time_ms) FILTER (WHERE status = 'success') AS min_ms,
    max(response_time_ms) FILTER (WHERE status = 'success') AS max_ms,
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY response_time_ms) FILTER (WHERE status = 'success')
        AS quantiles_ms
"""


async def summary(
    conn: Connection, project_id: int, since: datetime, until: datetime, resolution: str = "auto"
) -> Summary:
    """One project over a range, with its buckets.  Raises InvalidInputError for a range that is none or too fine."""
    chosen = resolution_of(since, until, resolution)
    of_project = "FROM poll_results WHERE project_id = $1 AND scheduled_at >= $2 AND scheduled_at < $3"
    rows = await conn.fetch(
        f"SELECT date_trunc('{chosen}', scheduled_at, 'UTC') AS at, {_FIGURES} {of_project} GROUP BY 1 ORDER BY 1",
        project_id,
        since,
        until,
    )
    whole = await conn.fetchrow(f"SELECT {_FIGURES} {of_project}", project_id, since, until)
    buckets = [Bucket(at=row["at"], missed=0, **_figures(row)) for row in rows]
    figures = _figures(whole)
    return Summary(
        since=since, until=until, resolution=chosen, missed=0, uptime=_uptime(figures), buckets=buckets, **figures
    )


async def bars(
    conn: Connection, ids: Sequence[int], since: datetime, until: datetime, count: int = BARS_MAX
) -> dict[int, ListSummary]:
    """Each of at most IDS_MAX projects over a range, with at most ``count`` (1 to BARS_MAX) bars."""
    if len(ids) > IDS_MAX or not 1 <= count <= BARS_MAX:
        raise InvalidInputError(f"at most {IDS_MAX} projects and 1 to {BARS_MAX} bars at a time")
    found = {}
    for project_id in ids:
        one = await summary(conn, project_id, since, until, "auto")
        width = (until - since) / count
        made: list[list[Any]] = [[0, 0, None] for _ in range(count)]
        for bucket in one.buckets:
            place = made[min(max(int((bucket.at - since) / width), 0), count - 1)]
            place[0] += bucket.polls
            place[1] += bucket.failure
            place[2] = bucket.p50_ms if place[2] is None else place[2]
        fields = {name: getattr(one, name) for name in one.__struct_fields__ if name != "buckets"}
        found[project_id] = ListSummary(bars=[(bar[0], bar[1], bar[2]) for bar in made], **fields)
    return found


async def overview(
    conn: Connection, since: datetime, until: datetime, after_id: int | None = None, limit: int = OVERVIEW_MAX
) -> list[OverviewRow]:
    """The next ``limit`` projects after an id, by id; one without polls has zeros."""
    if since > until or not 1 <= limit <= OVERVIEW_MAX:
        raise InvalidInputError(f"since must not be after until, and limit 1 to {OVERVIEW_MAX}")
    rows = await conn.fetch(
        f"""
        SELECT p.id, {_FIGURES}
        FROM (SELECT id FROM projects WHERE $3::bigint IS NULL OR id > $3 ORDER BY id LIMIT $4) p
        LEFT JOIN poll_results r ON r.project_id = p.id AND r.scheduled_at >= $1 AND r.scheduled_at < $2
        GROUP BY 1 ORDER BY 1
        """.replace("count(*) AS", "count(r.project_id) AS"),  # noqa: S608 - no outside text
        since,
        until,
        after_id,
        limit,
    )
    made = []
    for row in rows:
        figures = _figures(row)
        kept = {name: figures[name] for name in figures if name not in {"mean_ms", "min_ms", "max_ms"}}
        made.append(OverviewRow(id=row["id"], uptime=_uptime(figures), **kept))
    return made


def _figures(row: Any) -> dict[str, Any]:
    names = ("polls", "success", "failure", "unknown", "mean_ms", "min_ms", "max_ms")
    p50, p95, p99 = row["quantiles_ms"] or (None, None, None)
    return {name: row[name] for name in names} | {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


def _uptime(figures: dict[str, Any]) -> float | None:
    counted = figures["success"] + figures["failure"]
    return figures["success"] / counted if counted else None
