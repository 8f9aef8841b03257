"""A supervisor with fake roles as a real process, and the words to say what it did."""

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

import psutil
import pytest

RUN_SUPERVISOR = Path(__file__).with_name("run_supervisor.py")
DEADLINE_S = 30.0


def wait_for(condition, what, deadline_s=DEADLINE_S):
    """The condition's first true value."""
    until = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {deadline_s} s for {what}"
        time.sleep(0.01)
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def exists(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Cluster:
    def __init__(self, data_dir, database_url, **environ):
        self.data_dir = data_dir
        self.book = data_dir / "book"
        self.heard_file = data_dir / "heard"
        self.log_file = data_dir / "log"
        self.out_file = data_dir / "out"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")} | {
            "CLUSTER_DATA_DIR": str(data_dir),
            "CLUSTER_WORKERS": "2",
            "CLUSTER_HTTP": f"127.0.0.1:{free_port()}",
            "CLUSTER_GRACE": "5s",
            "CLUSTER_LOG_LEVEL": "debug",
            "FAKE_BOOK": str(self.book),
            "FAKE_HEARD": str(self.heard_file),
        }
        self.environ.pop("DATABASE_URL", None)
        if database_url is not None:
            self.environ["DATABASE_URL"] = database_url
        self.environ |= environ
        self.process = None

    def up(self, *arguments):
        with self.log_file.open("ab") as log, self.out_file.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(RUN_SUPERVISOR), *arguments],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        return self

    def wait_until_up(self):
        self.wait(lambda: len(self.running()) >= 2 + int(self.environ["CLUSTER_WORKERS"]), "all roles to run")
        self.wait(lambda: self.messages("polling 3 projects"), "a heartbeat of the coordinator")
        return self

    def wait(self, condition, what):
        def or_ended():
            found = condition()
            assert found or self.process.poll() is None, f"the supervisor ended:\n{self.log_file.read_text()}"
            return found

        return wait_for(or_ended, what)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE_S)
        print(self.log_file.read_text())  # shown when the test fails
        return status

    def entries(self):
        return [line.split() for line in self.book.read_text().splitlines()] if self.book.exists() else []

    def started(self, name):
        """The pids under a name, oldest first."""
        return [int(pid) for what, each, pid, _ in self.entries() if what == "start" and each == name]

    def stopped(self):
        return [name for what, name, _, _ in self.entries() if what == "stop"]

    def running(self):
        gone = {pid for what, _, pid, _ in self.entries() if what == "stop"}
        return {
            name: int(pid)
            for what, name, pid, _ in self.entries()
            if what == "start" and pid not in gone and exists(int(pid))
        }

    def heard(self, kind):
        if not self.heard_file.exists():
            return []
        with contextlib.suppress(json.JSONDecodeError):  # the last line is being written
            return [
                each for line in self.heard_file.read_text().splitlines() if (each := json.loads(line))["type"] == kind
            ]
        return []

    def log(self):
        lines = []
        for line in self.log_file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return lines

    def messages(self, part):
        return [each for each in self.log() if part in each["msg"]]

    def all_pids(self):
        return [int(pid) for what, _, pid, _ in self.entries() if what == "start"]

    def assert_nothing_left(self):
        assert not [pid for pid in self.all_pids() if exists(pid)]
        assert sorted(path.name for path in (self.data_dir / "run").iterdir()) == []


@pytest.fixture
def data_dir():
    path = Path(tempfile.mkdtemp(prefix="rp-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_cluster(data_dir, database_url):
    clusters = []

    def make(**environ):
        cluster = Cluster(data_dir, database_url, **environ)
        clusters.append(cluster)
        return cluster

    yield make
    for cluster in clusters:
        if cluster.process is not None and cluster.process.poll() is None:
            cluster.process.kill()
            cluster.process.wait()
        for pid in cluster.all_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
