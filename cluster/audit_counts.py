"""What the books say of ticks: rows of poll_results, ranges of missed_polls, records set aside in ingest_reject.

Counted for spans cut to a window, each with its grid; ``cluster.audit`` says which, and what the counts mean.  A span
may be cut into pieces: every count is of single ticks, so the counts of the pieces add up.
"""

from collections.abc import Sequence

import msgspec

from cluster.database import Connection
from cluster.histogram import BOUNDS_MS, BUCKETS, percentile
from cluster.ticks import first_tick_from, instant_of, last_tick_before, ticks_in


class Account(msgspec.Struct):
    """Ticks of one project, or of all."""

    due: int = 0
    polled: int = 0
    missed: dict[str, int] = {}  # by reason
    rejected: int = 0
    doubled: int = 0
    unexplained: int = 0
    stray: int = 0

    def settle(self) -> None:
        """Everything is counted: what is left unexplained?"""
        self.unexplained = self.due - self.polled - sum(self.missed.values()) - self.rejected + self.doubled

    @property
    def holds(self) -> bool:
        return self.unexplained == 0 and self.doubled == 0

    def add(self, other: "Account") -> None:
        self.due += other.due
        self.polled += other.polled
        self.rejected += other.rejected
        self.doubled += other.doubled
        self.stray += other.stray
        self.unexplained += other.unexplained
        for reason, ticks in other.missed.items():
            self.missed[reason] = self.missed.get(reason, 0) + ticks


class LatenessSummary(msgspec.Struct, frozen=True):
    """polled_at - scheduled_at of the tick rows audited; percentiles to the resolution of cluster.histogram."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class TickSpan(msgspec.Struct, frozen=True):
    """A span cut to the window, [low, high), with its grid."""

    project_id: int
    low_ms: int
    high_ms: int
    interval_ms: int
    phase: int

    @property
    def due(self) -> int:
        return ticks_in(self.low_ms, self.high_ms, self.phase, self.interval_ms)


class LatenessCounts:
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

# Set aside, and neither polled nor missed: a record that was refused twice is one tick.
_REJECTED = f"""
    SELECT s.n, count(*) AS ticks
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
         WITH ORDINALITY AS s(id, low_ms, high_ms, interval_ms, phase, n)
    CROSS JOIN LATERAL (
        SELECT DISTINCT tick_ms::bigint AS tick_ms,
               to_timestamp(0) + tick_ms::bigint * interval '1 millisecond' AS tick
        FROM (
            SELECT CASE jsonb_typeof(record -> 'scheduled_at_ms') WHEN 'number'
                        THEN (record -> 'scheduled_at_ms')::numeric END AS tick_ms
            FROM ingest_reject
            WHERE project_id = s.id AND record ->> 'trigger' = 'tick'
            OFFSET 0
        ) record
        WHERE tick_ms >= s.low_ms AND tick_ms < s.high_ms AND (tick_ms - s.phase) % s.interval_ms = 0
        OFFSET 0
    ) t
    WHERE NOT EXISTS (
        SELECT FROM poll_results WHERE project_id = s.id AND scheduled_at = t.tick AND trigger = 'tick'
    ) AND NOT EXISTS (
        SELECT FROM (
            SELECT {_MS_OF.format("first_tick")} AS first_ms, {_MS_OF.format("last_tick")} AS last_ms, ticks
            FROM missed_polls
            WHERE project_id = s.id AND first_tick <= t.tick AND last_tick >= t.tick
            OFFSET 0
        ) m
        WHERE (m.first_ms - s.phase) % s.interval_ms = 0
          AND m.last_ms - m.first_ms = (m.ticks - 1)::bigint * s.interval_ms
    )
    GROUP BY s.n
"""  # noqa: S608


async def count_ticks(
    conn: Connection, spans: Sequence[TickSpan], accounts: dict[int, Account], lateness: LatenessCounts
) -> None:
    """Add what is known of the ticks of these spans."""
    ids = [span.project_id for span in spans]
    low = [instant_of(span.low_ms) for span in spans]
    high = [instant_of(span.high_ms) for span in spans]
    intervals = [span.interval_ms for span in spans]
    phases = [span.phase for span in spans]
    for row in await conn.fetch(_POLLED, ids, low, high, intervals, phases, list(BOUNDS_MS)):
        accounts[ids[row["n"] - 1]].polled += row["rows"]
        lateness.add(row["bucket"], row["rows"], row["late_ms"])
    first_ms = [first_tick_from(span.low_ms, span.phase, span.interval_ms) for span in spans]
    last_ms = [last_tick_before(span.high_ms, span.phase, span.interval_ms) for span in spans]
    for row in await conn.fetch(_MISSED, ids, first_ms, last_ms, intervals, phases, low, high):
        account = accounts[ids[row["n"] - 1]]
        account.missed[row["reason"]] = account.missed.get(row["reason"], 0) + row["ticks"]
        account.doubled += row["ranges"] + row["rows"]
    low_ms = [span.low_ms for span in spans]
    high_ms = [span.high_ms for span in spans]
    for row in await conn.fetch(_REJECTED, ids, low_ms, high_ms, intervals, phases):
        accounts[ids[row["n"] - 1]].rejected += row["ticks"]


async def count_tick_rows(conn: Connection, ids: Sequence[int], since_ms: int | None, until_ms: int) -> dict[int, int]:
    """Rows with trigger ``tick`` by project, wherever they lie."""
    since = None if since_ms is None else instant_of(since_ms)
    return {row["id"]: row["rows"] for row in await conn.fetch(_TICK_ROWS, ids, since, instant_of(until_ms))}


async def count_rows_without_span(conn: Connection, since_ms: int | None, until_ms: int) -> int:
    since = None if since_ms is None else instant_of(since_ms)
    return int(await conn.fetchval(_ROWS_WITHOUT_SPAN, since, instant_of(until_ms)))
