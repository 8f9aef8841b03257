"""What history costs: the rollups' CPU time per poll beside that of storing it, and how long it takes to read.

    python -m tests.bench.history --rows 6000000 --json history.json

Keeping: polls are stored as the writer does at 15,000 polls/s (flushes of 1,500), then rolled up as far as they are
accounted for; CPU time is that of this process and of all of PostgreSQL's, of each in turn:

    fast    15,000 projects polled each second; a pass each minute
    slow    --slow-projects polled every 5 minutes; a pass each 15 minutes

Reading: 10,000 projects with ``--rows`` polls over 30 days, rolled up the way the history of before an upgrade is; each
question is asked some times, after one that does not count.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from cluster import history
from cluster.bench.rig import BenchError, Database, machine, measure, spread
from cluster.database import Connection
from cluster.messages.results import Batch, PollResult
from cluster.rollup_times import DAY, HOUR, MINUTE, WEEK, floor_to
from tests.bench.figures import bench_parser, write_figures
from writer import rollup_steps
from writer.events import Flush, StreamPart
from writer.partitions import EPOCH, create
from writer.rollup_plan import SUMS
from writer.store import Store

FLUSH_ROWS = 1_500
BATCH_ROWS = 250
CHUNK_PROJECTS = 1_000
PROJECTS = 10_000
DAYS = 30
FAST_PROJECTS = 15_000
SLOW_PASS = 15 * MINUTE
SLOW_INTERVAL_S = 300
TIMES = 7
GOAL_MS = {"summary, 30 d by day": 50.0, "overview of 10,000, 24 h": 200.0, "overview of 10,000, 30 d": 200.0}


class KeepingFigures(msgspec.Struct):
    load: str
    polls: int
    storing_us_per_poll: float
    rolling_us_per_poll: float
    pass_s: list[float]


class ReadingFigures(msgspec.Struct):
    question: str
    ms: dict[str, float]
    goal_ms: float | None


class HistoryFigures(msgspec.Struct):
    keeping: list[KeepingFigures]
    reading: list[ReadingFigures]
    rows: int
    rolled_up_s: float
    table_mib: dict[str, float]


class CpuMeter:
    """CPU seconds of this process and of PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def read_s(self) -> float:
        roles = {"us": [psutil.Process()]}
        if self._db.postmaster is not None:
            roles["postgresql"] = [self._db.postmaster, *self._db.postmaster.children()]
        return sum(measure(roles).cpu_s.values())


# ---- keeping --------------------------------------------------------------------------------------------------------


def polls(projects: int, interval_s: int, begin: datetime, seconds: int) -> Iterator[PollResult]:
    """In the order of their instants, spread evenly."""
    begin_ms = int(begin.timestamp() * 1_000)
    for number in range(projects * seconds // interval_s):
        at_ms = begin_ms + number * interval_s * 1_000 // projects
        failed = number % 50 == 0
        yield PollResult(
            project_id=number % projects + 1,
            scheduled_at_ms=at_ms,
            polled_at_us=at_ms * 1_000 + 1_234,
            trigger="tick",
            status="failure" if failed else "success",
            status_code=None if failed else 200,
            response_time_ms=None if failed else 20.0 + number % projects % 300 + number * 7919 % 1_009 / 40,
            error_code="connect_refused" if failed else None,
            error_message="connection to 127.0.0.1:8080 was refused" if failed else None,
            dns_ms=None,
            connect_ms=None,
            tls_ms=None,
            first_byte_ms=None if failed else 9.25,
            transfer_ms=None if failed else 0.5,
            size_bytes=None if failed else 1_234,
            connection_reused=None if failed else True,
            remote_address="127.0.0.1",
            epoch=7,
        )


def flushes(made: Iterator[PollResult]) -> Iterator[Flush]:
    stream_id, seq = str(uuid.uuid4()), 0
    while some := [poll for _, poll in zip(range(FLUSH_ROWS), made, strict=False)]:
        parts = [some[n : n + BATCH_ROWS] for n in range(0, len(some), BATCH_ROWS)]
        batches = [Batch(stream_id, seq + n, part, []) for n, part in enumerate(parts, 1)]
        yield Flush(seq + 1, [StreamPart(stream_id, "worker-1", seq, batches)], len(some), 0)
        seq += len(batches)


async def keep(db: Database, load: str, projects: int, interval_s: int, lengths: list[timedelta]) -> KeepingFigures:
    """Store and roll up one stretch of time after the other."""
    at = floor_to(DAY, datetime.now(UTC)) - DAY + HOUR
    meter = CpuMeter(db)
    stored = storing_s = rolling_s = 0.0
    pass_s = []
    async with db.connection() as conn:
        await begin_at(conn, at)
        await conn.execute(
            "TRUNCATE poll_results, rollup_minutes, rollup_hours, rollup_quarters, rollup_days, rollup_weeks"
        )
        await conn.execute(rollup_steps.SESSION)
        store = Store(db.url, retention_days=90, wall_ms=lambda: int(time.time() * 1_000))
        for length in lengths:
            made = list(flushes(polls(projects, interval_s, at, int(length.total_seconds()))))
            before_s = meter.read_s()
            for flush in made:
                stored += flush.rows
                await store.commit(flush)
            storing_s += meter.read_s() - before_s
            at += length
            before_s, began_s = meter.read_s(), time.perf_counter()
            await rollup_steps.claim(conn, at)
            await rollup_steps.pass_flushes(conn)
            while not (await rollup_steps.roll_chunk(conn, CHUNK_PROJECTS)).finished:
                pass
            rolling_s += meter.read_s() - before_s
            pass_s.append(round(time.perf_counter() - began_s, 2))
        await store.close()
        rolled = await conn.fetchval("SELECT sum(polls) FROM rollup_days")
        if rolled != stored:
            raise BenchError(f"{stored:.0f} polls were stored and {rolled} rolled up")
    return KeepingFigures(
        load, int(stored), round(storing_s / stored * 1e6, 2), round(rolling_s / stored * 1e6, 2), pass_s
    )


async def begin_at(conn: Connection, at: datetime) -> None:
    for n in range(2):
        await create(conn, (at.date() - EPOCH).days + n)
    await conn.execute("UPDATE rollup_progress SET rolled_to = $1, claimed_to = $1, next_id = NULL", at)


# ---- reading --------------------------------------------------------------------------------------------------------


async def fill(db: Database, rows: int) -> tuple[datetime, float]:
    """Polls of PROJECTS over DAYS, and their rollups; returns up to when, and how long the rollups took."""
    until = floor_to(HOUR, datetime.now(UTC))
    since = until - DAYS * DAY
    async with db.connection() as conn:
        await conn.execute(
            "TRUNCATE poll_results, rollup_minutes, rollup_hours, rollup_quarters, rollup_days, rollup_weeks"
        )
        first = floor_to(DAY, since)
        for n in range(DAYS + 1):
            await create(conn, (first.date() - EPOCH).days + n)
        await conn.execute(
            "INSERT INTO projects (id, url) SELECT n, 'http://127.0.0.1:9/' FROM generate_series(1, $1) n", PROJECTS
        )
        each = rows // PROJECTS
        await conn.execute(
            """
            INSERT INTO poll_results
                (project_id, scheduled_at, polled_at, trigger, status, response_time_ms, worker, epoch)
            SELECT p, at, at, 'tick', (CASE WHEN (p * 31 + n) % 50 = 0 THEN 'failure' ELSE 'success' END)::poll_status,
                   20 + p % 300 + (p * 7919 + n * 104729) % 1009 / 20.0, 'worker-1', 7
            FROM generate_series(0, $1::int - 1) n, generate_series(1, $2::bigint) p,
                 LATERAL (SELECT $3::timestamptz + (n + p / ($2 + 1.0)) * $4::interval AS at) a
            """,
            each,
            PROJECTS,
            since,
            DAYS * DAY / each,
        )
        await conn.execute("ANALYZE poll_results")
        began_s = time.perf_counter()
        await conn.execute(rollup_steps.SESSION)
        await conn.execute("UPDATE rollup_progress SET rolled_to = $1, claimed_to = $1, next_id = NULL", until)
        await conn.execute("UPDATE rollup_sums SET summed_to = $1", floor_to(WEEK, since))
        await conn.execute(
            "INSERT INTO rollup_late (since, until, first_id, last_id, noted_at) "
            "SELECT d, least(d + interval '1 day', $2), 0, 1000000000, now() - interval '1 hour' "
            "FROM generate_series($1::timestamptz, $2, interval '1 day') d WHERE d < $2",
            first,
            until,
        )
        while (job := await rollup_steps.pick_job(conn)) is not None:
            while not (await rollup_steps.remake_chunk(conn, job, 200)).finished:
                pass
        for name, made in SUMS.items():
            while (await rollup_steps.look(conn)).summed_to[name] + made.whole <= until:
                await rollup_steps.sum_chunk(conn, name, CHUNK_PROJECTS)
        took_s = time.perf_counter() - began_s
        await conn.execute("VACUUM (ANALYZE) rollup_hours; ")
        await conn.execute("VACUUM (ANALYZE) rollup_days; ")
    return until, took_s


async def ask(conn: Connection, until: datetime) -> list[ReadingFigures]:
    """``until`` is half an hour after what is rolled up, so that there is a rest to be read as well."""
    now = until
    page, many = list(range(1, 51)), list(range(1, 501))
    questions: dict[str, Callable[[], Awaitable[object]]] = {
        "summary, 6 h by minute": lambda: history.summary(conn, 7, now - 6 * HOUR, now, "minute"),
        "summary, 24 h by hour": lambda: history.summary(conn, 7, now - DAY, now, "hour"),
        "summary, 30 d by hour": lambda: history.summary(conn, 7, now - 30 * DAY, now, "hour"),
        "summary, 30 d by day": lambda: history.summary(conn, 7, now - 30 * DAY, now, "day"),
        "bars of 50, 24 h": lambda: history.bars(conn, page, now - DAY, now),
        "bars of 50, 30 d": lambda: history.bars(conn, page, now - 30 * DAY, now),
        "bars of 500, 24 h": lambda: history.bars(conn, many, now - DAY, now),
        "bars of 500, 7 d": lambda: history.bars(conn, many, now - 7 * DAY, now),
        "bars of 500, 30 d": lambda: history.bars(conn, many, now - 30 * DAY, now),
        "overview of 1,000, 24 h": lambda: history.overview(conn, now - DAY, now, None, 1_000),
        "overview of 10,000, 24 h": lambda: history.overview(conn, now - DAY, now),
        "overview of 10,000, 7 d": lambda: history.overview(conn, now - 7 * DAY, now),
        "overview of 10,000, 30 d": lambda: history.overview(conn, now - 30 * DAY, now),
    }
    found = []
    for question, answer in questions.items():
        samples = []
        for _ in range(TIMES + 1):
            began_s = time.perf_counter()
            await answer()
            samples.append((time.perf_counter() - began_s) * 1e3)
        figures = {"min": round(min(samples[1:]), 1), **spread(samples[1:])}
        found.append(ReadingFigures(question, figures, GOAL_MS.get(question)))
    return found


# ---- all of it ------------------------------------------------------------------------------------------------------


async def main(arguments: argparse.Namespace) -> HistoryFigures:
    directory = Path(tempfile.mkdtemp(prefix="ringpoll-history-"))
    directory.chmod(0o755)  # as root the embedded server runs under another account, which must reach it
    db = Database(directory, os.environ.get("DATABASE_URL"))
    try:
        await db.start()
        keeping = []
        if arguments.fast_minutes:
            keeping.append(await keep(db, "15,000 each second", FAST_PROJECTS, 1, [MINUTE] * arguments.fast_minutes))
        if arguments.slow_projects:
            keeping.append(
                await keep(
                    db,
                    f"{arguments.slow_projects:,} each 5 minutes",
                    arguments.slow_projects,
                    SLOW_INTERVAL_S,
                    [SLOW_PASS],
                )
            )
        reading: list[ReadingFigures] = []
        rolled_up_s = 0.0
        sizes: dict[str, float] = {}
        if arguments.rows:
            until, rolled_up_s = await fill(db, arguments.rows)
            async with db.connection() as conn:
                reading = await ask(conn, until)
                for table in ("rollup_minutes", "rollup_hours", "rollup_quarters", "rollup_days", "rollup_weeks"):
                    size = await conn.fetchval("SELECT pg_total_relation_size($1::regclass)", table)
                    sizes[table] = round(size / (1 << 20), 1)
        return HistoryFigures(keeping, reading, arguments.rows, round(rolled_up_s, 1), sizes)
    finally:
        await db.close()
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def show(found: HistoryFigures, console: Console) -> None:
    table = Table(title="Keeping: CPU time, writer and PostgreSQL")
    for name in ("", "polls", "storing µs/poll", "rolling up µs/poll", "passes, s"):
        table.add_column(name, justify="right" if name else "left")
    for each in found.keeping:
        figures = (f"{each.polls:,}", f"{each.storing_us_per_poll:g}", f"{each.rolling_us_per_poll:g}")
        table.add_row(each.load, *figures, " ".join(map(str, each.pass_s)))
    if found.keeping:
        console.print(table)
    table = Table(title=f"Reading: {PROJECTS:,} projects, {found.rows:,} polls over {DAYS} days")
    for name in ("", "min ms", "p50 ms", "max ms", "goal ms"):
        table.add_column(name, justify="right" if name else "left")
    for question in found.reading:
        goal = "-" if question.goal_ms is None else f"{question.goal_ms:g}"
        table.add_row(question.question, *(f"{question.ms[name]:g}" for name in ("min", "p50", "max")), goal)
    if found.reading:
        console.print(table)
        sizes = ", ".join(f"{name} {size:g} MiB" for name, size in found.table_mib.items())
        console.print(f"rolled up in {found.rolled_up_s:g} s; {sizes}")


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("history", __doc__)
    parser.add_argument("--rows", type=int, default=6_000_000, help="polls to read of, at most 20 million; 0: none")
    parser.add_argument("--fast-minutes", type=int, default=2, help="of 15,000 projects polled each second; 0: none")
    parser.add_argument("--slow-projects", type=int, default=300_000, help="polled each 5 minutes; 0: none")
    return parser.parse_args(words)


if __name__ == "__main__":
    chosen = arguments_of()
    try:
        measured = uvloop.run(main(chosen))
    except BenchError as failure:
        sys.exit(f"history: {failure}")
    show(measured, Console())
    write_figures(chosen.json, {"machine": machine(), "figures": measured})
