"""Commands that speak to a running cluster, against a stand-in for it."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from cluster import admin_client
from cluster.cli import run
from cluster.runtime import role_lock
from cluster.supervisor.lock import LockHolder, supervisor_lock
from tests.cli.conftest import FakeAdmin

STATUS = {
    "active_projects": 12_345,
    "total_requests": 1_000_000,
    "success_requests": 999_000,
    "failed_requests": 900,
    "unknown_requests": 100,
    "local_causes": {"stall": 1, "network": 99},
    "missed": 7,
    "active_http": 12,
    "max_concurrent_http": 500,
    "queue_depth": 3,
    "health": "warning",
    "uptime_s": 90_061.5,
    "epoch": 4,
    "workers": [
        {
            "name": "worker-1",
            "pid": 4711,
            "state": "running",
            "projects": 6_000,
            "slice": 250,
            "active_http": 7,
            "queue_depth": 3,
            "executed": 500_000,
            "lateness_ms": {"p50": 0.8, "p99": 4.2, "max": 17.0},
            "loop_lag_ms": 1.5,
            "wal_bytes": 5_000_000,
        }
    ],
    "writer": {
        "state": "running",
        "rows_written": 999_999,
        "rows_per_s": 2_000.0,
        "lag_ms": 85.0,
        "duplicates": 2,
        "rejects": 0,
    },
    "database": {"state": "up"},
}

NEED_A_CLUSTER = [
    ("status",),
    ("add", "http://a.example/"),
    ("add", "--id", "3"),
    ("remove", "1"),
    ("reload",),
    ("scale", "--workers", "3"),
    ("drain", "worker-1"),
    ("down",),
]


@pytest.mark.parametrize("arguments", NEED_A_CLUSTER)
def test_without_a_cluster_it_is_said_with_status_three(cluster, data_dir, arguments):
    ran = cluster(*arguments)
    assert ran.status == 3
    assert f"no cluster is running on {data_dir}" in ran.error
    assert ran.out == ""
    assert list(data_dir.iterdir()) == []


@pytest.fixture
def alone(data_dir):
    """A coordinator that no supervisor started: only its admin socket tells of it."""
    (data_dir / "run").mkdir(mode=0o700)
    fake = FakeAdmin(data_dir / "run")
    yield fake
    fake.close()


def test_roles_without_a_supervisor_are_found_by_their_admin_socket(cluster, alone):
    alone.replies.append({"type": "ok", "status": STATUS})
    assert json.loads(cluster("status", "--json").out) == STATUS
    alone.replies.append({"type": "ok", "id": 5})
    assert cluster("add", "http://a.example/").out == "5\n"
    alone.replies.append({"type": "error", "code": "no_supervisor", "message": "nobody can start them"})
    ran = cluster("scale", "--workers", "3")
    assert (ran.status, ran.error) == (1, "nobody can start them")
    ran = cluster("down")
    assert ran.status == 1
    assert "run without a supervisor: end each of them" in ran.error


def test_a_socket_that_a_killed_coordinator_left_is_no_cluster(cluster, data_dir):
    (data_dir / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(data_dir / "run" / "admin.sock"))
    assert cluster("status").status == 3
    assert cluster("status", "--data-dir", data_dir / ("x" * 200)).status == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look anywhere")
def test_a_socket_that_is_not_ours_to_use_is_one_line(cluster, alone, data_dir):
    (data_dir / "run" / "admin.sock").chmod(0)
    ran = cluster("status")
    assert ran.status == 1
    assert "run this as the user that started the cluster" in ran.error


OK = {"type": "ok"}
EXCHANGES = [  # command line, request, reply, what is printed
    (("reload",), {"type": "reload"}, OK | {"added": 1, "changed": 0, "removed": 2},
     "reloaded: 1 added, 0 changed, 2 removed"),
    (("scale", "--workers", "3"), {"type": "scale", "workers": 3}, OK, "scaled"),
    (("scale", "--max-concurrent-http", "50"), {"type": "scale", "max_concurrent_http": 50}, OK, "scaled"),
    (("drain", "worker-2"), {"type": "drain", "worker": "worker-2"}, OK, "draining worker-2"),
    (("remove", "1", "2"), {"type": "remove", "ids": [1, 2], "delete": False}, OK, "disabled 2"),
    (("remove", "1", "--delete", "--purge"), {"type": "remove", "ids": [1], "delete": True, "purge": True}, OK,
     "deleted 1"),
    (("add", "--id", "9"), {"type": "add", "id": 9}, OK | {"id": 9}, "9"),
]  # fmt: skip


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: " ".join(exchange[0]))
def test_what_is_asked_and_printed(cluster, admin, exchange):
    arguments, request, reply, out = exchange
    admin.replies.append(reply)
    ran = cluster(*arguments)
    assert (ran.status, ran.out, ran.err) == (0, out + "\n", "")
    assert admin.requests == [request]


def test_add_sends_the_whole_project_and_prints_the_id_only(cluster, admin):
    admin.replies.append({"type": "ok", "id": 42})
    ran = cluster(
        "add", "https://a.example/x?y=%2F", "--name", "my api", "--interval", "30s", "--method", "post",
        "--header", "X-A: b: c", "--header", "Accept: */*", "--body", '{"a": 1}', "--expected-status", "2xx, 301",
        "--timeout", "1500ms", "--no-follow-redirects", "--down-after", "3", "--up-after", "2", "--disabled",
        "--assert", "body contains ok", "--assert", 'json $.a == "b"',
        "--no-verify-tls", "--client-cert-file", "/c.pem", "--client-key-file", "/k.pem", "--server-name", "b.example",
        "--ip-version", "6", "--connection-reuse", "never", "--body-limit-bytes", "1000", "--connect-timeout", "3s",
        "--user-agent", "Probe/1", "--basic-auth", "u:p", "--proxy", "http://proxy:3128",
        "--retries", "2", "--retry-delay", "3s",
    )  # fmt: skip
    assert (ran.status, ran.out, ran.err) == (0, "42\n", "")
    assert admin.requests == [
        {
            "type": "add",
            "project": {
                "url": "https://a.example/x?y=%2F",
                "name": "my api",
                "method": "POST",
                "headers": {"X-A": "b: c", "Accept": "*/*"},
                "body": '{"a": 1}',
                "expected_status": "2xx,301",
                "interval": 30,
                "unit": "seconds",
                "timeout_ms": 1_500,
                "follow_redirects": False,
                "enabled": False,
                "down_after": 3,
                "up_after": 2,
                "assertions": [
                    {"type": "body_contains", "text": "ok"},
                    {"type": "json_path", "path": "$.a", "op": "==", "value": "b"},
                ],
                "verify_tls": False,
                "ca_file": None,
                "client_cert_file": "/c.pem",
                "client_key_file": "/k.pem",
                "server_name": "b.example",
                "ip_version": 6,
                "connection_reuse": "never",
                "body_limit_bytes": 1_000,
                "connect_timeout_ms": 3_000,
                "user_agent": "Probe/1",
                "basic_auth": "u:p",
                "bearer_token": None,
                "proxy": "http://proxy:3128",
                "retries": 2,
                "retry_delay_ms": 3_000,
            },
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("add",), "Give either a URL or --id"),
        (("add", "http://a", "--id", "3"), "Give either a URL or --id"),
        (("add", "--id", "3", "--interval", "5s"), "leave out the other options"),
        (("add", "--id", "x"), "'x' is not a valid integer"),
        (("add", "nonsense"), "url: must begin with http:// or https://"),
        (("add", "ftp://a/"), "url: must begin with http:// or https://"),
        (("add", "http://a", "--interval", "soon"), "interval: must be a number with s, m, h or d"),
        (("add", "http://a", "--interval", "0s"), "interval: must be from 1 second to 365 days"),
        (("add", "http://a", "--expected-status", "600"), "expected_status: must be like 200"),
        (("add", "http://a", "--method", "GE T"), "method: must be a token"),
        (("add", "http://a", "--header", "nocolon"), "header: must be written 'Name: value'"),
        (("add", "http://a", "--header", "A: b\nC: d"), "headers: the value of 'A'"),
        (("add", "http://a", "--header", "A: b", "--header", "A: c"), "headers: 'A' is given twice"),
        (("add", "http://a", "--assert", "body has x"), "assert: in 'body has x': write 'body contains TEXT'"),
        (("add", "http://a", "--assert", "body matches (?=x)"), "is not a regular expression of RE2"),
        (("add", "http://a", "--timeout", "never"), "timeout: must be a number with ms, s or m"),
        (("add", "http://a", "--timeout", "11m"), "timeout_ms: must be from 1 to 600000"),
        (("add", "http://a", "--connect-timeout", "x"), "connect_timeout: must be a number with ms, s or m"),
        (("add", "https://a", "--ca-file", "ca.pem"), "ca_file: must be the absolute path"),
        (("add", "http://a", "--ip-version", "5"), "'5' is not one of '4', '6'"),
        (("add", "http://a", "--connection-reuse", "once"), "connection_reuse: must be auto or never"),
        (("add", "http://a", "--body-limit-bytes", "0"), "body_limit_bytes: must be from 1"),
        (("add", "http://a", "--basic-auth", "u:p", "--bearer-token", "t"), "bearer_token: there is basic_auth, too"),
        (("add", "http://a", "--bearer-token", "t", "--header", "authorization: x"), "there is a header Authorization"),
        (("add", "http://a", "--frob"), "No such option"),
        (("remove",), "Missing argument"),
        (("remove", "x"), "not a valid integer"),
        (("remove", "1", "--purge"), "--purge needs --delete"),
        (("scale",), "Give --workers or --max-concurrent-http"),
        (("scale", "--workers", "0"), "0 is not in the range"),
        (("scale", "--max-concurrent-http", "x"), "not a valid integer"),
        (("frobnicate",), "No such command"),
        (("status", "--data-dir", ""), "--data-dir must be a directory"),
        (("down", "--timeout", "later"), "--timeout must be a duration"),
        (("status", "--config", "/no/such/file"), "cannot read the configuration file /no/such/file"),
    ],
)
def test_bad_input_is_one_line_and_status_two_and_nothing_is_asked(cluster, admin, arguments, part):
    ran = cluster(*arguments)
    assert ran.status == 2
    assert part in ran.error
    assert ran.out == ""
    assert admin.requests == []


@pytest.mark.parametrize(
    ("reply", "status", "line"),
    [
        ({"type": "error", "code": "unknown_project", "message": "there is no project 5"}, 1, "there is no project 5"),
        ({"type": "error", "code": "invalid_request", "message": "url: wrong"}, 2, "url: wrong"),
        ({"type": "error"}, 1, "the cluster refused"),
        ({"type": "odd"}, 1, "the cluster's answer is not understood; is it of another version?"),
        (b"\xc1", 1, "the cluster's answer is not JSON; is it of another version?"),
        ([1], 1, "the cluster's answer is not understood; is it of another version?"),
    ],
)
def test_an_error_reply_is_one_line(cluster, admin, reply, status, line):
    admin.replies.append(reply)
    ran = cluster("remove", "5")
    assert (ran.status, ran.error, ran.out) == (status, line, "")


def test_no_answer_is_one_line(cluster, admin, monkeypatch):
    monkeypatch.setattr(admin_client, "LOOK_EVERY_MS", 20)
    monkeypatch.setattr(admin_client.request, "__defaults__", (0.2,))
    admin.replies.append(None)
    ran = cluster("drain", "worker-1")
    assert ran.status == 1
    assert "did not answer within 0.2 s" in ran.error


def test_a_cluster_that_ends_meanwhile_is_noticed(cluster, data_dir, monkeypatch):
    monkeypatch.setattr(admin_client, "LOOK_EVERY_MS", 20)
    looked = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(supervisor_lock(data_dir / "run"))
        find = admin_client.find_holder

        def find_and_end(run_dir):
            looked.append(run_dir)
            if len(looked) == 2:
                stack.close()
            return find(run_dir)

        monkeypatch.setattr(admin_client, "find_holder", find_and_end)
        assert cluster("reload").status == 3


def test_status_as_a_table(cluster, admin):
    admin.replies.append({"type": "ok", "status": STATUS})
    ran = cluster("status")
    assert ran.status == 0
    for part in (
        "warning", "12,345", "1,000,000", "999,000", "900", "12 of 500", "1 d 01:01:01", "worker-1", "4711", "7/250",
        "4.8 MiB", "17.0", "999,999 rows, 2,000/s, lag 85.0 ms", "2 duplicates", "database up",
        "100 (network 99, stall 1)",
    ):  # fmt: skip
        assert part in ran.out
    assert "rejects" not in ran.out


def test_status_of_a_cluster_that_has_nothing_yet(cluster, admin):
    admin.replies.append({"type": "ok", "status": {}})
    ran = cluster("status")
    assert ran.status == 0
    assert "none" in ran.out


def test_status_as_json_is_the_document(cluster, admin):
    admin.replies.append({"type": "ok", "status": STATUS})
    assert json.loads(cluster("status", "--json").out) == STATUS


def test_watching_asks_again_until_it_is_interrupted(cluster, admin, monkeypatch):
    def interrupt(_seconds):
        if len(admin.requests) >= 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    admin.replies += [{"type": "ok", "status": STATUS}] * 3
    assert cluster("status", "--watch").status == 130
    assert len(admin.requests) == 3
    admin.replies += [{"type": "ok", "status": STATUS}] * 3
    ran = cluster("status", "--watch", "--json")
    assert json.loads(ran.out.splitlines()[0]) == STATUS


HOLD = """
import os, signal, sys, time
from pathlib import Path
from cluster.errors import ClusterError
from cluster.supervisor.lock import LockHolder, supervisor_lock
deaf = sys.argv[2] == "deaf"
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with supervisor_lock(Path(sys.argv[1])) as lock:
    lock.write(LockHolder(pid=os.getpid(), stopping=sys.argv[2] == "stopping"))
    print("held", flush=True)
    if sys.argv[2] == "stopping":
        sys.stdin.read()
        sys.exit(len(stopped))
    while deaf or not stopped:
        time.sleep(0.01)
    if sys.argv[2] == "troubled":
        raise ClusterError("17 results wait")
    if sys.argv[2] == "emptied":
        os.truncate(sys.argv[1] + "/supervisor.lock", 0)
    if sys.argv[2] in ("killed", "emptied"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def holder(data_dir):
    processes = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(data_dir / "run"), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in processes:
        with process:
            process.kill()


def test_down_ends_the_holder_of_the_lock_and_waits(cluster, holder):
    process = holder("obedient")
    ran = cluster("down")
    assert (ran.status, ran.out) == (0, "stopped\n")
    assert process.wait(10) == 0


def test_down_gives_up_when_it_does_not_end(cluster, holder):
    holder("deaf")
    ran = cluster("down", "--timeout", "1")
    assert ran.status == 1
    assert "has not stopped within 1 s" in ran.error


def test_down_says_how_it_ended(cluster, holder, data_dir):
    holder("troubled")
    ran = cluster("down")
    assert (ran.status, ran.out) == (1, "")
    assert ran.error == f"the cluster on {data_dir} has stopped, but: 17 results wait"
    assert cluster("down").status == 3


@pytest.mark.parametrize("how", ["killed", "emptied"])
def test_down_says_when_nobody_knows_how_it_ended(cluster, holder, how):
    process = holder(how)
    ran = cluster("down")
    assert (ran.status, ran.out) == (1, "")
    assert f"(pid {process.pid}) was killed before all had stopped" in ran.error


def test_down_says_what_it_waits_for(cluster, holder, data_dir, monkeypatch):
    monkeypatch.setattr(run, "DOWN_SAY_S", 0.2)
    holder("deaf")
    with role_lock(data_dir / "run", "writer"), role_lock(data_dir / "run", "worker-1"):
        ran = cluster("down", "--timeout", "1")
    assert (ran.status, ran.out) == (1, "")
    *waiting, last = ran.err.splitlines()
    assert last.startswith("Error: ")
    assert 2 <= len(waiting) <= 4
    assert all(re.fullmatch(r"stopping for \d+ s: worker-1, writer still run", line) for line in waiting), waiting


def test_down_says_that_it_waits_for_the_database_when_no_role_is_left(cluster, data_dir, monkeypatch):
    monkeypatch.setattr(run, "DOWN_SAY_S", 0.2)
    with supervisor_lock(data_dir / "run") as lock:
        lock.write(LockHolder(pid=os.getpid(), embedded=True, stopping=True))
        ran = cluster("down", "--timeout", "1")
    said = f"stopping for 0 s: the embedded PostgreSQL in {data_dir / 'postgres'} is being stopped"
    assert ran.err.splitlines()[0] == said


def test_down_without_time_asks_and_returns(cluster, holder):
    process = holder("obedient")
    ran = cluster("down", "--timeout", "0")
    assert ran.status == 1
    assert f"(pid {process.pid}) was asked to stop and is stopping" in ran.error
    assert process.wait(10) == 0
    assert cluster("down", "--timeout", "0").status == 3


def test_down_without_time_waits_for_who_to_ask(cluster, data_dir, monkeypatch):
    monkeypatch.setattr(run, "ASKING_S", 0.1)
    with supervisor_lock(data_dir / "run"):  # nothing is written in it yet
        ran = cluster("down", "--timeout", "0")
    assert ran.status == 1
    assert "does not say who it is; try again" in ran.error


def test_down_does_not_force_a_cluster_that_is_stopping_already(cluster, holder):
    process = holder("stopping")
    ran = cluster("down", "--timeout", "1")
    assert ran.status == 1
    process.stdin.close()
    assert process.wait(10) == 0  # it had no signal


def test_a_stale_lock_file_is_no_cluster(cluster, data_dir):
    (data_dir / "run").mkdir()
    (data_dir / "run" / "supervisor.lock").write_text(json.dumps({"pid": os.getpid()}))
    assert cluster("down").status == 3
