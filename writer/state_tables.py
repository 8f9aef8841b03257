"""Tables ``project_states`` and ``state_changes``, brought up to date with each flush, in its transaction.

Nearly every result agrees with what is known of its project, and costs one look into a dict: the standings that are
not plainly up are kept in memory.  The rest is followed in the order of ticks (``writer.standing``).

- A project's results of a flush count only if none that is newer is in the table already.  Results that come late,
  from a backlog or a worker that was replaced, are rows like all others, and don't turn its state back.
- What is in memory follows the tables and never leads: it changes after COMMIT, and is read anew after any error.
- A project that is deleted has no state any more.
"""

from collections.abc import Iterable

from cluster.database import Connection
from writer.records import ResultRecord, ms_of_pg, pg_us
from writer.standing import UP, ProjectStanding, StateChange, Thresholds, follow, says_nothing_new

Standings = dict[int, ProjectStanding]

_LOAD = """
    SELECT project_id, state, since, streak, streak_from FROM project_states s
    WHERE (state = 'down' OR streak > 0) AND EXISTS (SELECT FROM projects WHERE id = s.project_id)
"""

# What is to be known of projects whose results say something new; newer: of what the flush itself does not bring.
_ASK = """
    SELECT k.n, p.down_after, p.up_after, s.state, s.since, s.streak, s.streak_from
    FROM unnest($1::bigint[], $2::timestamptz[]) WITH ORDINALITY AS k(id, newest, n)
    CROSS JOIN LATERAL (SELECT down_after, up_after FROM projects WHERE id = k.id OFFSET 0) p
    LEFT JOIN LATERAL (SELECT * FROM project_states WHERE project_id = k.id OFFSET 0) s ON true
    WHERE NOT EXISTS (
        SELECT FROM poll_results WHERE project_id = k.id AND scheduled_at > k.newest AND status <> 'unknown'
    )
"""

_STORE = """
    INSERT INTO project_states (project_id, state, since, streak, streak_from)
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::int[], $5::timestamptz[])
    ON CONFLICT (project_id) DO UPDATE SET
        state = excluded.state, since = excluded.since, streak = excluded.streak, streak_from = excluded.streak_from
"""

_STORE_CHANGES = """
    INSERT INTO state_changes
        (project_id, changed_at, state, began_at, polls, status_code, error_code, error_message)
    SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::timestamptz[], $5::int[], $6::smallint[],
                         $7::text[], $8::text[])
    ON CONFLICT (project_id, changed_at) DO NOTHING
"""


async def load(conn: Connection) -> Standings:
    """The standing of every project that is not plainly up."""
    return {row[0]: ProjectStanding(row[1], _ms(row[2]), row[3], _ms(row[4])) for row in await conn.fetch(_LOAD)}


def remember(standings: Standings, found: Standings) -> None:
    """Take over what a flush has stored, once it is committed."""
    for project_id, standing in found.items():
        if standing.is_settled_up:
            standings.pop(project_id, None)
        else:
            standings[project_id] = standing


async def keep(conn: Connection, standings: Standings, stored: Iterable[list[ResultRecord]]) -> Standings:
    """Store what these results, which the flush has added, change; returns the standings that are new."""
    telling: dict[int, list[ResultRecord]] = {}
    some = [records for records in stored if records]
    for records in some:
        for record in records:
            result = record.result
            if result.status == "success" and result.project_id not in standings:
                continue  # nearly all
            if not says_nothing_new(standings.get(result.project_id), result):
                telling[result.project_id] = []
    if not telling:
        return {}
    for records in some:
        for record in records:
            if record.result.project_id in telling:
                telling[record.result.project_id].append(record)
    return await _follow(conn, telling)


async def _follow(conn: Connection, telling: dict[int, list[ResultRecord]]) -> Standings:
    for records in telling.values():
        records.sort(key=lambda record: record.result.scheduled_at_ms)
    project_ids = list(telling)
    newest = [pg_us(telling[project_id][-1].result.scheduled_at_ms) for project_id in project_ids]
    new: Standings = {}
    changes: list[tuple[int, StateChange]] = []
    for n, down_after, up_after, state, since, streak, streak_from in await conn.fetch(_ASK, project_ids, newest):
        project_id = project_ids[n - 1]
        before = UP if state is None else ProjectStanding(state, _ms(since), streak, _ms(streak_from))
        results = [record.result for record in telling[project_id]]
        standing, changed = follow(before, results, Thresholds(down_after, up_after))
        if standing != before:
            new[project_id] = standing
        changes += [(project_id, change) for change in changed]
    if new:
        await conn.execute(
            _STORE,
            list(new),
            [standing.state for standing in new.values()],
            [_pg(standing.since_ms) for standing in new.values()],
            [standing.streak for standing in new.values()],
            [_pg(standing.streak_from_ms) for standing in new.values()],
        )
    if changes:
        await conn.execute(
            _STORE_CHANGES,
            [project_id for project_id, _ in changes],
            [pg_us(change.result.scheduled_at_ms) for _, change in changes],
            [change.state for _, change in changes],
            [pg_us(change.began_ms) for _, change in changes],
            [change.polls for _, change in changes],
            [change.result.status_code for _, change in changes],
            [change.result.error_code for _, change in changes],
            [change.result.error_message for _, change in changes],
        )
    return new


def _ms(instant_us: int | None) -> int | None:
    return None if instant_us is None else ms_of_pg(instant_us)


def _pg(instant_ms: int | None) -> int | None:
    return None if instant_ms is None else pg_us(instant_ms)
