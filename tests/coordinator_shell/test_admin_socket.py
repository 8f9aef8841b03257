"""The admin socket over real ZeroMQ: envelopes, encodings, limits, and that nothing it is sent hurts it."""

import asyncio

import asyncpg
import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from cluster.channel import Channel
from cluster.config import OPTIONS
from cluster.errors import ClusterError, InvalidInputError
from cluster.messages.admin import REQUEST_TYPES, SLOTS_MAX, WORKERS_MAX, ScaleCluster, decode_request, is_json
from cluster.sockets import ADMIN_MESSAGE_BYTES_MAX, ADMIN_REQUEST_BYTES_MAX, bind_router
from coordinator import admin as admin_module
from coordinator import requests as requests_module
from coordinator.admin import AdminDesk
from coordinator.events import DrainRequested, ScaleRequested
from coordinator.project_rows import Applied
from coordinator.requests import RequestDesk, purge_results
from tests.coordinator_shell.test_status_document import view
from tests.coordinator_shell.waiting import until


class ProjectsDouble:
    def __init__(self):
        self.calls = []
        self.failure = None
        self.hold = None
        self.desk = None

    async def _called(self, *call):
        self.calls.append(call)
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure

    async def insert(self, fields):
        await self._called("insert", fields.url, fields.interval_ms)
        return 7

    async def enable(self, project_id):
        await self._called("enable", project_id)

    async def remove(self, ids, *, delete, token, requester, guard):
        await self._called("remove", ids, delete)
        if self.desk is not None:
            self.desk.confirm(token)

    async def reload(self):
        await self._called("reload")
        return Applied(added=[1, 2], removed=[3])


class Desk:
    """A desk on a socket of its own, and clients of it."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.projects = ProjectsDouble()
        self.events = []
        self.view = view()
        self.requests = RequestDesk(
            self.projects,
            self.events.append,
            lambda: self.view,
            "postgresql://nobody@127.0.0.1:1/x",
            supervised=True,
        )
        self.desk = AdminDesk(self.requests, lambda: {"epoch": 5})
        self.requests.open()
        self.projects.desk = self.requests
        self.context = zmq.Context()
        self.channel = Channel(bind_router(self.context, endpoint, admin=True), self.desk.on_frames)
        self.desk.attach(self.channel)
        self.clients = zmq.asyncio.Context()

    def client(self, kind):
        socket = self.clients.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self.endpoint)
        return socket

    async def ask(self, body, kind=zmq.REQ):
        """One request by a client of its own; a dict travels as JSON."""
        socket = self.client(kind)
        try:
            await socket.send(body if isinstance(body, bytes) else msgspec.json.encode(body))
            reply = await asyncio.wait_for(socket.recv(), 10)
            return msgspec.json.decode(reply) if reply[:1] == b"{" else msgspec.msgpack.decode(reply)
        finally:
            socket.close()

    async def close(self):
        await self.desk.close()
        await self.requests.close()
        self.channel.close()
        self.clients.destroy(linger=0)
        self.context.destroy(linger=0)


@pytest.fixture
async def desk(tmp_path):
    made = Desk(f"ipc://{tmp_path}/admin.sock")
    yield made
    await made.close()


# ---- envelopes and encodings ------------------------------------------------------------------------------------


async def test_a_req_client_in_json_and_in_msgpack(desk):
    assert await desk.ask({"type": "status"}) == {"type": "ok", "status": {"epoch": 5}}
    socket = desk.client(zmq.REQ)
    await socket.send(msgspec.msgpack.encode({"type": "status"}))
    assert msgspec.msgpack.decode(await socket.recv()) == {"type": "ok", "status": {"epoch": 5}}
    await socket.send(b' \n\t{"type":"status"}')
    assert msgspec.json.decode(await socket.recv())["type"] == "ok"
    socket.close()


async def test_dealer_clients_get_the_envelope_they_used(desk):
    socket = desk.client(zmq.DEALER)
    body = b'{"type":"status"}'
    for envelope in ([], [b""], [b"hop", b""]):
        await socket.send_multipart([*envelope, body])
        *received, reply = await asyncio.wait_for(socket.recv_multipart(), 10)
        assert received == envelope
        assert msgspec.json.decode(reply)["type"] == "ok"
    socket.close()


async def test_replies_find_the_client_that_asked(desk):
    desk.projects.hold = asyncio.Event()
    slow = asyncio.create_task(desk.ask({"type": "add", "id": 3}))
    await until(lambda: desk.projects.calls)
    assert "status" in await desk.ask({"type": "status"})
    desk.projects.hold.set()
    assert await slow == {"type": "ok", "id": 3}


# ---- requests ---------------------------------------------------------------------------------------------------


async def test_each_request_is_carried_out(desk):
    assert await desk.ask({"type": "add", "project": {"url": "http://a/", "interval": "5m"}}) == {"type": "ok", "id": 7}
    assert await desk.ask({"type": "add", "id": 9}) == {"type": "ok", "id": 9}
    reply = await desk.ask({"type": "remove", "ids": [3, 1, 3], "delete": True})
    assert reply == {"type": "ok", "ids": [1, 3], "deleted": True}
    assert await desk.ask({"type": "reload"}) == {"type": "ok", "added": 2, "changed": 0, "removed": 1}
    assert await desk.ask({"type": "drain", "worker": "worker-2"}) == {"type": "ok", "worker": "worker-2"}
    reply = await desk.ask({"type": "scale", "workers": 4})
    assert reply == {"type": "ok", "workers": 2, "max_concurrent_http": 500}
    assert desk.projects.calls == [
        ("insert", "http://a/", 300_000),
        ("enable", 9),
        ("remove", [1, 3], True),
        ("reload",),
    ]
    assert desk.events == [DrainRequested("worker-2"), ScaleRequested(4, None)]
    assert desk.desk.requests_ok == 6


@pytest.mark.parametrize(
    ("request_map", "code", "named"),
    [
        ({"type": "nonsense"}, "unknown_type", "status"),
        ({}, "unknown_type", "add"),
        ({"type": 7}, "unknown_type", "7"),
        ({"type": ["add"]}, "unknown_type", "add"),
        ({"type": "status", "more": 1}, "invalid_request", "more"),
        ({"type": "add"}, "invalid_request", "project or id"),
        ({"type": "add", "id": 1, "project": {"url": "http://a/"}}, "invalid_request", "project or id"),
        ({"type": "add", "id": "1"}, "invalid_request", "$.id"),
        ({"type": "add", "id": 1 << 63}, "invalid_request", "$.id"),
        ({"type": "add", "project": {"url": "ftp://a/"}}, "invalid_request", "url"),
        ({"type": "add", "project": {"url": "http://a/", "colour": 1}}, "invalid_request", "colour"),
        ({"type": "add", "project": {}}, "invalid_request", "url"),
        ({"type": "add", "project": []}, "invalid_request", "$.project"),
        ({"type": "remove"}, "invalid_request", "ids"),
        ({"type": "remove", "ids": []}, "invalid_request", "$.ids"),
        ({"type": "remove", "ids": list(range(10_001))}, "invalid_request", "$.ids"),
        ({"type": "remove", "ids": [1.5]}, "invalid_request", "$.ids"),
        ({"type": "remove", "ids": [1], "delete": 1}, "invalid_request", "$.delete"),
        ({"type": "remove", "ids": [1], "purge": True}, "invalid_request", "delete"),
        ({"type": "scale"}, "invalid_request", "workers"),
        ({"type": "scale", "workers": 0}, "invalid_request", "$.workers"),
        ({"type": "scale", "workers": 257}, "invalid_request", "$.workers"),
        ({"type": "scale", "max_concurrent_http": 0}, "invalid_request", "$.max_concurrent_http"),
        ({"type": "scale", "max_concurrent_http": 100_001}, "invalid_request", "$.max_concurrent_http"),
        ({"type": "scale", "workers": True}, "invalid_request", "$.workers"),
        ({"type": "drain"}, "invalid_request", "worker"),
        ({"type": "drain", "worker": "worker-9"}, "unknown_worker", "worker-9"),
    ],
)
async def test_a_bad_request_is_refused_by_name_and_changes_nothing(desk, request_map, code, named):
    reply = await desk.ask(request_map)
    assert (reply["type"], reply["code"]) == ("error", code)
    assert named in reply["message"]
    assert "\n" not in reply["message"]
    assert desk.projects.calls == []
    assert desk.events == []


async def test_the_last_worker_is_not_drained(desk):
    desk.view = view(workers_wanted=1)
    reply = await desk.ask({"type": "drain", "worker": "worker-1"})
    assert reply["code"] == "last_worker"
    assert desk.events == []


async def test_without_a_supervisor_nobody_can_scale_workers(desk):
    desk.requests._supervised = False
    for workers in ({"workers": 4}, {"workers": 4, "max_concurrent_http": 5}):
        reply = await desk.ask({"type": "scale", **workers})
        assert reply["code"] == "no_supervisor"
        assert "cluster worker" in reply["message"]
    assert desk.events == []
    assert (await desk.ask({"type": "scale", "max_concurrent_http": 5}))["type"] == "ok"
    assert desk.events == [ScaleRequested(None, 5)]


async def test_before_there_is_a_core_requests_wait_for_a_while(desk, monkeypatch):
    desk.requests._opened.clear()
    early = asyncio.create_task(desk.ask({"type": "add", "id": 3}))
    await until(lambda: desk.desk._tasks)
    desk.requests.open()
    assert await early == {"type": "ok", "id": 3}
    desk.requests._opened.clear()
    monkeypatch.setattr(requests_module, "STARTING_S", 0.05)
    for request in ({"type": "status"}, {"type": "add", "id": 4}, {"type": "scale", "workers": 3}):
        reply = await desk.ask(request)
        assert (reply["type"], reply["code"]) == ("error", "starting")
    assert desk.projects.calls == [("enable", 3)]
    assert desk.events == []


async def test_failures_keep_their_code(desk):
    desk.projects.failure = ClusterError("no such thing", code="unknown_project")
    reply = await desk.ask({"type": "add", "id": 3})
    assert reply == {"type": "error", "code": "unknown_project", "message": "no such thing"}


async def test_a_removal_is_answered_when_it_is_confirmed(desk, monkeypatch):
    desk.projects.desk = None
    removal = asyncio.create_task(desk.ask({"type": "remove", "ids": [1]}))
    await until(lambda: desk.projects.calls)
    await desk.ask({"type": "status"})
    assert not removal.done()
    (token,) = desk.requests._confirmations
    desk.requests.confirm(token + 1)  # somebody else's
    desk.requests.confirm(token)
    desk.requests.confirm(token)
    assert (await removal)["type"] == "ok"
    assert desk.requests._confirmations == {}
    monkeypatch.setattr(requests_module, "CONFIRM_S", 0.05)
    reply = await desk.ask({"type": "remove", "ids": [1]})
    assert reply["code"] == "timeout"
    assert "stored" in reply["message"]
    assert desk.requests._confirmations == {}


async def test_a_request_that_takes_too_long(desk, monkeypatch):
    monkeypatch.setattr(admin_module, "ANSWER_S", 0.05)
    desk.projects.hold = asyncio.Event()
    reply = await desk.ask({"type": "add", "id": 1})
    assert reply["code"] == "timeout"


async def test_too_many_at_once_are_told_so(desk, monkeypatch):
    monkeypatch.setattr(admin_module, "REQUESTS_MAX", 3)
    desk.projects.hold = asyncio.Event()
    waiting = [asyncio.create_task(desk.ask({"type": "add", "id": each})) for each in range(3)]
    await until(lambda: len(desk.projects.calls) == 3)
    assert (await desk.ask({"type": "status"}))["code"] == "busy"
    desk.projects.hold.set()
    assert all(reply["type"] == "ok" for reply in await asyncio.gather(*waiting))
    assert (await desk.ask({"type": "status"}))["type"] == "ok"


async def test_a_client_that_left_costs_nothing(desk):
    desk.projects.hold = asyncio.Event()
    socket = desk.client(zmq.DEALER)
    await socket.send(b'{"type":"add","id":1}')
    await until(lambda: desk.projects.calls)
    socket.close()
    assert (await desk.ask({"type": "status"}))["type"] == "ok"

    async def noticed():
        desk.projects.hold.set()
        return desk.desk.replies_lost or desk.desk.requests_ok == 2

    await until(noticed)


# ---- bad frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{}x",
        b'{"type": "status"',
        b'{"a":' * 5_000,
        b"\x80" * 10,
        b"\x81",
        b"\x93\x01\x02\x03",
        b"\xdf\xff\xff\xff\xff",
        b"\xc1",
        b"\x81\xa4type\xa3\xff\xfe\xfd",
        b"\x81\x92\x01\x02\x03",
        b"\x81" * 5_000,
        b"\xde\xad\xbe\xef",
        bytes(range(256)),
        b"x" * (ADMIN_REQUEST_BYTES_MAX - 1),
    ],
)
async def test_malformed_bodies_are_answered(desk, body):
    reply = await desk.ask(body, zmq.REQ)
    assert reply["type"] == "error"
    assert reply["code"] in {"malformed", "unknown_type"}
    assert (await desk.ask({"type": "status"}))["type"] == "ok"


async def test_malformed_envelopes_are_answered(desk):
    socket = desk.client(zmq.DEALER)
    for frames in ([b"a", b"b"], [b"", b"a", b"b"], [b"", b""], [b"x"] * 100, [b""] * 50):
        await socket.send_multipart(frames)
        reply = (await asyncio.wait_for(socket.recv_multipart(), 10))[-1]
        assert msgspec.json.decode(reply)["code"] == "malformed"
    socket.close()
    assert (await desk.ask({"type": "status"}))["type"] == "ok"


@pytest.mark.parametrize("size", [ADMIN_REQUEST_BYTES_MAX + 1, ADMIN_MESSAGE_BYTES_MAX])
@pytest.mark.parametrize("as_json", [True, False])
async def test_a_request_that_is_too_large_is_refused_in_words(desk, size, as_json):
    body = b'{"type":"status"}' if as_json else msgspec.msgpack.encode({"type": "status"})
    socket = desk.client(zmq.DEALER)
    await socket.send_multipart([b"hop", b"", body.ljust(size, b" ")])
    hop, empty, reply = await asyncio.wait_for(socket.recv_multipart(), 10)
    decoded = msgspec.json.decode(reply) if as_json else msgspec.msgpack.decode(reply)
    assert (hop, empty, decoded["code"]) == (b"hop", b"", "invalid_request")
    assert decoded["message"] == f"the request is larger than {ADMIN_REQUEST_BYTES_MAX} bytes"
    await socket.send(body)  # on the same connection
    assert await asyncio.wait_for(socket.recv(), 10)
    assert (desk.desk.requests_refused, desk.desk.requests_ok) == (1, 1)
    socket.close()


async def test_an_oversized_message_only_costs_its_sender_the_connection(desk):
    socket = desk.client(zmq.DEALER)
    await socket.send(b"{" + b" " * ADMIN_MESSAGE_BYTES_MAX + b"}")
    assert (await desk.ask({"type": "status"}))["type"] == "ok"
    assert desk.desk.requests_refused == 0
    await socket.send(b'{"type":"status"}')  # it has reconnected
    assert msgspec.json.decode(await asyncio.wait_for(socket.recv(), 10))["type"] == "ok"
    socket.close()


def refusal(body):
    """The code with which a body is refused; None when it is a request."""
    try:
        decode_request(body)
    except InvalidInputError as error:
        return error.code
    return None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(body):
    assert refusal(body) in {None, "malformed", "unknown_type", "invalid_request"}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(["ids", "id", "project", "delete", "purge", "workers", "max_concurrent_http", "worker"])


@given(st.dictionaries(_FIELDS, _VALUES, max_size=4), st.sampled_from(REQUEST_TYPES))
def test_any_fields_are_a_request_or_an_error(fields, kind):
    assert refusal(msgspec.msgpack.encode({"type": kind, **fields})) in {None, "invalid_request"}


def test_the_bounds_are_those_of_the_configuration():
    bounds = {option.name: option.high for option in OPTIONS}
    assert (bounds["workers"], bounds["max_concurrent_http"]) == (WORKERS_MAX, SLOTS_MAX)


def test_the_first_byte_says_which_encoding():
    assert is_json(b"{}")
    assert is_json(b" {}")
    assert is_json(b"")
    assert not is_json(msgspec.msgpack.encode({"type": "status"}))
    assert not is_json(msgspec.msgpack.encode({str(each): each for each in range(20)}))
    assert decode_request(b'\n{"type": "scale", "workers": 3}') == ScaleCluster(workers=3)


# ---- purge ------------------------------------------------------------------------------------------------------


async def test_a_purge_removes_what_is_known_of_these_projects_only(database_url, monkeypatch):
    monkeypatch.setattr(requests_module, "PURGE_ROWS", 10)
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE a_day PARTITION OF poll_results DEFAULT")
    await connection.execute("INSERT INTO projects (id, url) SELECT n, 'http://a/' FROM generate_series(1, 3) n")
    await connection.execute(
        "INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, worker, epoch) "
        "SELECT p, now() + n * interval '1 s', now(), 'tick', 'success', 'w', 1 "
        "FROM generate_series(1, 3) p, generate_series(1, 35) n"
    )
    await connection.execute(
        "INSERT INTO missed_polls SELECT p, now(), now(), 1, 'down', 'w', 1 FROM generate_series(1, 3) p"
    )
    await connection.execute(
        "INSERT INTO state_changes (project_id, changed_at, state, began_at, polls) "
        "SELECT p, now() + n * interval '1 s', 'down', now(), 1 FROM generate_series(1, 3) p, generate_series(1, 15) n"
    )
    rollups = {"minutes": "1 minute", "hours": "1 hour", "quarters": "6 hours", "days": "1 day", "weeks": "7 days"}
    for name, every in rollups.items():
        await connection.execute(
            f"INSERT INTO rollup_{name} (at, project_id, polls, success, failure, unknown, sum_ms "
            f"{', by_minute' if name == 'hours' else ''}) SELECT at, p, 1, 1, 0, 0, 5 "
            f"{', true' if name == 'hours' else ''} FROM generate_series(1, 3) p, "
            f"generate_series(timestamptz '2026-01-05Z', timestamptz '2026-02-05Z', interval '{every}') at "
            "WHERE random() < 0.7 OR at = '2026-01-05Z'"
        )
    await connection.execute("DELETE FROM projects WHERE id < 3")
    await purge_results(database_url, [1, 2])
    for table in ("poll_results", "missed_polls", "project_spans", "state_changes", *(f"rollup_{n}" for n in rollups)):
        rows = await connection.fetch(f"SELECT DISTINCT project_id FROM {table}")
        assert [row[0] for row in rows] == [3], table
    await connection.close()


async def test_a_purge_without_its_database_is_told(desk, caplog):
    reply = await desk.ask({"type": "remove", "ids": [1], "delete": True, "purge": True})
    assert reply == {"type": "ok", "ids": [1], "deleted": True, "purged": True}
    assert "not purged" in caplog.text
