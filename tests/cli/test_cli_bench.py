"""``cluster bench``: a real, tiny run; what it refuses; and that nothing of it is left, however it ends.

No speed is asserted: it is the machine's, and whoever else uses it.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import msgspec
import psutil
import pytest

from cluster.bench.guard import has_ended
from cluster.bench.throughput import ThroughputFigures, bottlenecks
from cluster.cli import render
from tests.conftest import execute_once, run_apart

DEADLINE_S = 60.0
KILLED_S = 20.0
POLL_S = 0.02
TINY = ("--projects", "50", "--seconds", "3", "--warm-up", "0", "--workers", "2")


@pytest.fixture
def temporary(monkeypatch):
    """Where temporary files go meanwhile; nothing may be left in it."""
    path = Path(tempfile.mkdtemp(prefix="rp-"))
    path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    left = list(path.iterdir())
    shutil.rmtree(path)
    assert left == []


def children():
    return {(each.pid, each.create_time()) for each in psutil.Process().children(recursive=True)}


def test_a_run_reports_what_was_polled_and_leaves_nothing(cluster, temporary, data_dir, monkeypatch):
    before = children()
    with socket.create_server(("127.0.0.1", 0)) as taken:  # what the user's own cluster is configured with
        monkeypatch.setenv("CLUSTER_HTTP", f"127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("CLUSTER_WORKERS", "7")
        monkeypatch.setenv("MAX_CONCURRENT_HTTP", "1")
        ran = cluster("bench", *TINY, "--json")

    assert (ran.status, ran.err) == (0, ""), ran
    (run,) = json.loads(ran.out)["runs"]
    found = msgspec.convert(run, ThroughputFigures)
    assert found.audit_holds, found.audit
    assert (found.projects, found.interval_s, found.workers) == (50, 1, 2)
    assert found.duplicates == found.rejects == found.not_success == 0
    assert found.due == found.saved + sum(found.missed.values())
    assert 2 * 50 <= found.due <= found.seconds * 50 + 50
    assert found.target_requests >= found.saved - 50  # the window's edge
    assert all(found.cpu_us_per_poll[role] > 0 for role in ("workers", "coordinator", "postgresql"))
    assert set(found.rss_mib) == {"supervisor", "coordinator", "writer", "workers", "postgresql", "target"}
    assert found.lateness_ms["p50"] <= found.lateness_ms["p99"] <= found.lateness_ms["max"]
    assert 100 < found.row_bytes < 10_000
    assert found.incidents == []
    assert list(data_dir.iterdir()) == []
    assert children() <= before


def test_a_run_on_a_given_server_leaves_no_database(cluster, temporary, postgres_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    ran = cluster("bench", *TINY, "--interval", "2s", "--projects", "20,40", "--seconds", "2")

    assert ran.status == 0, ran
    assert "polls/s saved" in ran.out
    assert ran.out.count("clean") == 2
    assert databases_of_benchmarks(postgres_url) == []


def databases_of_benchmarks(url):
    async def read():
        conn = await asyncpg.connect(url)
        try:
            return await conn.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'ringpoll_bench_%'")
        finally:
            await conn.close()

    return run_apart(read)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--projects", "0"), "must be at most 20 numbers from 1 to 1000000"),
        (("--projects", "10,"), "'10,' must be at most 20 numbers"),
        (("--projects", "many"), "'many' must be"),
        (("--projects", "1000001"), "'1000001' must be"),
        (("--projects", ",".join(["1"] * 21)), "must be at most 20 numbers"),
        (("--interval", "0s"), "--interval must be a duration from 1s to 1d"),
        (("--interval", "soon"), "not 'soon'"),
        (("--workers", "0"), "'--workers'"),
        (("--seconds", "nan"), "'--seconds'"),
        (("--warm-up", "-1"), "'--warm-up'"),
        (("--max-concurrent-http", "100001"), "'--max-concurrent-http'"),
        (("--database-url", "mysql://x"), "--database-url must be a URL such as postgresql://"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(cluster, temporary, arguments, complaint):
    ran = cluster("bench", *arguments)
    assert ran.status == 2
    assert complaint in ran.error
    assert ran.out == ""


def test_a_server_that_does_not_answer_is_one_line(cluster, temporary):
    ran = cluster("bench", "--database-url", "postgresql://me:secret@127.0.0.1:1/x")
    assert ran.status == 1
    assert "cannot reach the database" in ran.error
    assert "secret" not in ran.err


def test_a_database_that_may_not_be_created_is_one_line(cluster, temporary, database_url):
    role = "ringpoll_bench_nobody"
    head, _, tail = database_url.partition("://")
    run_apart(lambda: execute_once(database_url, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'"))
    try:
        ran = cluster("bench", "--database-url", f"{head}://{role}:secret@{tail.rpartition('@')[2]}")
    finally:
        run_apart(lambda: execute_once(database_url, f"DROP ROLE {role}"))
    assert ran.status == 1
    assert "cannot create a database on " in ran.error
    assert "permission denied" in ran.error
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("number", "status", "moment"),
    [
        (signal.SIGINT, 130, "postgres/*.lock"),  # the server is being made
        (signal.SIGTERM, 143, "cluster.log"),  # `cluster up` has just been started
        (signal.SIGINT, 130, "wal/worker-*/*"),  # it polls
        (signal.SIGTERM, 143, "wal/worker-*/*"),
    ],
)
def test_a_signal_ends_it_and_leaves_nothing(temporary, number, status, moment):
    with a_long_run(temporary, moment) as process:
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)  # as a terminal does
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (status, b"", b"")
    _, alive = psutil.wait_procs(started, timeout=DEADLINE_S)
    assert alive == []
    assert [each for each in psutil.process_iter() if names(each, temporary)] == []


@pytest.mark.parametrize("moment", ["postgres/*.lock", "cluster.log", "wal/worker-*/*"])
def test_what_a_killed_run_has_started_ends_and_goes(temporary, moment):
    with a_long_run(temporary, moment) as process:
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, err = process.communicate(timeout=KILLED_S)  # the end of its output is the end of its guard
    assert err == b""
    assert list(temporary.iterdir()) == []
    until = time.monotonic() + KILLED_S
    while alive := [each for each in started if not has_ended(each)]:
        assert time.monotonic() < until, alive
        time.sleep(POLL_S)
    assert [each for each in psutil.process_iter() if names(each, temporary)] == []


def test_a_killed_run_on_a_given_server_leaves_no_database(temporary, postgres_url):
    with a_long_run(temporary, "wal/worker-*/*", DATABASE_URL=postgres_url) as process:
        assert len(databases_of_benchmarks(postgres_url)) == 1
        process.kill()
        _, err = process.communicate(timeout=KILLED_S)
    assert err == b""
    assert databases_of_benchmarks(postgres_url) == []


def test_what_the_guard_of_a_killed_run_cannot_do_is_said(temporary):
    directory = temporary / "ringpoll-bench-1"
    directory.mkdir()
    nowhere = ["postgresql://me:secret@127.0.0.1:1/x", "ringpoll_bench_1"]
    ran = subprocess.run(
        [sys.executable, "-m", "cluster.bench.guard", str(directory)],
        input=json.dumps(nowhere).encode() + b"\n",
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    (line,) = ran.stderr.decode().splitlines()
    assert ran.returncode == 1
    assert line.startswith("the benchmark was killed: could not drop database ringpoll_bench_1 on ")
    assert "; drop it: cannot reach the database" in line
    assert "secret" not in line
    assert not directory.exists()


@contextlib.contextmanager
def a_long_run(temporary, moment, **environ):
    """``cluster bench`` with five minutes to go, at the moment at which this file is there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")}
    kept.pop("DATABASE_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster", "bench", "--projects", "50", "--seconds", "300"],
        env=kept | {"TMPDIR": str(temporary)} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + DEADLINE_S
        while not list(temporary.glob(f"ringpoll-bench-*/{moment}")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, list(temporary.rglob("*"))
            time.sleep(POLL_S)
        yield process
    finally:
        process.kill()
        process.communicate()


def names(process, directory):
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return any(str(directory) in word for word in process.cmdline())
    return False


def test_who_else_may_have_been_the_limit_is_said():
    assert bottlenecks(50.0, 150.0, 2) == []
    (said,) = bottlenecks(95.0, 150.0, 2)
    assert "the target used 95 %" in said
    (said,) = bottlenecks(50.0, 190.0, 2)
    assert "the machine had no CPU time left (190 % of 200 %" in said


def figures(projects):
    roles = ("supervisor", "coordinator", "writer", "workers", "postgresql", "target")
    return ThroughputFigures(
        projects=projects,
        interval_s=1,
        workers=8,
        seconds=60.0,
        due=60 * projects,
        saved=59 * projects,
        due_per_s=float(projects),
        saved_per_s=float(projects),
        missed={"overload": projects, "overrun": 1},
        not_success=0,
        lateness_ms={"p50": 1.0, "p99": 10_000.0, "p99.9": 20_000.0, "max": 30_000.0},
        response_p50_ms=0.2,
        cpu_us_per_poll=dict.fromkeys(roles, 1_234.5),
        cpu_us_per_poll_total=1_234.5,
        cpu_percent=dict.fromkeys(roles, 95.0),
        machine_cpu_percent=800.0,
        rss_mib=dict.fromkeys(roles, 12_345.0),
        pss_mib={},
        queue_depth={"max": 100_000.0},
        loop_lag_ms={"max": 12_345.0},
        duplicates=0,
        rejects=0,
        row_bytes=165.0,
        target_requests=1,
        holds=False,
        audit_holds=False,
        audit={},
        warnings=bottlenecks(95.0, 800.0, 8),
        incidents=[],
        machine={},
    )


def test_five_runs_fit_on_eighty_columns(capsys, monkeypatch):
    monkeypatch.setattr(render, "PIPE_COLUMNS", 80)
    render.show(render.bench_view([figures(count) for count in (2_000, 5_000, 10_000, 50_000, 100_000)]))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    for name in ("polls/s saved", "lateness p99.9 ms", "CPU µs per poll", "  postgresql", "machine CPU %"):
        (line, *_) = [line for line in lines if line.startswith(f" {name} ")]  # a role has two
        assert len(line.removeprefix(f" {name}").split()) == 5, line
    assert any("missed: overload 2,000, overrun 1" in line for line in lines)
