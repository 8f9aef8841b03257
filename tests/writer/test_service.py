"""The writer as a real process on real sockets and a real PostgreSQL, with this test in the worker's place."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import zmq

from cluster import config, database
from cluster.messages import control, results
from cluster.messages.results import (
    Batch,
    Committed,
    PollResult,
    Rewind,
    StreamEnd,
    StreamHello,
    StreamWelcome,
    WhichStream,
)
from cluster.settings import Settings
from cluster.sockets import MESSAGE_BYTES_MAX, bind_router, connect_dealer
from tests.conftest import execute_once, with_database

DEADLINE_S = 20.0


def eventually(condition, what, deadline_s=DEADLINE_S):
    end = time.monotonic() + deadline_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        time.sleep(0.01)


def batch(stream, seq, rows=3):
    now_ms = time.time_ns() // 1_000_000
    made = [
        PollResult(seq * 1000 + n, now_ms, now_ms * 1000, "tick", "success", 200, 1.0, None, None, None, None, None,
                   0.5, 0.1, 10, True, "127.0.0.1", 1)
        for n in range(rows)
    ]  # fmt: skip
    return Batch(stream, seq, made, [])


class Peer:
    """A worker's connection to the writer."""

    def __init__(self, context, endpoint):
        self.socket = connect_dealer(context, endpoint)

    def send(self, message):
        self.socket.send(results.encode(message))

    def receive(self, kind, deadline_s=DEADLINE_S):
        end = time.monotonic() + deadline_s
        while True:
            left_ms = int((end - time.monotonic()) * 1000)
            assert left_ms > 0, f"no {kind.__name__} within {deadline_s} s"
            if self.socket.poll(left_ms):
                message = results.decode_from_writer(self.socket.recv())
                if isinstance(message, kind):
                    return message

    def hello(self, stream, first_seq=1):
        self.send(StreamHello(stream, "worker-1", "incarnation", first_seq))
        return self.receive(StreamWelcome)

    def receive_until_committed(self, seq):
        while self.receive(Committed).seq < seq:
            pass


class Coordinator:
    """Hears the writer's heartbeats."""

    def __init__(self, socket):
        self.socket = socket
        self.writer = b""  # its routing id
        self.beats = []

    def hear(self):
        """All heartbeats so far."""
        while self.socket.poll(0):
            self.writer, body = self.socket.recv_multipart()
            self.beats.append(control.decode_to_coordinator(body))
        return self.beats


class Writer:
    """A writer process; its log is collected line by line."""

    def __init__(self, settings):
        environ = config.role_environ(settings, dict(os.environ))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "writer"], env=environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def messages(self):
        return [json.loads(line)["msg"] for line in list(self.lines)]

    def logged(self, text):
        return any(text in message for message in self.messages())

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self):
        status = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        self.process.stdin.close()
        self.process.stderr.close()
        return status


@pytest.fixture
def place():
    """A data directory with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="rp-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def settings(place, database_url):
    return Settings(
        data_dir=place, database_url=database_url, name="writer", grace_s=2, supervised=True, incarnation="i1"
    )


@pytest.fixture
def start(settings):
    started = []

    def begin(**changes):
        changed = Settings(**{field: getattr(settings, field) for field in Settings.__struct_fields__} | changes)
        started.append(Writer(changed))
        return started[-1]

    yield begin
    for writer in started:
        if writer.process.poll() is None:
            writer.stop(signal.SIGKILL)


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def connect(context, settings):
    """Connects one more worker."""
    peers = []

    def one():
        peers.append(Peer(context, settings.results))
        return peers[-1]

    yield one
    for peer in peers:
        peer.socket.close()


@pytest.fixture
def peer(connect):
    return connect()


@pytest.fixture
def coordinator(context, settings):
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    coordinator = Coordinator(bind_router(context, settings.control))
    yield coordinator
    coordinator.socket.close()


@pytest.fixture
def query(database_url):
    def run(sql, *arguments):
        async def once():
            conn = await database.connect(database_url)
            try:
                return await conn.fetchval(sql, *arguments)
            finally:
                await conn.close()

        return asyncio.run(once())

    return run


def test_from_hello_to_a_clean_stop(start, peer, coordinator, settings, query):
    writer = start()
    stream = str(uuid.uuid4())
    assert peer.hello(stream).committed_seq == 0
    for seq in range(1, 11):
        peer.send(batch(stream, seq))
    peer.receive_until_committed(10)
    assert query("SELECT count(*) FROM poll_results") == 30
    eventually(lambda: any(b.rows_written == 30 for b in coordinator.hear()), "a heartbeat with 30 rows")
    beat = coordinator.beats[-1]
    assert (beat.incarnation, beat.pid, beat.state, beat.streams) == ("i1", writer.process.pid, "running", 1)
    assert beat.rss_bytes > 1_000_000
    before = len(coordinator.beats)
    coordinator.socket.send_multipart([coordinator.writer, control.encode(control.WhoAreYou())])
    eventually(lambda: len(coordinator.hear()) > before, "an answer to WhoAreYou")
    peer.send(StreamEnd(stream))
    eventually(lambda: query("SELECT ended_at FROM ingest_stream"), "the end of the stream in the ledger")
    assert writer.stop() == 0
    assert not Path(settings.results.removeprefix("ipc://")).exists()
    assert writer.logged("everything received is committed")


def test_results_are_rolled_up_and_the_lag_is_told(start, peer, coordinator, query):
    query("UPDATE rollup_progress SET rolled_to = $1, claimed_to = $1", datetime.now(UTC) - timedelta(minutes=30))
    start()
    stream = str(uuid.uuid4())
    peer.hello(stream)
    minutes_ago_ms = time.time_ns() // 1_000_000 - 20 * 60_000
    earlier = [msgspec.structs.replace(r, scheduled_at_ms=minutes_ago_ms) for r in batch(stream, 1).results]
    peer.send(Batch(stream, 1, earlier, []))
    peer.receive_until_committed(1)
    eventually(lambda: query("SELECT sum(polls) FROM rollup_hours") == 3, "the results to be rolled up")
    assert query("SELECT sum(polls) FROM rollup_days") == 3
    eventually(lambda: any(beat.rollup_lag_ms < 17 * 60_000 for beat in coordinator.hear()), "a lag that shrinks")
    assert coordinator.hear()[-1].rollup_lag_ms > 14 * 60_000, "what is not accounted for is waited for"


def test_batches_received_just_before_the_stop_are_committed(start, peer, query):
    writer = start()
    stream = str(uuid.uuid4())
    peer.hello(stream)
    peer.send(batch(stream, 1))
    peer.receive_until_committed(1)
    peer.send(batch(stream, 2))
    peer.send(batch(stream, 99))  # a gap: its Rewind says that the batch before it was received
    assert peer.receive(Rewind).seq == 3
    assert writer.stop() == 0
    assert query("SELECT last_seq FROM ingest_stream") == 2


def test_an_orphan_stops(start):
    writer = start()
    eventually(lambda: writer.logged("writer started"), "the start")
    writer.process.stdin.close()
    assert writer.wait() == 0


def test_a_killed_writer_is_replaced_without_a_loss_or_a_double(start, peer, query):
    first = start()
    stream = str(uuid.uuid4())
    peer.hello(stream)
    for seq in range(1, 51):
        peer.send(batch(stream, seq))
    peer.receive(Committed)
    for seq in range(51, 101):
        peer.send(batch(stream, seq))
    first.stop(signal.SIGKILL)
    start()

    def asked():
        peer.send(batch(stream, 101))
        return peer.socket.poll(200)

    # The old connection's acknowledgements may still be queued; the new writer knows nothing of the stream.
    eventually(asked, "an answer of the new writer")
    peer.receive(WhichStream)
    position = peer.hello(stream).committed_seq
    assert 0 < position <= 100
    for seq in range(position + 1, 102):
        peer.send(batch(stream, seq))
    peer.receive_until_committed(101)
    assert query("SELECT count(*) FROM poll_results") == 303


def test_rubbish_disturbs_nobody(start, peer, connect):
    writer = start()
    stream = str(uuid.uuid4())
    peer.hello(stream)
    vandal = connect()
    good = results.encode(batch(stream, 1))
    for body in [b"", b"\x00", b"{}", b"null", good[:-1], good + b"x", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff",
                 results.encode(["unknown", 1]), results.encode(["batch", stream, "x", [], []])]:  # fmt: skip
        vandal.socket.send(body)
    vandal.socket.send_multipart([b"a", b"b", b"c"])
    vandal.socket.send_multipart([b"", good])
    vandal.send(StreamHello("not-a-uuid", "w", "i", 1))
    connect().socket.send(b"x" * (MESSAGE_BYTES_MAX + 1))
    vandal.send(batch(str(uuid.uuid4()), 1))
    vandal.receive(WhichStream)
    peer.send(batch(stream, 1))
    peer.receive_until_committed(1)
    eventually(lambda: told_of(writer) == 12, "lines about the rubbish")
    assert writer.stop() == 0


def told_of(writer):
    """How many messages the log says were not understood."""
    return sum(int(message.split()[0]) for message in writer.messages() if "were not understood" in message)


@pytest.fixture
def switch(postgres_url, settings):
    """Takes the database away, and gives it back."""
    name = settings.database_url.split("?")[0].rpartition("/")[2]

    def turn(*, on):
        statements = [f"ALTER DATABASE {name} ALLOW_CONNECTIONS {on}"]
        if not on:
            statements.append(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        asyncio.run(execute_once(postgres_url, *statements))

    return turn


def test_the_database_goes_away_and_comes_back(start, peer, coordinator, switch, query):
    writer = start()
    stream = str(uuid.uuid4())
    peer.hello(stream)
    peer.send(batch(stream, 1))
    peer.receive_until_committed(1)
    switch(on=False)
    peer.send(batch(stream, 2))
    eventually(
        lambda: any(b.state == "waiting_for_database" for b in coordinator.hear()), "a heartbeat that says it waits"
    )
    peer.send(batch(stream, 3))
    switch(on=True)
    peer.receive_until_committed(3)
    assert query("SELECT count(*) FROM poll_results") == 9
    assert writer.logged("the database answers again")
    assert writer.stop() == 0


def test_a_stop_without_a_database_says_what_is_not_committed(start, peer, switch):
    writer = start()
    stream = str(uuid.uuid4())
    peer.hello(stream)
    switch(on=False)
    peer.send(batch(stream, 1, rows=7))
    eventually(lambda: writer.logged("trying again every few seconds"), "a line about the outage")
    assert writer.stop() == 1
    assert writer.logged("stopped with 7 results not committed, which wait in the workers' WAL: cannot reach the data")


def test_a_database_without_tables_is_waited_for(start, peer, empty_database_url):
    writer = start(database_url=empty_database_url)
    stream = str(uuid.uuid4())
    peer.send(StreamHello(stream, "worker-1", "i", 1))
    eventually(lambda: writer.logged("run `cluster migrate`"), "a line that says what to do")

    async def migrate():
        conn = await database.connect(empty_database_url)
        await database.migrate(conn)
        await conn.close()

    asyncio.run(migrate())
    assert peer.receive(StreamWelcome).committed_seq == 0
    assert writer.stop() == 0


def test_no_database_url_is_one_line(start):
    writer = start(database_url=None)
    assert writer.wait() == 1
    assert writer.messages() == ["the writer has no database; give --database-url or DATABASE_URL"]


def test_a_database_that_does_not_exist(start, peer, postgres_url):
    writer = start(database_url=with_database(postgres_url, "no_such_database"))
    peer.send(StreamHello(str(uuid.uuid4()), "worker-1", "i", 1))
    eventually(lambda: writer.logged("does not exist; create it"), "a line that says what to do")
    assert writer.stop() == 0
