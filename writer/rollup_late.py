"""Results that are stored after their time has been rolled up, noted in the transaction that stores them.

An hour and a project per note; beyond SINGLE_MAX of a flush, an hour and all projects in between.  What is noted may
be more than what is needed (results that were there already): an hour made anew once too often is the same hour.
Hardly a flush has any, and one that has none costs a question.
"""

from collections.abc import Iterable, Mapping

from cluster.database import Connection
from writer.records import ResultRecord, TickSpread, ms_of_pg, pg_us

SINGLE_MAX = 1_000
HOUR_MS = 3_600_000

Note = tuple[int, int, int]  # begin of an hour in ms, first and last project


async def keep(conn: Connection, spreads: Mapping[str, TickSpread], planned: Iterable[list[ResultRecord]]) -> None:
    """Note which of these results are late.  The caller has the lock of flushes (see writer.ledger)."""
    if not spreads:
        return
    claimed_to = await conn.fetchval("SELECT claimed_to FROM rollup_progress")
    claimed_ms = ms_of_pg(claimed_to)
    streams = {stream_id for stream_id, spread in spreads.items() if spread.first_ms < claimed_ms}
    if not streams:
        return
    notes = late_hours((r for records in planned for r in records if r.origin.stream_id in streams), claimed_ms)
    await conn.execute(
        "INSERT INTO rollup_late (since, until, first_id, last_id) SELECT * FROM "
        "unnest($1::timestamptz[], $2::timestamptz[], $3::bigint[], $4::bigint[])",
        [pg_us(note[0]) for note in notes],
        [pg_us(note[0] + HOUR_MS) for note in notes],
        [note[1] for note in notes],
        [note[2] for note in notes],
    )


def late_hours(records: Iterable[ResultRecord], claimed_ms: int) -> list[Note]:
    """The hours of the results of before ``claimed_ms``, of single projects as long as they are few."""
    hours = {
        (record.result.scheduled_at_ms // HOUR_MS * HOUR_MS, record.result.project_id)
        for record in records
        if record.result.scheduled_at_ms < claimed_ms
    }
    if len(hours) <= SINGLE_MAX:
        return sorted((hour_ms, project_id, project_id) for hour_ms, project_id in hours)
    spans: dict[int, tuple[int, int]] = {}
    for hour_ms, project_id in hours:
        first, last = spans.get(hour_ms, (project_id, project_id))
        spans[hour_ms] = (min(first, project_id), max(last, project_id))
    return sorted((hour_ms, first, last) for hour_ms, (first, last) in spans.items())
