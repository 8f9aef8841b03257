"""What people and programs are shown of a cluster: the status document, whether it is ready, and metrics.

Everything is made of the core's ``View`` and a few counters of the shell, at the moment it is asked for.  The document
is the same for ``GET /status``, the admin request ``status`` and ``cluster status --json``.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import cluster
from cluster.histogram import BOUNDS_MS, BUCKETS, percentile
from cluster.ticks import PARTITIONS
from coordinator.events import View, WorkerView

Health = Literal["healthy", "warning", "critical"]

# The thresholds of the original system.
ACTIVE_WARNING = 0.5  # of MAX_CONCURRENT_HTTP
ACTIVE_CRITICAL = 0.9
QUEUE_WARNING = 100
QUEUE_CRITICAL = 500
UNCOMMITTED_MS = 10_000  # for so long nothing has landed although the database answers: a lock, or it is much too slow
INVALID_PROJECTS_SHOWN = 20


class ShellCounts(msgspec.Struct, frozen=True):
    """What the core doesn't know.  ``refused``: what was turned away, by reason."""

    uptime_s: float = 0.0
    refused: dict[str, int] = {}
    invalid_projects: dict[int, str] = {}  # rows that can't be polled, and why
    admin_requests: int = 0
    loop_lag_ms: float = 0.0  # the worst of the last second
    loop_lag_counts: list[int] = []


def health(active_http: int, max_concurrent_http: int, queue_depth: int) -> Health:
    share = active_http / max_concurrent_http if max_concurrent_http else 0.0
    if share > ACTIVE_CRITICAL or queue_depth > QUEUE_CRITICAL:
        return "critical"
    if share >= ACTIVE_WARNING or queue_depth >= QUEUE_WARNING:
        return "warning"
    return "healthy"


def document(view: View, counts: ShellCounts) -> dict[str, Any]:
    """The status document (plain values, ready for JSON)."""
    totals = view.totals
    active_http = sum(worker.stats.active_http for worker in view.workers)
    queue_depth = sum(worker.stats.queue_depth for worker in view.workers)
    writer = view.writer
    return {
        "version": cluster.__version__,
        "phase": view.phase,
        "health": health(active_http, view.max_concurrent_http, queue_depth),
        "uptime_s": round(counts.uptime_s, 1),
        "epoch": view.epoch,
        "active_projects": view.projects,
        "projects_loaded": view.projects_loaded,
        "projects_total": view.projects_total,
        "invalid_projects": len(counts.invalid_projects),
        "invalid_project_reasons": {
            str(project_id): why for project_id, why in sorted(counts.invalid_projects.items())[:INVALID_PROJECTS_SHOWN]
        },
        "total_requests": totals.executed,
        "success_requests": totals.success,
        "failed_requests": totals.failure,
        "unknown_requests": totals.unknown,
        "local_causes": dict(sorted(totals.local_causes.items())),
        "missed": sum(totals.missed.values()),
        "missed_by_reason": dict(sorted(totals.missed.items())),
        "active_http": active_http,
        "max_concurrent_http": view.max_concurrent_http,
        "queue_depth": queue_depth,
        "lateness_ms": {
            "p50": round(percentile(totals.lateness_counts, 0.5, BOUNDS_MS[-1]), 3),
            "p99": round(percentile(totals.lateness_counts, 0.99, BOUNDS_MS[-1]), 3),
        },
        "accounted_to_ms": view.horizon_ms,
        "partitions": PARTITIONS,
        "partitions_assigned": view.partitions_assigned,
        "coordinator": {
            "loop_lag_ms": round(counts.loop_lag_ms, 3),
            "loop_lag_counts": counts.loop_lag_counts,
        },
        "workers_wanted": view.workers_wanted,
        "workers": [_worker(worker) for worker in view.workers],
        "writer": {
            "state": view.writer_state,
            "pid": writer.pid if writer else None,
            "rows_written": writer.rows_written if writer else 0,
            "rows_per_s": round(writer.rows_per_s, 1) if writer else 0.0,
            "lag_ms": round(writer.lag_ms, 1) if writer else 0.0,
            "duplicates": writer.duplicates if writer else 0,
            "rejects": writer.rejects if writer else 0,
            "streams": writer.streams if writer else 0,
            "pending_rows": writer.pending_rows if writer else 0,
            "rss_bytes": writer.rss_bytes if writer else 0,
            "rollup_lag_ms": round(writer.rollup_lag_ms) if writer else 0,
        },
        "database": {"state": "up" if view.database_up else "down"},
        "refused": dict(sorted(counts.refused.items())),
    }


def _worker(worker: WorkerView) -> dict[str, Any]:
    stats = worker.stats
    return {
        "name": worker.name,
        "pid": worker.pid,
        "state": worker.state,
        "projects": worker.projects,
        "partitions": worker.partitions,
        "polls_per_s": round(worker.weight, 3),
        "slice": worker.slice,
        "active_http": stats.active_http,
        "queue_depth": stats.queue_depth,
        "executed": stats.executed,
        "local_causes": dict(sorted(stats.local_causes.items())),
        "missed": sum(stats.missed.values()),
        "lateness_ms": {
            "p50": round(stats.lateness_p50_ms, 3),
            "p99": round(stats.lateness_p99_ms, 3),
            "max": round(stats.lateness_max_ms, 3),
        },
        "loop_lag_ms": round(stats.loop_lag_ms, 3),
        "loop_lag_counts": stats.loop_lag_counts,
        "unacked_results": stats.unacked_results,
        "wal_bytes": stats.wal_bytes,
        "wal_state": stats.wal_state,
        "wal_damaged": stats.wal_damaged,
        "wal_dropped": stats.wal_dropped,
        "wal_sync_failures": stats.wal_sync_failures,
        "rss_bytes": stats.rss_bytes,
    }


def not_ready(view: View) -> list[str]:
    """Why the cluster isn't ready; empty when it is."""
    reasons = []
    if view.phase == "loading":
        total = "" if view.projects_total is None else f" of {view.projects_total}"
        reasons.append(f"projects are being loaded: {view.projects_loaded}{total}")
    elif view.phase == "gathering":
        reasons.append("workers are being gathered")
    elif view.phase == "stopping":
        reasons.append("the cluster is being stopped")
    if not view.database_up:
        reasons.append("the database does not answer")
    blocked = sum(worker.stats.wal_state != "ok" for worker in view.workers)
    if blocked:
        reasons.append(f"{blocked} of {len(view.workers)} workers cannot write their WAL")
    if view.writer_state == "restarting":
        reasons.append("the writer is not connected")
    elif view.writer_state == "waiting_for_database":
        reasons.append("the writer waits for the database")
    elif view.writer is not None and view.writer.lag_ms >= UNCOMMITTED_MS:
        reasons.append(f"the writer has waited {view.writer.lag_ms / 1000:.0f} s for a commit")
    running = sum(worker.state == "running" for worker in view.workers)
    if running < view.workers_wanted:
        reasons.append(f"{running} of {view.workers_wanted} workers run")
    if view.partitions_assigned < PARTITIONS:
        reasons.append(f"{view.partitions_assigned} of {PARTITIONS} partitions have an owner")
    return reasons


class ClusterCollector(Collector):
    """Metrics for Prometheus, collected when they are scraped.  Names and units are documented by their help texts."""

    def __init__(self, view: Callable[[], View], counts: Callable[[], ShellCounts]) -> None:
        self._view = view
        self._counts = counts

    def describe(self) -> Iterator[Metric]:
        return iter(())  # registering must not collect

    def collect(self) -> Iterator[Metric]:
        view = self._view()
        counts = self._counts()
        yield from _cluster_metrics(view, counts)
        yield from _totals_metrics(view)
        yield from _worker_metrics(view.workers)
        yield from _writer_metrics(view)


def _cluster_metrics(view: View, counts: ShellCounts) -> Iterator[Metric]:
    build = GaugeMetricFamily("ringpoll_build_info", "Always 1; the version is a label.", labels=["version"])
    build.add_metric([cluster.__version__], 1)
    yield build
    phase = GaugeMetricFamily("ringpoll_phase", "1 for the phase the coordinator is in.", labels=["phase"])
    for name in ("loading", "gathering", "running", "stopping"):
        phase.add_metric([name], float(view.phase == name))
    yield phase
    yield GaugeMetricFamily("ringpoll_ready", "1 when /readyz answers 200.", value=float(not not_ready(view)))
    yield GaugeMetricFamily("ringpoll_uptime_seconds", "Seconds since `cluster up`.", value=counts.uptime_s)
    yield GaugeMetricFamily("ringpoll_epoch", "Number of the current assignment.", value=view.epoch)
    yield GaugeMetricFamily("ringpoll_projects", "Enabled projects.", value=view.projects)
    yield GaugeMetricFamily(
        "ringpoll_invalid_projects", "Enabled rows that can't be polled.", value=len(counts.invalid_projects)
    )
    yield GaugeMetricFamily(
        "ringpoll_partitions_assigned", "Partitions that have an owner, of 4096.", value=view.partitions_assigned
    )
    yield GaugeMetricFamily(
        "ringpoll_max_concurrent_http", "Limit of HTTP requests in flight.", value=view.max_concurrent_http
    )
    yield GaugeMetricFamily("ringpoll_workers_wanted", "Workers that are to run.", value=view.workers_wanted)
    states = GaugeMetricFamily("ringpoll_workers", "Workers by state.", labels=["state"])
    for state in ("starting", "running", "hung", "restarting", "draining"):
        states.add_metric([state], sum(worker.state == state for worker in view.workers))
    yield states
    yield GaugeMetricFamily("ringpoll_database_up", "1 when the database answers.", value=float(view.database_up))
    if view.horizon_ms is not None:
        yield GaugeMetricFamily(
            "ringpoll_accounted_to_timestamp_seconds",
            "Every tick before it is in the database, polled or missed.",
            value=view.horizon_ms / 1000,
        )
    refused = CounterMetricFamily("ringpoll_refused", "What the coordinator turned away.", labels=["reason"])
    for reason, count in sorted(counts.refused.items()):
        refused.add_metric([reason], count)
    yield refused
    yield CounterMetricFamily("ringpoll_admin_requests", "Admin requests carried out.", value=counts.admin_requests)


def _totals_metrics(view: View) -> Iterator[Metric]:
    totals = view.totals
    polls = CounterMetricFamily("ringpoll_polls", "Polls finished since `cluster up`.", labels=["status"])
    for status, count in (("success", totals.success), ("failure", totals.failure), ("unknown", totals.unknown)):
        polls.add_metric([status], count)
    yield polls
    causes = CounterMetricFamily(
        "ringpoll_local_causes", "Polls with status unknown, by what of our own machine it was.", labels=["cause"]
    )
    for cause, count in sorted(totals.local_causes.items()):
        causes.add_metric([cause], count)
    yield causes
    missed = CounterMetricFamily("ringpoll_missed_ticks", "Ticks due and not polled.", labels=["reason"])
    for reason, ticks in sorted(totals.missed.items()):
        missed.add_metric([reason], ticks)
    yield missed
    lateness = HistogramMetricFamily(
        "ringpoll_poll_lateness_seconds", "From the scheduled instant of a poll to its start; the sum is not kept."
    )
    lateness.add_metric([], _buckets(totals.lateness_counts), None)
    yield lateness


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative, with bounds in seconds."""
    padded = (list(counts) + [0] * BUCKETS)[:BUCKETS]
    buckets = []
    seen = 0
    for bound_ms, count in zip(BOUNDS_MS, padded, strict=False):
        seen += count
        buckets.append((repr(bound_ms / 1000), float(seen)))
    return [*buckets, ("+Inf", float(seen + padded[-1]))]


_WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerView], float]], ...] = (
    ("ringpoll_worker_projects", "Projects assigned to the worker.", lambda w: w.projects),
    ("ringpoll_worker_partitions", "Partitions assigned to the worker.", lambda w: w.partitions),
    ("ringpoll_worker_slice", "The worker's share of the limit of HTTP requests.", lambda w: w.slice),
    ("ringpoll_worker_active_http", "HTTP requests in flight.", lambda w: w.stats.active_http),
    ("ringpoll_worker_queue_depth", "Due polls that wait for a slot.", lambda w: w.stats.queue_depth),
    ("ringpoll_worker_loop_lag_seconds", "Longest stall of the polling loop.", lambda w: w.stats.loop_lag_ms / 1000),
    ("ringpoll_worker_unacked_results", "Results that are not committed yet.", lambda w: w.stats.unacked_results),
    ("ringpoll_worker_wal_bytes", "In the WAL and not acknowledged.", lambda w: w.stats.wal_bytes),
    ("ringpoll_worker_resident_memory_bytes", "Resident memory.", lambda w: w.stats.rss_bytes),
)

_WORKER_COUNTERS: tuple[tuple[str, str, Callable[[WorkerView], float]], ...] = (
    ("ringpoll_worker_wal_damaged", "Ranges of the WAL that could not be read.", lambda w: w.stats.wal_damaged),
    ("ringpoll_worker_wal_dropped_results", "Results given up: the WAL was full.", lambda w: w.stats.wal_dropped),
    ("ringpoll_worker_wal_sync_failures", "Failed fsyncs of the WAL.", lambda w: w.stats.wal_sync_failures),
)


def _worker_metrics(workers: list[WorkerView]) -> Iterator[Metric]:
    for name, text, read in _WORKER_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["worker"])
        for worker in workers:
            gauge.add_metric([worker.name], read(worker))
        yield gauge
    for name, text, read in _WORKER_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=["worker"])
        for worker in workers:
            counter.add_metric([worker.name], read(worker))
        yield counter
    causes = CounterMetricFamily(
        "ringpoll_worker_local_causes", "Of the worker's polls with status unknown.", labels=["worker", "cause"]
    )
    for worker in workers:
        for cause, count in sorted(worker.stats.local_causes.items()):
            causes.add_metric([worker.name, cause], count)
    yield causes
    states = GaugeMetricFamily("ringpoll_worker_wal_state", "1 for the WAL's state.", labels=["worker", "state"])
    for worker in workers:
        for state in ("ok", "full", "failing"):
            states.add_metric([worker.name, state], float(worker.stats.wal_state == state))
    yield states


def _writer_metrics(view: View) -> Iterator[Metric]:
    states = GaugeMetricFamily("ringpoll_writer_state", "1 for the writer's state.", labels=["state"])
    for state in ("running", "restarting", "waiting_for_database"):
        states.add_metric([state], float(view.writer_state == state))
    yield states
    writer = view.writer
    if writer is None:
        return
    yield CounterMetricFamily("ringpoll_writer_rows", "Rows committed since `cluster up`.", value=writer.rows_written)
    yield CounterMetricFamily("ringpoll_writer_duplicates", "Rows that were there already.", value=writer.duplicates)
    yield CounterMetricFamily("ringpoll_writer_rejects", "Records the database refused.", value=writer.rejects)
    yield GaugeMetricFamily("ringpoll_writer_pending_rows", "Received and not committed.", value=writer.pending_rows)
    yield GaugeMetricFamily(
        "ringpoll_writer_lag_seconds", "Age of the oldest result not committed.", value=writer.lag_ms / 1000
    )
    yield GaugeMetricFamily(
        "ringpoll_rollup_lag_seconds",
        "How long ago it was up to when polls are rolled up.",
        value=writer.rollup_lag_ms / 1000,
    )
    yield GaugeMetricFamily("ringpoll_writer_resident_memory_bytes", "Resident memory.", value=writer.rss_bytes)
