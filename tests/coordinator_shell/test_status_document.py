"""The status document, readiness and metrics, out of hand-made views."""

import msgspec
import orjson
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.histogram import BUCKETS
from cluster.messages.control import WorkerStats, WriterHeartbeat
from cluster.ticks import PARTITIONS
from coordinator.events import Totals, View, WorkerView
from coordinator.status import UNCOMMITTED_MS, ClusterCollector, ShellCounts, document, health, not_ready


def worker(name="worker-1", state="running", **stats):
    return WorkerView(name, 100, "i", state, 10, 2048, 1.5, 250, WorkerStats(**stats))


def view(**changes):
    good = View(
        phase="running",
        epoch=5,
        projects=20,
        projects_loaded=20,
        projects_total=20,
        partitions_assigned=PARTITIONS,
        max_concurrent_http=500,
        workers_wanted=2,
        workers=[
            worker(
                active_http=10,
                queue_depth=3,
                executed=100,
                lateness_p99_ms=4.5,
                local_causes={"stall": 1, "network": 2},
            ),
            worker("worker-2", active_http=20, queue_depth=4, wal_bytes=99),
        ],
        totals=Totals(
            executed=300,
            success=200,
            failure=90,
            unknown=10,
            missed={"overload": 3, "down": 4},
            local_causes={"stall": 1, "resolver": 7, "network": 2},
        ),
        writer=WriterHeartbeat(
            "w", 55, "running", rows_written=290, rows_per_s=12.34, lag_ms=5.0, duplicates=1, rollup_lag_ms=61_234.5
        ),
        writer_state="running",
        database_up=True,
        horizon_ms=1_000_000,
    )
    return msgspec.structs.replace(good, **changes)


@pytest.mark.parametrize(
    ("active", "queue", "expected"),
    [
        (0, 0, "healthy"),
        (249, 99, "healthy"),
        (250, 0, "warning"),
        (450, 0, "warning"),
        (451, 0, "critical"),
        (0, 100, "warning"),
        (0, 500, "warning"),
        (0, 501, "critical"),
        (250, 501, "critical"),
        (451, 100, "critical"),
    ],
)
def test_health_has_the_originals_thresholds(active, queue, expected):
    assert health(active, 500, queue) == expected


def test_the_document_has_what_is_promised():
    counts = ShellCounts(
        uptime_s=12.34, refused={"control_malformed": 2}, loop_lag_ms=12.3456, loop_lag_counts=[3, 0, 1]
    )
    made = document(view(), counts)
    expected = {
        "active_projects": 20,
        "total_requests": 300,
        "success_requests": 200,
        "failed_requests": 90,
        "unknown_requests": 10,
        "local_causes": {"network": 2, "resolver": 7, "stall": 1},
        "missed": 7,
        "active_http": 30,
        "max_concurrent_http": 500,
        "queue_depth": 7,
        "health": "healthy",
        "uptime_s": 12.3,
        "epoch": 5,
        "database": {"state": "up"},
    }
    assert {name: made[name] for name in expected} == expected
    promised = {"name", "pid", "state", "projects", "slice", "active_http", "queue_depth", "executed", "lateness_ms"}
    assert promised | {"loop_lag_ms", "loop_lag_counts", "wal_bytes"} <= set(made["workers"][0])
    assert made["coordinator"] == {"loop_lag_ms": 12.346, "loop_lag_counts": [3, 0, 1]}
    assert [each["local_causes"] for each in made["workers"]] == [{"network": 2, "stall": 1}, {}]
    assert made["workers"][0]["lateness_ms"] == {"p50": 0.0, "p99": 4.5, "max": 0.0}
    writer = {"state": "running", "rows_written": 290, "rows_per_s": 12.3, "lag_ms": 5.0, "duplicates": 1, "rejects": 0}
    assert writer.items() <= made["writer"].items()
    assert made["writer"]["rollup_lag_ms"] == 61_234
    assert orjson.loads(orjson.dumps(made)) == made


def test_the_document_without_a_writer():
    made = document(view(writer=None, writer_state="restarting", database_up=False), ShellCounts())
    assert made["writer"]["state"] == "restarting"
    assert made["writer"]["rows_written"] == 0
    assert made["database"] == {"state": "down"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phase": "loading", "projects_loaded": 5, "projects_total": 20}, "5 of 20"),
        ({"phase": "gathering"}, "gathered"),
        ({"phase": "stopping"}, "stopped"),
        ({"database_up": False}, "database"),
        ({"writer_state": "restarting"}, "writer is not connected"),
        ({"writer_state": "waiting_for_database"}, "writer waits"),
        ({"workers": [worker(), worker("worker-2", "hung")]}, "1 of 2 workers"),
        ({"writer": WriterHeartbeat("w", 55, "running", lag_ms=12_345.0)}, "waited 12 s for a commit"),
        ({"workers": []}, "0 of 2 workers"),
        ({"partitions_assigned": 4000}, "4000 of 4096"),
    ],
)
def test_each_reason_for_not_being_ready(changes, reason):
    (only,) = not_ready(view(**changes))
    assert reason in only


def test_ready():
    assert not_ready(view()) == []
    slow = WriterHeartbeat("w", 55, "running", lag_ms=UNCOMMITTED_MS - 1)
    assert not_ready(view(writer=slow)) == []


def families(seen, counts=None):
    registry = CollectorRegistry()
    registry.register(ClusterCollector(lambda: seen, lambda: counts or ShellCounts()))
    return {each.name: each for each in text_string_to_metric_families(generate_latest(registry).decode())}


def test_metrics_can_be_read_by_prometheus():
    counts = [0] * BUCKETS
    counts[0], counts[12], counts[-1] = 5, 3, 2
    totals = Totals(
        executed=10,
        success=7,
        failure=2,
        unknown=1,
        missed={"down": 4},
        lateness_counts=counts,
        local_causes={"resolver": 1},
    )
    found = families(view(totals=totals), ShellCounts(refused={"control_malformed": 2}))
    assert all(name.startswith("ringpoll_") for name in found)
    polls = {sample.labels["status"]: sample.value for sample in found["ringpoll_polls"].samples}
    assert polls == {"success": 7, "failure": 2, "unknown": 1}
    (of_resolver,) = (each for each in found["ringpoll_local_causes"].samples if each.name.endswith("_total"))
    assert (of_resolver.labels, of_resolver.value) == ({"cause": "resolver"}, 1)
    samples = found["ringpoll_worker_local_causes"].samples
    of_workers = {(each.labels["worker"], each.labels["cause"]): each.value for each in samples}
    assert of_workers == {("worker-1", "network"): 2, ("worker-1", "stall"): 1}
    buckets = {sample.labels["le"]: sample.value for sample in found["ringpoll_poll_lateness_seconds"].samples}
    assert (buckets["0.0005"], buckets["0.1"], buckets["60.0"], buckets["+Inf"]) == (5, 8, 8, 10)
    slices = {sample.labels["worker"]: sample.value for sample in found["ringpoll_worker_slice"].samples}
    assert slices == {"worker-1": 250, "worker-2": 250}
    assert found["ringpoll_ready"].samples[0].value == 1
    assert found["ringpoll_accounted_to_timestamp_seconds"].samples[0].value == 1000
    assert all(each.documentation for each in found.values())


def test_metrics_of_a_cluster_that_has_just_begun():
    found = families(view(writer=None, workers=[], horizon_ms=None, totals=Totals(), phase="loading"))
    assert found["ringpoll_ready"].samples[0].value == 0
    assert "ringpoll_writer_rows" not in found
