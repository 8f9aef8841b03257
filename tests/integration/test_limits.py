"""MAX_CONCURRENT_HTTP, counted at the target: never above, not while workers or the limit itself change."""

import time

from tests.integration.harness import check_books, settled, wait_until

LIMIT = 30
PROJECTS = 90
ANSWER_MS = 700  # 90 polls/s of 0.7 s want 63 slots: more than there are


def test_requests_in_flight_never_exceed_the_limit(make_cluster, sql, target):
    cluster = make_cluster(workers=3, options=["--max-concurrent-http", str(LIMIT)])
    began = time.time()
    tags = sql.insert_projects(target, PROJECTS, path=f"/delay/{ANSWER_MS}")
    wait_until(lambda: target.peak(began) >= LIMIT - 2, lambda: f"load, peak {target.peak(began)}")
    settled(cluster, 3)

    for workers in (5, 2):
        assert cluster.ask({"type": "scale", "workers": workers})["type"] == "ok"
        settled(cluster, workers)
        since = time.time()
        wait_until(lambda since=since: target.peak(since) >= LIMIT - 4, f"full use by {workers} workers")
    assert target.peak(began) <= LIMIT
    pids = {each["pid"] for each in cluster.status()["workers"]}

    # Down: requests in flight finish, none starts until the number is below the limit.
    done = cluster.cli("scale", "--max-concurrent-http", "12")
    assert done.returncode == 0, done.stderr
    lowered_at = time.time()
    wait_until(lambda: sum(each["slice"] for each in cluster.status()["workers"]) <= 12, "smaller slices", 10)
    wait_until(lambda: target.in_flight <= 12, "fewer requests in flight", 10)
    below_at = time.time()
    wait_until(lambda: len([1 for at, _ in list(target.levels) if at > below_at]) >= 60, "sixty more requests")
    assert target.peak(below_at) <= 12
    assert target.peak(lowered_at) <= LIMIT

    # Up: at once, in the same processes.
    raised_at = time.time()
    assert cluster.ask({"type": "scale", "max_concurrent_http": 50})["max_concurrent_http"] == 50
    wait_until(lambda: target.peak(raised_at) > LIMIT, lambda: f"more in flight, peak {target.peak(raised_at)}", 10)
    assert target.peak(raised_at) <= 50
    status = cluster.status()
    assert status["max_concurrent_http"] == 50
    assert {each["pid"] for each in status["workers"]} == pids

    cluster.stop_cleanly()
    assert target.peak(began) <= 50
    check_books(cluster, sql, target, tags)
    assert sql.missed().get("overload", 0) > 0, "an overloaded cluster says so"
