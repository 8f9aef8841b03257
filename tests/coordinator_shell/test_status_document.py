"""The status document and readiness, out of hand-made views."""

import msgspec
import orjson
import pytest

from cluster.messages.control import WorkerStats, WriterHeartbeat
from cluster.ticks import PARTITIONS
from coordinator.events import Totals, View, WorkerView
from coordinator.status import UNCOMMITTED_MS, ShellCounts, document, health, not_ready


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
    assert made["coordinator"] == {"loop_lag_ms": 12.346, "loop_lag_counts": [3, 0, 1], "spans_dropped": 0}
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
