"""What people and programs are shown of a cluster: the status document, and whether it is ready.

Everything is made of the core's ``View`` and a few counters of the shell, at the moment it is asked for.  The document
is the same for ``GET /status``, the admin request ``status`` and ``cluster status --json``; metrics.py tells Prometheus
the same.
"""

from typing import Any, Literal

import msgspec

import cluster
from cluster.histogram import BOUNDS_MS, percentile
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
    spans_dropped: int = 0  # of the coordinator's traces
    wal_limit_bytes: int = 0  # of one worker, as configured


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
            "spans_dropped": counts.spans_dropped,
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
            "spans_dropped": writer.spans_dropped if writer else 0,
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
        "spans_dropped": stats.spans_dropped,
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
