"""Claims and doubtful results resolved against the tables, so that no tick is both polled and missed.

``unclaimed``: which ticks of a missed range are accounted for already.  Each claim is looked up by primary key,
CLAIMS_PER_QUERY at a time; what is found is taken out by writer.claims.

``free``: a tick that an owner counted missed before it died, and the next owner polled, is taken out of its range.
"""

from collections import defaultdict
from collections.abc import Sequence

from cluster.database import Connection
from cluster.messages.results import MissedRange
from writer.claims import subtract
from writer.records import MISSED_COLUMNS, MissedRecord, RecordOrigin, ResultRecord, missed_rows, ms_of_pg, pg_us

CLAIMS_PER_QUERY = 2_000


async def unclaimed(
    conn: Connection, claims: list[MissedRecord], *, among: Sequence[MissedRecord] = ()
) -> list[MissedRecord]:
    """What of the claims is in neither table, nor in ``among``, nor in an earlier claim."""
    ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    claimed_ids = {claim.missed.project_id for claim in claims}
    for record in among:
        if record.missed.project_id in claimed_ids:
            ranges[record.missed.project_id].append((record.missed.first_tick_ms, record.missed.last_tick_ms))
    remaining: list[MissedRecord] = []
    for start in range(0, len(claims), CLAIMS_PER_QUERY):
        chunk = claims[start : start + CLAIMS_PER_QUERY]
        ticks = await _ticks_taken(conn, chunk)
        for project_id, first_ms, last_ms in await _ranges_taken(conn, chunk):
            ranges[project_id].append((first_ms, last_ms))
        for index, claim in enumerate(chunk):
            project_id = claim.missed.project_id
            for part in subtract(claim.missed, ticks[index], ranges[project_id]):
                remaining.append(MissedRecord(part, claim.origin))
                ranges[project_id].append((part.first_tick_ms, part.last_tick_ms))
    return remaining


# LATERAL ... OFFSET 0 keeps the planner from joining the whole of a table: each claim is looked up by primary key.
_TICKS_TAKEN = """
    SELECT c.n, r.scheduled_at
    FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS c(id, first, last, n)
    CROSS JOIN LATERAL (
        SELECT scheduled_at FROM poll_results
        WHERE project_id = c.id AND scheduled_at BETWEEN c.first AND c.last AND trigger = 'tick' OFFSET 0
    ) r
"""
# Ranges of a project don't overlap, so of those that begin before the claim only the last can reach into it.
_RANGES_TAKEN = """
    SELECT DISTINCT c.id, m.first_tick, m.last_tick
    FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) AS c(id, first, last)
    CROSS JOIN LATERAL (
        (SELECT first_tick, last_tick FROM missed_polls
         WHERE project_id = c.id AND first_tick < c.first ORDER BY first_tick DESC LIMIT 1)
        UNION ALL
        (SELECT first_tick, last_tick FROM missed_polls
         WHERE project_id = c.id AND first_tick BETWEEN c.first AND c.last OFFSET 0)
    ) m
    WHERE m.last_tick >= c.first
"""


def _bounds(claims: list[MissedRecord]) -> tuple[list[int], list[int], list[int]]:
    return (
        [claim.missed.project_id for claim in claims],
        [pg_us(claim.missed.first_tick_ms) for claim in claims],
        [pg_us(claim.missed.last_tick_ms) for claim in claims],
    )


async def _ticks_taken(conn: Connection, claims: list[MissedRecord]) -> list[list[int]]:
    taken: list[list[int]] = [[] for _ in claims]
    for n, scheduled_at in await conn.fetch(_TICKS_TAKEN, *_bounds(claims)):
        taken[n - 1].append(ms_of_pg(scheduled_at))
    return taken


async def _ranges_taken(conn: Connection, claims: list[MissedRecord]) -> list[tuple[int, int, int]]:
    rows = await conn.fetch(_RANGES_TAKEN, *_bounds(claims))
    return [(project_id, ms_of_pg(first), ms_of_pg(last)) for project_id, first, last in rows]


_RANGES_FREED = """
    DELETE FROM missed_polls m
    USING (SELECT DISTINCT project_id, first_tick
           FROM unnest($1::bigint[], $2::timestamptz[]) AS d(id, tick)
           JOIN missed_polls ON project_id = d.id AND first_tick <= d.tick AND last_tick >= d.tick) c
    WHERE m.project_id = c.project_id AND m.first_tick = c.first_tick
    RETURNING m.project_id, m.first_tick, m.last_tick, m.ticks, m.reason, m.worker, m.epoch
"""


async def free(conn: Connection, polled: Sequence[ResultRecord]) -> None:
    """Take the ticks of these results out of the missed ranges that have them."""
    ticks: dict[int, list[int]] = defaultdict(list)
    for record in polled:
        ticks[record.result.project_id].append(record.result.scheduled_at_ms)
    pairs = [(project_id, pg_us(tick)) for project_id, some in ticks.items() for tick in some]
    rows = await conn.fetch(_RANGES_FREED, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    remaining: list[MissedRecord] = []
    for project_id, first, last, count, reason, worker, epoch in rows:
        first_ms, last_ms = ms_of_pg(first), ms_of_pg(last)
        interval_ms = (last_ms - first_ms) // (count - 1) if count > 1 else 1
        whole = MissedRange(project_id, first_ms, last_ms, interval_ms, reason, epoch)
        remaining += [MissedRecord(part, RecordOrigin("", worker)) for part in subtract(whole, ticks[project_id], [])]
    if remaining:
        await conn.copy_records_to_table("missed_polls", records=missed_rows(remaining), columns=MISSED_COLUMNS)
