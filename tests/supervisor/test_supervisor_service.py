"""The supervisor as a real process with real children that are fake roles."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from cluster.embedded import _is_server, cluster_database
from cluster.runtime import ORPHAN_EXTRA_S, orphans_end_within_s, role_lock
from cluster.supervisor.lock import find_holder
from cluster.wal import format as wal_format
from tests.conftest import execute_once, run_apart
from tests.wal.streams import Source, directory, new_stream_id


def test_up_and_down(make_cluster):
    cluster = make_cluster().up().wait_until_up()
    holder = find_holder(cluster.data_dir / "run")
    assert holder.pid == cluster.process.pid
    assert holder.http == f"http://{cluster.environ['CLUSTER_HTTP']}"
    assert sorted(cluster.running()) == ["coordinator", "worker-1", "worker-2", "writer"]
    hello = cluster.wait(lambda: cluster.heard("supervisor_hello"), "a hello")[-1]
    assert sorted(each[0] for each in hello["alive"]) == ["worker-1", "worker-2", "writer"]
    assert cluster.end() == 0
    stopped = cluster.stopped()
    assert sorted(stopped[:2]) == ["worker-1", "worker-2"]
    assert stopped[2:] == ["writer", "coordinator"]
    cluster.assert_nothing_left()
    assert cluster.heard("supervisor_stopping")


def test_what_runs_and_what_to_type_next_is_said(make_cluster):
    cluster = make_cluster().up().wait_until_up()
    said = cluster.out_file.read_text()
    assert f"http://{cluster.environ['CLUSTER_HTTP']}/status" in said
    assert str(cluster.data_dir) in said
    assert "cluster add https://example.org --interval 30s\n" in said
    assert "postgres:" not in said
    assert cluster.end() == 0


def test_lines_of_children_carry_their_role_and_pid(make_cluster):
    cluster = make_cluster().up().wait_until_up()
    hello = cluster.wait(lambda: cluster.messages("hello from worker-1"), "its line")[0]
    assert hello["role"] == "worker-1"
    assert hello["pid"] == cluster.running()["worker-1"]
    assert hello["answer"] == 42
    assert cluster.end(signal.SIGINT) == 0


def test_a_killed_worker_is_back_within_a_second(make_cluster):
    cluster = make_cluster().up().wait_until_up()
    pid = cluster.running()["worker-1"]
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    cluster.wait(lambda: cluster.running().get("worker-1", pid) != pid, "the next worker-1")
    assert time.monotonic() - killed_at < 5  # a start of Python on a busy machine; the decision itself takes none
    exited = cluster.wait(lambda: cluster.heard("process_exited"), "word of its end")[0]
    assert (exited["name"], exited["exit_status"], exited["restarting"]) == ("worker-1", -9, True)
    assert len(cluster.running()) == 4
    assert cluster.end() == 0
    cluster.assert_nothing_left()


def test_a_killed_coordinator_is_started_again_and_told_who_is_alive(make_cluster):
    cluster = make_cluster().up().wait_until_up()
    os.kill(cluster.running()["coordinator"], signal.SIGKILL)
    cluster.wait(lambda: len(cluster.started("coordinator")) == 2, "the next coordinator")
    heard = len(cluster.heard("supervisor_hello"))
    hello = cluster.wait(lambda: cluster.heard("supervisor_hello")[heard:], "a hello to it")[0]
    assert len(hello["alive"]) == 3
    assert cluster.end() == 0
    cluster.assert_nothing_left()


def test_the_coordinator_may_kill_and_resize(make_cluster):
    wishes = [
        "garbage",
        {"type": "set_workers", "names": ["worker-1", "worker-2", "worker-3"]},
        {"type": "kill_process", "name": "worker-1"},
    ]
    cluster = make_cluster(FAKE_TELL=json.dumps(wishes)).up().wait_until_up()
    cluster.wait(lambda: "worker-3" in cluster.running(), "worker-3")
    cluster.wait(lambda: len(cluster.started("worker-1")) == 2, "the next worker-1")
    assert cluster.messages("killing worker-1: it hangs")
    assert cluster.messages("malformed message from the coordinator")
    assert cluster.end() == 0
    cluster.assert_nothing_left()


def test_the_second_signal_forces(make_cluster):
    cluster = make_cluster(FAKE_DEAF="worker").up().wait_until_up()
    cluster.process.send_signal(signal.SIGINT)
    cluster.wait(lambda: cluster.messages("stopping: SIGINT"), "the stop")
    assert find_holder(cluster.data_dir / "run").stopping
    assert cluster.end(signal.SIGINT) == 1
    assert "Error: stopped by force" in cluster.log_file.read_text()
    cluster.assert_nothing_left()


def test_a_full_disk_does_not_make_a_stop_less_graceful(make_cluster):
    """Nobody can read how it ended; that is no reason to kill anybody."""
    cluster = make_cluster(FAKE_LOCK_WRITES="1").up().wait_until_up()
    down = [sys.executable, "-m", "cluster", "down"]
    ran = subprocess.run(down, env=cluster.environ, capture_output=True, text=True, check=False)
    assert cluster.process.wait(30) == 0
    stopped = cluster.stopped()
    assert sorted(stopped[:2]) == ["worker-1", "worker-2"]
    assert stopped[2:] == ["writer", "coordinator"]
    assert len(cluster.messages("supervisor.lock: No space left on device")) == 1
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"(pid {cluster.process.pid}) was killed before all had stopped" in ran.stderr
    cluster.assert_nothing_left()


def test_a_full_disk_at_the_start_is_one_line(make_cluster):
    cluster = make_cluster(FAKE_LOCK_WRITES="0").up()
    assert cluster.process.wait(30) == 1
    last = cluster.log_file.read_text().splitlines()[-1]
    assert last.startswith(f"Error: cannot write {cluster.data_dir}/run/supervisor.lock: No space left on device; ")
    cluster.assert_nothing_left()


def test_a_worker_that_could_not_commit_makes_the_exit_status_one(make_cluster):
    cluster = make_cluster(FAKE_STATUS="1").up().wait_until_up()
    assert cluster.end() == 1
    assert "ended with status 1 while stopping" in cluster.log_file.read_text().splitlines()[-1]
    cluster.assert_nothing_left()


def leave_results(cluster, *, acked=0, worker="worker-9"):
    """What a worker had in its WAL when it was killed: (the stream, results in each of its batches)."""
    wal = directory(cluster.data_dir, worker, segment_bytes=1 << 20)
    log = wal.create(new_stream_id())
    entries = Source().take(3)
    log.append(entries)
    if acked:
        log.acknowledged(acked, time.time())
    wal.close()
    return log.stream_id, [entry.records for entry in entries]


def test_results_that_nobody_delivered_make_the_exit_status_one(make_cluster):
    """No role speaks of them: their worker was killed, and nobody had the time to adopt them."""
    cluster = make_cluster()
    _, records = leave_results(cluster)
    cluster.up().wait_until_up()
    down = [sys.executable, "-m", "cluster", "down"]
    ran = subprocess.run(down, env=cluster.environ, capture_output=True, text=True, check=False)
    assert cluster.process.wait(30) == 1
    wal = cluster.data_dir / "wal"
    said = f"{sum(records)} results wait in {wal}; the next `cluster up` or `cluster wal replay` delivers them"
    assert cluster.log_file.read_text().splitlines()[-1] == f"Error: {said}"
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"Error: the cluster on {cluster.data_dir} has stopped, but: {said}\n"
    cluster.assert_nothing_left()


def test_what_a_newer_version_left_makes_the_exit_status_one(make_cluster, monkeypatch):
    """Nobody here can count it; that does not mean that nothing waits."""
    cluster = make_cluster()
    with monkeypatch.context() as newer:
        newer.setattr(wal_format, "VERSION", wal_format.VERSION + 1)
        leave_results(cluster)
    said = (
        f"1 streams in {cluster.data_dir / 'wal'} were written by a newer version of this program, so what waits in "
        "them is not known; use that version to see and to deliver it"
    )
    assert cluster.up().wait_until_up().end() == 1
    assert cluster.log_file.read_text().splitlines()[-1] == f"Error: {said}"
    _, records = leave_results(cluster, worker="worker-8")
    assert cluster.up().wait_until_up().end() == 1
    last = cluster.log_file.read_text().splitlines()[-1]
    assert last.startswith(f"Error: {sum(records)} results wait in ")
    assert last.endswith(f"delivers them; {said}")


def test_what_is_committed_does_not_wait_even_if_its_worker_could_not_note_it(make_cluster, database_url):
    cluster = make_cluster()
    stream_id, records = leave_results(cluster)
    insert = "INSERT INTO ingest_stream (stream_id, worker, last_seq) VALUES ('{}', 'worker-9', {})"
    run_apart(lambda: execute_once(database_url, insert.format(stream_id, 2)))
    assert cluster.up().wait_until_up().end() == 1
    assert f"Error: {records[2]} results wait" in cluster.log_file.read_text()
    run_apart(lambda: execute_once(database_url, "UPDATE ingest_stream SET last_seq = 3"))
    assert cluster.up().wait_until_up().end() == 0
    cluster.assert_nothing_left()


def test_both_what_went_wrong_and_what_waits_are_said(make_cluster):
    cluster = make_cluster(FAKE_STATUS="1")
    leave_results(cluster)
    assert cluster.up().wait_until_up().end() == 1
    last = cluster.log_file.read_text().splitlines()[-1]
    assert re.fullmatch(r"Error: worker-\d ended with status 1 while stopping; \d+ results wait in .*", last)


def test_a_stop_at_the_start_says_what_waits_too(make_cluster):
    cluster = make_cluster()
    leave_results(cluster)
    with role_lock(cluster.data_dir / "run", "worker-1"):
        cluster.up()
        cluster.wait(lambda: cluster.messages("waiting for processes of an earlier run"), "the wait")
        assert cluster.end() == 1
    assert "results wait in" in cluster.log_file.read_text().splitlines()[-1]


@pytest.mark.parametrize("name", ["coordinator", "writer"])
def test_a_role_that_cannot_run_as_configured_ends_up_with_its_line(make_cluster, name):
    cluster = make_cluster(FAKE_BAD_CONFIGURATION=name).up()
    assert cluster.process.wait(30) == 1
    assert cluster.log_file.read_text().splitlines()[-1] == f"Error: {name} cannot be like that; do it otherwise"
    cluster.assert_nothing_left()


def test_a_traceback_is_passed_on(make_cluster):
    cluster = make_cluster(FAKE_CRASH="writer").up()
    assert cluster.process.wait(60) == 1
    assert cluster.log_file.read_text().splitlines()[-1] == "Error: RuntimeError: broken on purpose"
    assert cluster.messages("broken on purpose")[0]["role"] == "writer"
    cluster.assert_nothing_left()


def test_a_second_up_is_refused(make_cluster):
    cluster = make_cluster().up().wait_until_up()
    second = make_cluster()
    second.log_file = second.data_dir / "log2"
    second.up()
    assert second.process.wait(30) == 1
    (line,) = second.log_file.read_text().splitlines()
    assert line.startswith(f"Error: a cluster is already running on {cluster.data_dir} (pid {cluster.process.pid}")
    assert cluster.end() == 0


def test_a_port_in_use_is_refused(make_cluster):
    cluster = make_cluster()
    host, port = cluster.environ["CLUSTER_HTTP"].split(":")
    with socket.create_server((host, int(port))):
        cluster.up()
        assert cluster.process.wait(30) == 1
    line = cluster.log_file.read_text().splitlines()[-1]
    assert line.startswith(f"Error: cannot listen on http://{host}:{port}: Address already in use")
    cluster.assert_nothing_left()


def test_an_unreachable_database_is_refused_and_with_known_projects_waited_for(make_cluster):
    cluster = make_cluster(DATABASE_URL="postgresql://someone:secret@127.0.0.1:1/nowhere").up()
    assert cluster.process.wait(30) == 1
    line = cluster.log_file.read_text().splitlines()[-1]
    assert line.startswith("Error: cannot reach the database")
    assert "secret" not in cluster.log_file.read_text()
    (cluster.data_dir / "coordinator").mkdir()
    (cluster.data_dir / "coordinator" / "projects.journal").touch()
    cluster.up().wait_until_up()
    assert cluster.messages("starting with the projects known from the last run")
    assert cluster.end() == 0
    assert "secret" not in cluster.log_file.read_text() + cluster.out_file.read_text()


def test_a_path_too_long_for_a_socket_is_refused(make_cluster):
    cluster = make_cluster()
    deep = cluster.data_dir / ("x" * 120)
    cluster.environ["CLUSTER_DATA_DIR"] = str(deep)
    cluster.up()
    assert cluster.process.wait(30) == 1
    assert "choose a shorter --data-dir" in cluster.log_file.read_text().splitlines()[-1]


def test_orphans_of_a_killed_supervisor_end_and_the_next_one_waits_for_them(make_cluster):
    cluster = make_cluster(FAKE_SLOW="worker", FAKE_SLOW_S="6").up().wait_until_up()
    (cluster.data_dir / "run" / "results.sock").touch()
    cluster.process.kill()
    cluster.process.wait()
    cluster.environ["FAKE_SLOW"] = ""
    cluster.up()
    cluster.wait(lambda: cluster.messages("waiting for processes of an earlier run to end"), "the wait")
    cluster.wait(lambda: len(cluster.started("worker-1")) == 2, "the next worker-1")
    order = [f"{what} {name}" for what, name, _, _ in cluster.entries() if name == "worker-1"]
    assert order == ["start worker-1", "stop worker-1", "start worker-1"]
    assert not (cluster.data_dir / "run" / "results.sock").exists()
    assert cluster.end() == 0
    cluster.assert_nothing_left()


def test_an_embedded_database_outlives_a_killed_supervisor_as_long_as_a_role_uses_it(make_cluster):
    """A command meanwhile comes and goes as a user of the server; the next supervisor attaches before it waits."""
    cluster = make_cluster(FAKE_SLOW="writer", FAKE_SLOW_S="8")
    del cluster.environ["DATABASE_URL"]
    cluster.up().wait_until_up()
    server = cluster_database(cluster.data_dir)
    pid = (server.data / "postmaster.pid").read_text().splitlines()[0]
    cluster.process.kill()
    cluster.process.wait()
    audit = [sys.executable, "-m", "cluster", "audit"]
    ran = subprocess.run(audit, env=cluster.environ, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "writer" in cluster.running(), "the command was too late to show anything"
    assert _is_server(int(pid), server.data), "it stopped the server under the writer"
    cluster.environ["FAKE_SLOW"] = ""
    cluster.up()
    cluster.wait(lambda: cluster.messages("waiting for processes of an earlier run to end"), "the wait")
    cluster.wait(lambda: len(cluster.started("writer")) == 2, "the next writer")
    assert (server.data / "postmaster.pid").read_text().splitlines()[0] == pid
    assert cluster.end() == 0
    assert not (server.data / "postmaster.pid").exists()
    cluster.assert_nothing_left()


def test_how_long_orphans_are_waited_for_follows_from_the_grace_period(make_cluster):
    cluster = make_cluster(CLUSTER_GRACE="0s", FAKE_ORPHAN_EXTRA_S="0.5")
    with role_lock(cluster.data_dir / "run", "writer"):
        cluster.up()
        assert cluster.process.wait(30) == 1
    line = cluster.log_file.read_text().splitlines()[-1]
    assert line == f"Error: processes of an earlier run still use {cluster.data_dir}: writer; end them first"
    assert orphans_end_within_s(30) == 2 * 30 + ORPHAN_EXTRA_S


def test_systemd_is_told(make_cluster, data_dir):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service_manager:
        service_manager.bind(str(data_dir / "notify"))
        service_manager.settimeout(30)
        cluster = make_cluster(NOTIFY_SOCKET=str(data_dir / "notify")).up()
        assert service_manager.recv(1_000).startswith(b"READY=1\nSTATUS=polling 3 projects")
        assert cluster.end() == 0
        assert service_manager.recv(1_000) == b"STOPPING=1"


def test_the_embedded_database_runs_is_revived_and_stopped(make_cluster):
    cluster = make_cluster()
    del cluster.environ["DATABASE_URL"]
    cluster.up().wait_until_up()
    pid_file = cluster.data_dir / "postgres" / "data" / "postmaster.pid"
    pid = int(pid_file.read_text().splitlines()[0])
    assert find_holder(cluster.data_dir / "run").embedded
    os.kill(pid, signal.SIGQUIT)
    cluster.wait(lambda: cluster.messages("embedded PostgreSQL has ended"), "the notice")
    cluster.wait(
        lambda: pid_file.exists() and int((pid_file.read_text().splitlines() or [pid])[0]) != pid, "the next server"
    )
    assert cluster.end() == 0
    assert not pid_file.exists()
    cluster.assert_nothing_left()
