"""Channels over real sockets: order, floods, peers that are gone, queues that are full; on both event loops."""

import asyncio
import itertools
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import uvloop
import zmq

from cluster import sockets
from cluster.channel import DRAIN_MAX, DRAIN_S, Channel
from cluster.errors import ClusterError
from cluster.sockets import bind_router, check_endpoint, connect_dealer, remove_ipc_path

DEADLINE_S = 15.0


@pytest.fixture
def directory():
    path = Path(tempfile.mkdtemp(prefix="rp-"))  # short: the path of a socket has a limit
    yield path
    shutil.rmtree(path)


class Wire:
    """One server and its clients on one endpoint, with what arrived."""

    def __init__(self, directory):
        self.context = zmq.Context()
        self.endpoint = f"ipc://{directory}/wire.sock"
        self.changed = asyncio.Event()
        self.at_server = []
        self.at_client = []
        self.server = Channel(bind_router(self.context, self.endpoint), self._at_server)
        self.clients = []

    def _at_server(self, frames):
        self.at_server.append(frames)
        self.changed.set()

    def _at_client(self, frames):
        self.at_client.append(frames)
        self.changed.set()

    def client(self, on_frames=None):
        channel = Channel(connect_dealer(self.context, self.endpoint), on_frames or self._at_client)
        self.clients.append(channel)
        return channel

    async def until(self, condition):
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def close(self):
        for channel in [*self.clients, self.server]:
            channel.close()
        self.context.destroy(linger=0)


@pytest.fixture
async def wire(directory):
    wire = Wire(directory)
    yield wire
    wire.close()


async def test_messages_arrive_in_order_in_both_directions(wire):
    client = wire.client()
    bodies = [str(number).encode() for number in range(3_000)]
    assert all(client.send(body) for body in bodies)
    await wire.until(lambda: len(wire.at_server) == len(bodies))
    assert [frames[1] for frames in wire.at_server] == bodies
    peer = wire.at_server[0][0]
    assert all(wire.server.send(body, peer) for body in bodies)
    await wire.until(lambda: len(wire.at_client) == len(bodies))
    assert [frames[0] for frames in wire.at_client] == bodies


async def test_a_send_never_costs_the_message_that_arrives_meanwhile(wire):
    """The descriptor is edge-triggered: who sends must look again, or a conversation stops in the middle."""
    await ping_pong(wire, rounds=1_500)


def test_the_same_on_uvloop(directory):
    async def run():
        wire = Wire(directory)
        try:
            await ping_pong(wire, rounds=1_500)
        finally:
            wire.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def ping_pong(wire, rounds):
    count = 0

    def answer(frames):
        nonlocal count
        count += 1
        client.send(b"x")  # two for one now and then: both directions overlap
        if count % 7 == 0:
            client.send(b"y")
        wire.changed.set()

    def echo(frames):
        wire.server.send(frames[1], frames[0])

    wire.server._on_frames = echo
    client = wire.client(answer)
    client.send(b"x")
    await wire.until(lambda: count >= rounds)


async def test_a_large_message_arrives_whole(wire):
    client = wire.client()
    body = bytes(range(256)) * 4_096 * 4
    assert client.send(body)
    await wire.until(lambda: wire.at_server)
    assert wire.at_server[0][1] == body
    assert wire.server.send(body, wire.at_server[0][0])
    await wire.until(lambda: wire.at_client)
    assert wire.at_client[0] == [body]


async def test_nobody_is_told_that_an_unknown_peer_got_it(wire):
    assert wire.server.send(b"hello", b"nobody") is False


async def test_a_peer_that_left_is_noticed(wire):
    client = wire.client()
    client.send(b"hello")
    await wire.until(lambda: wire.at_server)
    peer = wire.at_server[0][0]
    client.close()
    async with asyncio.timeout(DEADLINE_S):
        while wire.server.send(b"still there?", peer):
            await asyncio.sleep(0.005)
    assert wire.server.send(b"still there?", peer) is False


async def test_a_full_queue_refuses_and_loses_nothing(wire):
    """What was accepted arrives, what was refused does not; the sender never waits."""
    reading = False

    def read_when_told(frames):
        assert reading
        wire.at_client.append(frames)
        wire.changed.set()

    client = wire.client(read_when_told)
    client.send(b"hello")
    await wire.until(lambda: wire.at_server)
    asyncio.get_running_loop().remove_reader(client._fd)  # a peer that hangs
    peer = wire.at_server[0][0]
    accepted = 0
    body = b"x" * 20_000
    while wire.server.send(body + str(accepted).encode(), peer):
        accepted += 1
        assert accepted < 100_000
    reading = True
    client._loop.add_reader(client._fd, client._drain)
    client._drain()
    await wire.until(lambda: len(wire.at_client) == accepted)
    assert [frames[0][20_000:] for frames in wire.at_client] == [str(number).encode() for number in range(accepted)]


async def test_a_flood_does_not_starve_the_loop(wire):
    """At most DRAIN_MAX messages are handed over before everybody else has a turn."""
    client = wire.client()
    client.send(b"ready")
    await wire.until(lambda: wire.at_server)
    wire.at_server.clear()
    turns = []
    total = 3_000

    def turn():
        turns.append(len(wire.at_server))
        if len(wire.at_server) < total:
            asyncio.get_running_loop().call_soon(turn)

    for number in range(total):
        assert client.send(str(number).encode())
    turn()
    await wire.until(lambda: len(wire.at_server) >= total)
    steps = [after - before for before, after in itertools.pairwise(turns)]
    assert max(steps) <= DRAIN_MAX


async def most_in_a_turn(wire, total, work_s):
    """How many of the messages, each of so much work, are handed over in one turn of the loop."""
    client = wire.client()
    client.send(b"ready")
    await wire.until(lambda: wire.at_server)
    wire.at_server.clear()
    turns = []

    def work(frames):
        until = time.monotonic() + work_s
        while time.monotonic() < until:
            pass
        wire._at_server(frames)

    def turn():
        turns.append(len(wire.at_server))
        if len(wire.at_server) < total:
            asyncio.get_running_loop().call_soon(turn)

    wire.server._on_frames = work
    for number in range(total):
        assert client.send(str(number).encode())
    turn()
    await wire.until(lambda: len(wire.at_server) == total)
    return max(after - before for before, after in itertools.pairwise(turns))


async def test_messages_that_take_long_leave_turns_to_the_loop(wire):
    """A row of large messages, each of some milliseconds' work, must not hold up timers until the last one is done."""
    assert await most_in_a_turn(wire, 10, DRAIN_S) == 1


async def test_no_turn_of_the_loop_is_given_to_more_than_two_milliseconds_of_messages(wire):
    assert await most_in_a_turn(wire, 20, 0.001) <= 2


async def test_what_is_malformed_is_handed_over_as_it_came(wire):
    """Counting and refusing is the receiver's business."""
    raw = wire.context.socket(zmq.DEALER)
    raw.setsockopt(zmq.LINGER, 0)
    raw.connect(wire.endpoint)
    raw.send_multipart([b"one", b"two", b"three"])
    raw.send_multipart([b"", b"body"])
    await wire.until(lambda: len(wire.at_server) == 2)
    raw.close()
    assert [frames[1:] for frames in wire.at_server] == [[b"one", b"two", b"three"], [b"", b"body"]]


async def test_a_reply_goes_out_with_its_envelope(wire):
    raw = wire.context.socket(zmq.REQ)
    raw.setsockopt(zmq.LINGER, 0)
    raw.connect(wire.endpoint)
    raw.send(b"question")
    await wire.until(lambda: wire.at_server)
    peer, empty, body = wire.at_server[0]
    assert (empty, body) == (b"", b"question")
    assert wire.server.reply([peer, b"", b"answer"])
    assert raw.poll(DEADLINE_S * 1_000)
    assert raw.recv() == b"answer"
    raw.close()
    assert wire.server.reply([b"nobody", b"", b"answer"]) is False


async def test_a_message_above_the_limit_costs_only_its_sender(directory, monkeypatch):
    monkeypatch.setattr(sockets, "MESSAGE_BYTES_MAX", 1_000)
    wire = Wire(directory)
    try:
        good, bad = wire.client(), wire.client()
        bad.send(b"x" * 5_000)
        good.send(b"small")
        await wire.until(lambda: wire.at_server)
        assert [frames[1] for frames in wire.at_server] == [b"small"]
        good.send(b"again")
        await wire.until(lambda: len(wire.at_server) == 2)
    finally:
        wire.close()


async def test_a_client_finds_the_servers_successor(directory):
    wire = Wire(directory)
    client = wire.client()
    client.send(b"one")
    await wire.until(lambda: wire.at_server)
    wire.server.close()
    wire.server = Channel(bind_router(wire.context, wire.endpoint), wire._at_server)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while [frames[1] for frames in wire.at_server][-1] != b"two":
                client.send(b"two")
                await asyncio.sleep(0.02)
    finally:
        wire.close()


async def test_closing_twice_or_while_reading_is_harmless(wire):
    def close_at_once(frames):
        client.close()
        wire.changed.set()

    client = wire.client(close_at_once)
    client.send(b"hello")
    await wire.until(lambda: wire.at_server)
    peer = wire.at_server[0][0]
    wire.server.send(b"one", peer)
    wire.server.send(b"two", peer)
    await wire.until(lambda: client._closed)
    client.close()
    assert client.send(b"late") is False
    assert client.reply([b"late"]) is False


# ---- endpoints ------------------------------------------------------------------------------------------------------


def test_a_path_that_is_too_long_is_said_before_zeromq_fails():
    with pytest.raises(ClusterError, match="choose a shorter --data-dir"):
        check_endpoint("ipc:///" + "d" * 150)
    check_endpoint("tcp://" + "d" * 150)


def test_a_port_in_use_is_one_line():
    context = zmq.Context()
    taken = context.socket(zmq.ROUTER)
    port = taken.bind_to_random_port("tcp://127.0.0.1")
    try:
        with pytest.raises(ClusterError, match=f"cannot listen on tcp://127.0.0.1:{port}") as caught:
            bind_router(context, f"tcp://127.0.0.1:{port}")
        assert caught.value.code == "endpoint_unavailable"
        assert "\n" not in str(caught.value)
    finally:
        taken.close()
        context.term()


def test_removing_the_path_of_an_endpoint_may_be_repeated(directory):
    path = directory / "left.sock"
    path.touch()
    remove_ipc_path(f"ipc://{path}")
    remove_ipc_path(f"ipc://{path}")
    remove_ipc_path("tcp://127.0.0.1:1")
    assert not path.exists()
