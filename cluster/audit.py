"""The accounting law, checked on the tables: ticks due = tick rows in poll_results + ticks in missed_polls.

Due is computed from project_spans and the tick arithmetic alone, so nothing that polls is trusted.  All counts are of
one snapshot of the database.  The window audited is [since, horizon): the horizon is ``cluster_state.accounted_to``,
before which every tick is accounted for, or an earlier instant asked for; nothing before
``result_retention.kept_from`` is audited, because it may have been dropped.  Deleted projects keep their spans and are
audited, too.

Definitions, per project:

- ``polled``: rows with trigger ``tick`` whose scheduled_at is on the grid of the span it lies in;
- ``missed``: ticks of the grid of a span that lie in a range of missed_polls on that grid, by reason;
- ``doubled``: ticks counted more than once, by a row and a range or by several ranges;
- ``unexplained`` = due - (polled + missed - doubled): ticks of which nothing is known;
- ``stray``: tick rows off the grid or outside of every span (for example polled in the second in which the project was
  disabled); they break nothing and are shown for information.

The law holds when nothing is unexplained or doubled.  Cost: each row of the window is read about twice, by primary
key; a billion rows take their time.  Nothing is written, nothing rendered.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from cluster.database import DATABASE_ERRORS, Connection, describe
from cluster.errors import ClusterError, InvalidInputError
from cluster.histogram import BOUNDS_MS, BUCKETS, percentile
from cluster.ticks import first_tick_from, last_tick_before, phase_ms, ticks_in

PROJECTS_PER_CHUNK = 5_000
PROJECTS_LISTED_MAX = 1_000  # of more than these only those that violate the law are listed, so many at most
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

OnProgress = Callable[[int, int], None]  # projects audited, projects in all


class Account(msgspec.Struct):
    """Ticks of one project, or of all."""

    due: int = 0
    polled: int = 0
    missed: dict[str, int] = {}  # by reason
    doubled: int = 0
    unexplained: int = 0
    stray: int = 0

    def settle(self) -> None:
        """Everything is counted: what is left unexplained?"""
        self.unexplained = self.due - self.polled - sum(self.missed.values()) + self.doubled

    @property
    def holds(self) -> bool:
        return self.unexplained == 0 and self.doubled == 0

    def add(self, other: "Account") -> None:
        self.due += other.due
        self.polled += other.polled
        self.doubled += other.doubled
        self.stray += other.stray
        self.unexplained += other.unexplained
        for reason, ticks in other.missed.items():
            self.missed[reason] = self.missed.get(reason, 0) + ticks


class ProjectAudit(msgspec.Struct):
    project_id: int
    name: str | None  # None: the project was deleted
    account: Account


class LatenessSummary(msgspec.Struct, frozen=True):
    """polled_at - scheduled_at of the tick rows audited; percentiles to the resolution of cluster.histogram."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class AuditReport(msgspec.Struct):
    """``horizon_ms`` None: nothing is accounted for yet, so nothing was audited."""

    since_ms: int | None  # None: from the first span on
    horizon_ms: int | None
    projects_audited: int
    projects_violating: int
    total: Account
    lateness: LatenessSummary | None  # None: no tick row
    projects: list[ProjectAudit]  # all, or when there are many those that violate the law; see PROJECTS_LISTED_MAX
    projects_left_out: int = 0  # violating, but beyond PROJECTS_LISTED_MAX
    holds: bool = True


class _Span(msgspec.Struct, frozen=True):
    """A span cut to the window, [low, high), with its grid."""

    project_id: int
    low_ms: int
    high_ms: int
    interval_ms: int
    phase: int


async def audit(
    conn: Connection,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    project: int | None = None,
    progress: OnProgress | None = None,
) -> AuditReport:
    """Audit [since, until) as far as it is accounted for and kept; ``project``: only this one.

    ``conn`` as from ``cluster.database.connect``; instants with a time zone.  Raises ClusterError.
    """
    for name, instant in (("since", since), ("until", until)):
        if instant is not None and instant.tzinfo is None:
            raise InvalidInputError(f"audit: {name} needs a time zone")
    try:
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            return await _audit(conn, since, until, project, progress)
    except DATABASE_ERRORS as error:
        raise ClusterError(
            f"the audit could not read the database: {describe(error)}", code="database_failed"
        ) from error


async def _audit(
    conn: Connection,
    since: datetime | None,
    until: datetime | None,
    project: int | None,
    progress: OnProgress | None,
) -> AuditReport:
    accounted_to = await conn.fetchval("SELECT accounted_to FROM cluster_state")
    kept_from = await conn.fetchval("SELECT kept_from FROM result_retention")
    start = max((i for i in (since, kept_from) if i is not None), default=None)
    since_ms = None if start is None else _ms(start)
    report = AuditReport(since_ms, None, 0, 0, Account(), None, [])
    if project is not None and not await conn.fetchval(
        "SELECT EXISTS (SELECT FROM project_spans WHERE project_id = $1)", project
    ):
        raise ClusterError(
            f"project {project} was never enabled, so there is nothing to audit; `cluster projects list` shows the ids",
            code="unknown_project",
        )
    if accounted_to is None:
        return report
    report.horizon_ms = _ms(accounted_to if until is None else min(accounted_to, until))
    in_all = 1 if project is not None else await conn.fetchval("SELECT count(DISTINCT project_id) FROM project_spans")
    lateness = _LatenessCounts()
    last_id: int | None = None
    while True:
        ids = [project] if project is not None else await _next_ids(conn, last_id)
        if not ids:
            break
        last_id = ids[-1]
        accounts = await _audit_chunk(conn, ids, since_ms, report.horizon_ms, lateness)
        await _list(conn, report, accounts, in_all)
        if progress is not None:
            progress(report.projects_audited, in_all)
        if project is not None:
            break
    if project is None:
        report.total.stray += await _rows_without_span(conn, since_ms, report.horizon_ms)
    report.lateness = lateness.result()
    report.holds = report.projects_violating == 0
    return report


async def _next_ids(conn: Connection, last_id: int | None) -> list[int]:
    rows = await conn.fetch(
        "SELECT DISTINCT project_id FROM project_spans WHERE $1::bigint IS NULL OR project_id > $1 "
        "ORDER BY project_id LIMIT $2",
        last_id,
        PROJECTS_PER_CHUNK,
    )
    return [row["project_id"] for row in rows]


async def _list(conn: Connection, report: AuditReport, accounts: dict[int, Account], in_all: int) -> None:
    listed: list[int] = []
    for project_id, account in accounts.items():
        report.total.add(account)
        report.projects_audited += 1
        if not account.holds:
            report.projects_violating += 1
        if in_all > PROJECTS_LISTED_MAX and account.holds:
            continue
        if len(report.projects) + len(listed) < PROJECTS_LISTED_MAX:
            listed.append(project_id)
        else:
            report.projects_left_out += 1
    rows = await conn.fetch("SELECT id, name FROM projects WHERE id = ANY($1::bigint[])", listed)
    names = {row["id"]: row["name"] for row in rows}
    report.projects += [ProjectAudit(i, names.get(i), accounts[i]) for i in listed]


async def _audit_chunk(
    conn: Connection, ids: list[int], since_ms: int | None, horizon_ms: int, lateness: "_LatenessCounts"
) -> dict[int, Account]:
    rows = await conn.fetch(
        "SELECT project_id, since, until, interval_ms FROM project_spans WHERE project_id = ANY($1::bigint[]) "
        "ORDER BY project_id, since",
        ids,
    )
    accounts = {project_id: Account() for project_id in ids}
    spans = []
    for row in rows:
        low = max(_ms(row["since"]), since_ms) if since_ms is not None else _ms(row["since"])
        high = min(_ms(row["until"]), horizon_ms) if row["until"] is not None else horizon_ms
        phase = phase_ms(row["project_id"], row["interval_ms"])
        due = ticks_in(low, high, phase, row["interval_ms"])
        if due:
            accounts[row["project_id"]].due += due
            spans.append(_Span(row["project_id"], low, high, row["interval_ms"], phase))
    await _count_rows(conn, spans, accounts, lateness)
    await _count_missed(conn, spans, accounts)
    await _count_stray(conn, ids, since_ms, horizon_ms, accounts)
    for account in accounts.values():
        account.settle()
    return accounts


# All statements look rows up by primary key, span by span: LATERAL ... OFFSET 0 keeps the planner from joining whole
# tables.  Instants are compared as timestamps and put on the grid as milliseconds since the epoch.
_MS_OF = "round(date_part('epoch', {}) * 1000)::bigint"

_POLLED = f"""
    SELECT s.n, r.bucket, count(*) AS rows, max(r.late_ms) AS late_ms
    FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::bigint[])
         WITH ORDINALITY AS s(id, low, high, interval_ms, phase, n)
    CROSS JOIN LATERAL (
        SELECT width_bucket(late_ms, $6::float8[]) AS bucket, late_ms
        FROM (
            SELECT date_part('epoch', polled_at - scheduled_at) * 1000 AS late_ms
            FROM poll_results
            WHERE project_id = s.id AND scheduled_at >= s.low AND scheduled_at < s.high AND trigger = 'tick'
              AND ({_MS_OF.format("scheduled_at")} - s.phase) % s.interval_ms = 0
            OFFSET 0
        ) late
    ) r
    GROUP BY s.n, r.bucket
"""  # noqa: S608 - no outside text

_MISSED = f"""
    WITH range AS (
        SELECT s.n, s.id, s.interval_ms, s.phase, m.reason,
               greatest(m.first_ms, s.low_ms) AS first_ms, least(m.last_ms, s.high_ms) AS last_ms
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::timestamptz[],
                    $7::timestamptz[]) WITH ORDINALITY AS s(id, low_ms, high_ms, interval_ms, phase, low, high, n)
        CROSS JOIN LATERAL (
            SELECT {_MS_OF.format("first_tick")} AS first_ms, {_MS_OF.format("last_tick")} AS last_ms, ticks, reason
            FROM missed_polls
            WHERE project_id = s.id AND first_tick < s.high AND last_tick >= s.low
            OFFSET 0
        ) m
        WHERE (m.first_ms - s.phase) % s.interval_ms = 0
          AND m.last_ms - m.first_ms = (m.ticks - 1)::bigint * s.interval_ms
    ), ordered AS (
        SELECT *, max(last_ms) OVER (PARTITION BY n ORDER BY first_ms, last_ms
                                     ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_ms
        FROM range WHERE first_ms <= last_ms
    )
    SELECT o.n, o.reason, sum((o.last_ms - o.first_ms) / o.interval_ms + 1)::bigint AS ticks,
           -- ticks that an earlier range has, too (least() skips NULL, so it must not see one)
           sum(CASE WHEN o.before_ms < o.first_ms OR o.before_ms IS NULL THEN 0
                    ELSE (least(o.before_ms, o.last_ms) - o.first_ms) / o.interval_ms + 1 END)::bigint AS ranges,
           sum(r.rows)::bigint AS rows
    FROM ordered o
    CROSS JOIN LATERAL (
        SELECT count(*) AS rows FROM (
            SELECT FROM poll_results
            WHERE project_id = o.id AND trigger = 'tick'
              AND scheduled_at BETWEEN to_timestamp(0) + o.first_ms * interval '1 millisecond'
                                   AND to_timestamp(0) + o.last_ms * interval '1 millisecond'
              AND ({_MS_OF.format("scheduled_at")} - o.phase) % o.interval_ms = 0
              -- of ranges that overlap, only the first is charged with a row
              AND (o.before_ms IS NULL OR {_MS_OF.format("scheduled_at")} > o.before_ms)
            OFFSET 0
        ) x
    ) r
    GROUP BY o.n, o.reason
"""  # noqa: S608

_TICK_ROWS = """
    SELECT p.id, r.rows
    FROM unnest($1::bigint[]) AS p(id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS rows FROM (
            SELECT FROM poll_results
            WHERE project_id = p.id AND trigger = 'tick'
              AND scheduled_at >= coalesce($2::timestamptz, '-infinity') AND scheduled_at < $3::timestamptz
            OFFSET 0
        ) x
    ) r
"""

_ROWS_WITHOUT_SPAN = """
    SELECT count(*) FROM poll_results r
    WHERE r.trigger = 'tick'
      AND r.scheduled_at >= coalesce($1::timestamptz, '-infinity') AND r.scheduled_at < $2::timestamptz
      AND NOT EXISTS (SELECT FROM project_spans s WHERE s.project_id = r.project_id)
"""


async def _count_rows(
    conn: Connection, spans: list[_Span], accounts: dict[int, Account], lateness: "_LatenessCounts"
) -> None:
    rows = await conn.fetch(
        _POLLED,
        [span.project_id for span in spans],
        [_at(span.low_ms) for span in spans],
        [_at(span.high_ms) for span in spans],
        [span.interval_ms for span in spans],
        [span.phase for span in spans],
        list(BOUNDS_MS),
    )
    for row in rows:
        accounts[spans[row["n"] - 1].project_id].polled += row["rows"]
        lateness.add(row["bucket"], row["rows"], row["late_ms"])


async def _count_missed(conn: Connection, spans: list[_Span], accounts: dict[int, Account]) -> None:
    rows = await conn.fetch(
        _MISSED,
        [span.project_id for span in spans],
        [first_tick_from(span.low_ms, span.phase, span.interval_ms) for span in spans],
        [last_tick_before(span.high_ms, span.phase, span.interval_ms) for span in spans],
        [span.interval_ms for span in spans],
        [span.phase for span in spans],
        [_at(span.low_ms) for span in spans],
        [_at(span.high_ms) for span in spans],
    )
    for row in rows:
        account = accounts[spans[row["n"] - 1].project_id]
        account.missed[row["reason"]] = account.missed.get(row["reason"], 0) + row["ticks"]
        account.doubled += row["ranges"] + row["rows"]


async def _count_stray(
    conn: Connection, ids: list[int], since_ms: int | None, horizon_ms: int, accounts: dict[int, Account]
) -> None:
    since = None if since_ms is None else _at(since_ms)
    for row in await conn.fetch(_TICK_ROWS, ids, since, _at(horizon_ms)):
        account = accounts[row["id"]]
        account.stray = row["rows"] - account.polled


async def _rows_without_span(conn: Connection, since_ms: int | None, horizon_ms: int) -> int:
    since = None if since_ms is None else _at(since_ms)
    return int(await conn.fetchval(_ROWS_WITHOUT_SPAN, since, _at(horizon_ms)))


class _LatenessCounts:
    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._max_ms: float | None = None

    def add(self, bucket: int, rows: int, late_ms: float) -> None:
        self._counts[bucket] += rows
        self._max_ms = late_ms if self._max_ms is None else max(self._max_ms, late_ms)

    def result(self) -> LatenessSummary | None:
        if self._max_ms is None:
            return None
        p50, p99 = (percentile(self._counts, share, self._max_ms) for share in (0.5, 0.99))
        return LatenessSummary(p50, p99, self._max_ms)


def _ms(instant: datetime) -> int:
    return (instant - _EPOCH) // _MILLISECOND


def _at(instant_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=instant_ms)


__all__ = ["Account", "AuditReport", "LatenessSummary", "ProjectAudit", "audit"]
