"""How quickly the API answers at many projects, and what it does to polling: lateness with and without requests.

    python -m tests.bench.api --rows 20000000 --json api.json

`cluster up` polls ``--polls-per-s`` projects each second; beside them there are so many that are not enabled that the
table has ``--projects``.  ``--rows`` results of 10,000 of these, over 30 days, are in the tables and rolled up.

    answers    each question ``--times`` times, one after the other, over HTTP, while the cluster polls
    lateness   polled_at - scheduled_at of the rows of a window of ``--seconds``; windows without requests and with
               ``--requests-per-s`` of them (a mix of all questions) take turns, ``--rounds`` of each

Clients, target, database and cluster share this machine's cores: what the clients cost is in the lateness, too.
"""

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from cluster.bench.rig import BenchError, Cluster, Rig, machine, measure, processes_of, rig, spread
from tests.bench import history
from tests.bench.figures import bench_parser, write_figures

READY_S = 180.0
GOAL_MS = {"list": 100.0, "search": 100.0, "search, state, by name": 100.0, "summary, 30 d": 50.0}
GOAL_MS |= {"overview of 10,000": 200.0}
LATENESS_GOAL_MS = 5.0
FIRST_POLLED = 500_000  # ids: those that are polled, and those with a history
WITH_HISTORY = 10_000

_LATENESS = """
    SELECT count(*) AS polls, percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY late_ms) AS late_ms
    FROM (SELECT extract(epoch FROM polled_at - scheduled_at)::float8 * 1000 AS late_ms FROM poll_results
          WHERE trigger = 'tick' AND scheduled_at >= $1 AND scheduled_at < $2) window_rows"""


class AnswerFigures(msgspec.Struct):
    question: str
    answer_ms: dict[str, float]
    goal_ms: float | None


class WindowFigures(msgspec.Struct):
    """``requests`` were answered, ``refused`` of them not with 200; CPU in percent of one core."""

    with_requests: bool
    polls: int
    late_ms: dict[str, float]
    requests: int
    refused: int
    answer_ms: dict[str, float]
    coordinator_percent: float
    postgresql_percent: float


class ApiFigures(msgspec.Struct):
    machine: dict[str, Any]
    projects: int
    rows: int
    answers: list[AnswerFigures]
    windows: list[WindowFigures]
    added_p99_ms: float  # the median of the windows with requests, less that of those without
    incidents: list[str]

    @property
    def calm(self) -> bool:
        return not self.incidents and not any(window.refused for window in self.windows)


def questions(has_history: bool) -> dict[str, Callable[[int], str]]:
    """Paths below the API, by what they ask; each takes a number that goes up."""
    first = 1 if has_history else FIRST_POLLED
    some = WITH_HISTORY if has_history else 100
    return {
        "project": lambda n: f"projects/{first + n * 7_919 % some}",
        "list": lambda n: f"projects?limit=50&state={('up', 'paused')[n % 2]}",
        "list by name": lambda n: f"projects?sort={('name', '-name')[n % 2]}",
        "list with bars of 24 h": lambda _: "projects?summary=24h",
        "search": lambda n: f"projects?search=idle+{n * 7_919 % 90_000}",
        "search, state, by name": lambda n: f"projects?search=idle+{n * 7_919 % 900}&state=paused&sort=name",
        "search, nothing found": lambda n: f"projects?search=nowhere+{n}",
        "list with total": lambda _: "projects?total=true&limit=1",
        "results": lambda n: f"projects/{first + n * 7_919 % some}/results",
        "summary, 24 h": lambda n: f"projects/{first + n * 7_919 % some}/summary",
        "summary, 30 d": lambda n: f"projects/{first + n * 7_919 % some}/summary?period=30d",
        "changes": lambda _: "changes",
        "status": lambda _: "status",
        "overview of 1,000": lambda _: "overview?limit=1000",
        "overview of 10,000": lambda _: "overview?limit=10000",
    }


# How often each is asked in a hundred requests of the load: what a few pages that are looked at ask.
SHARES = {
    "project": 40, "list": 12, "list by name": 6, "list with bars of 24 h": 6, "search": 4, "results": 8,
    "summary, 24 h": 8, "summary, 30 d": 4, "changes": 5, "status": 7,
}  # fmt: skip


async def fill(ground: Rig, projects: int, polled: int, rows: int) -> None:
    if rows:
        await history.fill(ground.db, rows)
    async with ground.db.connection() as conn:
        await conn.execute("UPDATE projects SET enabled = false")
        await conn.execute(
            "INSERT INTO projects (id, url, name, interval) "
            "SELECT $1::bigint + n, $2 || '/check/' || n, 'check ' || n, 1 "
            "FROM generate_series(0, $3::int - 1) n",
            FIRST_POLLED,
            ground.target.url,
            polled,
        )
        idle = projects - polled - (WITH_HISTORY if rows else 0)
        await conn.execute(
            "INSERT INTO projects (id, url, name, enabled) SELECT 1000000 + n, "
            "'https://' || md5(n::text) || '.example.com/api/v1/health?check=' || n, "
            "(ARRAY['shop', 'Mail', 'intranet', 'ERP'])[1 + n % 4] || ' idle ' || n, false "
            "FROM generate_series(1, $1::int) n",
            max(0, idle),
        )
        await conn.execute("ANALYZE projects")


class Client:
    """Asks, and takes the time."""

    def __init__(self, session: aiohttp.ClientSession, cluster: Cluster) -> None:
        self._session = session
        self._base = f"http://{cluster.address}/api/v1/"
        self.samples: list[float] = []
        self.refused = 0

    async def ask(self, path: str) -> None:
        began_s = time.perf_counter()
        async with self._session.get(self._base + path) as answer:
            await answer.read()
        self.samples.append((time.perf_counter() - began_s) * 1e3)
        self.refused += answer.status != 200


async def ask_each(
    session: aiohttp.ClientSession, cluster: Cluster, has_history: bool, times: int
) -> list[AnswerFigures]:
    found = []
    for question, path in questions(has_history).items():
        client = Client(session, cluster)
        for n in range(times + 1):
            await client.ask(path(n))
        if client.refused:
            raise BenchError(f"{question}: {client.refused} of {times} were refused ({path(0)})")
        found.append(AnswerFigures(question, spread(client.samples[1:]), GOAL_MS.get(question)))
    return found


def mix(has_history: bool) -> Iterator[str]:
    """Paths without end, in their shares, well mixed."""
    asked = questions(has_history)
    deck = [name for name, share in SHARES.items() for _ in range(share)]
    deck = [deck[n * 37 % len(deck)] for n in range(len(deck))]  # 37 and 100 have no common divisor
    for n in itertools.count():
        yield asked[deck[n % len(deck)]](n)


async def send(client: Client, paths: Iterator[str], requests_per_s: float, seconds: float) -> None:
    """At even distances, whether or not those before are answered."""
    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for n in range(int(requests_per_s * seconds)):
            await asyncio.sleep(max(0.0, began_s + n / requests_per_s - time.perf_counter()))
            tasks.create_task(client.ask(next(paths)))


async def window(
    ground: Rig,
    cluster: Cluster,
    session: aiohttp.ClientSession,
    paths: Iterator[str],
    requests_per_s: float,
    seconds: float,
) -> WindowFigures:
    client = Client(session, cluster)
    roles = processes_of(cluster, ground.db, ground.target)
    before = measure(roles)
    began_at = datetime.now(UTC)
    if requests_per_s:
        await send(client, paths, requests_per_s, seconds)
    else:
        await asyncio.sleep(seconds)
    ended_at = datetime.now(UTC)
    after = measure(roles)
    took_s = after.at_s - before.at_s
    ended_ms = ended_at.timestamp() * 1e3
    await cluster.wait(lambda found: (found["accounted_to_ms"] or 0) > ended_ms, "all rows of the window", READY_S)
    async with ground.db.connection() as conn:
        row = await conn.fetchrow(_LATENESS, began_at, ended_at)
    p50, p99 = row["late_ms"] or (0.0, 0.0)
    return WindowFigures(
        bool(requests_per_s),
        row["polls"],
        {"p50": round(p50, 2), "p99": round(p99, 2)},
        len(client.samples),
        client.refused,
        spread(client.samples),
        *(round((after.cpu_s[role] - before.cpu_s[role]) / took_s * 100, 1) for role in ("coordinator", "postgresql")),
    )


async def main(arguments: argparse.Namespace) -> ApiFigures:
    async with rig(os.environ.get("DATABASE_URL")) as ground:
        await fill(ground, arguments.projects, arguments.polls_per_s, arguments.rows)
        options = ("--workers", str(arguments.workers))
        async with ground.cluster(*options) as cluster, aiohttp.ClientSession() as session:
            await cluster.wait(
                lambda found: (
                    found["phase"] == "running"
                    and found["active_projects"] == arguments.polls_per_s
                    and found["total_requests"] > 2 * arguments.polls_per_s
                ),
                "two polls of each project",
                READY_S,
            )
            has_history = arguments.rows > 0
            answers = await ask_each(session, cluster, has_history, arguments.times)
            paths = mix(has_history)
            windows = [
                await window(ground, cluster, session, paths, requests_per_s, arguments.seconds)
                for requests_per_s in (0, arguments.requests_per_s) * arguments.rounds
            ]
            incidents = cluster.incidents()
        quiet, busy = (
            statistics.median(each.late_ms["p99"] for each in windows if each.with_requests == which)
            for which in (False, True)
        )
        return ApiFigures(
            machine(), arguments.projects, arguments.rows, answers, windows, round(busy - quiet, 2), incidents
        )


def show(found: ApiFigures, console: Console) -> None:
    table = Table(title=f"Answers at {found.projects:,} projects, {found.rows:,} results, ms")
    for name in ("question", "p50", "p99", "max", "goal"):
        table.add_column(name, justify="left" if name == "question" else "right")
    for each in found.answers:
        goal = "" if each.goal_ms is None else f"{each.goal_ms:g}"
        table.add_row(each.question, *(f"{each.answer_ms[name]:.1f}" for name in ("p50", "p99", "max")), goal)
    console.print(table)
    table = Table(title="Lateness, ms, by turns")
    for name in ("requests", "polls", "p50", "p99", "answer p50", "answer p99", "coordinator %", "postgresql %"):
        table.add_column(name, justify="right")
    for each in found.windows:
        table.add_row(
            str(each.requests),
            str(each.polls),
            *(f"{each.late_ms[name]:.2f}" for name in ("p50", "p99")),
            *((f"{each.answer_ms[name]:.1f}" for name in ("p50", "p99")) if each.requests else ("", "")),
            f"{each.coordinator_percent:.1f}",
            f"{each.postgresql_percent:.1f}",
        )
    console.print(table)
    console.print(f"added to p99 of the lateness: {found.added_p99_ms:.2f} ms (goal: {LATENESS_GOAL_MS:g} ms)")
    for line in found.incidents:
        console.print(line, style="red")


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("api", __doc__)
    parser.add_argument("--projects", type=int, default=100_000, help="rows of the table")
    parser.add_argument("--polls-per-s", type=int, default=2_000, help="projects that are polled, each second")
    parser.add_argument("--rows", type=int, default=0, help="results in the tables, of 10,000 projects over 30 days")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--times", type=int, default=30, help="how often each question is asked")
    parser.add_argument("--requests-per-s", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a window")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(words)


if __name__ == "__main__":
    chosen = arguments_of()
    out = Console()
    try:
        result = uvloop.run(main(chosen))
    except (BenchError, TimeoutError) as failure:
        sys.exit(f"api: {failure if str(failure) else 'it did not end in time'}")
    show(result, out)
    write_figures(chosen.json, result)
    sys.exit(not result.calm)
