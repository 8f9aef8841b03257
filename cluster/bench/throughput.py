"""How many polls per second are saved, how late they are, and what they cost.

For each number of projects, on a fresh database: `cluster up` with no project; the projects inserted by one COPY while
it runs; every one polled once; warm-up; then a window is measured.  Target, database and cluster share this machine's
cores.  The database is embedded, or a new one on the server of DATABASE_URL.

    due, saved          ticks whose instant is in the window; rows of poll_results for them
    missed              ticks in the window by reason, from missed_polls
    lateness            polled_at - scheduled_at of those rows
    CPU per poll        CPU time of a role in the window, divided by the polls started in it
    RSS                 at the end of the window
    bytes per row       size of poll_results with its index by its rows; a short run has more page than row
    CPU of the machine  by everything, others' processes included: 100 % is one core

A rate *holds* when no tick was missed, every due tick is saved, and p99 of the lateness is below 1 s.  What limits
beside the cluster (a target or a machine that has no CPU time left) is said in ``warnings``.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import psutil

from cluster.bench.rig import (
    ROLES,
    Cluster,
    Rig,
    machine,
    measure,
    processes_of,
    rig,
    spread,
    total,
)
from cluster.database import Connection
from cluster.ticks import instant_of, phase_ms, ticks_in

READY_S = 120.0
SETTLE_S = 120.0  # until every new project had its immediate poll, and a second more for each 1,000 of them
SETTLE_PROJECTS_PER_S = 1_000
ACCOUNT_S = 120.0  # until everything of the window is in the tables
SAMPLE_S = 2.0
PROGRESS_S = 0.5
LATE_MS = 1_000
BUSY_PERCENT = 90.0  # of what there is: beyond it something waits for CPU time

_WINDOW = """
SELECT count(*) AS saved,
       percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (ORDER BY late_ms) AS late_ms, max(late_ms) AS late_max_ms,
       count(*) FILTER (WHERE status <> 'success') AS not_success,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY response_time_ms) AS response_ms
FROM (SELECT status, response_time_ms, extract(epoch FROM polled_at - scheduled_at)::float8 * 1000 AS late_ms
      FROM poll_results WHERE trigger = 'tick' AND scheduled_at >= $1 AND scheduled_at < $2) window_rows
"""
_STARTED = "SELECT count(*) FROM poll_results WHERE polled_at >= $1 AND polled_at < $2"
_ROW_BYTES = """
SELECT sum(pg_total_relation_size(inhrelid))::float8 / greatest(1, (SELECT count(*) FROM poll_results))
FROM pg_inherits WHERE inhparent = 'poll_results'::regclass
"""
_MISSED = """
SELECT reason,
       sum(greatest(0, (least(last_ms, $2::int8 - 1) - first_ms) / $3::int8
                       - (greatest($1::int8, first_ms) - first_ms + $3::int8 - 1) / $3::int8 + 1))::int8 AS ticks
FROM (SELECT reason, (extract(epoch FROM first_tick) * 1000)::int8 AS first_ms,
             (extract(epoch FROM last_tick) * 1000)::int8 AS last_ms FROM missed_polls) ranges
WHERE last_ms >= $1 AND first_ms < $2 GROUP BY reason
"""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    projects: int
    interval_s: int
    workers: int
    seconds: float
    warm_up_s: float
    max_concurrent_http: int
    latency_ms: int = 0  # of the target's answers


# The phase that has begun or goes on, how much of it is done, and of how much; 0 of 0 when that is not known.
OnPhase = Callable[[str, float, float], None]


class ThroughputFigures(msgspec.Struct):
    projects: int
    interval_s: int
    workers: int
    seconds: float
    due: int
    saved: int
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
    row_bytes: float  # of poll_results with its index, after the run
    target_requests: int
    holds: bool
    audit_holds: bool
    audit: dict[str, Any]
    warnings: list[str]
    incidents: list[str]
    machine: dict[str, Any]


async def measure_throughput(server_url: str | None, load: Load, on_phase: OnPhase) -> ThroughputFigures:
    """Set everything up, measure, take everything down."""
    on_phase("database", 0, 0)
    async with rig(server_url, load.latency_ms) as ground:
        figures = await _run(ground, load, on_phase)
        on_phase("clean up", 0, 0)
    return figures


async def _run(ground: Rig, load: Load, on_phase: OnPhase) -> ThroughputFigures:
    on_phase("cluster", 0, 0)
    options = {"workers": load.workers, "max-concurrent-http": load.max_concurrent_http, "max-per-host": 0}
    async with ground.cluster(*(word for name, value in options.items() for word in (f"--{name}", str(value)))) as up:
        await up.wait(
            lambda now: now["partitions_assigned"] == now["partitions"] and now["writer"]["state"] == "running",
            "an empty cluster to be ready",
            READY_S,
        )

        def all_polled(now: dict[str, Any]) -> bool:
            polled: int = now["total_requests"]
            on_phase("projects", min(polled, load.projects), load.projects)
            return now["active_projects"] == load.projects and polled >= load.projects

        on_phase("projects", 0, load.projects)
        await ground.db.insert_projects(load.projects, ground.target.url, load.interval_s, "seconds")
        settle_s = SETTLE_S + load.projects / SETTLE_PROJECTS_PER_S
        await up.wait(all_polled, f"{load.projects} projects to be polled once", settle_s)
        await _pass_time("warm-up", load.warm_up_s, on_phase)
        measured = await _measure(ground, up, load, on_phase)
        on_phase("audit", 0, 0)
        status, text = await up.command("audit", "--json")
    measured.audit = json.loads(text)["total"] if status in (0, 1) and text.startswith("{") else {"error": text}
    measured.audit_holds = status == 0
    return measured


async def _pass_time(phase: str, seconds: float, on_phase: OnPhase) -> None:
    began = time.monotonic()
    while (passed_s := time.monotonic() - began) < seconds:
        on_phase(phase, passed_s, seconds)
        await asyncio.sleep(min(PROGRESS_S, seconds - passed_s))


async def _measure(ground: Rig, cluster: Cluster, load: Load, on_phase: OnPhase) -> ThroughputFigures:
    queue: list[float] = []
    lag: list[float] = []

    async def sample() -> None:
        while True:
            document, _ = await cluster.status()
            queue.append(document["queue_depth"])
            lag.extend(worker["loop_lag_ms"] for worker in document["workers"])
            await asyncio.sleep(SAMPLE_S)

    roles = processes_of(cluster, ground.db, ground.target)
    requests = ground.target.answered()
    psutil.cpu_percent()
    since_ms = time.time_ns() // 1_000_000
    before = measure(roles)
    sampling = asyncio.create_task(sample())
    try:
        passing = asyncio.create_task(_pass_time("measure", load.seconds, on_phase))
        await asyncio.wait({passing, sampling}, return_when=asyncio.FIRST_COMPLETED)  # sampling ends only by an error
        passing.cancel()
        if sampling.done():
            sampling.result()
    finally:
        sampling.cancel()
    after = measure(roles)
    until_ms = time.time_ns() // 1_000_000
    cores = os.cpu_count() or 1
    machine_percent = psutil.cpu_percent() * cores
    after.pss_bytes = measure(roles, memory=True).pss_bytes
    requests = ground.target.answered() - requests
    on_phase("commit", 0, 0)
    document = await cluster.wait(
        lambda now: (now["accounted_to_ms"] or 0) >= until_ms, "everything of the window to be committed", ACCOUNT_S
    )
    async with ground.db.connection() as conn:
        rows = await window(conn, since_ms, until_ms, load.interval_s * 1_000)

    span_s = after.at_s - before.at_s
    cpu_s = {role: after.cpu_s[role] - before.cpu_s[role] for role in after.cpu_s}
    polls = max(1, rows["started"])
    late = [*(rows["late_ms"] or [0.0, 0.0, 0.0]), rows["late_max_ms"] or 0.0]
    cpu_percent = {role: round(used * 100 / span_s, 1) for role, used in cpu_s.items()}
    return ThroughputFigures(
        projects=load.projects,
        interval_s=load.interval_s,
        workers=load.workers,
        seconds=round(span_s, 1),
        due=rows["due"],
        saved=rows["saved"],
        due_per_s=round(rows["due"] / span_s, 1),
        saved_per_s=round(rows["saved"] / span_s, 1),
        missed=rows["missed"],
        not_success=rows["not_success"],
        lateness_ms=dict(zip(("p50", "p99", "p99.9", "max"), (round(each, 1) for each in late), strict=True)),
        response_p50_ms=round(rows["response_ms"] or 0.0, 2),
        cpu_us_per_poll={role: round(used * 1e6 / polls, 1) for role, used in cpu_s.items()},
        cpu_us_per_poll_total=round(sum(cpu_s.get(role, 0.0) for role in ROLES) * 1e6 / polls, 1),
        cpu_percent=cpu_percent,
        machine_cpu_percent=round(machine_percent, 1),
        rss_mib={role: round(size / (1 << 20), 1) for role, size in after.rss_bytes.items()},
        pss_mib={role: round(size / (1 << 20), 1) for role, size in after.pss_bytes.items()},
        queue_depth=spread(queue),
        loop_lag_ms=spread(lag),
        duplicates=document["writer"]["duplicates"],
        rejects=document["writer"]["rejects"],
        row_bytes=round(rows["row_bytes"], 1),
        target_requests=requests,
        holds=not total(rows["missed"]) and rows["saved"] == rows["due"] and late[1] < LATE_MS,
        audit_holds=False,
        audit={},
        warnings=bottlenecks(cpu_percent.get("target", 0.0), machine_percent, cores),
        incidents=cluster.incidents(),
        machine=machine(),
    )


async def window(conn: Connection, since_ms: int, until_ms: int, interval_ms: int) -> dict[str, Any]:
    low, high = instant_of(since_ms), instant_of(until_ms)
    rows = dict(await conn.fetchrow(_WINDOW, low, high) or {})
    rows["row_bytes"] = await conn.fetchval(_ROW_BYTES)
    rows["started"] = await conn.fetchval(_STARTED, low, high)
    missed = await conn.fetch(_MISSED, since_ms, until_ms, interval_ms)
    rows["missed"] = {row["reason"]: row["ticks"] for row in missed if row["ticks"]}
    ids = [row["id"] for row in await conn.fetch("SELECT id FROM projects")]
    rows["due"] = sum(ticks_in(since_ms, until_ms, phase_ms(each, interval_ms), interval_ms) for each in ids)
    return rows


def bottlenecks(target_percent: float, machine_percent: float, cores: int) -> list[str]:
    """What beside the cluster may have held it back.  Percent of one core."""
    found = []
    if target_percent > BUSY_PERCENT:
        found.append(
            f"the target used {target_percent:.0f} % of the one core it can use: it, not the cluster, may be the limit"
        )
    if machine_percent > BUSY_PERCENT * cores:
        found.append(
            f"the machine had no CPU time left ({machine_percent:.0f} % of {cores * 100} %, the target and everything "
            "else included): it may be the limit"
        )
    return found
