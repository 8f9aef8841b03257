"""What Prometheus is told: everything of the status document as metrics, collected when they are scraped.

- Names follow the conventions of Prometheus: base units (seconds, bytes) last in a name, ``_total`` for what only
  grows.
- What the document has and a query works out of other metrics (sums over workers, rates, percentiles of a histogram) is
  not said twice.  tests/coordinator_shell/test_metrics.py holds each number of the document against its metric.
- The number of series is bounded: ``WORKERS_MAX`` workers, ``LABELS_MAX`` values of a label that comes over the wire.
  What is beyond is in ``ringpoll_workers_unlisted`` and in the value ``other``: counted, never left out in silence.
- Reasons and states that are known beforehand are there from the start with 0, so that a rate sees their first step.

It reads no clock and no database; the series of single projects are made by project_metrics.py, those of HTTP requests
by web/request_metrics.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import cluster
from cluster.histogram import BOUNDS_MS, BUCKETS
from cluster.messages.control import WalState
from cluster.messages.results import MissedReason
from cluster.ticks import PARTITIONS
from coordinator.events import Phase, View, WorkerState, WorkerView
from coordinator.status import Health, ShellCounts, health, not_ready

WORKERS_MAX = 256  # as many as `--workers` takes
LABELS_MAX = 32  # values of one label; there are fewer of each
OTHER = "other"

_MISSED_REASONS: tuple[str, ...] = get_args(MissedReason)
_WRITER_STATES = ("running", "restarting", "waiting_for_database")


class ClusterCollector(Collector):
    """Names and units are documented by their help texts."""

    def __init__(self, view: Callable[[], View], counts: Callable[[], ShellCounts]) -> None:
        self._view = view
        self._counts = counts

    def describe(self) -> Iterator[Metric]:
        return iter(())  # registering must not collect

    def collect(self) -> Iterator[Metric]:
        view = self._view()
        counts = self._counts()
        yield from _cluster_metrics(view, counts)
        yield from _project_counts(view, counts)
        yield from _totals_metrics(view)
        yield from _coordinator_metrics(counts)
        yield from _worker_metrics(view.workers)
        yield from _writer_metrics(view)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _one_of(name: str, text: str, label: str, values: Iterable[str], current: str) -> GaugeMetricFamily:
    """1 for the current one of a fixed set of values, 0 for the others."""
    gauge = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        gauge.add_metric([value], float(value == current))
    return gauge


def _bounded(counts: Mapping[str, int], known: Iterable[str] = ()) -> dict[str, int]:
    """By label value, in order: the known ones, then as many others as there may be, then the sum of the rest."""
    found = dict.fromkeys(known, 0)
    for value, count in sorted(counts.items()):
        name = value if value in found or len(found) < LABELS_MAX else OTHER
        found[name] = found.get(name, 0) + count
    return found


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative, with bounds in seconds."""
    padded = (list(counts) + [0] * BUCKETS)[:BUCKETS]
    buckets = []
    seen = 0
    for bound_ms, count in zip(BOUNDS_MS, padded, strict=False):
        seen += count
        buckets.append((repr(bound_ms / 1000), float(seen)))
    return [*buckets, ("+Inf", float(seen + padded[-1]))]


# ---- the cluster --------------------------------------------------------------------------------------------------


def _cluster_metrics(view: View, counts: ShellCounts) -> Iterator[Metric]:
    build = GaugeMetricFamily("ringpoll_build_info", "Always 1; the version is a label.", labels=["version"])
    build.add_metric([cluster.__version__], 1)
    yield build
    yield _one_of("ringpoll_phase", "1 for the phase the coordinator is in.", "phase", get_args(Phase), view.phase)
    active_http = sum(worker.stats.active_http for worker in view.workers)
    queue_depth = sum(worker.stats.queue_depth for worker in view.workers)
    yield _one_of(
        "ringpoll_health",
        "1 for the health: of slots in use and polls that wait.",
        "state",
        get_args(Health),
        health(active_http, view.max_concurrent_http, queue_depth),
    )
    yield _gauge("ringpoll_ready", "1 when /readyz answers 200.", float(not not_ready(view)))
    yield _gauge("ringpoll_uptime_seconds", "Seconds since `cluster up`.", counts.uptime_s)
    yield _gauge("ringpoll_epoch", "Number of the current assignment.", view.epoch)
    yield _gauge("ringpoll_partitions", "Partitions that there are.", PARTITIONS)
    yield _gauge("ringpoll_partitions_assigned", "Partitions that have an owner.", view.partitions_assigned)
    yield _gauge("ringpoll_max_concurrent_http", "Limit of HTTP requests in flight.", view.max_concurrent_http)
    yield _gauge("ringpoll_wal_limit_bytes", "What the WAL of one worker may take.", counts.wal_limit_bytes)
    yield _gauge("ringpoll_workers_wanted", "Workers that are to run.", view.workers_wanted)
    states = GaugeMetricFamily("ringpoll_workers", "Workers by state.", labels=["state"])
    for state in get_args(WorkerState):
        states.add_metric([state], sum(worker.state == state for worker in view.workers))
    yield states
    yield _gauge("ringpoll_database_up", "1 when the database answers.", float(view.database_up))
    if view.horizon_ms is not None:
        yield _gauge(
            "ringpoll_accounted_to_timestamp_seconds",
            "Every tick before it is in the database, polled or missed.",
            view.horizon_ms / 1000,
        )
    refused = CounterMetricFamily("ringpoll_refused", "What the coordinator turned away.", labels=["reason"])
    for reason, count in _bounded(counts.refused).items():
        refused.add_metric([reason], count)
    yield refused
    yield CounterMetricFamily("ringpoll_admin_requests", "Admin requests carried out.", value=counts.admin_requests)


def _project_counts(view: View, counts: ShellCounts) -> Iterator[Metric]:
    yield _gauge("ringpoll_projects", "Enabled projects.", view.projects)
    yield _gauge("ringpoll_projects_loaded", "Projects read by the first load.", view.projects_loaded)
    if view.projects_total is not None:
        yield _gauge("ringpoll_projects_to_load", "Projects that the first load is to read.", view.projects_total)
    yield _gauge("ringpoll_invalid_projects", "Enabled rows that can't be polled.", len(counts.invalid_projects))


def _totals_metrics(view: View) -> Iterator[Metric]:
    totals = view.totals
    polls = CounterMetricFamily("ringpoll_polls", "Polls finished since `cluster up`.", labels=["status"])
    for status, count in (("success", totals.success), ("failure", totals.failure), ("unknown", totals.unknown)):
        polls.add_metric([status], count)
    yield polls
    causes = CounterMetricFamily(
        "ringpoll_local_causes", "Polls with status unknown, by what of our own machine it was.", labels=["cause"]
    )
    for cause, count in _bounded(totals.local_causes).items():
        causes.add_metric([cause], count)
    yield causes
    missed = CounterMetricFamily("ringpoll_missed_ticks", "Ticks due and not polled.", labels=["reason"])
    for reason, ticks in _bounded(totals.missed, _MISSED_REASONS).items():
        missed.add_metric([reason], ticks)
    yield missed
    lateness = HistogramMetricFamily(
        "ringpoll_poll_lateness_seconds", "From the scheduled instant of a poll to its start; the sum is not kept."
    )
    lateness.add_metric([], _buckets(totals.lateness_counts), None)
    yield lateness


def _coordinator_metrics(counts: ShellCounts) -> Iterator[Metric]:
    yield _gauge(
        "ringpoll_coordinator_loop_lag_seconds",
        "Longest stall of the coordinator's loop in the last second.",
        counts.loop_lag_ms / 1000,
    )
    yield CounterMetricFamily(
        "ringpoll_coordinator_spans_dropped", "Spans of its traces that are lost.", value=counts.spans_dropped
    )
    delay = HistogramMetricFamily(
        "ringpoll_coordinator_timer_delay_seconds",
        "How late the coordinator's loop ran a timer, sampled every 50 ms; the sum is not kept.",
    )
    delay.add_metric([], _buckets(counts.loop_lag_counts), None)
    yield delay


# ---- workers ------------------------------------------------------------------------------------------------------

_WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerView], float]], ...] = (
    ("ringpoll_worker_projects", "Projects assigned to the worker.", lambda w: w.projects),
    ("ringpoll_worker_partitions", "Partitions assigned to the worker.", lambda w: w.partitions),
    (
        "ringpoll_worker_assigned_polls_per_second",
        "Polls that the worker's projects are due for in a second.",
        lambda w: w.weight,
    ),
    ("ringpoll_worker_slice", "The worker's share of the limit of HTTP requests.", lambda w: w.slice),
    ("ringpoll_worker_active_http", "HTTP requests in flight.", lambda w: w.stats.active_http),
    ("ringpoll_worker_queue_depth", "Due polls that wait for a slot.", lambda w: w.stats.queue_depth),
    (
        "ringpoll_worker_lateness_p50_seconds",
        "Median of the lateness of the worker's polls in about the last 10 s.",
        lambda w: w.stats.lateness_p50_ms / 1000,
    ),
    (
        "ringpoll_worker_lateness_p99_seconds",
        "99th percentile of the lateness of the worker's polls in about the last 10 s.",
        lambda w: w.stats.lateness_p99_ms / 1000,
    ),
    (
        "ringpoll_worker_lateness_max_seconds",
        "Largest lateness of the worker's polls in about the last 10 s.",
        lambda w: w.stats.lateness_max_ms / 1000,
    ),
    ("ringpoll_worker_loop_lag_seconds", "Longest stall of the polling loop.", lambda w: w.stats.loop_lag_ms / 1000),
    ("ringpoll_worker_unacked_results", "Results that are not committed yet.", lambda w: w.stats.unacked_results),
    ("ringpoll_worker_wal_bytes", "In the WAL and not acknowledged.", lambda w: w.stats.wal_bytes),
    ("ringpoll_worker_resident_memory_bytes", "Resident memory.", lambda w: w.stats.rss_bytes),
)

_WORKER_COUNTERS: tuple[tuple[str, str, Callable[[WorkerView], float]], ...] = (
    ("ringpoll_worker_polls", "Polls finished by this process of the worker.", lambda w: w.stats.executed),
    ("ringpoll_worker_spans_dropped", "Spans of its traces that are lost.", lambda w: w.stats.spans_dropped),
    ("ringpoll_worker_wal_damaged", "Ranges of the WAL that could not be read.", lambda w: w.stats.wal_damaged),
    ("ringpoll_worker_wal_dropped_results", "Results given up: the WAL was full.", lambda w: w.stats.wal_dropped),
    ("ringpoll_worker_wal_sync_failures", "Failed fsyncs of the WAL.", lambda w: w.stats.wal_sync_failures),
)


def _worker_metrics(everyone: list[WorkerView]) -> Iterator[Metric]:
    workers = sorted(everyone, key=lambda worker: worker.name)[:WORKERS_MAX]
    yield _gauge(
        "ringpoll_workers_unlisted", "Workers without series of their own: too many.", len(everyone) - len(workers)
    )
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
    missed = CounterMetricFamily(
        "ringpoll_worker_missed_ticks", "Ticks that this process of the worker missed.", labels=["worker", "reason"]
    )
    causes = CounterMetricFamily(
        "ringpoll_worker_local_causes", "Of the worker's polls with status unknown.", labels=["worker", "cause"]
    )
    states = GaugeMetricFamily("ringpoll_worker_state", "1 for the worker's state.", labels=["worker", "state"])
    wal_states = GaugeMetricFamily("ringpoll_worker_wal_state", "1 for the WAL's state.", labels=["worker", "state"])
    delay = HistogramMetricFamily(
        "ringpoll_worker_timer_delay_seconds",
        "How late the polling loop ran a timer, sampled every 50 ms; the sum is not kept.",
        labels=["worker"],
    )
    for worker in workers:
        stats = worker.stats
        for reason, ticks in _bounded(stats.missed, _MISSED_REASONS).items():
            missed.add_metric([worker.name, reason], ticks)
        for cause, count in _bounded(stats.local_causes).items():
            causes.add_metric([worker.name, cause], count)
        for state in get_args(WorkerState):
            states.add_metric([worker.name, state], float(worker.state == state))
        for state in get_args(WalState):
            wal_states.add_metric([worker.name, state], float(stats.wal_state == state))
        delay.add_metric([worker.name], _buckets(stats.loop_lag_counts), None)
    yield from (missed, causes, states, wal_states, delay)


# ---- the writer ---------------------------------------------------------------------------------------------------


def _writer_metrics(view: View) -> Iterator[Metric]:
    yield _one_of("ringpoll_writer_state", "1 for the writer's state.", "state", _WRITER_STATES, view.writer_state)
    writer = view.writer
    if writer is None:
        return
    yield CounterMetricFamily("ringpoll_writer_rows", "Rows committed since `cluster up`.", value=writer.rows_written)
    yield CounterMetricFamily("ringpoll_writer_duplicates", "Rows that were there already.", value=writer.duplicates)
    yield CounterMetricFamily("ringpoll_writer_rejects", "Records the database refused.", value=writer.rejects)
    yield CounterMetricFamily(
        "ringpoll_writer_spans_dropped", "Spans of its traces that are lost.", value=writer.spans_dropped
    )
    yield _gauge("ringpoll_writer_streams", "Streams of results that are open.", writer.streams)
    yield _gauge("ringpoll_writer_pending_rows", "Received and not committed.", writer.pending_rows)
    yield _gauge("ringpoll_writer_lag_seconds", "Age of the oldest result not committed.", writer.lag_ms / 1000)
    yield _gauge(
        "ringpoll_rollup_lag_seconds",
        "How long ago it was up to when polls are rolled up.",
        writer.rollup_lag_ms / 1000,
    )
    yield _gauge("ringpoll_writer_resident_memory_bytes", "Resident memory.", writer.rss_bytes)
