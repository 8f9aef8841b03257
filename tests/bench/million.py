"""How long a million projects take to load, and what they cost at rest.

    python -m tests.bench.million                         1,000,000 projects every 5 minutes: 3,333 polls/s
    python -m tests.bench.million --interval-hours 24     the same at rest: 12 polls/s

In this order, on a fresh database (embedded, or a new one on the server of DATABASE_URL):

1. *Empty*: the cluster runs without a project; after ``--rest-seconds`` / 2 its memory is the base line.
2. *Insert*: one COPY of all projects while no cluster runs, triggers included.  Then they are made an hour older:
   of projects that are new within the last minute the coordinator keeps more, for a while (``--fresh`` leaves it so).
3. *Load*: the cluster starts.  ``loaded``: seconds from the start of `cluster up` until the coordinator has read every
   project; ``assigned``: until every partition has an owner and the owners' projects are all of them; ``held``: until
   every worker has applied what it was granted, and all ticks up to ``assigned`` are in the database.  /status is read
   four times a second meanwhile.
4. *Rest*: when what fell due meanwhile has been polled, and after a pause, a window of ``--rest-seconds``: CPU by role
   in percent of one core; polls started and their lateness, from the rows.  With ``--interval-hours 24`` that is next
   to nothing but what a million projects cost by being there.
5. *Reload*: `cluster reload`, which reads and compares every row: seconds, and the coordinator's loop lag meanwhile.

The loop lag is what the workers and the coordinator measure themselves: how late a timer runs, every 50 ms.  p99 is
over all samples of a phase (of all workers together), worst the longest wait of one.  While the cluster starts, the
imports of its processes stall nobody's polls; samples count from a process's first heartbeat on.

Bytes per project are the growth of PSS (RSS where PSS can't be read) of a role over the base line, divided by the
number of projects.  ``all``: the PSS of supervisor, coordinator, writer and workers after the window at rest;
PostgreSQL, shared buffers and all, is shown beside it and does not count.

The figures are held against ``Limits``, which are meant for 1,000,000 projects in 8 workers on 2 cores that nothing
else uses; fewer projects show a higher share of what is there once.  On a terminal the cluster's own progress display
is shown while it loads.  Exit status 1 when a process was killed or restarted meanwhile, a load did not end, or (with
``--strict``) a limit was passed.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from cluster.bench.rig import (
    ROLES,
    BenchError,
    Cluster,
    Rig,
    Usage,
    machine,
    measure,
    processes_of,
    rig,
)
from cluster.histogram import BOUNDS_MS, BUCKETS, percentile
from cluster.ticks import instant_of
from tests.bench.figures import bench_parser, write_figures

READY_S = 120.0
SAMPLE_S = 0.25
PAUSE_S = 10.0
CATCH_UP_S = 600.0
MIB = 1 << 20
OURS = ("supervisor", "coordinator", "writer", "workers")
_WINDOW = """
SELECT count(*) AS polls,
       percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (
           ORDER BY extract(epoch FROM polled_at - scheduled_at)::float8 * 1000) AS late_ms
FROM poll_results WHERE trigger = 'tick' AND polled_at >= $1 AND polled_at < $2
"""


class Limits(msgspec.Struct, frozen=True):
    worker_bytes_per_project: float = 700.0
    coordinator_bytes_per_project: float = 350.0
    all_mib: float = 1_600_000_000 / MIB
    assigned_s: float = 20.0
    lag_p99_ms: float = 20.0  # while loading, of the workers and of the coordinator


class Verdict(msgspec.Struct):
    what: str
    found: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.found < self.limit


class Lag:
    """The loops' lag over a phase, out of status documents: their counts only grow."""

    def __init__(self) -> None:
        self._first: dict[str, list[int]] = {}
        self._last: dict[str, list[int]] = {}
        self._worst_ms: dict[str, float] = {"workers": 0.0, "coordinator": 0.0}

    def add(self, document: dict[str, Any]) -> None:
        for each in (*document["workers"], document["coordinator"] | {"name": "coordinator"}):
            role = "coordinator" if each["name"] == "coordinator" else "workers"
            counts = each["loop_lag_counts"]
            if counts:
                if each["name"] in self._first:  # the worst of before the phase is not its own
                    self._worst_ms[role] = max(self._worst_ms[role], each["loop_lag_ms"])
                self._first.setdefault(each["name"], counts)
                self._last[each["name"]] = counts

    def spreads(self) -> dict[str, dict[str, float]]:
        return {role: self._spread(role, worst_ms) for role, worst_ms in self._worst_ms.items()}

    def _spread(self, role: str, worst_ms: float) -> dict[str, float]:
        counts = [0] * BUCKETS
        for name, last in self._last.items():
            if (name == "coordinator") == (role == "coordinator"):
                counts = [a + b - c for a, b, c in zip(counts, last, self._first[name], strict=True)]
        ceiling_ms = worst_ms or BOUNDS_MS[-1]
        found = {"p50": percentile(counts, 0.5, ceiling_ms), "p99": percentile(counts, 0.99, ceiling_ms)}
        return {name: round(each, 1) for name, each in (found | {"max": worst_ms}).items()} | {"samples": sum(counts)}


class LoadFigures(msgspec.Struct):
    projects: int
    workers: int
    interval_s: int
    insert_s: float
    loaded_s: float = 0.0
    assigned_s: float = 0.0
    held_s: float = 0.0
    bytes_per_project: dict[str, float] = {}
    memory_is: str = "PSS"
    memory_mib: dict[str, float] = {}
    memory_peak_mib: dict[str, float] = {}  # RSS, highest sample while it loaded
    empty_mib: dict[str, float] = {}
    lag_ms_loading: dict[str, dict[str, float]] = {}
    lag_ms_at_rest: dict[str, dict[str, float]] = {}
    cpu_s_loading: dict[str, float] = {}
    cpu_percent_empty: dict[str, float] = {}
    cpu_percent_at_rest: dict[str, float] = {}
    polls_per_s_due: float = 0.0
    polls_per_s: float = 0.0  # by polled_at
    missed_while_loading: dict[str, int] = {}
    missed_at_rest: int = 0
    lateness_ms: dict[str, float] = {}
    reload_s: float = 0.0
    lag_ms_reloading: dict[str, dict[str, float]] = {}
    cpu_s_reload: dict[str, float] = {}
    stop_s: float = 0.0
    verdicts: list[Verdict] = []
    incidents: list[str] = []
    machine: dict[str, Any] = {}

    @property
    def calm(self) -> bool:
        return not self.incidents

    def judge(self, limits: Limits) -> None:
        per_project = self.bytes_per_project
        self.verdicts = [
            Verdict("bytes per project, workers", per_project["workers"], limits.worker_bytes_per_project),
            Verdict("bytes per project, coordinator", per_project["coordinator"], limits.coordinator_bytes_per_project),
            Verdict(f"{self.memory_is} MiB, all our processes", self.memory_mib["all"], round(limits.all_mib, 1)),
            Verdict("seconds until assigned", self.assigned_s, limits.assigned_s),
            *(
                Verdict(f"loop lag p99 ms while loading, {role}", lag["p99"], limits.lag_p99_ms)
                for role, lag in self.lag_ms_loading.items()
            ),
        ]


async def run(
    ground: Rig,
    console: Console,
    *,
    projects: int,
    workers: int,
    interval: tuple[int, str],
    rest_s: float,
    load_s: float,
    fresh: bool = False,
) -> LoadFigures:
    options = ("--workers", str(workers), "--max-concurrent-http", "500", "--max-per-host", "0")
    console.print(f"an empty cluster of {workers} workers ...")
    empty, empty_percent = await _empty(ground, options, rest_s / 2)
    console.print(f"inserting {projects} projects ...")
    insert_s = await ground.db.insert_projects(projects, ground.target.url, *interval)
    if not fresh:
        async with ground.db.connection() as conn:
            await conn.execute("UPDATE project_spans SET since = since - interval '1 hour'")
            for table in ("projects", "project_spans"):
                await conn.execute(f"VACUUM (ANALYZE) {table}")  # as autovacuum would have in that hour
    seconds = interval[0] * {"minutes": 60, "hours": 3_600}[interval[1]]
    found = LoadFigures(projects, workers, seconds, round(insert_s, 1), cpu_percent_empty=empty_percent)
    found.polls_per_s_due = round(projects / seconds, 1)
    found.empty_mib = _in_mib(_memory(empty))
    console.print(f"inserted in {insert_s:.1f} s; starting the cluster ...")
    async with ground.cluster(*options, shown=sys.stderr.isatty()) as cluster:
        await _load(ground, cluster, found, load_s)
        await _rest(ground, cluster, found, empty, rest_s)
        await _reload(ground, cluster, found)
        stopped_at = time.monotonic()
    found.stop_s = round(time.monotonic() - stopped_at, 1)
    found.incidents = cluster.incidents()
    found.judge(Limits())
    found.machine = machine()
    return found


async def _empty(ground: Rig, options: tuple[str, ...], rest_s: float) -> tuple[Usage, dict[str, float]]:
    async with ground.cluster(*options) as cluster:
        await cluster.wait(
            lambda now: now["partitions_assigned"] == now["partitions"] and now["writer"]["state"] == "running",
            "an empty cluster to be ready",
            READY_S,
        )
        roles = processes_of(cluster, ground.db, ground.target)
        before = measure(roles)
        await asyncio.sleep(rest_s)
        after = measure(roles, memory=True)
        return after, _percent(before, after)


async def _load(ground: Rig, cluster: Cluster, found: LoadFigures, load_s: float) -> None:
    lag = Lag()
    peak: dict[str, int] = {}
    assigned_ms = 0
    before = measure(processes_of(cluster, ground.db, ground.target))  # the server's: it has also stored the projects

    def passed_s() -> float:
        return round(time.monotonic() - cluster.started_at, 1)

    async with asyncio.timeout(load_s):
        async for now in _samples(cluster):
            lag.add(now)
            for role, size in measure(processes_of(cluster, ground.db, ground.target)).rss_bytes.items():
                peak[role] = max(size, peak.get(role, 0))
            if not found.loaded_s and now["projects_loaded"] >= found.projects:
                found.loaded_s = passed_s()
            if not found.assigned_s and (
                now["partitions_assigned"] == now["partitions"]
                and sum(worker["projects"] for worker in now["workers"]) == found.projects
            ):
                found.assigned_s = passed_s()
                assigned_ms = time.time_ns() // 1_000_000
            if found.assigned_s and (now["accounted_to_ms"] or 0) >= assigned_ms:
                found.held_s = passed_s()
                found.missed_while_loading = now["missed_by_reason"]
                break
    found.lag_ms_loading = lag.spreads()
    found.memory_peak_mib = _in_mib(peak)
    usage = measure(processes_of(cluster, ground.db, ground.target))
    found.cpu_s_loading = cpu_spent(before, usage)


async def _rest(ground: Rig, cluster: Cluster, found: LoadFigures, empty: Usage, rest_s: float) -> None:
    await cluster.wait(lambda now: now["queue_depth"] == 0, "what fell due while loading to be polled", CATCH_UP_S)
    await asyncio.sleep(PAUSE_S)
    lag = Lag()
    roles = processes_of(cluster, ground.db, ground.target)
    first, _ = await cluster.status()
    lag.add(first)
    since_ms = time.time_ns() // 1_000_000
    before = measure(roles)
    now = first
    while (left_s := rest_s - (time.monotonic() - before.at_s)) > 0:
        await asyncio.sleep(min(2.0, left_s))
        now, _ = await cluster.status()
        lag.add(now)
    after = measure(roles)
    until_ms = time.time_ns() // 1_000_000
    after.pss_bytes = measure(roles, memory=True).pss_bytes
    found.lag_ms_at_rest = lag.spreads()
    found.cpu_percent_at_rest = _percent(before, after)
    found.missed_at_rest = now["missed"] - first["missed"]
    await cluster.wait(lambda now: (now["accounted_to_ms"] or 0) >= until_ms, "the window to be committed", READY_S)
    async with ground.db.connection() as conn:
        row = await conn.fetchrow(_WINDOW, instant_of(since_ms), instant_of(until_ms))
    assert row is not None
    found.polls_per_s = round(row["polls"] / (after.at_s - before.at_s), 1)
    found.lateness_ms = dict(
        zip(("p50", "p99", "p99.9"), (round(each, 1) for each in row["late_ms"] or []), strict=False)
    )
    full = _memory(after)
    found.memory_is = "PSS" if after.pss_bytes else "RSS"
    found.memory_mib = _in_mib(full | {"all": sum(full[role] for role in OURS)})
    base = _memory(empty)
    found.bytes_per_project = {
        role: round((full[role] - base[role]) / found.projects, 1) for role in ("coordinator", "workers")
    }


async def _reload(ground: Rig, cluster: Cluster, found: LoadFigures) -> None:
    lag = Lag()
    roles = processes_of(cluster, ground.db, ground.target)
    before = measure(roles)
    command = asyncio.create_task(cluster.command("reload"))
    async for now in _samples(cluster):
        lag.add(now)
        if command.done():
            break
    status, text = await command
    after = measure(roles)
    if status:
        raise BenchError(f"`cluster reload` failed: {text}")
    found.reload_s = round(after.at_s - before.at_s, 1)
    found.lag_ms_reloading = lag.spreads()
    found.cpu_s_reload = {role: round(after.cpu_s[role] - before.cpu_s[role], 1) for role in ROLES}


async def _samples(cluster: Cluster) -> AsyncIterator[dict[str, Any]]:
    """Status documents, four a second, as long as they are asked for."""
    while True:
        with contextlib.suppress(OSError):  # not up yet
            document, _ = await cluster.status()
            yield document
        if cluster.ended():
            raise BenchError(f"`cluster up` ended while it was measured: {cluster.tail()}")
        await asyncio.sleep(SAMPLE_S)


def cpu_spent(before: Usage, after: Usage) -> dict[str, float]:
    """Seconds by role, the target aside; what was not there before counts from nothing."""
    return {
        role: round(used - before.cpu_s.get(role, 0.0), 1) for role, used in after.cpu_s.items() if role != "target"
    }


def _memory(usage: Usage) -> dict[str, int]:
    return usage.pss_bytes or usage.rss_bytes


def _in_mib(sizes: dict[str, int]) -> dict[str, float]:
    return {role: round(size / MIB, 1) for role, size in sizes.items()}


def _percent(before: Usage, after: Usage) -> dict[str, float]:
    span_s = after.at_s - before.at_s
    return {role: round((after.cpu_s[role] - used) * 100 / span_s, 1) for role, used in before.cpu_s.items()}


def show(found: LoadFigures, console: Console) -> None:
    table = Table(title=f"{found.projects} projects every {found.interval_s} s, {found.workers} workers")
    table.add_column("")
    for role in ROLES:
        table.add_column(role, justify="right")

    def row(name: str, values: dict[str, Any]) -> None:
        table.add_row(name, *(str(values.get(role, "-")) for role in ROLES))

    row(f"{found.memory_is} MiB without projects", found.empty_mib)
    row(f"{found.memory_is} MiB with them", found.memory_mib)
    row("highest RSS MiB while loading", found.memory_peak_mib)
    row("bytes per project", found.bytes_per_project)
    row("CPU s until held", found.cpu_s_loading)
    row("CPU % without projects", found.cpu_percent_empty)
    row("CPU % at rest", found.cpu_percent_at_rest)
    row("CPU s of a reload", found.cpu_s_reload)
    for name, lags in (
        ("loading", found.lag_ms_loading),
        ("at rest", found.lag_ms_at_rest),
        ("reloading", found.lag_ms_reloading),
    ):
        row(
            f"loop lag p99 / worst ms, {name}", {role: f"{lag['p99']:g} / {lag['max']:g}" for role, lag in lags.items()}
        )
    console.print(table)
    console.print(
        f"insert {found.insert_s} s; loaded {found.loaded_s} s, assigned {found.assigned_s} s, held {found.held_s} s "
        f"after the start; reload {found.reload_s} s; stop {found.stop_s} s"
    )
    console.print(
        f"polls/s: {found.polls_per_s} of {found.polls_per_s_due} due; missed while loading "
        f"{found.missed_while_loading or 0}, at rest {found.missed_at_rest}; "
        f"lateness in ms {found.lateness_ms}"
    )
    console.print(f"{found.memory_is} of all our processes (PostgreSQL not among them): {found.memory_mib['all']} MiB")
    for verdict in found.verdicts:
        word = "pass" if verdict.passed else "FAIL"
        console.print(f"{word}  {verdict.what}: {verdict.found:g} (below {verdict.limit:g})", highlight=False)
    for line in found.incidents:
        console.print(line, markup=False)


def written(found: LoadFigures) -> dict[str, Any]:
    """For JSON."""
    document: dict[str, Any] = msgspec.to_builtins(found)
    for verdict, entry in zip(found.verdicts, document["verdicts"], strict=True):
        entry["passed"] = verdict.passed
    return document


async def main(arguments: argparse.Namespace, console: Console) -> LoadFigures:
    interval = (
        (arguments.interval_hours, "hours") if arguments.interval_hours else (arguments.interval_minutes, "minutes")
    )
    async with rig(os.environ.get("DATABASE_URL")) as ground:
        return await run(
            ground,
            console,
            projects=arguments.projects,
            workers=arguments.workers,
            interval=interval,
            rest_s=arguments.rest_seconds,
            load_s=arguments.load_seconds,
            fresh=arguments.fresh,
        )


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("million", __doc__)
    parser.add_argument("--projects", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--interval-minutes", type=int, default=5)
    parser.add_argument("--interval-hours", type=int, help="instead of minutes: nearly nothing is polled")
    parser.add_argument("--rest-seconds", type=float, default=30.0, help="length of the window at rest")
    parser.add_argument("--load-seconds", type=float, default=600.0, help="how long the load may take")
    parser.add_argument("--fresh", action="store_true", help="load projects that were enabled a moment ago")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a limit was passed")
    return parser.parse_args(words)


if __name__ == "__main__":
    chosen = arguments_of()
    out = Console()
    try:
        result = uvloop.run(main(chosen, out))
    except (BenchError, TimeoutError) as failure:
        sys.exit(f"million: {failure if str(failure) else 'the load did not end in time'}")
    show(result, out)
    write_figures(chosen.json, written(result))
    sys.exit(not result.calm or (chosen.strict and not all(verdict.passed for verdict in result.verdicts)))
