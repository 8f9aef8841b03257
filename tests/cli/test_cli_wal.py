"""``cluster wal``: what waits in a data directory, and delivering it to a real PostgreSQL without a cluster."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
import zmq

from cluster import sockets
from cluster.cli import wal as wal_module
from cluster.errors import ClusterError
from cluster.messages.results import Batch, MissedRange, PollResult, encode
from cluster.runtime import role_lock
from cluster.wal import format as wal_format
from cluster.wal.format import Entry
from tests.wal.streams import Source, directory, new_stream_id

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
DEADLINE_S = 30.0
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} [A-Z]+ +[\w-]+\[\d+\] +\S.*")


def wait_for(condition, what, deadline_s=DEADLINE_S):
    until = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {deadline_s} s for {what() if callable(what) else what}"
        time.sleep(0.02)
    return found


def leave(data_dir, batches, *, worker="worker-1", acked=0, ends=True):
    """What a worker that died, or still lives, has in its WAL; returns its directory and stream."""
    wal = directory(data_dir, worker, segment_bytes=1 << 20)
    log = wal.create(new_stream_id())
    log.append(batches)
    if acked:
        log.acknowledged(acked, time.time())
    if ends:
        wal.close()
    return wal, log


def damage(log, at):
    """Change a byte of the oldest segment."""
    path = min(log.path.glob("*.wal"))
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0xFF
    path.write_bytes(content)
    return path, bytes(content)


def sources(count, size=1_000):
    return Source().take(count, size)


def records(entries):
    return sum(entry.records for entry in entries)


class Rows:
    """A connection of the test's own."""

    def __init__(self, url):
        self._loop = asyncio.new_event_loop()
        self._conn = self._loop.run_until_complete(asyncpg.connect(url, timeout=30))

    def fetch(self, statement, *args):
        return [tuple(row) for row in self._loop.run_until_complete(self._conn.fetch(statement, *args))]

    def execute(self, statement):
        self._loop.run_until_complete(self._conn.execute(statement))

    def close(self):
        try:
            self._loop.run_until_complete(self._conn.close(timeout=5))
        finally:
            self._loop.close()


@pytest.fixture
def rows(database_url):
    made = Rows(database_url)
    yield made
    made.close()


def leave_polls(data_dir, count, *, batches=3, worker="worker-1", first_project=1):
    """As ``leave``: batches with results of this minute, and each with a missed tick of another project."""
    wal = directory(data_dir, worker, segment_bytes=1 << 20)
    log = wal.create(new_stream_id())
    now_ms = int(time.time() * 1_000) // 1_000 * 1_000
    for number in range(batches):
        tick = now_ms - 1_000 * number
        found = [
            PollResult(
                first_project + each, tick, now_ms * 1_000, "tick", "success", 200, 1.5, None, None, None, None, None,
                1.0, 0.5, 2, True, "127.0.0.1", 1,
            )
            for each in range(count)
        ]  # fmt: skip
        gone = [MissedRange(first_project + 100_000, tick, tick, 1_000, "overload", 1)]
        body = encode(Batch(log.stream_id, number + 1, found, gone))
        log.append([Entry(number + 1, body, count + 1, log.records_total, log.bytes_total)])
    wal.close()
    return log


# ---- list -----------------------------------------------------------------------------------------------------------


def test_nothing_is_there(cluster, data_dir):
    ran = cluster("wal", "list")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"nothing is in {data_dir / 'wal'}\n"
    ran = cluster("wal", "list", "--json")
    assert ran.status == 0
    assert json.loads(ran.out) == {"streams": [], "records_unacked": 0, "bytes": 0, "damaged": 0}
    assert not (data_dir / "wal").exists(), "who only looks makes nothing"


def test_streams_in_every_state(cluster, data_dir):
    entries = sources(4)
    wal, in_use = leave(data_dir, entries[:3], worker="worker-1", ends=False)
    try:
        _, orphan = leave(data_dir, entries, worker="worker-2", acked=1)
        _, delivered = leave(data_dir, entries[:2], worker="worker-3", acked=2)
        ran = cluster("wal", "list", "--json")
        document = json.loads(ran.out)
        table = cluster("wal", "list")
    finally:
        wal.close()
    assert (ran.status, ran.err) == (0, "")
    assert document.keys() == {"streams", "records_unacked", "bytes", "damaged"}
    streams = {each["stream_id"]: each for each in document["streams"]}
    assert [each["worker"] for each in document["streams"]] == ["worker-1", "worker-2", "worker-3"]
    first = streams[in_use.stream_id]
    assert first.keys() == {
        "worker", "stream_id", "state", "first_seq", "last_seq", "acked_seq", "records", "records_unacked", "bytes",
        "segments", "oldest_at_ms", "damaged",
    }  # fmt: skip
    assert (first["state"], first["last_seq"], first["records_unacked"]) == ("in use", 3, records(entries[:3]))
    second = streams[orphan.stream_id]
    assert (second["state"], second["acked_seq"]) == ("orphan", 1)
    assert (second["records"], second["records_unacked"]) == (records(entries), records(entries[1:]))
    third = streams[delivered.stream_id]
    assert (third["state"], third["records_unacked"]) == ("delivered", 0)
    assert document["records_unacked"] == records(entries[:3]) + records(entries[1:])
    assert document["bytes"] == sum(each["bytes"] for each in document["streams"])
    assert document["bytes"] == sum(path.stat().st_size for path in (data_dir / "wal").rglob("*.wal"))
    assert abs(first["oldest_at_ms"] / 1_000 - time.time()) < 60

    assert (table.status, table.err) == (0, "")
    lines = {line.split()[0]: line.split() for line in table.out.splitlines() if line.strip()}
    assert lines[in_use.stream_id][1:5] == ["worker-1", "in", "use", "1-3"]
    assert lines[orphan.stream_id][1:6] == [
        "worker-2",
        "orphan",
        "1-4",
        str(records(entries)),
        str(records(entries[1:])),
    ]
    assert lines[delivered.stream_id][1:4] == ["worker-3", "delivered", "1-2"]
    assert "waiting" in lines["stream"]


def test_damage_is_found_when_it_is_looked_for(cluster, data_dir):
    wal = directory(data_dir, "worker-1", segment_bytes=1_500)
    log = wal.create(new_stream_id())
    for entry in sources(6):
        log.append([entry])
    wal.close()
    path, content = damage(log, 0.9)
    assert cluster("wal", "list", "--json").status == 0
    ran = cluster("wal", "list", "--json", "--verify")
    assert ran.status == 1, "a script must hear of it"
    document = json.loads(ran.out)
    assert (document["damaged"], document["streams"][0]["damaged"]) == (1, 1)
    line = next(line for line in cluster("wal", "list", "--verify").out.splitlines() if log.stream_id in line)
    assert line.split()[7:10] == ["KiB", "1", time.strftime("%Y-%m-%d")]
    assert path.read_bytes() == content, "who only looks changes nothing"
    assert not (data_dir / "wal" / "quarantine").exists()


def test_nothing_damaged_is_verified(cluster, data_dir):
    leave(data_dir, sources(2))
    assert cluster("wal", "list", "--verify").status == 0


@pytest.mark.parametrize("command", [("list",), ("list", "--verify", "--json"), ("replay", "--database-url", NOWHERE)])
def test_a_data_directory_that_is_not_there_is_not_one_in_which_nothing_waits(cluster, data_dir, command):
    ran = cluster("wal", *command, "--data-dir", data_dir / "mistyped")
    assert (ran.status, ran.out) == (2, "")
    assert ran.error == (
        f"there is no data directory {data_dir / 'mistyped'}: give the --data-dir of a cluster, or set CLUSTER_DATA_DIR"
    )
    assert not (data_dir / "mistyped").exists()


def leave_newer(data_dir, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(wal_format, "VERSION", 2)
        return leave(data_dir, sources(2), worker="worker-9")[1]


def test_what_a_newer_version_wrote_does_not_look_empty(cluster, data_dir, monkeypatch):
    _, known = leave(data_dir, sources(3))
    newer = leave_newer(data_dir, monkeypatch)
    said = (
        f"1 streams in {data_dir / 'wal'} were written by a newer version of this program, so what waits in them is "
        "not known; use that version to see and to deliver it"
    )
    ran = cluster("wal", "list")
    assert (ran.status, ran.err) == (0, f"Warning: {said}\n")
    (line,) = [line.split() for line in ran.out.splitlines() if newer.stream_id in line]
    assert line[:7] == [newer.stream_id, "worker-9", "newer", "version", "?", "?", "?"]
    document = json.loads(cluster("wal", "list", "--json").out)
    states = {each["stream_id"]: (each["state"], each["segments"]) for each in document["streams"]}
    assert states == {known.stream_id: ("orphan", 1), newer.stream_id: ("newer version", 1)}
    assert document["bytes"] == sum(path.stat().st_size for path in (data_dir / "wal").rglob("*.wal"))


def test_replay_does_not_say_that_nothing_waits_when_a_newer_version_may_have_left_something(
    cluster, data_dir, monkeypatch
):
    leave_newer(data_dir, monkeypatch)
    ran = cluster("wal", "replay", "--database-url", NOWHERE)
    assert (ran.status, ran.out) == (1, "")
    assert ran.error.startswith(f"1 streams in {data_dir / 'wal'} were written by a newer version")


def test_directories_that_no_worker_made_are_not_looked_into(cluster, data_dir, monkeypatch):
    """The root of a mounted file system has a lost+found that only root may read."""
    leave(data_dir, sources(1))
    foreign = [data_dir / "wal" / name for name in ("lost+found", ".snapshots")]
    for path in foreign:
        path.mkdir()
    real = os.scandir

    def scandir(path):
        if Path(path) in foreign:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ran = cluster("wal", "list", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert len(json.loads(ran.out)["streams"]) == 1


def test_a_directory_that_can_t_be_read_is_one_line(cluster, data_dir, monkeypatch):
    leave(data_dir, sources(1))
    real = os.scandir

    def scandir(path):
        if Path(path) == data_dir / "wal":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for command in (("list",), ("list", "--json"), ("replay",)):
        ran = cluster("wal", *command)
        assert ran.status == 1
        assert ran.out == ""
        assert ran.error == (
            f"cannot look into {data_dir / 'wal'}: Permission denied; run this as the user that started the cluster"
        )


def test_something_else_in_its_place_is_one_line(cluster, data_dir):
    (data_dir / "wal").write_text("not a directory")
    ran = cluster("wal", "list")
    assert ran.status == 1
    assert str(data_dir / "wal") in ran.error


# ---- replay: what it refuses ----------------------------------------------------------------------------------------


def test_nothing_waits(cluster, data_dir):
    ran = cluster("wal", "replay", "--database-url", NOWHERE)
    assert (ran.status, ran.out, ran.err) == (0, f"nothing waits in {data_dir / 'wal'}\n", "")
    leave(data_dir, sources(2), acked=2)
    ran = cluster("wal", "replay", "--database-url", NOWHERE)
    assert (ran.status, ran.out, ran.err) == (0, f"nothing waits in {data_dir / 'wal'}\n", "")
    assert list((data_dir / "run").iterdir()) == []


def test_a_cluster_runs_there(cluster, data_dir, admin):
    leave(data_dir, sources(2))
    ran = cluster("wal", "replay", "--database-url", NOWHERE)
    assert (ran.status, ran.out) == (1, "")
    assert f"a cluster is already running on {data_dir}" in ran.error


def test_roles_of_a_killed_supervisor_still_run(cluster, data_dir):
    leave(data_dir, sources(2))
    with role_lock(data_dir / "run", "worker-1"), role_lock(data_dir / "run", "writer"):
        ran = cluster("wal", "replay", "--database-url", NOWHERE)
    assert (ran.status, ran.out) == (1, "")
    assert ran.error == f"processes of a cluster on {data_dir} deliver it themselves: worker-1, writer"


def test_no_database_was_ever_there(cluster, data_dir):
    leave(data_dir, sources(2))
    ran = cluster("wal", "replay")
    assert ran.status == 2
    assert ran.error == f"no database: set DATABASE_URL (there is no embedded one in {data_dir})"
    assert not (data_dir / "postgres").exists()


def test_a_database_without_tables_is_not_filled(cluster, data_dir, empty_database_url):
    leave(data_dir, sources(2))
    ran = cluster("wal", "replay", "--database-url", empty_database_url)
    assert ran.status == 1
    assert "has no tables of ours; run `cluster migrate`" in ran.error
    assert empty_database_url not in ran.err


def deep_data_dir(data_dir, longest):
    """One below ``run`` of which a socket of that name has the longest path that is possible."""
    deep = data_dir / "x"
    room = sockets.IPC_PATH_MAX - len(os.fsencode(deep / "run" / longest))
    deep = data_dir / ("x" * (1 + room))
    deep.mkdir()
    return deep


def test_a_path_too_long_for_a_socket_is_one_line(cluster, data_dir):
    deep = deep_data_dir(data_dir, "")
    leave(deep, sources(2))
    ran = cluster("wal", "replay", "--data-dir", deep, "--database-url", NOWHERE)
    assert ran.status == 1
    assert ran.error.startswith(f"the socket path {deep / 'run'}/")
    assert ran.error.endswith("is longer than 103 bytes; choose a shorter --data-dir")


def test_where_a_cluster_runs_nothing_is_too_long(cluster, data_dir, database_url, rows):
    deep = deep_data_dir(data_dir, "admin.sock")
    leave_polls(deep, 10)
    ran = cluster("wal", "replay", "--data-dir", deep, "--database-url", database_url)
    assert (ran.status, ran.out.splitlines()[-1]) == (0, "33 results delivered, nothing waits any more")


@pytest.mark.parametrize("command", ["list", "replay"])
def test_usage(cluster, command):
    ran = cluster("wal", command, "--no-such-option")
    assert ran.status == 2
    assert "--no-such-option" in ran.error
    assert f"See `cluster wal {command} --help`." in ran.error
    assert cluster("wal", command, "--help").status == 0


# ---- replay: what it delivers ---------------------------------------------------------------------------------------


def test_orphans_are_delivered_under_their_workers_names(cluster, data_dir, database_url, rows):
    first = leave_polls(data_dir, 40, worker="worker-1")
    second = leave_polls(data_dir, 20, worker="worker-2", first_project=1_000)
    ran = cluster("wal", "replay", "--database-url", database_url)
    waiting = 3 * 41 + 3 * 21
    assert ran.status == 0, ran
    assert ran.out.splitlines() == [
        f"{waiting} results wait in {data_dir / 'wal'}",
        f"{waiting} results delivered, nothing waits any more",
    ]
    for line in ran.err.splitlines():
        assert LOG_LINE.fullmatch(line), line
    assert not re.search(" (WARNING|ERROR|CRITICAL) ", ran.err), ran.err
    assert "delivering 2 streams" in ran.err
    assert rows.fetch("SELECT worker, count(*) FROM poll_results GROUP BY 1 ORDER BY 1") == [
        ("worker-1", 120), ("worker-2", 60),
    ]  # fmt: skip
    assert rows.fetch("SELECT worker, sum(ticks)::int FROM missed_polls GROUP BY 1 ORDER BY 1") == [
        ("worker-1", 3), ("worker-2", 3),
    ]  # fmt: skip
    ledger = {str(stream): seq for stream, seq in rows.fetch("SELECT stream_id, last_seq FROM ingest_stream")}
    assert {each.stream_id: ledger[each.stream_id] for each in (first, second)} == {
        first.stream_id: 3, second.stream_id: 3,
    }  # fmt: skip
    assert list((data_dir / "run").glob("*.sock")) == []

    again = cluster("wal", "replay", "--database-url", database_url)
    assert (again.status, again.out, again.err) == (0, f"nothing waits in {data_dir / 'wal'}\n", "")
    listed = cluster("wal", "list").out
    assert listed.count("delivered") == 2, "kept for ten minutes, for a database that goes back"
    assert "replay" not in listed


def test_the_embedded_database_is_started_for_it(cluster, data_dir):
    assert cluster("migrate").status == 0
    leave_polls(data_dir, 10)
    ran = cluster("wal", "replay")
    assert ran.status == 0, ran
    assert ran.out.splitlines()[-1] == "33 results delivered, nothing waits any more"
    assert not (data_dir / "postgres" / "data" / "postmaster.pid").exists()


def test_what_was_delivered_before_is_not_there_twice(cluster, data_dir, database_url, rows):
    """The note of what was acknowledged is lost with the power, say."""
    log = leave_polls(data_dir, 10)
    assert cluster("wal", "replay", "--database-url", database_url).status == 0
    (log.path / "acked").unlink()
    ran = cluster("wal", "replay", "--database-url", database_url)
    assert ran.status == 0, ran
    assert ran.out.splitlines()[-1] == "33 results delivered, nothing waits any more"
    assert rows.fetch("SELECT count(*) FROM poll_results") == [(30,)]


def test_log_lines_for_programs(cluster, data_dir, database_url):
    leave_polls(data_dir, 5)
    ran = cluster("wal", "replay", "--database-url", database_url, "--log-format", "json")
    assert ran.status == 0, ran
    roles = {json.loads(line)["role"] for line in ran.err.splitlines()}
    assert roles == {"replay", "writer"}


def test_progress_is_told(cluster, data_dir, database_url, rows, monkeypatch):
    """Of a database that takes half a second for each transaction."""
    monkeypatch.setattr(wal_module, "PROGRESS_S", 0.05)
    slow = "BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END"
    rows.execute(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS '{slow}'")
    rows.execute("CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON ingest_stream EXECUTE FUNCTION slow()")
    for number in range(12):  # four at a time are delivered
        leave_polls(data_dir, 300, batches=10, worker=f"worker-{number}", first_project=1 + 300 * number)
    ran = cluster("wal", "replay", "--database-url", database_url)
    assert ran.status == 0, ran
    told = [int(done) for done in re.findall(r"^(\d+) of 36120 results delivered$", ran.err, re.MULTILINE)]
    assert told, ran.err
    assert told == sorted(set(told))


def test_damage_is_said_and_the_rest_delivered(cluster, data_dir, database_url, rows):
    log = leave_polls(data_dir, 40)
    damage(log, 0.5)
    ran = cluster("wal", "replay", "--database-url", database_url)
    assert ran.status == 0, ran
    assert "damage in the WAL" in ran.err
    assert rows.fetch("SELECT count(*) FROM poll_results") == [(80,)]
    assert list((data_dir / "wal" / "quarantine").iterdir())


def test_a_cluster_at_the_configured_endpoints_hears_nothing_of_it(cluster, data_dir, database_url, rows):
    """Its coordinator would take the two for members, its workers the writer for theirs."""
    leave_polls(data_dir, 10)
    context = zmq.Context()
    try:
        control, results = (
            sockets.bind_router(context, f"ipc://{data_dir}/{name}.sock") for name in ("control", "results")
        )
        ran = cluster(
            "wal", "replay", "--database-url", database_url,
            "--control-endpoint", f"ipc://{data_dir}/control.sock",
            "--results-endpoint", f"ipc://{data_dir}/results.sock",
        )  # fmt: skip
        assert ran.status == 0, ran
        assert control.poll(0) == results.poll(0) == 0
    finally:
        context.destroy(linger=0)
    assert rows.fetch("SELECT count(*) FROM poll_results") == [(30,)]
    assert list((data_dir / "run").glob("*.sock")) == []


def test_a_stream_of_a_newer_version_is_left_alone(cluster, data_dir, database_url, rows, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(wal_format, "VERSION", wal_format.VERSION + 1)
        newer = leave_polls(data_dir, 10, worker="worker-2", first_project=500)
    leave_polls(data_dir, 10)
    ran = cluster("wal", "replay", "--database-url", database_url)
    assert ran.status == 1, ran
    assert ran.err.splitlines()[-1].startswith("Error: 33 results delivered; 1 streams in ")
    assert rows.fetch("SELECT worker, count(*) FROM poll_results GROUP BY 1") == [("worker-1", 30)]
    assert f"{newer.path} was written by a newer version" in ran.err
    assert list(newer.path.glob("*.wal"))


def test_a_stream_that_somebody_holds_still_waits_in_the_end(cluster, data_dir, database_url, rows):
    leave_polls(data_dir, 10)
    wal, log = leave(data_dir, sources(2), worker="worker-2", ends=False)
    try:
        ran = cluster("wal", "replay", "--database-url", database_url)
    finally:
        wal.close()
    assert ran.status == 1
    assert rows.fetch("SELECT worker, count(*) FROM poll_results GROUP BY 1") == [("worker-1", 30)]
    assert ran.err.splitlines()[-1] == (
        f"Error: not every stream could be taken over: 33 results delivered, {log.records_total} still wait in "
        f"{data_dir / 'wal'}; `cluster wal replay` or the next `cluster up` delivers them"
    )


# ---- replay: how it ends otherwise ----------------------------------------------------------------------------------


class Running:
    """``cluster wal replay`` in a process of its own."""

    def __init__(self, data_dir, database_url, *options):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")}
        self.err_file = data_dir / "replay.err"
        self.children = []
        with self.err_file.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster", "wal", "replay", "--data-dir", data_dir, *options],
                env=environ | {"DATABASE_URL": database_url},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    @property
    def err(self):
        return self.err_file.read_text()

    def wait_for(self, text):
        def said():
            assert self.process.poll() is None, self.err
            return text in self.err

        wait_for(said, lambda: f"{text!r} in {self.err!r}")
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number, deadline_s=DEADLINE_S):
        self.process.send_signal(number)
        return self.process.wait(deadline_s)

    def left(self):
        return [each for each in self.children if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    def clean(self):
        if self.process.poll() is None:
            self.children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
        for each in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.fixture
def running():
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            made = Running(*arguments)
            stack.callback(made.clean)
            return made

        yield start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_database_that_is_away_is_waited_for_until_it_is_interrupted(running, data_dir, number):
    leave_polls(data_dir, 10)
    replay = running(data_dir, NOWHERE)
    replay.wait_for("Waiting for it")
    assert replay.end(number, 10) == 1
    waiting, error = replay.err.splitlines()
    assert 'cannot reach the database "nothing" at 127.0.0.1:1' in waiting
    assert error == (
        f"Error: interrupted: 0 results delivered, 33 still wait in {data_dir / 'wal'}; `cluster wal replay` or the "
        "next `cluster up` delivers them"
    )
    assert list((data_dir / "run").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_roles_too(running, cluster, data_dir, database_url, rows, number):
    """The database answers, but what the writer wants of it is locked."""
    leave_polls(data_dir, 10)
    rows.execute("BEGIN; LOCK TABLE ingest_stream IN ACCESS EXCLUSIVE MODE")
    replay = running(data_dir, database_url)
    replay.wait_for("delivering 1 streams")
    assert len(replay.children) == 2
    began = time.monotonic()
    assert replay.end(number) == 1
    assert time.monotonic() - began < wal_module.INTERRUPTED_END_S
    assert not replay.left()
    assert replay.err.splitlines()[-1].startswith("Error: interrupted: 0 results delivered, 33 still wait in ")
    assert "Traceback" not in replay.err
    rows.execute("ROLLBACK")
    again = cluster("wal", "replay", "--database-url", database_url)
    assert again.status == 0, again
    assert rows.fetch("SELECT count(*) FROM poll_results") == [(30,)]
    assert "replay" not in [path.name for path in (data_dir / "wal").iterdir()]


def test_a_second_interruption_ends_it_at_once(running, data_dir, database_url, rows):
    leave_polls(data_dir, 10)
    rows.execute("BEGIN; LOCK TABLE ingest_stream IN ACCESS EXCLUSIVE MODE")
    replay = running(data_dir, database_url)
    replay.wait_for("delivering 1 streams")
    replay.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    while replay.process.poll() is None:  # as long as someone keeps pressing
        assert time.monotonic() - began < wal_module.INTERRUPTED_END_S, replay.err
        time.sleep(0.05)
        replay.process.send_signal(signal.SIGINT)
    assert replay.process.returncode == 1
    assert not replay.left()
    rows.execute("ROLLBACK")


def test_its_worker_ends_with_it_even_when_it_is_killed(running, data_dir, database_url, rows):
    leave_polls(data_dir, 10)
    rows.execute("BEGIN; LOCK TABLE ingest_stream IN ACCESS EXCLUSIVE MODE")
    replay = running(data_dir, database_url)
    replay.wait_for("delivering 1 streams")
    (worker,) = [each for each in replay.children if "worker" in each.cmdline()]
    replay.process.kill()
    replay.process.wait()
    wait_for(lambda: worker not in replay.left(), "the worker to end", 10)
    rows.execute("ROLLBACK")


def test_a_writer_that_dies_ends_it(running, data_dir, database_url, rows):
    leave_polls(data_dir, 10)
    rows.execute("BEGIN; LOCK TABLE ingest_stream IN ACCESS EXCLUSIVE MODE")
    replay = running(data_dir, database_url)
    replay.wait_for("delivering 1 streams")
    (writer,) = [each for each in replay.children if "writer" in each.cmdline()]
    writer.kill()
    assert replay.process.wait(DEADLINE_S) == 1
    assert "Error: the writer ended (exit status -9): 0 results delivered, 33 still wait" in replay.err
    assert not replay.left()
    rows.execute("ROLLBACK")


def test_a_database_that_comes_back_is_noticed(cluster, data_dir, database_url, rows, monkeypatch, capfd):
    leave_polls(data_dir, 10)
    monkeypatch.setattr(wal_module, "DATABASE_POLL_S", 0.01)
    attempts = []
    real = wal_module.database.connect

    async def connect(url):
        attempts.append(url)
        if len(attempts) < 4:
            raise ClusterError("cannot reach the database; is it running?", code="database_unavailable")
        return await real(url)

    monkeypatch.setattr(wal_module.database, "connect", connect)
    ran = cluster("wal", "replay", "--database-url", database_url)
    assert ran.status == 0, ran
    assert ran.err.count("Waiting for it") == 1, "it is said once"
    assert rows.fetch("SELECT count(*) FROM poll_results") == [(30,)]
