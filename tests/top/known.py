"""What a feed would know of a small cluster, and rows as the database gives them."""

from cluster.top.feed import Detail, TopFacts


def worker(number, **changes):
    return {
        "name": f"worker-{number}", "pid": 4_000 + number, "state": "running", "projects": 100 * number,
        "partitions": 512, "polls_per_s": 10.0 * number, "slice": 60, "active_http": number, "queue_depth": 0,
        "executed": 1_000 * number, "local_causes": {"stall": 3} if number == 2 else {}, "missed": 0,
        "lateness_ms": {"p50": 0.5, "p99": 30.0 - number, "max": 50.0}, "loop_lag_ms": 1.0, "unacked_results": 4,
        "wal_bytes": 5_000_000, "wal_state": "ok", "wal_damaged": 0, "wal_dropped": 0, "wal_sync_failures": 0,
        "rss_bytes": 60_000_000,
    } | changes  # fmt: skip


def status(workers=3, **changes):
    return {
        "health": "healthy", "active_projects": 1_234, "uptime_s": 90.0, "epoch": 4, "total_requests": 5_000,
        "success_requests": 4_900, "failed_requests": 90, "unknown_requests": 10, "missed": 7, "active_http": 6,
        "max_concurrent_http": 500, "queue_depth": 0, "lateness_ms": {"p50": 0.5, "p99": 4.0}, "invalid_projects": 0,
        "workers": [worker(number) for number in range(1, workers + 1)],
        "writer": {"state": "running", "rows_per_s": 55.0, "lag_ms": 80.0}, "database": {"state": "up"},
    } | changes  # fmt: skip


def project(number, **changes):
    return {
        "id": number, "name": f"shop {number}", "url": f"https://ann:hush@shop{number}.example/health", "state": None,
        "since": None, "status": "success", "status_code": 200, "response_time_ms": 10.0 * number, "late_ms": 0.4,
        "polled_at": "2026-01-31 12:00:00.250", "error_code": None, "error_message": None,
        "worker": f"worker-{1 + number % 3}",
    } | changes  # fmt: skip


DOWN = {
    "state": "down", "since": "2026-01-31 11:00:00.000", "status": "failure", "status_code": 503,
    "error_code": "status", "error_message": "503 where 200 was expected",
}  # fmt: skip


def change(number, state="down", **changes):
    return {
        "project_id": number, "changed_at": f"2026-01-31 12:00:{number:02}.000", "state": state, "polls": 2,
        "status_code": 503, "error_code": "status", "error_message": "503", "name": f"shop {number}",
        "url": "https://shop.example/",
    } | changes  # fmt: skip


def result(second, **changes):
    return {
        "scheduled_at": f"2026-01-31 12:00:{second:02}.000", "late_ms": 0.7, "status": "success", "status_code": 200,
        "response_time_ms": 12.0 + second, "dns_ms": 1.1, "connect_ms": 2.2, "tls_ms": 3.3, "first_byte_ms": 4.4,
        "transfer_ms": 0.5, "size_bytes": 2_048, "worker": "worker-1", "error_code": None, "error_message": None,
    } | changes  # fmt: skip


def detail(project_id, **changes):
    fields = {
        "project": {
            "id": project_id, "name": f"shop {project_id}", "url": "https://ann:hush@shop.example/health",
            "method": "GET", "expected_status": "200", "interval": 30, "unit": "seconds", "timeout_ms": 30_000,
            "enabled": True, "state": "down", "since": "2026-01-31 11:00:00.000",
        },
        "results": [result(second) for second in range(5, 0, -1)],
        "changes": [{"changed_at": "2026-01-31 11:00:00.000", "state": "down", "polls": 1}],
        "missed": [{"first_tick": "2026-01-31 10:00:00.000", "last_tick": "2026-01-31 10:01:00.000", "ticks": 3,
                    "reason": "down"}],
    }  # fmt: skip
    return Detail(project_id=project_id, **(fields | changes))


def snapshot(**changes):
    fields = {
        "status": status(),
        "status_at": 100.0,
        "polls_per_s": 54.3,
        "projects": [project(1), project(2, **DOWN), project(3), project(12)],
        "projects_seen": 4,
        "projects_enabled": 4,
        "changes": [change(2), change(1, "up")],
        "database_why": "",
    }
    return TopFacts(**(fields | changes))
