"""The embedded PostgreSQL's lifecycle, on real servers."""

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import asyncpg
import psutil
import pytest

from cluster import embedded
from cluster.embedded import STOP_STEPS, EmbeddedPostgres, _is_server
from cluster.errors import ClusterError

FAST = {"fsync": "off", "shared_buffers": "16MB", "max_connections": 10}


@pytest.fixture
def base():
    path = Path(tempfile.mkdtemp(prefix="rp-pg-"))
    path.chmod(0o755)
    yield path / "pg"
    shutil.rmtree(path, ignore_errors=True)


def pid_of(server):
    return int((server.data / "postmaster.pid").read_text().splitlines()[0])


async def answer(server, query="SELECT 1"):
    conn = await asyncpg.connect(**server.connect_args())
    try:
        return await conn.fetchval(query)
    finally:
        await conn.close()


async def test_start_use_stop_and_start_again_with_the_same_data(base):
    with EmbeddedPostgres(base, settings=FAST) as server:
        await answer(server, "CREATE TABLE t AS SELECT 42 AS n")
        assert server.running()
        assert await answer(server, "SHOW fsync") == "off"
        assert await answer(server, "SHOW server_encoding") == "UTF8"
        conn = await asyncpg.connect(server.dsn())
        await conn.close()
    assert not server.running()
    assert not (server.data / "postmaster.pid").exists()
    with EmbeddedPostgres(base, settings=FAST) as server:
        assert await answer(server, "SELECT n FROM t") == 42


def test_a_server_that_stands_still_is_not_waited_for(base):
    """The supervisor asks once a second, on the loop in which it hears of deaths and of signals."""
    server = EmbeddedPostgres(base)
    server.run.mkdir(parents=True)
    server._users = True
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(server.run / f".s.PGSQL.{server.port}"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # until its queue is full
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(listener.getsockname())
        answers = queue.Queue()
        threading.Thread(target=lambda: answers.put(server.running()), daemon=True).start()
        assert answers.get(timeout=20)
    assert not server.running()


async def test_a_frozen_server_is_killed_in_the_end_and_recovers(base, monkeypatch):
    monkeypatch.setattr(embedded, "STOP_STEPS", tuple((number, 0.3) for number, _ in STOP_STEPS[:-1]) + STOP_STEPS[-1:])
    server = EmbeddedPostgres(base, settings=FAST | {"fsync": "on"}).start()
    await answer(server, "CREATE TABLE t AS SELECT 42 AS n")
    postmaster = psutil.Process(pid_of(server))
    frozen = [postmaster, *postmaster.children(recursive=True)]
    for process in frozen:
        process.suspend()
    await asyncio.to_thread(server.stop)
    gone, alive = psutil.wait_procs(frozen, timeout=5)
    assert (len(gone), alive) == (len(frozen), [])
    with EmbeddedPostgres(base, settings=FAST) as server:
        assert await answer(server, "SELECT n FROM t") == 42


async def test_several_users_share_a_server_and_the_last_stops_it(base):
    first = EmbeddedPostgres(base, settings=FAST).start()
    second = EmbeddedPostgres(base, settings=FAST).start()
    assert pid_of(first) == pid_of(second)
    first.stop()
    assert await answer(second) == 1
    second.stop()
    assert not (second.data / "postmaster.pid").exists()
    second.stop()  # once more is harmless


async def test_who_only_uses_it_keeps_others_from_stopping_it(base):
    server = EmbeddedPostgres(base, settings=FAST).start()
    with EmbeddedPostgres(base).in_use():
        server.stop()
        assert await answer(server) == 1
        EmbeddedPostgres(base, settings=FAST).start().stop()
        assert await answer(server) == 1
    EmbeddedPostgres(base, settings=FAST).start().stop()
    assert not (server.data / "postmaster.pid").exists()


def test_a_stale_pid_file_of_a_foreign_process_neither_hurts_it_nor_prevents_the_start(base):
    EmbeddedPostgres(base, settings=FAST).start().stop()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        data = base / "data"
        (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n0\n5432\n{base}/run\n\n\nready   \n")
        with EmbeddedPostgres(base, settings=FAST) as server:
            assert pid_of(server) != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


def test_an_empty_pid_file_does_not_prevent_the_start(base):
    EmbeddedPostgres(base, settings=FAST).start().stop()
    (base / "data" / "postmaster.pid").touch()
    with EmbeddedPostgres(base, settings=FAST) as server:
        assert server.running()


async def test_a_server_that_died_is_revived_with_its_data(base):
    with EmbeddedPostgres(base, settings=FAST) as server:
        await answer(server, "CREATE TABLE t AS SELECT 42 AS n")
        pid = pid_of(server)
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while server.running():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert server.revive() is True
        assert pid_of(server) != pid
        assert await answer(server, "SELECT n FROM t") == 42
        assert server.revive() is False


START_AND_WAIT = """
import sys
from cluster.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1], settings={"fsync": "off"}, die_with_parent=sys.argv[2] == "die").start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("die", [True, False])
def test_a_killed_user_leaves_the_server_to_the_next_one_unless_it_dies_along(base, die):
    user = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(base), "die" if die else "stay"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with user:
        assert user.stdout.readline() == b"ready\n"
        pid = int((base / "data" / "postmaster.pid").read_text().splitlines()[0])
        user.kill()
    if die:
        until = time.monotonic() + 20
        while _is_server(pid, base.resolve() / "data"):
            assert time.monotonic() < until
            time.sleep(0.01)
    with EmbeddedPostgres(base, settings=FAST) as server:
        assert (pid_of(server) == pid) is not die
    assert not (base / "data" / "postmaster.pid").exists()


def test_a_killed_initdb_leaves_nothing_broken(base):
    (base / "data-tmp-old").mkdir(parents=True)
    (base / "data-tmp-old" / "PG_VERSION").touch()
    with EmbeddedPostgres(base, settings=FAST) as server:
        assert server.running()
    assert not (base / "data-tmp-old").exists()


def test_a_path_too_long_for_a_socket_gets_a_short_one(base):
    deep = base / ("d" * 90)
    with EmbeddedPostgres(deep, settings=FAST) as server:
        assert not server.run.is_relative_to(deep)
        assert server.running()
        run = server.run
    shutil.rmtree(run)


def test_a_wrong_setting_is_one_line_with_the_log(base):
    with pytest.raises(ClusterError) as caught:
        EmbeddedPostgres(base, settings={"no_such_setting": "1"}, timeout=20).start()
    assert "no_such_setting" in str(caught.value)
    assert str(base / "server.log") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_of_another_version_is_refused(base):
    EmbeddedPostgres(base, settings=FAST).start().stop()
    (base / "data" / "PG_VERSION").write_text("11\n")
    with pytest.raises(ClusterError, match="was made by PostgreSQL 11"):
        EmbeddedPostgres(base, settings=FAST).start()


def test_a_directory_that_cannot_be_made_is_one_line(base):
    base.parent.mkdir(exist_ok=True)
    (base.parent / "file").touch()
    with pytest.raises(ClusterError, match="cannot start PostgreSQL in"):
        EmbeddedPostgres(base.parent / "file" / "pg").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server under another account")
def test_as_root_a_directory_nobody_can_reach_is_one_line(base):
    base.mkdir(parents=True)
    base.parent.chmod(0o700)
    with pytest.raises(ClusterError, match="cannot reach"):
        EmbeddedPostgres(base).start()


def test_an_account_that_is_not_there_is_one_line(base, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(ClusterError, match="there is no account nobody-here"):
        EmbeddedPostgres(base, run_as="nobody-here").start()
