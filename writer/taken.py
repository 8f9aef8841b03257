"""Results and missed ranges made to agree with the tables: a tick is polled or missed, and counted once.

Records of the same ticks come from several streams when a worker has died, hung, or when a database was set back, and
in any order.  So no record is trusted to be the first to speak of its tick.  What holds after every flush, whatever
came before it:  polled = every tick whose result was stored;  missed = every tick of every range, less those polled.

- ``absent``: results whose (project, instant) is not in a partition yet;
- ``free``: ticks that were counted missed and now have a result are taken out of their range;
- ``unclaimed``: of new ranges, what is neither polled nor in another range.

Hardly anything is found in the ordinary case, so each begins with a question about everything at once.  All look-ups
are by key; what they cost is in proportion to the records of the flush, not to the tables or the length of ranges.
The caller has the tables for itself (see writer.ledger) and a transaction.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster.database import Connection
from cluster.messages.results import MissedRange
from writer.claims import RangeIndex, TakenRange, subtract
from writer.records import (
    MISSED_COLUMNS,
    MissedRecord,
    RecordOrigin,
    ResultRecord,
    TickSpread,
    missed_rows,
    ms_of_pg,
    pg_us,
)

CLAIMS_PER_QUERY = 10_000
RANGES_PEEKED = 100
# Ranges of one grid don't overlap, so of those that begin before an instant only the last can reach beyond it; where
# an interval has just changed, ranges of the old grid and of the new lie across each other for a moment.
LOOK_BACK = 3

# LATERAL with OFFSET or LIMIT keeps the planner from joining whole tables: each row of the arrays is looked up by key
# (writer.store.SESSION sees to it that the look-up is one, however small the table was when the plan was made).


# ---- results that are there already ---------------------------------------------------------------------------------

_PRESENT = """
    SELECT k.n FROM unnest($1::bigint[], $2::timestamptz[]) WITH ORDINALITY AS k(id, at, n)
    CROSS JOIN LATERAL (SELECT FROM {} WHERE project_id = k.id AND scheduled_at = k.at LIMIT 1) r
"""


async def absent(conn: Connection, partition: str, records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Those of the records that are not in the partition, and of several with the same key the first."""
    by_key: dict[tuple[int, int], ResultRecord] = {}
    for record in records:
        by_key.setdefault((record.result.project_id, record.result.scheduled_at_ms), record)
    kept = list(by_key.values())
    rows = await conn.fetch(
        _PRESENT.format(partition),
        [record.result.project_id for record in kept],
        [pg_us(record.result.scheduled_at_ms) for record in kept],
    )
    present = {row[0] - 1 for row in rows}
    return [record for index, record in enumerate(kept) if index not in present]


# ---- ticks that were missed and now are polled ----------------------------------------------------------------------

# Streams among whose ticks there may be a missed one.  Ranges that end after the first of the ticks are few as long as
# results are recent; of many, nothing is said here.
_STREAMS_CONCERNED = f"""
    SELECT s.n FROM unnest($1::timestamptz[], $2::timestamptz[]) WITH ORDINALITY AS s(low, high, n)
    CROSS JOIN LATERAL (
        SELECT count(*) AS peeked, bool_or(first_tick <= s.high) AS found
        FROM (SELECT first_tick FROM missed_polls WHERE last_tick >= s.low
              ORDER BY last_tick LIMIT {RANGES_PEEKED}) nearby
    ) p
    WHERE p.found OR p.peeked = {RANGES_PEEKED}
"""  # noqa: S608 - no outside text

_RANGES_OVERLAPPING = f"""
    SELECT w.id, m.first_tick, m.last_tick, m.ticks, m.reason, m.worker, m.epoch
    FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) AS w(id, low, high)
    CROSS JOIN LATERAL (
        SELECT FROM (SELECT last_tick FROM missed_polls WHERE project_id = w.id AND first_tick <= w.high
                     ORDER BY first_tick DESC LIMIT {LOOK_BACK}) nearby
        WHERE last_tick >= w.low LIMIT 1
    ) any_at_all
    CROSS JOIN LATERAL (
        (SELECT * FROM missed_polls WHERE project_id = w.id AND first_tick < w.low
         ORDER BY first_tick DESC LIMIT {LOOK_BACK})
        UNION ALL
        (SELECT * FROM missed_polls WHERE project_id = w.id AND first_tick BETWEEN w.low AND w.high OFFSET 0)
    ) m
    WHERE m.last_tick >= w.low
"""  # noqa: S608

_DELETE_RANGES = """
    DELETE FROM missed_polls m USING unnest($1::bigint[], $2::timestamptz[]) AS d(id, first)
    WHERE m.project_id = d.id AND m.first_tick = d.first
    RETURNING m.project_id, m.first_tick
"""


async def free(conn: Connection, spreads: Mapping[str, TickSpread], stored: Collection[list[ResultRecord]]) -> None:
    """Take the ticks of these results out of the missed ranges that have them.

    ``stored``: the results that this flush has added; ``spreads``: by stream, which time their ticks spread over.
    """
    streams = await _streams_concerned(conn, spreads)
    windows = _windows(stored, streams)
    if not windows:
        return
    rows = await conn.fetch(
        _RANGES_OVERLAPPING,
        [project_id for _, project_id in windows],
        [pg_us(spread.first_ms) for spread in windows.values()],
        [pg_us(spread.last_ms) for spread in windows.values()],
    )
    cut = _cut(rows, stored)
    if cut:
        deleted = await conn.fetch(_DELETE_RANGES, [key[0] for key in cut], [key[1] for key in cut])
        await store_ranges(conn, [part for project_id, first in deleted for part in cut[project_id, first]])


async def _streams_concerned(conn: Connection, spreads: Mapping[str, TickSpread]) -> set[str]:
    stream_ids = list(spreads)
    rows = await conn.fetch(
        _STREAMS_CONCERNED,
        [pg_us(spread.first_ms) for spread in spreads.values()],
        [pg_us(spread.last_ms) for spread in spreads.values()],
    )
    return {stream_ids[row[0] - 1] for row in rows}


def _windows(stored: Iterable[list[ResultRecord]], streams: set[str]) -> dict[tuple[str, int], TickSpread]:
    """By stream and project, because a stream that is replayed is far behind another with the same project."""
    windows: dict[tuple[str, int], TickSpread] = {}
    if streams:
        for record in _tick_records(stored):
            if record.origin.stream_id in streams:
                at_ms = record.result.scheduled_at_ms
                key = (record.origin.stream_id, record.result.project_id)
                spread = windows.get(key)
                if spread is None:
                    windows[key] = TickSpread(at_ms, at_ms)
                elif at_ms > spread.last_ms:
                    spread.last_ms = at_ms
                elif at_ms < spread.first_ms:
                    spread.first_ms = at_ms
    return windows


def _cut(rows: Sequence[Any], stored: Iterable[list[ResultRecord]]) -> dict[tuple[int, int], list[MissedRecord]]:
    """By key in the table, the ranges that have one of the ticks, and what remains of them."""
    polled: dict[int, list[int]] = {row[0]: [] for row in rows}
    if polled:
        for record in _tick_records(stored):
            if record.result.project_id in polled:
                polled[record.result.project_id].append(record.result.scheduled_at_ms)
        for ticks in polled.values():
            ticks.sort()
    cut = {}
    for project_id, first, last, count, reason, worker, epoch in rows:
        first_ms, last_ms = ms_of_pg(first), ms_of_pg(last)
        step_ms = TakenRange.of(first_ms, last_ms, count).step_ms
        whole = MissedRange(project_id, first_ms, last_ms, step_ms, reason, epoch)
        ticks = polled[project_id]
        parts = subtract(whole, ticks[bisect_left(ticks, first_ms) : bisect_right(ticks, last_ms)], ())
        if parts != [whole]:
            cut[project_id, first] = [MissedRecord(part, RecordOrigin("", worker)) for part in parts]
    return cut


def _tick_records(stored: Iterable[list[ResultRecord]]) -> Iterator[ResultRecord]:
    return (record for records in stored for record in records if record.result.trigger == "tick")


# ---- ticks that are claimed to be missed ----------------------------------------------------------------------------

_CLAIMS_CONCERNED = f"""
    SELECT c.n FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS c(id, first, last, n)
    CROSS JOIN LATERAL (
        (SELECT FROM poll_results
         WHERE project_id = c.id AND scheduled_at BETWEEN c.first AND c.last AND trigger = 'tick' LIMIT 1)
        UNION ALL
        (SELECT FROM (SELECT last_tick FROM missed_polls WHERE project_id = c.id AND first_tick <= c.last
                      ORDER BY first_tick DESC LIMIT {LOOK_BACK}) m
         WHERE m.last_tick >= c.first)
        LIMIT 1
    ) found
"""  # noqa: S608

# Results come as runs of ticks that follow each other, so that a claim of long ago that was polled throughout is one.
_CLAIMS_TAKEN = f"""
    SELECT c.n, t.first_tick, t.last_tick, t.ticks
    FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::bigint[])
         WITH ORDINALITY AS c(id, first, last, step_ms, n)
    CROSS JOIN LATERAL (
        SELECT min(at) AS first_tick, max(at) AS last_tick, count(*)::int AS ticks
        FROM (
            SELECT at, since_ms / c.step_ms - row_number() OVER (ORDER BY at) AS run
            FROM (
                SELECT scheduled_at AS at, round(date_part('epoch', scheduled_at - c.first) * 1000)::bigint AS since_ms
                FROM poll_results
                WHERE project_id = c.id AND scheduled_at BETWEEN c.first AND c.last AND trigger = 'tick' OFFSET 0
            ) polled
            WHERE since_ms % c.step_ms = 0
        ) runs
        GROUP BY run
        UNION ALL
        (SELECT first_tick, last_tick, ticks
         FROM (SELECT * FROM missed_polls WHERE project_id = c.id AND first_tick < c.first
               ORDER BY first_tick DESC LIMIT {LOOK_BACK}) before
         WHERE last_tick >= c.first)
        UNION ALL
        (SELECT first_tick, last_tick, ticks FROM missed_polls
         WHERE project_id = c.id AND first_tick BETWEEN c.first AND c.last OFFSET 0)
    ) t
"""  # noqa: S608


async def unclaimed(conn: Connection, claims: Sequence[MissedRecord]) -> list[MissedRecord]:
    """What of the claims is in neither table, nor in an earlier one of them."""
    of_project = Counter(claim.missed.project_id for claim in claims)
    earlier: dict[int, RangeIndex] = defaultdict(RangeIndex)  # for projects that have several claims
    remaining: list[MissedRecord] = []
    for start in range(0, len(claims), CLAIMS_PER_QUERY):
        chunk = claims[start : start + CLAIMS_PER_QUERY]
        taken = await _claims_taken(conn, chunk)
        for index, claim in enumerate(chunk):
            project_id = claim.missed.project_id
            several = of_project[project_id] > 1
            if not several and index not in taken:
                remaining.append(claim)
                continue
            ranges = taken.get(index, [])
            if several:
                ranges = ranges + earlier[project_id].reaching_into(claim.missed)
            for part in subtract(claim.missed, (), ranges):
                remaining.append(MissedRecord(part, claim.origin))
                if several:
                    earlier[project_id].add(part)
    return remaining


async def _claims_taken(conn: Connection, claims: Sequence[MissedRecord]) -> dict[int, list[TakenRange]]:
    """What the tables have of each claim, by its index; nothing for a claim of which they have nothing."""
    rows = await conn.fetch(_CLAIMS_CONCERNED, *_bounds(claims))
    concerned = sorted({row[0] - 1 for row in rows})
    taken: dict[int, list[TakenRange]] = defaultdict(list)
    if concerned:
        some = [claims[index] for index in concerned]
        steps = [claim.missed.interval_ms for claim in some]
        for n, first, last, ticks in await conn.fetch(_CLAIMS_TAKEN, *_bounds(some), steps):
            taken[concerned[n - 1]].append(TakenRange.of(ms_of_pg(first), ms_of_pg(last), ticks))
    return taken


def _bounds(claims: Sequence[MissedRecord]) -> tuple[list[int], list[int], list[int]]:
    return (
        [claim.missed.project_id for claim in claims],
        [pg_us(claim.missed.first_tick_ms) for claim in claims],
        [pg_us(claim.missed.last_tick_ms) for claim in claims],
    )


async def store_ranges(conn: Connection, ranges: Sequence[MissedRecord]) -> None:
    if ranges:
        await conn.copy_records_to_table("missed_polls", records=missed_rows(ranges), columns=MISSED_COLUMNS)
