"""The coordinator with its real core, in this loop: sockets, files, database, a worker that plays along."""

import asyncio
import contextlib
import time

import aiohttp
import asyncpg
import msgspec
import pytest
import zmq

from cluster.channel import Channel
from cluster.errors import ClusterError
from cluster.messages import control
from cluster.runtime import RoleContext
from cluster.settings import Settings
from cluster.sockets import MESSAGE_BYTES_MAX, connect_dealer
from coordinator import requests as requests_module
from coordinator import service as service_module
from coordinator.core import CoordinatorCore
from coordinator.events import DurableState
from coordinator.service import CoordinatorService
from coordinator.store import StateFile
from tests.coordinator_shell.test_http_server import free_port
from tests.coordinator_shell.waiting import until

AWAY = "postgresql://postgres@127.0.0.1:1/nothing"


class Peer:
    """A DEALER on the control socket that keeps what it hears."""

    def __init__(self, settings):
        self.context = zmq.Context()
        self.heard = []
        self.channel = Channel(connect_dealer(self.context, settings.control), self.on_frames)

    def on_frames(self, frames):
        message = control.decode_to_worker(frames[0]) if b"heartbeat" not in frames[0] else frames[0]
        self.heard.append(message)

    def send(self, message):
        assert self.channel.send(message if isinstance(message, bytes) else control.encode(message))

    def close(self):
        self.channel.close()
        self.context.destroy(linger=0)


class SupervisorDouble(Peer):
    def on_frames(self, frames):
        self.heard.append(control.decode_to_supervisor(frames[0]))

    def hello(self, *alive, run_id="run", workers=1):
        self.send(control.SupervisorHello(1, run_id, workers, list(alive)))


class WorkerDouble(Peer):
    """Acknowledges everything it is told, and knows which projects it would poll."""

    name = "worker-1"

    def __init__(self, settings):
        super().__init__(settings)
        self.session = self.seq = 0
        self.projects = {}
        self.acknowledging = True
        self.beat = asyncio.create_task(self.beating())
        self.hello()

    def hello(self):
        self.send(control.Hello(self.name, "incarnation-1", 4711, "stream", 0))

    async def beating(self):
        while True:
            await asyncio.sleep(0.2)
            now_ms = time.time_ns() // 1_000_000
            stats = control.WorkerStats(executed=42, success=42)
            self.send(
                control.Heartbeat(
                    "incarnation-1", self.session, self.seq, stats, committed_at_ms=now_ms, oldest_ms=now_ms
                )
            )

    def on_frames(self, frames):
        message = control.decode_to_worker(frames[0])
        self.heard.append(message)
        match message:
            case control.WhoAreYou():
                self.hello()
                return
            case control.Reset():
                self.session = message.session
                self.projects = {}
            case control.Grant():
                for grant in message.partitions:
                    self.projects.update((spec.id, spec) for spec in grant.projects)
            case control.Upsert():
                self.projects.update((spec.id, spec) for spec in message.projects)
            case control.Remove():
                for removed in message.projects:
                    self.projects.pop(removed.project_id, None)
            case control.Limits():
                self.send(control.SliceReached(message.session, message.seq, message.slice))
        self.seq = message.seq
        if self.acknowledging:
            self.send(control.Ack(self.session, self.seq))

    def close(self):
        self.beat.cancel()
        super().close()


class Served:
    def __init__(self, data_dir, url):
        self.settings = Settings(
            data_dir=data_dir,
            database_url=url,
            workers=1,
            http=f"127.0.0.1:{free_port()}",
            name="coordinator",
            run_id="run",
            run_started_at_ms=time.time_ns() // 1_000_000 - 5_000,
        )
        self.peers = []
        self.task = None
        self.context = None
        self.service = None

    def start(self):
        self.settings.run_dir.mkdir(mode=0o700, exist_ok=True)
        self.context = RoleContext(self.settings)
        self.service = CoordinatorService(self.context, CoordinatorCore)
        self.task = asyncio.create_task(self.service.run())
        return self

    async def loaded(self):
        await until(lambda: self.service._source.loaded or self.task.done())
        assert not self.task.done()
        return self

    def peer(self, kind):
        self.peers.append(kind(self.settings))
        return self.peers[-1]

    async def running_with_worker(self):
        worker = self.peer(WorkerDouble)
        supervisor = self.peer(SupervisorDouble)
        supervisor.hello(control.ProcessAlive("worker-1", "incarnation-1", 4711))
        await until(lambda: any(isinstance(each, control.SnapshotEnd) for each in worker.heard), what="a snapshot")
        await until(lambda: self.service.view().partitions_assigned == 4096)
        return worker

    async def ask(self, **request):
        context = zmq.Context()
        replies = []
        channel = Channel(connect_dealer(context, self.settings.admin), lambda frames: replies.append(frames[-1]))
        try:
            channel.send(msgspec.json.encode(request))
            await until(lambda: replies)
            return msgspec.json.decode(replies[0])
        finally:
            channel.close()
            context.destroy(linger=0)

    async def stop(self):
        for peer in self.peers:
            peer.close()
        self.peers = []
        if self.context is not None:
            self.context.stop("the test ends")
        if self.task is not None:
            with contextlib.suppress(ClusterError):
                return await asyncio.wait_for(self.task, 20)
        return None


@pytest.fixture
async def served(tmp_path, database_url):
    made = []

    def make(url=database_url):
        made.append(Served(tmp_path, url))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


@pytest.fixture
async def sql(database_url):
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def test_from_the_table_to_a_worker_and_out_again(served, sql):
    await sql.execute("INSERT INTO projects (id, url) SELECT n, 'http://a/' || n FROM generate_series(1, 500) n")
    it = await served().start().loaded()
    worker = await it.running_with_worker()
    await until(lambda: len(worker.projects) == 500)

    reply = await it.ask(type="add", project={"url": "http://b/", "interval": "5s"})
    assert reply["type"] == "ok"
    await until(lambda: reply["id"] in worker.projects)
    assert await it.ask(type="remove", ids=[1, 2, reply["id"]]) == {
        "type": "ok",
        "ids": [1, 2, reply["id"]],
        "deleted": False,
    }
    assert not {1, 2, reply["id"]} & set(worker.projects)  # already at the reply
    assert (await it.ask(type="remove", ids=[3, 999_999]))["code"] == "unknown_project"
    assert 3 in worker.projects

    await sql.execute("DELETE FROM projects WHERE id = 4")
    await until(lambda: 4 not in worker.projects, timeout_s=1.0)
    await sql.execute("UPDATE projects SET timeout_ms = 5 WHERE id = 5")
    await until(lambda: worker.projects[5].timeout_ms == 5, timeout_s=1.0)

    status = (await it.ask(type="status"))["status"]
    assert (status["active_projects"], status["workers"][0]["name"]) == (497, "worker-1")
    await until(lambda: it.service.view().totals.executed == 42)
    assert status["uptime_s"] >= 5
    assert (await it.ask(type="reload"))["type"] == "ok"
    assert (await it.ask(type="scale", max_concurrent_http=50))["max_concurrent_http"] == 50
    assert it.service.view().max_concurrent_http == 50


async def test_a_removal_waits_for_the_workers_acknowledgement(served, sql):
    await sql.execute("INSERT INTO projects (id, url) VALUES (1, 'http://a/')")
    it = await served().start().loaded()
    worker = await it.running_with_worker()
    await until(lambda: 1 in worker.projects)
    worker.acknowledging = False
    removal = asyncio.create_task(it.ask(type="remove", ids=[1]))
    await until(lambda: 1 not in worker.projects)
    assert (await it.ask(type="status"))["type"] == "ok"
    assert not removal.done()
    worker.acknowledging = True
    worker.send(control.Ack(worker.session, worker.seq))
    assert (await removal)["type"] == "ok"


async def test_http_shows_the_cluster(served, sql):
    it = await served().start().loaded()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"http://{it.settings.http}/readyz") as answer:
            assert answer.status == 503
        async with http.get(f"http://{it.settings.http}/status") as answer:
            assert (await answer.json())["database"] == {"state": "up"}


async def test_malformed_control_messages_are_counted_and_ignored(served):
    it = await served().start().loaded()
    stranger = it.peer(Peer)
    bad = [b"", b"x", b"\xc1", b"\x81\xa4type\xa5hello", control.encode(control.WhoAreYou()), b"\x81" * 2_000]
    for body in bad:
        stranger.send(body)
    stranger.channel._socket.send_multipart([b"a", b"b"])
    await until(lambda: it.service.counts().refused["control_malformed"] == len(bad) + 1)
    stranger.send(b"x" * (MESSAGE_BYTES_MAX + 1))
    supervisor = it.peer(SupervisorDouble)
    supervisor.hello()
    await until(lambda: any(isinstance(each, control.CoordinatorHeartbeat) for each in supervisor.heard))
    assert it.service.counts().refused["control_malformed"] == len(bad) + 1


async def test_an_epoch_is_on_disk_before_a_worker_hears_of_it(served, tmp_path, monkeypatch):
    it = served().start()
    seen = []
    encode = control.encode

    def spy(message):
        if isinstance(message, control.Reset):
            seen.append((message.epoch, StateFile(tmp_path / "coordinator").load().epoch))
        return encode(message)

    monkeypatch.setattr(service_module.control, "encode", spy)
    await it.loaded()
    await it.running_with_worker()
    assert seen
    assert all(on_disk >= told > 0 for told, on_disk in seen)


async def test_a_stop_leaves_its_state_and_nothing_else(served, sql, tmp_path):
    await sql.execute("INSERT INTO projects (id, url) VALUES (1, 'http://a/')")
    it = await served().start().loaded()
    await it.running_with_worker()
    await until(lambda: it.service._core.horizon_ms() is not None)
    epoch = it.service.view().epoch
    assert await it.stop() == 0
    assert list(it.settings.run_dir.iterdir()) == []
    state = StateFile(tmp_path / "coordinator").load()
    assert (state.epoch, state.run_id) == (epoch, "run")
    assert sorted(each.name for each in (tmp_path / "coordinator").iterdir()) == ["projects.journal", "state.msgpack"]
    row = await sql.fetchrow("SELECT epoch, accounted_to FROM cluster_state")
    assert row["epoch"] == epoch
    assert row["accounted_to"] is not None


async def test_a_restart_goes_on_where_it_was(served, sql, tmp_path):
    it = await served().start().loaded()
    await it.running_with_worker()
    await until(lambda: it.service.view().totals.executed == 42)
    epoch = it.service.view().epoch
    await it.stop()
    again = served().start()
    seen = []

    async def shown():
        async with aiohttp.ClientSession() as http, http.get(f"http://{again.settings.http}/status") as answer:
            seen.append((await answer.json())["total_requests"] if answer.status == 200 else answer.status)

    async def loaded():
        with contextlib.suppress(aiohttp.ClientConnectorError):
            await shown()
        return again.service._source.loaded

    await until(loaded)
    await shown()
    assert set(seen) <= {503, 42}
    assert seen[-1] == 42
    assert again.service.view().totals.executed == 42
    await again.running_with_worker()
    assert again.service.view().epoch > epoch


async def test_a_lost_state_file_is_made_up_for_by_the_database(served, sql):
    await sql.execute("UPDATE cluster_state SET epoch = 77, accounted_to = 'epoch'::timestamptz + interval '1 s'")
    it = await served().start().loaded()
    assert it.service.view().epoch == 77
    state = it.service._core.durable(0)
    assert set(state.marks) == {999}


async def test_without_state_file_and_database_nothing_is_assigned(served, tmp_path, monkeypatch):
    it = served(AWAY).start()
    supervisor = it.peer(SupervisorDouble)

    async def answered():
        supervisor.hello()
        return supervisor.heard

    await until(answered)
    beat = supervisor.heard[0]
    assert (beat.phase, beat.database_up) == ("loading", False)
    monkeypatch.setattr(requests_module, "STARTING_S", 0.1)
    async with aiohttp.ClientSession() as http:
        for path in ("/readyz", "/status", "/metrics"):
            async with http.get(f"http://{it.settings.http}{path}") as answer:
                assert answer.status == 503, path
        async with http.get(f"http://{it.settings.http}/healthz") as answer:
            assert answer.status == 200
    assert (await it.ask(type="status"))["code"] == "starting"
    assert await it.stop() == 0
    assert StateFile(tmp_path / "coordinator").load() is None


async def test_with_its_files_a_cluster_starts_without_its_database(served, sql, tmp_path):
    await sql.execute("INSERT INTO projects (id, url) SELECT n, 'http://a/' || n FROM generate_series(1, 50) n")
    it = await served().start().loaded()
    await it.running_with_worker()
    await it.stop()
    again = await served(AWAY).start().loaded()
    worker = await again.running_with_worker()
    await until(lambda: len(worker.projects) == 50)
    status = (await again.ask(type="status"))["status"]
    assert status["database"] == {"state": "down"}
    assert (await again.ask(type="add", project={"url": "http://b/"}))["code"] == "database_unavailable"


async def test_a_damaged_state_file_is_replaced(served, tmp_path):
    directory = tmp_path / "coordinator"
    StateFile(directory).save(DurableState(epoch=5))
    (directory / "state.msgpack").write_bytes(b"rubbish")
    it = await served().start().loaded()
    await until(lambda: StateFile(directory).load() is not None)
    assert len(list(directory.glob("*.corrupt-*"))) == 1
    assert await it.stop() == 0


async def test_a_port_in_use_is_one_line_and_leaves_nothing(served, tmp_path):
    it = await served().start().loaded()
    other = Served(tmp_path / "other", it.settings.database_url)
    (tmp_path / "other").mkdir()
    other.settings = msgspec.structs.replace(other.settings, http=it.settings.http)
    other.start()
    with pytest.raises(ClusterError, match="the port is in use"):
        await other.task
    assert list(other.settings.run_dir.iterdir()) == []


async def test_no_database_is_said(tmp_path):
    with pytest.raises(ClusterError, match="--database-url"):
        CoordinatorService(RoleContext(Settings(data_dir=tmp_path)), CoordinatorCore)
