"""How many polls per second are saved, how late they are, and what they cost.

    python -m tests.bench.throughput --projects 2000,5000 --workers 8 --seconds 60 --json throughput.json

For each number of projects, on a fresh database: `cluster up` with no project; N projects with an interval of 1 s
inserted by one COPY while it runs; warm-up; then a window of ``--seconds`` is measured.  Target, database and cluster
share this machine's cores.  The database is embedded, or a new one on the server of DATABASE_URL.

    due, saved          ticks whose instant is in the window; rows of poll_results for them
    missed              ticks in the window by reason, from missed_polls
    lateness            polled_at - scheduled_at of those rows
    CPU per poll        CPU time of a role in the window, divided by the polls started in it
    RSS                 at the end of the window
    CPU of the machine  by everything, others' processes included: 100 % is one core

A rate *holds* when no tick was missed, every due tick is saved, and p99 of the lateness is below 1 s.  Exit status 1
when `cluster audit` finds the accounting law violated, whatever the rate.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from cluster.database import Connection
from tests.bench.rig import (
    ROLES,
    BenchError,
    Cluster,
    Rig,
    instant,
    machine,
    measure,
    processes_of,
    rig,
    spread,
    total,
)

INTERVAL_MS = 1_000
READY_S = 120.0
SETTLE_S = 120.0  # until every new project had its immediate poll
ACCOUNT_S = 120.0  # until everything of the window is in the tables
SAMPLE_S = 2.0
LATE_MS = 1_000

_WINDOW = """
SELECT count(*) AS saved,
       percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (ORDER BY late_ms) AS late_ms, max(late_ms) AS late_max_ms,
       count(*) FILTER (WHERE status <> 'success') AS not_success,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY response_time_ms) AS response_ms
FROM (SELECT status, response_time_ms, extract(epoch FROM polled_at - scheduled_at)::float8 * 1000 AS late_ms
      FROM poll_results WHERE trigger = 'tick' AND scheduled_at >= $1 AND scheduled_at < $2) window_rows
"""
_STARTED = "SELECT count(*) FROM poll_results WHERE polled_at >= $1 AND polled_at < $2"
_MISSED = """
SELECT reason,
       sum(greatest(0, (least(last_ms, $2::int8 - 1) - first_ms) / $3::int8
                       - (greatest($1::int8, first_ms) - first_ms + $3::int8 - 1) / $3::int8 + 1))::int8 AS ticks
FROM (SELECT reason, (extract(epoch FROM first_tick) * 1000)::int8 AS first_ms,
             (extract(epoch FROM last_tick) * 1000)::int8 AS last_ms FROM missed_polls) ranges
WHERE last_ms >= $1 AND first_ms < $2 GROUP BY reason
"""


class ThroughputFigures(msgspec.Struct):
    projects: int
    workers: int
    seconds: float
    due_per_s: float
    saved_per_s: float
    missed: dict[str, int]
    not_success: int
    lateness_ms: dict[str, float]
    response_p50_ms: float
    cpu_us_per_poll: dict[str, float]
    cpu_us_per_poll_total: float  # of the cluster and its database, without the target
    cpu_percent: dict[str, float]  # of one core
    machine_cpu_percent: float
    rss_mib: dict[str, float]
    pss_mib: dict[str, float]
    queue_depth: dict[str, float]
    loop_lag_ms: dict[str, float]
    duplicates: int
    rejects: int
    target_requests: int
    holds: bool
    audit_holds: bool
    audit: dict[str, Any]
    incidents: list[str]
    machine: dict[str, Any]


async def window(conn: Connection, since_ms: int, until_ms: int) -> dict[str, Any]:
    low, high = instant(since_ms), instant(until_ms)
    rows = dict(await conn.fetchrow(_WINDOW, low, high) or {})
    rows["started"] = await conn.fetchval(_STARTED, low, high)
    missed = await conn.fetch(_MISSED, since_ms, until_ms, INTERVAL_MS)
    rows["missed"] = {row["reason"]: row["ticks"] for row in missed if row["ticks"]}
    return rows


async def run(
    ground: Rig, *, projects: int, workers: int, seconds: float, warm_up_s: float, max_concurrent_http: int
) -> ThroughputFigures:
    options = ("--workers", str(workers), "--max-concurrent-http", str(max_concurrent_http), "--max-per-host", "0")
    async with ground.cluster(*options) as cluster:
        await cluster.wait(
            lambda now: now["partitions_assigned"] == now["partitions"] and now["writer"]["state"] == "running",
            "an empty cluster to be ready",
            READY_S,
        )
        await ground.db.insert_projects(projects, ground.target.url, INTERVAL_MS // 1_000, "seconds")
        await cluster.wait(
            lambda now: now["active_projects"] == projects and now["total_requests"] >= projects,
            f"{projects} projects to be polled once",
            SETTLE_S,
        )
        await asyncio.sleep(warm_up_s)
        measured = await _measure(ground, cluster, projects, workers, seconds)
    status, text = await cluster.command("audit", "--json")
    measured.audit = json.loads(text)["total"] if status in (0, 1) and text.startswith("{") else {"error": text}
    measured.audit_holds = status == 0
    return measured


async def _measure(ground: Rig, cluster: Cluster, projects: int, workers: int, seconds: float) -> ThroughputFigures:
    queue: list[float] = []
    lag: list[float] = []
    roles = processes_of(cluster, ground.db, ground.target)
    requests = ground.target.answered()
    psutil.cpu_percent()
    since_ms = time.time_ns() // 1_000_000
    before = measure(roles)
    while (left_s := seconds - (time.monotonic() - before.at_s)) > 0:
        await asyncio.sleep(min(SAMPLE_S, left_s))
        document, _ = await cluster.status()
        queue.append(document["queue_depth"])
        lag += [worker["loop_lag_ms"] for worker in document["workers"]]
    after = measure(roles)
    until_ms = time.time_ns() // 1_000_000
    machine_percent = psutil.cpu_percent() * (os.cpu_count() or 1)
    after.pss_bytes = measure(roles, memory=True).pss_bytes
    requests = ground.target.answered() - requests
    document = await cluster.wait(
        lambda now: (now["accounted_to_ms"] or 0) >= until_ms, "everything of the window to be committed", ACCOUNT_S
    )
    async with ground.db.connection() as conn:
        rows = await window(conn, since_ms, until_ms)

    span_s = after.at_s - before.at_s
    cpu_s = {role: after.cpu_s[role] - before.cpu_s[role] for role in after.cpu_s}
    polls = max(1, rows["started"])
    late = [*(rows["late_ms"] or [0.0, 0.0, 0.0]), rows["late_max_ms"] or 0.0]
    due = projects * span_s
    return ThroughputFigures(
        projects=projects,
        workers=workers,
        seconds=round(span_s, 1),
        due_per_s=round(due / span_s, 1),
        saved_per_s=round(rows["saved"] / span_s, 1),
        missed=rows["missed"],
        not_success=rows["not_success"],
        lateness_ms=dict(zip(("p50", "p99", "p99.9", "max"), (round(each, 1) for each in late), strict=True)),
        response_p50_ms=round(rows["response_ms"] or 0.0, 2),
        cpu_us_per_poll={role: round(used * 1e6 / polls, 1) for role, used in cpu_s.items()},
        cpu_us_per_poll_total=round(sum(cpu_s.get(role, 0.0) for role in ROLES) * 1e6 / polls, 1),
        cpu_percent={role: round(used * 100 / span_s, 1) for role, used in cpu_s.items()},
        machine_cpu_percent=round(machine_percent, 1),
        rss_mib={role: round(size / (1 << 20), 1) for role, size in after.rss_bytes.items()},
        pss_mib={role: round(size / (1 << 20), 1) for role, size in after.pss_bytes.items()},
        queue_depth=spread(queue),
        loop_lag_ms=spread(lag),
        duplicates=document["writer"]["duplicates"],
        rejects=document["writer"]["rejects"],
        target_requests=requests,
        # A window's edges cut at most one tick of each project.
        holds=not total(rows["missed"]) and rows["saved"] >= due - projects and late[1] < LATE_MS,
        audit_holds=False,
        audit={},
        incidents=cluster.incidents(),
        machine=machine(),
    )


def show(results: list[ThroughputFigures], console: Console) -> None:
    table = Table(title=f"{results[0].workers} workers, interval 1 s")
    table.add_column("")
    for result in results:
        table.add_column(f"{result.projects} projects", justify="right")

    def row(name: str, *values: object) -> None:
        table.add_row(name, *(str(value) for value in values))

    row("polls/s due", *(each.due_per_s for each in results))
    row("polls/s saved", *(each.saved_per_s for each in results))
    row("missed", *(each.missed or 0 for each in results))
    row("not success", *(each.not_success for each in results))
    for name in ("p50", "p99", "p99.9", "max"):
        row(f"lateness {name} ms", *(each.lateness_ms[name] for each in results))
    row("response p50 ms", *(each.response_p50_ms for each in results))
    for role in (*ROLES, "target"):
        row(f"CPU µs per poll, {role}", *(each.cpu_us_per_poll.get(role, "-") for each in results))
    row("CPU µs per poll, without target", *(each.cpu_us_per_poll_total for each in results))
    row("CPU of the machine, % of a core", *(each.machine_cpu_percent for each in results))
    for role in (*ROLES, "target"):
        row(f"RSS MiB, {role}", *(each.rss_mib.get(role, "-") for each in results))
    row("queue depth p50 / max", *(f"{each.queue_depth['p50']:g} / {each.queue_depth['max']:g}" for each in results))
    row("loop lag ms p50 / max", *(f"{each.loop_lag_ms['p50']:g} / {each.loop_lag_ms['max']:g}" for each in results))
    row("duplicates, rejects", *(f"{each.duplicates}, {each.rejects}" for each in results))
    row("holds", *("yes" if each.holds else "no" for each in results))
    row("audit", *("clean" if each.audit_holds else "VIOLATED" for each in results))
    console.print(table)
    for result in results:
        for line in result.incidents:
            console.print(f"{result.projects} projects: {line}", markup=False)


async def main(arguments: argparse.Namespace) -> list[ThroughputFigures]:
    results = []
    for projects in arguments.projects:
        async with rig(os.environ.get("DATABASE_URL")) as ground:
            results.append(
                await run(
                    ground,
                    projects=projects,
                    workers=arguments.workers,
                    seconds=arguments.seconds,
                    warm_up_s=arguments.warm_up,
                    max_concurrent_http=arguments.max_concurrent_http,
                )
            )
    return results


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tests.bench.throughput", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--projects",
        type=lambda text: [int(each) for each in text.split(",")],
        default=[2_000],
        help="one or more numbers of projects, each measured on its own",
    )
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the window")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before the window")
    parser.add_argument("--max-concurrent-http", type=int, default=500)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    return parser.parse_args(words)


if __name__ == "__main__":
    chosen = arguments_of()
    try:
        found = uvloop.run(main(chosen))
    except BenchError as failure:
        sys.exit(f"throughput: {failure}")
    show(found, Console())
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([msgspec.to_builtins(each) for each in found], indent=2) + "\n")
    sys.exit(not all(each.audit_holds for each in found))
