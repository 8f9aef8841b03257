"""A whole cluster as an ordinary user runs it: ``cluster up`` in a process of its own, asked over its public ways only.

``Cluster`` starts it, gives its status, admin replies, processes and logs, and ends it in every case, by pid.  ``Sql``
is a connection of the test's own.  Nothing here imports the roles or reaches into them.
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import asyncpg
import psutil
import zmq

from cluster.ticks import PARTITIONS

DEADLINE_S = 30.0
POLL_S = 0.02
READY_S = 40.0
STOP_S = 45.0
INTERVAL_S = 1.0  # of projects, unless a test says otherwise
JITTER_S = 0.5  # of a request's arrival around its tick, on a machine that starts Python meanwhile


def wait_until(condition, what, deadline_s=DEADLINE_S):
    """The condition's first true value; what it last was is in the error."""
    until = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {deadline_s} s for {what() if callable(what) else what}"
        time.sleep(POLL_S)
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Sql:
    def __init__(self, url):
        self._loop = asyncio.new_event_loop()
        self._conn = self._run(asyncpg.connect(url, timeout=30))

    def _run(self, work):
        return self._loop.run_until_complete(work)

    def fetch(self, statement, *args):
        return self._run(self._conn.fetch(statement, *args))

    def value(self, statement, *args):
        return self._run(self._conn.fetchval(statement, *args))

    def execute(self, statement, *args):
        return self._run(self._conn.execute(statement, *args))

    def close(self):
        try:
            self._run(self._conn.close(timeout=5))
        finally:
            self._loop.close()

    # ---- what tests ask -------------------------------------------------------------------------------------------

    def insert_projects(self, target, count, *, path="/ok", interval_s=1, prefix="p"):
        """Projects whose name is the tag of their requests; returns {tag: id}."""
        tags = [f"{prefix}{number}" for number in range(count)]
        urls = [target.url(f"{path}/{tag}") for tag in tags]
        rows = self.fetch(
            "INSERT INTO projects (name, url, interval) SELECT name, url, $3 FROM unnest($1::text[], $2::text[])"
            " AS new(name, url) RETURNING name, id",
            tags,
            urls,
            interval_s,
        )
        return {row["name"]: row["id"] for row in rows}

    def rows_by_project(self):
        """{project id: rows of any trigger}."""
        return dict(self.fetch("SELECT project_id, count(*) FROM poll_results GROUP BY 1"))

    def missed(self):
        """{reason: ticks}."""
        return dict(self.fetch("SELECT reason, sum(ticks)::int FROM missed_polls GROUP BY 1"))


class Cluster:
    def __init__(self, data_dir, database_url, *, workers=3, options=(), environ=None):
        self.data_dir = data_dir
        self.workers = workers
        self.port = free_port()
        self.http = f"127.0.0.1:{self.port}"
        self.database_url = database_url
        self.options = options
        self.environ = clean_environ() | (environ or {})
        self.out_file = data_dir.parent / f"{data_dir.name}.out"
        self.log_file = data_dir.parent / f"{data_dir.name}.log"
        self.process = None
        self._seen = {}  # pid -> psutil.Process: every process of this cluster ever seen

    # ---- life -----------------------------------------------------------------------------------------------------

    def start(self):
        command = ["up", "--data-dir", str(self.data_dir), "--http", self.http]
        command += ["--workers", str(self.workers), "--max-per-host", "0"]
        if self.database_url:
            command += ["--database-url", self.database_url]
        return self.start_command([*command, *self.options])

    def start_command(self, arguments):
        with self.out_file.open("a") as out, self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=self.environ,
                start_new_session=True,
            )
        return self

    def wait_ready(self, deadline_s=READY_S):
        def ready():
            assert self.process.poll() is None, f"cluster up ended with {self.process.returncode}: {self.log_tail()}"
            return self.get("/readyz")[0] == 200

        wait_until(ready, lambda: f"readiness, now {self.get('/readyz')}: {self.log_tail()}", deadline_s)
        self.note_processes()
        return self

    def wait_exit(self, deadline_s=STOP_S):
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s} s: {self.log_tail()}") from None

    def stop(self, deadline_s=STOP_S):
        """SIGTERM; the exit status."""
        self.note_processes()
        self.process.send_signal(signal.SIGTERM)
        return self.wait_exit(deadline_s)

    def stop_cleanly(self):
        """SIGTERM; everything was committed and every process ended by itself."""
        exit_status = self.stop()
        assert exit_status == 0, f"exit status {exit_status}: {self.complaints()}: {self.log_tail()}"

    def end(self):
        """Leave nothing behind, whatever happened; what had to be killed is an error."""
        if self.process is None:
            return
        self.note_processes()
        overdue = False
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                overdue = True
                self.note_processes()
                self.process.kill()
                self.process.wait()
        left = [each for each in self._seen.values() if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        assert not overdue, f"the cluster did not stop: {self.log_tail()}"
        assert not left, f"processes were left: {left}"

    # ---- processes ------------------------------------------------------------------------------------------------

    def note_processes(self):
        """Remember the processes that live now; psutil knows a reused pid from its start time."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                self._seen.setdefault(each.pid, each)

    def seen_alive(self):
        return [pid for pid in self._seen if is_alive(pid)]

    def worker(self, name):
        """The entry of a worker in the status document, or None."""
        return next((each for each in self.status()["workers"] if each["name"] == name), None)

    def pid(self, name):
        if name == "writer":
            return self.status()["writer"]["pid"]
        if name == "coordinator":
            return next(
                each.pid for each in psutil.Process(self.process.pid).children() if "coordinator" in each.cmdline()
            )
        return self.worker(name)["pid"]

    def signal(self, name, number):
        pid = wait_until(lambda: self.pid(name), f"{name} to have a process", 5)  # 0 would be this test's own group
        assert pid in {each.pid for each in psutil.Process(self.process.pid).children()}, f"{name} is not ours: {pid}"
        self.note_processes()
        os.kill(pid, number)
        return pid

    # ---- asking ---------------------------------------------------------------------------------------------------

    def get(self, path):
        """(status, body) of an HTTP GET; (0, why) when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    def status(self):
        status, body = wait_until(lambda: (got := self.get("/status"))[0] == 200 and got, "the status document")
        assert status == 200
        return json.loads(body)

    def admin_endpoint(self):
        return f"ipc://{self.data_dir}/run/admin.sock"

    def ask(self, message, timeout_s=15.0):
        """A bare REQ with JSON, as any ZeroMQ client would."""
        with zmq.Context() as context, context.socket(zmq.REQ) as socket_:
            socket_.setsockopt(zmq.LINGER, 0)
            socket_.connect(self.admin_endpoint())
            socket_.send(json.dumps(message).encode())
            assert socket_.poll(int(timeout_s * 1000)), f"no reply to {message}: {self.log_tail()}"
            return json.loads(socket_.recv())

    def cli(self, *args, timeout_s=60.0):
        return run_cli(*args, "--data-dir", str(self.data_dir), environ=self.environ, timeout_s=timeout_s)

    def audit(self):
        """(exit status, report) of ``cluster audit``."""
        done = self.cli("audit", "--json", "--database-url", self.database_url)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def check_audit(self):
        """The law holds; the report."""
        exit_status, report = self.audit()
        wrong = [each for each in report["projects"] if each["unexplained"] or each["doubled"]]
        assert (exit_status, report["holds"], wrong[:20]) == (0, True, []), report["total"]
        return report

    # ---- logs -----------------------------------------------------------------------------------------------------

    def log_lines(self):
        lines = []
        for line in self.log_file.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return lines

    def log_tail(self, lines=15):
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def complaints(self):
        """Log lines of level error and above."""
        return [line for line in self.log_lines() if line["level"] in {"error", "critical"}]


def clean_environ():
    """This process' environment without anything that configures a cluster."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CLUSTER_") and name not in {"DATABASE_URL", "MAX_CONCURRENT_HTTP"}
    }


def run_cli(*args, environ=None, timeout_s=60.0):
    return subprocess.run(
        [sys.executable, "-m", "cluster", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=clean_environ() if environ is None else environ,
        timeout=timeout_s,
        check=False,
    )


def one_line_error(done, exit_status):
    """The line on standard error, when it is the only one; ``done`` as from ``run_cli``."""
    assert done.returncode == exit_status, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def check_books(cluster, sql, target, tags):
    """After a stop: every request the target saw is one row, and every due tick is a row or a missed tick.

    ``tags`` as from ``Sql.insert_projects``.  Returns the audit's report.
    """
    rows = sql.rows_by_project()
    differ = {tag: (target.count(tag), rows.get(pid, 0)) for tag, pid in tags.items()}
    differ = {tag: pair for tag, pair in differ.items() if pair[0] != pair[1]}
    assert not differ, f"(requests, rows) by project: {differ}"
    return cluster.check_audit()


def polled_again(target, tags, since, times=3, deadline_s=30.0):
    """Wait until every project was polled so many times since an instant."""

    def lagging():
        return [tag for tag in tags if len(target.since(tag, since)) < times]

    wait_until(lambda: not lagging(), lambda: f"{times} polls of {lagging()[:20]}", deadline_s)


def owners(sql):
    """{project id: worker of its newest row}."""
    return dict(
        sql.fetch("SELECT DISTINCT ON (project_id) project_id, worker FROM poll_results ORDER BY 1, scheduled_at DESC")
    )


def widest(target, tags, since, until):
    return max((round(target.widest_gap(tag, since, until), 2), tag) for tag in tags)


def settled(cluster, workers):
    """The status document once so many workers run and own everything."""

    def found():
        status = cluster.status()
        states = [each["state"] for each in status["workers"]]
        return (
            states == ["running"] * workers
            and status["partitions_assigned"] == PARTITIONS
            and all(each["partitions"] for each in status["workers"])
            and sum(each["partitions"] for each in status["workers"]) == PARTITIONS
            and status
        )

    return wait_until(found, lambda: f"{workers} settled workers, now {cluster.status()['workers']}")
