"""Processes that die or hang under load: polling goes on, and everything found arrives.

A test allows the promise (1 s after a death, 5 s after a hang) plus what the machine was seen to stall meanwhile.
"""

import os
import signal
import time

from tests.integration.harness import (
    INTERVAL_S,
    JITTER_S,
    check_books,
    is_alive,
    owners,
    polled_again,
    wait_until,
    widest,
)

PROJECTS = 240
SETTLE_POLLS = 3
LATENESS_P99_MS = 250
COORDINATOR_START_S = 3.0


def under_load(make_cluster, sql, target, **options):
    """A cluster of three workers whose projects have all been polled a few times; and {tag: id}."""
    cluster = make_cluster(workers=3, **options)
    tags = sql.insert_projects(target, PROJECTS)
    polled_again(target, tags, time.time() - 60, SETTLE_POLLS)
    wait_until(lambda: len(owners(sql)) == PROJECTS, "a row of every project")
    return cluster, tags


def lateness_p99_ms(sql, projects, since, until):
    """Of the ticks in the window, from the rows."""
    return sql.value(
        """SELECT percentile_cont(0.99) WITHIN GROUP
             (ORDER BY extract(epoch FROM polled_at - scheduled_at)::float8 * 1000) FROM poll_results
           WHERE trigger = 'tick' AND project_id = ANY($1)
             AND scheduled_at BETWEEN to_timestamp($2) AND to_timestamp($3)""",
        projects,
        since,
        until,
    )


def restarted(cluster, name, pid):
    def other():
        worker = cluster.worker(name)
        return worker is not None and worker["pid"] not in {0, pid} and worker["state"] == "running"

    wait_until(other, f"{name} to run again")


def test_a_killed_worker_is_replaced_within_a_second(make_cluster, sql, target):
    cluster, tags = under_load(make_cluster, sql, target)
    by_id = {pid: tag for tag, pid in tags.items()}
    mine = {by_id[pid] for pid, worker in owners(sql).items() if worker == "worker-2"}
    assert 40 < len(mine) < 120

    killed_at = time.time()
    pid = cluster.signal("worker-2", signal.SIGKILL)
    polled_again(target, tags, killed_at)
    restarted(cluster, "worker-2", pid)
    until = time.time()

    noise = JITTER_S + target.stall_s(killed_at, until)
    others = set(tags) - mine
    late_ms = lateness_p99_ms(sql, [tags[tag] for tag in others], killed_at, until)
    assert late_ms <= LATENESS_P99_MS + 1000 * target.stall_s(killed_at, until)
    assert widest(target, mine, killed_at - 1, until)[0] <= INTERVAL_S + 1.0 + noise
    assert widest(target, others, killed_at - 1, until)[0] <= INTERVAL_S + noise
    cluster.wait_ready()
    cluster.stop_cleanly()

    cluster.check_audit()
    # A killed worker takes with it what it had not committed: the newest tick is polled again, older ones are missed.
    rows = sql.rows_by_project()
    lost = {tag: target.count(tag) - rows[pid] for tag, pid in tags.items()}
    assert {tag for tag, requests in lost.items() if requests} <= mine
    assert all(0 <= requests <= 2 for requests in lost.values()), lost


def test_a_worker_that_hangs_is_replaced_within_five_seconds(make_cluster, sql, target):
    cluster, tags = under_load(make_cluster, sql, target)
    hung_at = time.time()
    pid = cluster.signal("worker-1", signal.SIGSTOP)
    polled_again(target, tags, hung_at, 4)
    until = time.time()
    assert not is_alive(pid)
    noise = JITTER_S + target.stall_s(hung_at, until)
    assert widest(target, tags, hung_at - 1, until)[0] <= INTERVAL_S + 5.0 + noise
    restarted(cluster, "worker-1", pid)
    cluster.wait_ready()
    cluster.stop_cleanly()
    cluster.check_audit()


def test_polling_does_not_pause_without_a_coordinator(make_cluster, sql, target):
    cluster, tags = under_load(make_cluster, sql, target)
    before = cluster.status()
    workers = {each["name"]: each["pid"] for each in before["workers"]}

    killed_at = time.time()
    pid = cluster.signal("coordinator", signal.SIGKILL)
    polled_again(target, tags, killed_at, 4)
    cluster.wait_ready()
    until = time.time()
    assert widest(target, tags, killed_at - 1, until)[0] <= INTERVAL_S + JITTER_S + target.stall_s(killed_at, until)

    after = cluster.status()
    assert cluster.pid("coordinator") != pid
    assert {each["name"]: each["pid"] for each in after["workers"]} == workers, (
        "the workers were adopted, not restarted"
    )
    assert after["epoch"] > before["epoch"]
    assert after["total_requests"] >= before["total_requests"], "totals never go back"
    assert after["active_projects"] == PROJECTS

    reply = cluster.ask({"type": "add", "project": {"url": target.url("/ok/later"), "interval": "1s"}})
    assert reply["type"] == "ok"
    tags["later"] = reply["id"]
    wait_until(lambda: target.count("later") >= 2, "polls of a project added afterwards", 5)
    cluster.stop_cleanly()
    check_books(cluster, sql, target, tags)
    assert sql.missed().get("handover", 0) == 0


def test_polling_does_not_pause_without_a_writer_and_its_results_arrive(make_cluster, sql, target):
    cluster, tags = under_load(make_cluster, sql, target)
    workers = {each["name"]: each["pid"] for each in cluster.status()["workers"]}
    pid = cluster.pid("writer")
    cluster.note_processes()
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)
    polled_again(target, tags, killed_at, 4)
    until = time.time()
    assert widest(target, tags, killed_at - 1, until)[0] <= INTERVAL_S + JITTER_S + target.stall_s(killed_at, until)

    cluster.wait_ready()
    assert cluster.pid("writer") not in {None, pid}
    assert {each["name"]: each["pid"] for each in cluster.status()["workers"]} == workers
    cluster.stop_cleanly()
    check_books(cluster, sql, target, tags)


def test_what_a_dead_worker_had_handed_over_is_accounted_for(make_cluster, sql, target):
    cluster, _ = under_load(make_cluster, sql, target)
    had = cluster.worker("worker-1")["partitions"]
    writer = cluster.signal("writer", signal.SIGSTOP)  # so that nothing of what follows is committed
    try:
        wait_until(lambda: cluster.worker("worker-1")["unacked_results"] >= 50, "uncommitted results", 8)
        cluster.ask({"type": "scale", "workers": 4})
        wait_until(lambda: cluster.worker("worker-1")["partitions"] < had * 0.9, "worker-1 to hand some over", 8)
        pid = cluster.signal("worker-1", signal.SIGKILL)
    finally:
        os.kill(writer, signal.SIGKILL)  # and with it what is on its way
    restarted(cluster, "worker-1", pid)
    cluster.wait_ready()
    cluster.stop_cleanly()
    cluster.check_audit()


def test_a_worker_that_hangs_while_the_coordinator_dies_is_replaced(make_cluster, sql, target):
    cluster, tags = under_load(make_cluster, sql, target)
    hung_at = time.time()
    pid = cluster.signal("worker-1", signal.SIGSTOP)
    try:
        cluster.signal("coordinator", signal.SIGKILL)
        polled_again(target, tags, hung_at, 2, 15)
        until = time.time()
        assert not is_alive(pid)
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    noise = JITTER_S + target.stall_s(hung_at, until)
    assert widest(target, tags, hung_at - 1, until)[0] <= INTERVAL_S + 5.0 + COORDINATOR_START_S + noise
    cluster.wait_ready()
    cluster.stop_cleanly()
    cluster.check_audit()
