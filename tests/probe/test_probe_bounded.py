"""What a server can make a poll read is bounded, whatever it calls it."""

import asyncio

import pytest
from probe_scripts import Peer, SilentTransport, answer

from worker.probe.connection import INFORMATIONAL_MAX, Connection
from worker.probe.request import origin_of

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TIMEOUT_MS = 8_000


@pytest.mark.parametrize(
    ("begin", "piece", "size_max"),
    [
        (b"", b"1\r\nx\r\n", 1 << 18),
        (b"", b"1;" + b"e" * 1_000 + b"\r\nx\r\n", 1 << 10),
        (b"1;", b"e" * 1_000, 0),
    ],
    ids=["tiny chunks", "long extensions", "an extension without end"],
)
async def test_framing_without_end_ends_the_reading(serve, poll, begin, piece, size_max):
    sent = 0

    async def endless(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        peer.send(CHUNKED + begin)
        many = piece * (65_536 // len(piece))
        while True:
            peer.send(many)
            await peer.writer.drain()
            sent += len(many)

    server = await serve(endless)
    outcome = await poll(server.url(), timeout_ms=TIMEOUT_MS)
    assert (outcome.status, outcome.status_code, outcome.error_code) == ("success", 200, None)
    assert outcome.size_bytes <= size_max
    assert outcome.response_time_ms < TIMEOUT_MS / 2
    assert sent < 64 << 20  # most of it waited in the system's buffers


async def test_a_body_in_small_chunks_is_read_to_its_end(serve, poll):
    body = b"".join(b"40\r\n" + b"x" * 64 + b"\r\n" for _ in range(15_000)) + b"0\r\n\r\n"
    server = await serve(CHUNKED + body)
    outcome = await poll(server.url())
    assert (outcome.status, outcome.size_bytes) == ("success", 64 * 15_000)


@pytest.mark.parametrize(
    ("one", "messages_max"),
    [(answer(200, b"ok"), 1_000), (b"HTTP/1.1 103 Early Hints\r\n\r\n", 1_000)],
    ids=["answers", "informational answers"],
)
async def test_of_a_packet_full_of_answers_only_the_beginning_is_read(one, messages_max):
    taken = []

    class Counting(Connection):
        def feed_data(self, data, size=0):
            taken.append(data)
            super().feed_data(data, size)

    connection = Counting(asyncio.get_running_loop(), origin_of("http", "127.0.0.1", 80))
    connection.connection_made(SilentTransport())
    connection.send(b"GET / HTTP/1.1\r\n\r\n", without_body=False)
    connection.data_received(one * 20_000)
    assert INFORMATIONAL_MAX <= len(taken) < messages_max
    message, _ = await connection.read()
    assert message.code in {200, 103}
    assert not connection.keep
    connection.connection_lost(None)
