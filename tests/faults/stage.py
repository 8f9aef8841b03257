"""Everything a test of faults stands on: a target, a PostgreSQL server of its own, a clock to step, and a cluster.

A context manager that leaves nothing behind, whatever happened inside: every process is ended by pid, every mount
undone, every directory removed.  With RINGPOLL_FAULTS_DIR in the environment the files (logs, requests, WAL, database)
are made there and kept.
"""

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil

from tests.faults.clock import SteppedClock
from tests.faults.logwatch import LogWatch
from tests.faults.postgres import FaultyPostgres
from tests.faults.ramdisk import RamDisk
from tests.faults.request_log import RequestLog
from tests.faults.wal_book import WalBook
from tests.integration.harness import Cluster, is_alive, wait_until

INTERVAL_S = 1
SLOW_EVERY = 4  # every so many projects has an answer that takes SLOW_MS, so that polls are in flight when one dies
SLOW_MS = 300
RECOVERY_S = 90.0
FIRST_POLLS_S = 60.0
ENDED_S = 10.0
WATCH_S = 0.05


class FaultyCluster(Cluster):
    """A cluster whose processes are found without asking it."""

    def role_process(self, name):
        """A role's process, or None."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.cmdline()[-1:] == [name] and child.status() != psutil.STATUS_ZOMBIE:
                        self._seen.setdefault(child.pid, child)
                        return child
        return None

    def role_processes(self):
        """{name: process} of every role."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    words = child.cmdline()
                    if "-m" in words and child.status() != psutil.STATUS_ZOMBIE:
                        found[words[-1]] = child
        return found

    def strike(self, name, number):
        """Signal a role; (process, instant)."""
        process = wait_until(lambda: self.role_process(name), f"{name} to have a process", ENDED_S)
        at = time.time()
        process.send_signal(number)
        return process, at

    def resume(self):
        """Nothing of it stays stopped by a SIGSTOP of ours."""
        for each in [psutil.Process(self.process.pid), *self.role_processes().values()] if self.running else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGCONT)

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill_everything(self):
        """SIGKILL to the supervisor and all roles; the instant.  Returns when all are gone."""
        self.note_processes()
        at = time.time()
        everything = [self.process.pid, *(each.pid for each in self.role_processes().values())]
        self.process.send_signal(signal.SIGKILL)
        for pid in everything[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # children of the supervisor a moment ago: not reaped by anybody else yet
        self.process.wait()
        wait_until(lambda: not any(map(is_alive, everything)), "what was killed to be gone", ENDED_S)
        return at

    def peek(self):
        """The status document, or None when nobody answers."""
        code, body = self.get("/status")
        return json.loads(body) if code == 200 else None


class Stage:
    def __init__(self, *, projects, workers, options=(), wal_disk_bytes=0):
        self.projects = projects
        self.worker_names = [f"worker-{number}" for number in range(1, workers + 1)]
        self._options = options
        self._wal_disk_bytes = wal_disk_bytes
        self._stack = contextlib.ExitStack()
        self.numbers = range(projects)
        self.ids = {}  # project number -> project id

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            base = stack.enter_context(_directory())
            self.data_dir = base / "d"
            self.wal_dir = self.data_dir / "wal"
            self.clock = SteppedClock(base / "clock", self.worker_names)
            stack.callback(self.clock.close)
            self.log = stack.enter_context(RequestLog(base / "requests"))
            self.postgres = FaultyPostgres(base / "pg")
            stack.callback(self.postgres.end)
            self.postgres.begin()
            self.disk = None
            if self._wal_disk_bytes:
                self.disk = stack.enter_context(RamDisk(self.wal_dir, self._wal_disk_bytes))
            self.cluster = FaultyCluster(
                self.data_dir,
                self.postgres.url,
                workers=len(self.worker_names),
                options=self._options,
                environ=self.clock.environ,
            )
            self.watch = stack.enter_context(LogWatch(self.cluster.log_file))
            stack.callback(self.cluster.end)
            stack.callback(self.cluster.resume)
            stack.callback(self.postgres.start)  # what stops without a database waits for it
            stack.callback(self.postgres.thaw)
            stack.callback(self.postgres.unlock)
            if self.disk is not None:
                stack.callback(self.disk.free)
            self.cluster.start().wait_ready()
            self.wal = stack.enter_context(WalBook(self.wal_dir))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc):
        return self._stack.__exit__(*exc)

    # ---- load -----------------------------------------------------------------------------------------------------

    def add_projects(self):
        """All of them, each polled at least twice and with a row."""
        urls = [self.log.url(n, 0 if (n + 1) % SLOW_EVERY else SLOW_MS) for n in self.numbers]
        with contextlib.closing(self.postgres.sql()) as sql:
            rows = sql.fetch(
                "INSERT INTO projects (name, url, interval) SELECT n::text, url, $3 FROM unnest($1::int[], $2::text[])"
                " AS new(n, url) RETURNING name, id",
                list(self.numbers),
                urls,
                INTERVAL_S,
            )
            self.ids = {int(row["name"]): row["id"] for row in rows}
            self.wait_polled(0, 2, FIRST_POLLS_S)
            wait_until(
                lambda: sql.value("SELECT count(DISTINCT project_id) FROM poll_results") == self.projects,
                "a row of every project",
                FIRST_POLLS_S,
            )

    # ---- waiting --------------------------------------------------------------------------------------------------

    def wait_polled(self, since, times=1, deadline_s=RECOVERY_S):
        """Until every project was polled so often since an instant."""

        def lagging():
            self.check_alive()
            return self.log.refresh().lagging(self.numbers, since, times)

        wait_until(lambda: not lagging(), lambda: f"{times} polls of {lagging()[:20]}: {self.state()}", deadline_s)

    def wait_recovered(self, since, deadline_s=RECOVERY_S):
        """Until the cluster is ready and everything before an instant is in the tables; the instant at which it was."""

        def recovered():
            self.check_alive()
            if self.cluster.get("/readyz")[0] != 200:
                return False
            status = self.cluster.peek()
            accounted_ms = status["accounted_to_ms"] if status else None
            return accounted_ms is not None and accounted_ms / 1000 - self.clock.slowest_offset_s() >= since

        wait_until(recovered, lambda: f"recovery: {self.state()}", deadline_s)
        return time.time()

    def let_pass(self, seconds):
        """A fault lasts: the time passes, and the supervisor must live meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.check_alive()
            time.sleep(min(WATCH_S, max(0.0, until - time.monotonic())))

    def check_alive(self):
        status = self.cluster.process.poll()
        assert status is None, f"`cluster up` ended with {status}: {self.cluster.log_tail()}"

    def state(self):
        """What can be said in an assertion's message."""
        return f"readyz {self.cluster.get('/readyz')}, log: {self.cluster.log_tail()}"


@contextlib.contextmanager
def _directory():
    """Short, because socket paths are bounded; open to be searched, because as root PostgreSQL is another account."""
    kept = os.environ.get("RINGPOLL_FAULTS_DIR")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="rp-f-", dir=kept or None))
    base.chmod(0o755)
    try:
        yield base
    finally:
        if not kept:
            shutil.rmtree(base, ignore_errors=True)
