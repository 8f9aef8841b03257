"""Reads Markdown as far as the tests of documents need it; and what the coordinator exposes as metrics."""

import re

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from cluster.messages.control import WorkerStats, WriterHeartbeat
from cluster.ticks import PARTITIONS
from coordinator.events import Totals, View, WorkerView
from coordinator.metrics import ClusterCollector
from coordinator.project_metrics import ProjectMetrics, ProjectSample
from coordinator.status import ShellCounts
from coordinator.web.request_metrics import RequestMetrics


def blocks(document, language):
    """The contents of the fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL)


def code_spans(document):
    """What stands between single backticks outside of code blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", document, flags=re.MULTILINE | re.DOTALL)))


def row_of(document, *cells):
    """The cells of the one table row that has all of these somewhere, the first of them in its first cell."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in document.splitlines()
        if line.startswith("| ") and all(cell in line for cell in cells)
    ]
    rows = [row for row in rows if cells[0] in row[0]]
    assert len(rows) == 1, f"{len(rows)} rows have {cells}"
    return rows[0]


def view(**changes):
    fields = {
        "phase": "running",
        "epoch": 1,
        "projects": 1,
        "projects_loaded": 1,
        "projects_total": 1,
        "partitions_assigned": PARTITIONS,
        "max_concurrent_http": 500,
        "workers_wanted": 1,
        "workers": [WorkerView("worker-1", 1, "i", "running", 1, PARTITIONS, 1.0, 500, WorkerStats())],
        "totals": Totals(missed={"down": 1}, local_causes={"stall": 1}),
        "writer": WriterHeartbeat("w", 1, "running"),
        "writer_state": "running",
        "database_up": True,
        "horizon_ms": 1_000,
    }
    return View(**(fields | changes))


def collectors():
    """Everything that /metrics can have, single projects included."""
    requests = RequestMetrics()
    requests.count("GET", "/status", "2xx", 0.001)
    projects = ProjectMetrics("postgresql://nowhere", 1)
    projects.take([ProjectSample(7, "shop", True, 1.0, 2.0, 0.1, 3.0)], 0.01)
    return ClusterCollector(view, lambda: ShellCounts(refused={"admin_refused": 1})), requests, projects


def metric_names():
    """As Prometheus shows them: counters with _total."""
    found = [metric for collector in collectors() for metric in collector.collect()]
    return {metric.name + ("_total" if metric.type == "counter" else "") for metric in found}


def scraped():
    """The text that /metrics answers."""
    registry = CollectorRegistry()
    for collector in collectors():
        registry.register(collector)
    return generate_latest(registry).decode()
