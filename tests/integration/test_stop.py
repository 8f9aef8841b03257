"""How a cluster ends: requests in flight finish, everything is committed, nothing is left."""

import os
import signal
import subprocess
import sys
import time

from tests.integration.harness import check_books, clean_environ, wait_until

SLOW = 12
SLOW_MS = 2_000
TIMER_MS = 5  # the target's timers may be so early


def slow_polls(cluster, sql, target):
    """Polls in flight that take two seconds, and quick ones all the time."""
    quick = sql.insert_projects(target, 40, prefix="quick")
    wait_until(lambda: min(target.counts(quick).values()) >= 2, "polls of every quick project")
    return quick, slow_requests(cluster, sql, target, "slow")


def slow_requests(cluster, sql, target, prefix):
    slow = sql.insert_projects(target, SLOW, path=f"/delay/{SLOW_MS}", interval_s=3600, prefix=prefix)
    wait_until(lambda: sum(target.counts(slow).values()) == SLOW, "the slow requests to be in flight")
    cluster.note_processes()
    return slow


def check_finished(cluster, sql, target, quick, slow):
    assert not cluster.seen_alive(), "processes were left"
    assert {path.name for path in (cluster.data_dir / "run").iterdir()} == set(), "sockets or locks were left"
    found = dict(
        sql.fetch(
            "SELECT project_id, response_time_ms FROM poll_results WHERE project_id = ANY($1) AND status = 'success'",
            list(slow.values()),
        )
    )
    assert found.keys() == set(slow.values())
    assert min(found.values()) >= SLOW_MS - TIMER_MS
    check_books(cluster, sql, target, quick | slow)
    assert not cluster.complaints()


def test_ctrl_c_in_a_terminal_does_the_same(make_cluster, sql, target):
    cluster = make_cluster()
    quick, slow = slow_polls(cluster, sql, target)
    os.killpg(os.getpgid(cluster.process.pid), signal.SIGINT)
    assert cluster.wait_exit() == 0
    check_finished(cluster, sql, target, quick, slow)


def test_down_and_sigterm_do_the_same_and_a_second_run_accounts_for_the_pause(make_cluster, sql, target):
    cluster = make_cluster()
    quick, slow = slow_polls(cluster, sql, target)
    done = cluster.cli("down")
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
    assert cluster.wait_exit(5) == 0
    check_finished(cluster, sql, target, quick, slow)
    nothing = cluster.cli("down")
    assert nothing.returncode == 3
    assert nothing.stderr.count("\n") == 1

    paused_at = time.time()
    wait_until(lambda: time.time() - paused_at > 2.5, "ticks to pass while nothing runs")
    cluster.start().wait_ready()
    resumed_at = time.time()
    wait_until(lambda: all(target.since(tag, resumed_at) for tag in quick), "polls of the second run")
    again = slow_requests(cluster, sql, target, "again")
    asked_at = time.time()
    cluster.stop_cleanly()
    check_finished(cluster, sql, target, quick, slow | again)
    # Nothing begins after a stop was asked for; workers hear of it within moments.
    begun = [at for tag in quick for at in target.since(tag, asked_at + 1.0 + target.stall_s(asked_at))]
    assert not begun
    assert sql.missed()["down"] >= len(quick) * 2
    immediate = sql.value("SELECT count(*) FROM poll_results WHERE trigger = 'immediate'")
    assert immediate == len(quick | slow | again), "projects that are there at the start begin with their ticks"


def test_a_second_ctrl_c_forces(make_cluster, sql, target):
    cluster = make_cluster()
    hanging = sql.insert_projects(target, 5, path="/hang", interval_s=3600, prefix="hang")
    wait_until(lambda: sum(target.counts(hanging).values()) == 5, "requests that don't end")
    cluster.note_processes()
    os.killpg(os.getpgid(cluster.process.pid), signal.SIGINT)
    wait_until(lambda: any("stopping" in line["msg"] for line in cluster.log_lines()), "the stop to begin", 10)
    assert cluster.process.poll() is None
    forced_at = time.time()
    os.killpg(os.getpgid(cluster.process.pid), signal.SIGINT)
    assert cluster.wait_exit(10) == 1
    assert time.time() - forced_at <= 5 + target.stall_s(forced_at)
    assert not cluster.seen_alive()
    assert {path.name for path in (cluster.data_dir / "run").iterdir()} == set()
    assert "Traceback" not in cluster.log_file.read_text()


def test_requests_that_do_not_end_are_broken_off_after_the_grace_period(make_cluster, sql, target):
    cluster = make_cluster(options=["--grace", "1s"])
    hanging = sql.insert_projects(target, 5, path="/hang", interval_s=3600, prefix="hang")
    wait_until(lambda: sum(target.counts(hanging).values()) == 5, "requests that don't end")
    asked_at = time.time()
    cluster.stop_cleanly()
    assert 1.0 <= time.time() - asked_at <= 15.0
    cluster.check_audit()


def test_a_stop_during_the_start_leaves_nothing(make_cluster):
    cluster = make_cluster(ready=False)
    wait_until((cluster.data_dir / "run" / "supervisor.lock").exists, "the lock", 20)
    wait_until((cluster.data_dir / "run" / "control.sock").exists, "the coordinator's socket", 20)
    cluster.note_processes()
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.wait_exit(30) == 0, cluster.log_tail()
    assert not cluster.seen_alive()
    assert {path.name for path in (cluster.data_dir / "run").iterdir()} == set()


def test_roles_end_when_their_supervisor_is_killed(make_cluster, sql, target):
    cluster = make_cluster(workers=2)
    tags = sql.insert_projects(target, 20)
    wait_until(lambda: min(target.counts(tags).values()) >= 2, "polls of every project")
    cluster.note_processes()
    cluster.process.kill()
    cluster.process.wait()
    wait_until(lambda: not cluster.seen_alive(), lambda: f"the orphans to end: {cluster.seen_alive()}", 20)
    # The directory can be used again at once.
    cluster.start().wait_ready()
    cluster.stop_cleanly()
    cluster.check_audit()


def test_status_says_with_its_own_exit_code_that_nothing_runs(data_dir):
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "status", "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        env=clean_environ(),
        timeout=30,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
