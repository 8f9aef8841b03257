"""What is in the WAL survives everything: kills, stops and scaling while the database is away.

The target's own log of requests is what the tables are compared with.  A kill may cost what was in flight and the last
moments (a result is in the WAL 50 ms after it was found at the latest); nothing else may.
"""

import itertools
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from cluster.embedded import EmbeddedPostgres
from cluster.messages.results import Batch, encode
from cluster.wal.format import Entry
from tests.integration.harness import INTERVAL_S, JITTER_S, Sql, check_books, polled_again, settled, wait_until, widest
from tests.wal.streams import directory, new_stream_id
from tests.worker.wal_double import result

PROJECTS = 60
LOST_S = 0.05  # before a kill: not in the WAL yet
RSS_GROWTH_MAX = 6 << 20  # of a worker in 15 s of outage: allocator noise
FRESH_S = 1.0  # a new result is in the table within this, whatever else waits
MORE_PROJECTS = 300
BACKLOG_BATCHES = 1_000  # of 400 results
FLOW_BYTES = 8 << 10  # on their way at any moment


class Server:
    """A PostgreSQL of this module's own: stopped, started, frozen."""

    def __init__(self, base):
        self._embedded = EmbeddedPostgres(
            base, settings={"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}, die_with_parent=True
        )
        self._names = map("wal_{}".format, itertools.count(1))
        self._frozen = []
        self.start()

    def start(self):
        self._embedded.start()

    def stop(self):
        self._embedded.stop()

    def fresh_database(self):
        """The URL of a new, empty database."""
        name = next(self._names)
        sql = Sql(self._embedded.dsn())
        sql.execute(f"CREATE DATABASE {name}")
        sql.close()
        return self._embedded.dsn(name)

    def freeze(self):
        """Connections stay, and nothing answers on them."""
        postmaster = psutil.Process(int((self._embedded.data / "postmaster.pid").read_text().split()[0]))
        self._frozen = [postmaster]
        postmaster.send_signal(signal.SIGSTOP)  # first: then no child is added
        for each in postmaster.children(recursive=True):
            each.send_signal(signal.SIGSTOP)
            self._frozen.append(each)

    def thaw(self):
        frozen, self._frozen = self._frozen, []
        for each in reversed(frozen):
            each.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def server():
    base = Path(tempfile.mkdtemp(prefix="rp-pg-"))
    base.chmod(0o755)  # as root the server runs under another account, which must reach it
    made = Server(base)
    yield made
    made.thaw()
    made.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def postgres(server):
    yield server
    server.thaw()
    server.start()


@pytest.fixture
def database_url(postgres):
    return postgres.fresh_database()


class Books:
    """The rows, read once, against the requests."""

    def __init__(self, url, tags):
        self._sql = Sql(url)
        self._tags = tags
        self.rows = {project_id: [] for project_id in tags.values()}
        self.scheduled = {project_id: [] for project_id in tags.values()}
        for project_id, worker, at, scheduled_at in self._sql.fetch(
            "SELECT project_id, worker, extract(epoch FROM polled_at)::float8,"
            " extract(epoch FROM scheduled_at)::float8 FROM poll_results WHERE project_id = ANY($1)",
            list(tags.values()),
        ):
            self.rows[project_id].append((at, worker))
            self.scheduled[project_id].append(scheduled_at)
        self.missed = self._sql.missed()
        self._sql.close()

    def workers(self, since, until):
        return {worker for rows in self.rows.values() for at, worker in rows if since <= at < until}

    def check_until(self, target, until, margin_s):
        """Every tick whose request arrived before an instant is a row, and no row was made up.

        By ticks: the newest may have been polled again by the next owner, and either row of it may be the one kept.
        """
        for tag, project_id in self._tags.items():
            requests = len([at for at in target.since(tag, 0) if at < until])
            surely = len([at for at in target.since(tag, 0) if at < until + margin_s])
            rows = len([at for at in self.scheduled[project_id] if at < until])
            assert requests <= rows <= surely, f"{tag}: {requests} requests, {rows} rows until {until}"

    def check_since(self, target, since):
        """From an instant at which nothing was in flight: the same number."""
        for tag, project_id in self._tags.items():
            rows = len([at for at, _ in self.rows[project_id] if at >= since])
            assert len(target.since(tag, since)) == rows, tag


def insert(url, target, count=PROJECTS, **options):
    sql = Sql(url)
    tags = sql.insert_projects(target, count, **options)
    sql.close()
    return tags


def waiting_bytes(cluster):
    return sum(each["wal_bytes"] for each in cluster.status()["workers"])


def delivered(cluster, deadline_s=30):
    wait_until(
        lambda: waiting_bytes(cluster) <= FLOW_BYTES,
        lambda: f"the WAL to drain, now {waiting_bytes(cluster)}",
        deadline_s,
    )


def away(cluster):
    wait_until(
        lambda: cluster.status()["database"]["state"] == "down" or waiting_bytes(cluster) > 0, "the outage to show", 20
    )


def kill_everything(cluster):
    """The supervisor first; returns when."""
    cluster.note_processes()
    pids = cluster.seen_alive()
    killed_at = time.time()
    for pid in [cluster.process.pid, *pids]:
        os.kill(pid, signal.SIGKILL)
    cluster.process.wait()
    wait_until(lambda: not cluster.seen_alive(), "everything to be gone", 10)
    return killed_at


def test_everything_is_killed_while_the_database_does_not_answer(make_cluster, postgres, database_url, target):
    cluster = make_cluster(workers=2)
    tags = insert(database_url, target)
    polled_again(target, tags, 0, 2)
    frozen_at = time.time()
    postgres.freeze()
    polled_again(target, tags, frozen_at, 3)
    assert waiting_bytes(cluster) > 0
    killed_at = kill_everything(cluster)
    postgres.thaw()
    killed_until = time.time()
    wait_until(lambda: time.time() > killed_until + 2.2 * INTERVAL_S, "ticks to pass while nothing runs")

    cluster.start().wait_ready()
    back_at = killed_until + 1.0
    polled_again(target, tags, back_at, 2)
    delivered(cluster)
    cluster.stop_cleanly()
    cluster.check_audit()
    books = Books(database_url, tags)
    margin_s = 0.25 + target.stall_s(killed_at - 2, killed_until)
    books.check_until(target, killed_at - LOST_S - margin_s, 2 * margin_s)
    books.check_since(target, back_at)
    assert books.missed["down"] >= 2 * PROJECTS
    assert books.missed["down"] + books.missed.get("handover", 0) <= PROJECTS * (
        2 + (min(target.since(tag, back_at)[0] for tag in tags) - killed_at) / INTERVAL_S
    )
    assert cluster.cli("wal", "replay", "--database-url", database_url).stdout.startswith("nothing waits in ")


def test_a_worker_is_killed_and_the_cluster_stopped_while_the_database_is_away(
    make_cluster, postgres, database_url, target
):
    cluster = make_cluster(workers=2, options=["--grace", "2s"])
    tags = insert(database_url, target)
    polled_again(target, tags, 0, 2)
    stopped_at = time.time()
    postgres.stop()
    polled_again(target, tags, stopped_at, 3)
    incarnation = cluster.pid("worker-1")
    killed_at = time.time()
    cluster.signal("worker-1", signal.SIGKILL)
    wait_until(lambda: cluster.pid("worker-1") not in (0, incarnation), "another process of worker-1")
    polled_again(target, tags, time.time(), 2)

    down = cluster.cli("down")
    assert cluster.wait_exit() == 1
    last = cluster.log_file.read_text().splitlines()[-1]
    assert re.fullmatch(
        r"Error: worker-\d .*: \d+ results are not in the database yet; they wait in the WAL.*; \d+ results wait in .*",
        last,
    ), last
    assert (down.returncode, down.stdout) == (1, "")
    assert down.stderr.splitlines()[-1].endswith(last.removeprefix("Error: "))
    said = sum(
        int(count)
        for line in cluster.log_lines()
        for count in re.findall(r"^(\d+) results are not in the database yet", line["msg"])
    )
    listed = cluster.cli("wal", "list", "--json")
    assert listed.returncode == 0
    assert f'"records_unacked": {said},' in listed.stdout, (said, listed.stdout)
    down_at = time.time()
    wait_until(lambda: time.time() > down_at + 1.1 * INTERVAL_S, "a tick of every project to pass")

    postgres.start()
    cluster.start().wait_ready()
    delivered(cluster)
    polled_again(target, tags, time.time(), 1)
    cluster.stop_cleanly()
    cluster.check_audit()
    books = Books(database_url, tags)
    margin_s = 0.25 + target.stall_s(killed_at - 2, killed_at + 1)
    books.check_until(target, killed_at - LOST_S - margin_s, 2 * margin_s)
    books.check_since(target, killed_at + 4)
    assert books.workers(stopped_at, killed_at - 1) == {"worker-1", "worker-2"}
    assert books.missed["down"] >= PROJECTS
    sql = Sql(database_url)
    doubled = sql.fetch("SELECT project_id, scheduled_at FROM poll_results GROUP BY 1, 2 HAVING count(*) > 1")
    sql.close()
    assert not doubled


def leave_backlog(data_dir):
    """What a worker of another time left: results of projects that are gone.  Returns its stream."""
    wal = directory(data_dir, "worker-9", segment_bytes=8 << 20)
    log = wal.create(new_stream_id())
    now_ms = int(time.time() * 1_000)
    for seq in range(1, BACKLOG_BATCHES + 1):
        polled = [result(1_000_000 + 400 * seq + each, scheduled_at_ms=now_ms) for each in range(400)]
        batch = Batch(log.stream_id, seq, polled, [])
        log.append([Entry(seq, encode(batch), 400, log.records_total, log.bytes_total)])
    wal.close()
    return log.stream_id


class Fresh:
    """Asks all the time how old the newest row of some project is, and how far another stream is committed."""

    def __init__(self, url, tags, stream_id):
        self._url = url
        self._args = [list(tags.values()), stream_id]
        self._stop = threading.Event()
        self.seen = []  # (age in seconds, seq of the other stream)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exc):
        self._stop.set()
        self._thread.join(10)

    def _run(self):
        sql = Sql(self._url)
        newest = """
            SELECT extract(epoch FROM now() - max(polled_at))::float8 AS age,
                   (SELECT last_seq FROM ingest_stream WHERE stream_id = $2::text::uuid) AS seq
            FROM poll_results WHERE project_id = ANY($1)
        """
        try:
            while not self._stop.wait(0.01):
                ((age, seq),) = sql.fetch(newest, *self._args)
                self.seen.append((age, seq or 0))
        finally:
            sql.close()


def test_polling_goes_on_in_flat_memory_and_new_results_do_not_wait_for_old_ones(
    make_cluster, postgres, database_url, target
):
    """Meanwhile a worker is scaled away, and another one delivers what it had."""
    cluster = make_cluster(workers=3, options=["--grace", "2s"])
    tags = insert(database_url, target, MORE_PROJECTS)
    polled_again(target, tags, 0, 2)
    settled(cluster, 3)
    stopped_at = time.time()
    postgres.stop()
    away(cluster)
    polled_again(target, tags, time.time(), 2)
    assert cluster.ask({"type": "scale", "workers": 2})["workers"] == 2
    asked_at = time.time()
    polled_again(target, tags, time.time(), 3)
    staying = {each["name"]: each["pid"] for each in cluster.status()["workers"] if each["name"] != "worker-3"}
    assert staying.keys() == {"worker-1", "worker-2"}
    before = {name: psutil.Process(pid).memory_info().rss for name, pid in staying.items()}
    waiting = waiting_bytes(cluster)
    backlog = leave_backlog(cluster.data_dir)
    # worker-3 waits fifteen seconds for the database, then leaves its results to others.
    wait_until(lambda: cluster.worker("worker-3") is None, "worker-3 to go", 40)
    wait_until(lambda: adopted(cluster), "another to adopt what it had", 15)
    assert waiting_bytes(cluster) > 2 * waiting > 0
    growth = {name: psutil.Process(pid).memory_info().rss - before[name] for name, pid in staying.items()}
    assert max(growth.values()) <= RSS_GROWTH_MAX, growth
    until = time.time()
    assert until - asked_at > 10
    assert widest(target, tags, stopped_at - 1, until)[0] <= INTERVAL_S + JITTER_S + target.stall_s(stopped_at, until)

    began = time.time()
    postgres.start()
    with Fresh(database_url, tags, backlog) as fresh:
        wait_until(lambda: fresh.seen and fresh.seen[-1][1] == BACKLOG_BATCHES, "the backlog to drain", 60)
    ages = [age for age, seq in fresh.seen if BACKLOG_BATCHES / 10 < seq < BACKLOG_BATCHES]
    assert len(ages) > 2, "there was no backlog"
    assert max(ages) <= FRESH_S + target.stall_s(began), fresh.seen
    assert max(psutil.Process(pid).memory_info().rss - before[name] for name, pid in staying.items()) <= RSS_GROWTH_MAX
    polled_again(target, tags, time.time(), 2)
    cluster.stop_cleanly()
    sql = Sql(database_url)
    check_books(cluster, sql, target, tags)
    books = Books(database_url, tags)
    handed_over = "SELECT count(*) FROM missed_polls WHERE reason = 'handover' AND last_tick > to_timestamp($1)"
    assert sql.value(handed_over, stopped_at) == 0, "nobody died"
    assert sql.value("SELECT count(*) FROM poll_results WHERE worker = 'worker-9'") == 400 * BACKLOG_BATCHES
    sql.close()
    assert books.workers(stopped_at, asked_at) == {"worker-1", "worker-2", "worker-3"}


def adopted(cluster):
    """Every stream is somebody's."""
    return '"state": "orphan"' not in cluster.cli("wal", "list", "--json").stdout
