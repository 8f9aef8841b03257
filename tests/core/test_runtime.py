"""The frame of a role's process: one per name, ends on a signal, with its supervisor, or of a bug; real processes."""

import asyncio
import errno
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster import runtime
from cluster.embedded import cluster_database
from cluster.errors import ClusterError
from cluster.runtime import EXIT_BUG, role_lock

DEADLINE_S = 20.0

ROLE = """
import asyncio, os, sys
from pathlib import Path
from cluster import runtime
from cluster.errors import ClusterError
from cluster.settings import Settings

async def main(context):
    loop = asyncio.get_running_loop()
    match sys.argv[2]:
        case "wait":
            print("ready", flush=True)
            await context.stopping.wait()
            return 0
        case "status":
            return 5
        case "bug in a callback":
            loop.call_soon(lambda: 1 // 0)
            await asyncio.get_running_loop().create_future()
        case "bug in main":
            raise ZeroDivisionError
        case "failed":
            context.fail("it is broken")
            await context.stopping.wait()
        case "clear error":
            raise ClusterError("the port is taken; choose another", code="port")
    raise AssertionError

settings = Settings(
    data_dir=Path(sys.argv[1]),
    name="worker-1",
    supervised=sys.argv[3:] == ["supervised"],
    database_url=os.environ.get("ROLE_URL"),
)
sys.exit(runtime.run_role(settings, main))
"""


@pytest.fixture
def directory():
    path = Path(tempfile.mkdtemp(prefix="rp-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(directory):
    started = []

    def start(case, *more, url=""):
        process = subprocess.Popen(
            [sys.executable, "-c", ROLE, str(directory), case, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"ROLE_URL": url},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_ready(process):
    readable, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    assert readable
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish(start, number):
    process = start("wait")
    wait_ready(process)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0


def test_a_supervised_role_ends_with_its_supervisor(start):
    """End of file on its standard input: nobody holds the other end any more."""
    process = start("wait", "supervised")
    wait_ready(process)
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 0
    process.stdin = None


def test_what_a_supervisor_writes_does_not_end_it(start):
    process = start("wait", "supervised")
    wait_ready(process)
    process.stdin.write("something\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def test_a_role_alone_does_not_look_at_its_input(start):
    process = start("wait")
    process.stdin.close()
    process.stdin = None
    wait_ready(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("case", "status", "said"),
    [
        ("status", 5, ""),
        ("bug in a callback", EXIT_BUG, "ZeroDivisionError"),
        ("failed", EXIT_BUG, "it is broken"),
        ("clear error", 1, "the port is taken; choose another"),
    ],
)
def test_its_exit_status_says_how_it_ended(start, case, status, said):
    process = start(case)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == status
    assert said in errors
    if case == "clear error":
        assert "Traceback" not in errors


def test_a_bug_in_main_is_a_traceback_and_a_failure(start):
    process = start("bug in main")
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode not in (0, 2)
    assert "ZeroDivisionError" in errors


# ---- one process per name -------------------------------------------------------------------------------------------


def test_two_of_one_name_never_act_at_once(start, directory):
    process = start("wait")
    wait_ready(process)
    with (
        pytest.raises(ClusterError, match="another worker-1 is still running") as caught,
        role_lock(directory / "run", "worker-1", wait_s=0.1),
    ):
        raise AssertionError("both hold it")
    assert caught.value.code == "already_running"
    assert str(directory) in str(caught.value)


def test_who_waits_for_another_of_its_name_says_so_at_once(start, directory, monkeypatch, caplog):
    process = start("wait")
    wait_ready(process)
    monkeypatch.setattr(runtime, "LOCK_SAY_S", 0.1)
    with (
        pytest.raises(ClusterError, match=f"is locked by pid {process.pid}") as caught,
        role_lock(directory / "run", "worker-1", wait_s=0.5),
    ):
        raise AssertionError("both hold it")
    assert str(caught.value).endswith("; end it first")
    (line,) = [record.getMessage() for record in caplog.records]
    path = directory / "run" / "worker-1.lock"
    assert line == (
        f"another worker-1 is still running on {directory} ({path} is locked by pid {process.pid}); waiting up to 0 s "
        "for its end"
    )


def test_a_lock_is_held_even_where_no_pid_can_be_noted(directory, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with role_lock(directory / "run", "worker-1"):
        monkeypatch.undo()
        with (
            pytest.raises(ClusterError, match=r"worker-1.lock is locked\)"),
            role_lock(directory / "run", "worker-1"),
        ):
            raise AssertionError("both hold it")


def test_another_name_is_another_lock(start, directory):
    process = start("wait")
    wait_ready(process)
    with role_lock(directory / "run", "worker-2"):
        assert (directory / "run" / "worker-2.lock").exists()


def test_the_successor_waits_for_an_orphan_to_finish(start, directory):
    first = start("wait")
    wait_ready(first)
    second = start("wait")
    assert not select.select([second.stdout], [], [], 0.3)[0], "it did not wait"
    first.send_signal(signal.SIGTERM)
    wait_ready(second)
    assert first.wait(DEADLINE_S) == 0


def test_a_killed_process_holds_nothing(start, directory):
    process = start("wait")
    wait_ready(process)
    process.kill()
    process.wait(DEADLINE_S)
    began = time.monotonic()
    with role_lock(directory / "run", "worker-1"):
        assert time.monotonic() - began < 1.0


def test_the_run_directory_is_nobody_elses(directory):
    with role_lock(directory / "run", "writer"):
        assert (directory / "run").stat().st_mode & 0o777 == 0o700


def test_the_lock_is_free_afterwards(directory):
    with role_lock(directory / "run", "writer"):
        pass
    with (directory / "run" / "writer.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not lock.closed


@pytest.mark.parametrize("own", [True, False])
def test_a_role_counts_as_a_user_of_the_embedded_server_of_its_data_directory_only(start, directory, own):
    server = cluster_database(directory)
    server.base.mkdir()
    process = start("wait", url=server.dsn() if own else "postgresql://postgres@db.example/postgres")
    wait_ready(process)

    def is_unused():
        with (server.base / "users.lock").open("a") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    assert is_unused() is not own
    process.kill()
    process.wait(DEADLINE_S)
    assert is_unused()


def test_a_role_whose_embedded_server_is_not_there_says_so(start, directory):
    process = start("wait", url=cluster_database(directory).dsn())
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert f"cannot use PostgreSQL in {directory / 'postgres'}" in errors
    assert "Traceback" not in errors


async def test_only_what_a_connection_reports_is_not_fatal():
    """Aborting a TLS connection while its bytes arrive is reported to the loop, and no bug of ours."""
    loop = asyncio.get_running_loop()
    error = RuntimeError("the handler is closed")
    task = loop.create_task(asyncio.sleep(0))
    await task
    future = loop.create_future()
    assert runtime._is_of_a_connection(
        {"message": "Fatal error on SSL protocol", "exception": error, "protocol": object()}
    )
    assert runtime._is_of_a_connection(
        {"message": "Fatal error on transport", "exception": error, "transport": object()}
    )
    assert runtime._is_of_a_connection({"message": "Future exception was never retrieved", "future": future})
    assert not runtime._is_of_a_connection({"message": "Task exception was never retrieved", "future": task})
    assert not runtime._is_of_a_connection({"message": "Exception in callback", "exception": error, "handle": object()})
    assert not runtime._is_of_a_connection({"message": "taking a poll's outcome failed", "exception": error})
