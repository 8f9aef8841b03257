"""The accounting law, checked on the tables: ticks due = tick rows in poll_results + ticks in missed_polls + results
set aside in ingest_reject.

Due is computed from project_spans and the tick arithmetic alone, so nothing that polls is trusted.  All counts are of
one snapshot of the database.  The window audited is [since, horizon): the horizon is ``cluster_state.accounted_to``,
before which every tick is accounted for, or an earlier instant asked for; nothing before
``result_retention.kept_from`` is audited, because it may have been dropped.  Deleted projects keep their spans and are
audited, too.

Definitions, per project:

- ``polled``: rows with trigger ``tick`` whose scheduled_at is on the grid of the span it lies in;
- ``missed``: ticks of the grid of a span that lie in a range of missed_polls on that grid, by reason;
- ``rejected``: ticks of the grid of a span whose result the database refused (it is in ingest_reject), and that are
  neither polled nor missed;
- ``doubled``: ticks counted more than once, by a row and a range or by several ranges;
- ``unexplained`` = due - (polled + missed + rejected - doubled): ticks of which nothing is known;
- ``stray``: tick rows off the grid or outside of every span (for example polled in the second in which the project was
  disabled); they break nothing and are shown for information.

The law holds when nothing is unexplained or doubled, but for projects that can't be polled because their row, written
in SQL, is none that can be (``invalid``): of their ticks nothing is known by nature, and they are told apart.

Cost: each row of the window is read about twice, by primary key; a billion rows take their time.  Nothing is written,
nothing rendered.
"""

from collections.abc import Callable, Iterator
from datetime import datetime

import asyncpg
import msgspec

from cluster.audit_counts import (
    Account,
    LatenessCounts,
    LatenessSummary,
    TickSpan,
    count_rows_without_span,
    count_tick_rows,
    count_ticks,
)
from cluster.database import DATABASE_ERRORS, Connection, describe
from cluster.errors import ClusterError, InvalidInputError
from cluster.project import SPEC_SELECT, spec_from_row
from cluster.ticks import milliseconds_of, phase_ms

PROJECTS_PER_CHUNK = 5_000
TICKS_PER_STEP = 1_000_000  # due ticks counted by one statement: how often progress is made
PROJECTS_LISTED_MAX = 1_000  # of more than these only those that violate the law are listed, so many at most

_ROWS = f"""
    SELECT {SPEC_SELECT}, NULL::timestamptz AS since
    FROM projects p WHERE p.enabled AND p.id = ANY($1::bigint[])"""  # noqa: S608 - our own column names

OnProgress = Callable[[float, int], None]  # projects audited, projects in all


class ProjectAudit(msgspec.Struct):
    project_id: int
    name: str | None  # None: the project was deleted
    account: Account
    invalid: str | None = None  # why its row can't be polled, as it is now; its unexplained ticks are no violation


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
    projects_invalid: int = 0  # with unexplained ticks, because their rows can't be polled
    holds: bool = True
    note: str | None = None  # why no tick was audited, for people


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
    if since is not None and until is not None and since > until:
        raise InvalidInputError(f"the window ends before it begins: from {_words(since)} to {_words(until)}")
    try:
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            return await _audit(conn, since, until, project, progress)
    except asyncpg.LockNotAvailableError:
        raise  # whoever made the connection knows how long it waits
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
    since_ms = None if start is None else milliseconds_of(start)
    report = AuditReport(since_ms, None, 0, 0, Account(), None, [])
    if project is not None and not await conn.fetchval(
        "SELECT EXISTS (SELECT FROM project_spans WHERE project_id = $1)", project
    ):
        raise ClusterError(
            f"project {project} was never enabled, so there is nothing to audit; `cluster projects list` shows the ids",
            code="unknown_project",
        )
    if accounted_to is None:
        report.note = "nothing is accounted for yet, so there is nothing to audit"
        return report
    report.horizon_ms = milliseconds_of(accounted_to if until is None else min(accounted_to, until))
    report.note = _why_empty(since, until, accounted_to, kept_from)
    if report.note is not None:
        return report
    in_all = 1 if project is not None else await conn.fetchval("SELECT count(DISTINCT project_id) FROM project_spans")
    lateness = LatenessCounts()
    last_id: int | None = None
    while True:
        ids = [project] if project is not None else await _next_ids(conn, last_id)
        if not ids:
            break
        last_id = ids[-1]
        chunk = _Chunk(ids, report, in_all, progress)
        accounts = await _audit_chunk(conn, chunk, lateness)
        await _list(conn, report, accounts, in_all)
        if project is not None:
            break
    if project is None:
        report.total.stray += await count_rows_without_span(conn, since_ms, report.horizon_ms)
    report.lateness = lateness.result()
    report.holds = report.projects_violating == 0
    if not report.total.due:
        report.note = "no tick was due in this window"
    return report


def _why_empty(
    since: datetime | None, until: datetime | None, accounted_to: datetime, kept_from: datetime | None
) -> str | None:
    """Why nothing of the window can be audited; None: something can."""
    if since is not None and since >= accounted_to:
        return (
            f"nothing to audit: ticks are accounted for up to {_words(accounted_to)}, "
            f"and the window begins at {_words(since)}"
        )
    if until is not None and kept_from is not None and until <= kept_from:
        return f"nothing to audit: results are kept from {_words(kept_from)} on, and the window ends at {_words(until)}"
    return None


def _words(instant: datetime) -> str:
    return instant.astimezone().isoformat(sep=" ", timespec="seconds")


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
    unexplained = [i for i, account in accounts.items() if not account.holds and not account.doubled]
    invalid = await invalid_rows(conn, unexplained)
    for project_id, account in accounts.items():
        report.total.add(account)
        report.projects_audited += 1
        if project_id in invalid:
            report.projects_invalid += 1
        elif not account.holds:
            report.projects_violating += 1
        if in_all > PROJECTS_LISTED_MAX and account.holds:
            continue
        if len(report.projects) + len(listed) < PROJECTS_LISTED_MAX:
            listed.append(project_id)
        else:
            report.projects_left_out += 1
    rows = await conn.fetch("SELECT id, name FROM projects WHERE id = ANY($1::bigint[])", listed)
    names = {row["id"]: row["name"] for row in rows}
    report.projects += [ProjectAudit(i, names.get(i), accounts[i], invalid.get(i)) for i in listed]


async def invalid_rows(conn: Connection, ids: list[int]) -> dict[int, str]:
    """Those of the projects that are enabled and whose row the coordinator refuses to poll, and why."""
    found = {}
    if ids:
        for row in await conn.fetch(_ROWS, ids):
            try:
                spec_from_row(row)
            except InvalidInputError as error:
                found[row["id"]] = str(error)
    return found


class _Chunk:
    """Some projects of an audit, and how far it is."""

    def __init__(self, ids: list[int], report: AuditReport, in_all: int, progress: OnProgress | None) -> None:
        assert report.horizon_ms is not None
        self.ids = ids
        self.since_ms = report.since_ms
        self.horizon_ms = report.horizon_ms
        self._before = report.projects_audited
        self._in_all = in_all
        self._progress = progress

    def done(self, share: float) -> None:
        if self._progress is not None:
            self._progress(self._before + share * len(self.ids), self._in_all)


async def _audit_chunk(conn: Connection, chunk: _Chunk, lateness: LatenessCounts) -> dict[int, Account]:
    rows = await conn.fetch(
        "SELECT project_id, since, until, interval_ms FROM project_spans WHERE project_id = ANY($1::bigint[]) "
        "ORDER BY project_id, since",
        chunk.ids,
    )
    accounts = {project_id: Account() for project_id in chunk.ids}
    spans = []
    for row in rows:
        low = milliseconds_of(row["since"])
        low = low if chunk.since_ms is None else max(low, chunk.since_ms)
        high = chunk.horizon_ms if row["until"] is None else min(milliseconds_of(row["until"]), chunk.horizon_ms)
        phase = phase_ms(row["project_id"], row["interval_ms"])
        span = TickSpan(row["project_id"], low, high, row["interval_ms"], phase)
        if span.due:
            accounts[span.project_id].due += span.due
            spans.append(span)
    steps = list(_steps(spans))
    windows = _windows(chunk, spans, max(1, len(steps)))
    for number, step in enumerate(steps, start=1):
        await count_ticks(conn, step, accounts, lateness)
        chunk.done(number / (len(steps) + len(windows)))
    tick_rows = dict.fromkeys(chunk.ids, 0)
    for number, (since_ms, until_ms) in enumerate(windows, start=1):
        for project_id, count in (await count_tick_rows(conn, chunk.ids, since_ms, until_ms)).items():
            tick_rows[project_id] += count
        chunk.done((len(steps) + number) / (len(steps) + len(windows)))
    for project_id, account in accounts.items():
        account.stray = tick_rows[project_id] - account.polled
        account.settle()
    return accounts


def _steps(spans: list[TickSpan]) -> Iterator[list[TickSpan]]:
    """The spans, those that are long in pieces, so many together as have TICKS_PER_STEP ticks due."""
    step: list[TickSpan] = []
    ticks = 0
    for span in spans:
        length_ms = TICKS_PER_STEP * span.interval_ms
        for low_ms in range(span.low_ms, span.high_ms, length_ms):
            piece = msgspec.structs.replace(span, low_ms=low_ms, high_ms=min(low_ms + length_ms, span.high_ms))
            if step and ticks + piece.due > TICKS_PER_STEP:
                yield step
                step, ticks = [], 0
            step.append(piece)
            ticks += piece.due
    if step:
        yield step


def _windows(chunk: _Chunk, spans: list[TickSpan], count: int) -> list[tuple[int | None, int]]:
    """The whole window in so many parts; the first one has whatever lies before the first span, too."""
    first_ms = min((span.low_ms for span in spans), default=chunk.horizon_ms)
    cuts = [first_ms + (chunk.horizon_ms - first_ms) * number // count for number in range(1, count)]
    return list(zip([chunk.since_ms, *cuts], [*cuts, chunk.horizon_ms], strict=True))


__all__ = ["Account", "AuditReport", "LatenessSummary", "OnProgress", "ProjectAudit", "audit", "invalid_rows"]
