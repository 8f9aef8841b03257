"""Targets that mean harm, in a process of their own: ``python -m tests.truth.hostile_target``.

It prints one line of JSON, ``{"port": N, "sockets": {name: port}}``, and serves until its standard input ends.

``http://127.0.0.1:PORT/NAME/...`` reads the request and then does what ``BEHAVIOURS`` says under that name.  What is
wrong before any request has a port of its own, named in ``SOCKETS``.  What never ends is sent as fast as the client
reads, in pieces no larger than a socket takes: a client that stops reading costs it nothing.
"""

import asyncio
import contextlib
import gzip
import json
import os
import socket
import struct
import sys

import uvloop

from tests.probe.probe_scripts import mute_port

PIECE_BYTES = 65_536
BIG_BYTES = 200 << 20
TRICKLE_S = 1.0
READ_S = 0.05  # for what was sent to be read: a reset overtakes it
BACKLOG = 4_096
OK = b"HTTP/1.1 200 OK\r\n"


class Client:
    """One connection, from the side that means harm."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def request(self):
        return await self.reader.readuntil(b"\r\n\r\n")

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()
        await asyncio.sleep(0)  # a socket that takes all of it would keep every other client waiting

    async def forever(self, piece):
        piece *= max(1, PIECE_BYTES // len(piece))
        while True:
            await self.send(piece)

    async def trickle(self, data):
        for byte in data:
            await self.send(bytes([byte]))
            await asyncio.sleep(TRICKLE_S)

    async def silence(self):
        """Until the client has gone."""
        while await self.reader.read(PIECE_BYTES):
            pass

    def reset(self):
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


# ---- after a request -----------------------------------------------------------------------------------------------


async def endless_headers(client):
    await client.send(OK)
    await client.forever(b"X-More: and more\r\n")


async def endless_short_headers(client):
    await client.send(OK)
    await client.forever(b"a:\r\n")


async def endless_line(client):
    await client.send(OK + b"X-Long: ")
    await client.forever(b"a" * PIECE_BYTES)


async def endless_status_line(client):
    await client.send(b"HTTP/1.1 200 ")
    await client.forever(b"O" * PIECE_BYTES)


async def slow_head(client):
    await client.trickle(OK + b"X-Slow: " + b"s" * 1_000)


async def slow_body(client):
    await client.send(OK + b"Content-Length: 1000\r\n\r\n")
    await client.trickle(b"s" * 1_000)


async def tiny_chunks(client):
    await client.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    await client.forever(b"1\r\nx\r\n")


async def endless_extension(client):
    await client.send(OK + b"Transfer-Encoding: chunked\r\n\r\n1;")
    await client.forever(b"e" * PIECE_BYTES)


async def endless_trailers(client):
    await client.send(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")
    await client.forever(b"X-More: and more\r\n")


async def huge_chunk(client):
    await client.send(OK + b"Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n")
    await client.forever(b"h" * PIECE_BYTES)


async def impossible_chunk(client):
    await client.send(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n")
    await client.silence()


async def big_body(client):
    await client.send(OK + b"Content-Length: %d\r\n\r\n" % BIG_BYTES)
    for _ in range(BIG_BYTES // PIECE_BYTES):
        await client.send(b"b" * PIECE_BYTES)


async def endless_body(client):
    await client.send(OK + b"\r\n")
    await client.forever(b"b" * PIECE_BYTES)


async def gzip_bomb(client):
    await client.send(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB)


async def chunked_gzip_bomb(client):
    head = OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.send(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BOMB), BOMB))


async def redirect_loop(client):
    location = b"Location: /redirect_loop/again\r\n"
    await client.send(b"HTTP/1.1 302 Found\r\n" + location + b"Content-Length: 0\r\n\r\n")


async def informational(client):
    await client.forever(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")


async def garbage(client):
    await client.send(bytes(range(128, 256)) * 8)
    await client.silence()


async def garbage_after(client):
    await client.send(OK + b"Content-Length: 2\r\n\r\nok")
    await client.forever(bytes(range(128, 256)))


async def many_answers(client):
    await client.forever(OK + b"Content-Length: 2\r\n\r\nok")


async def other_protocol(client):
    await client.send(b"SSH-2.0-OpenSSH_9.9\r\n")
    await client.silence()


async def two_lengths(client):
    await client.send(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok")
    await client.silence()


async def hang(client):
    await client.silence()


async def close_unanswered(client):
    client.writer.close()


async def reset_unanswered(client):
    client.reset()


async def close_in_body(client):
    await client.send(OK + b"Content-Length: 100\r\n\r\nnot all")
    client.writer.close()


async def reset_in_body(client):
    await client.send(OK + b"Content-Length: 100\r\n\r\nnot all")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(client.silence(), READ_S)
    client.reset()


async def close_in_head(client):
    await client.send(OK + b"Content-Le")
    client.writer.close()


# ---- before any request ----------------------------------------------------------------------------------------------


async def silent(client):
    await client.silence()


async def trickled_handshake(client):
    await client.trickle(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + b"\x03" * 1_000)


async def endless_handshake(client):
    """Warnings without end: each is a record that TLS has to read."""
    await client.forever(b"\x15\x03\x03\x00\x02\x01\x5a")


async def no_tls(client):
    await client.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await client.silence()


async def close_at_once(_client):
    return


async def reset_at_once(client):
    client.reset()


async def answer_at_once(client):
    await client.send(OK + b"Content-Length: 2\r\n\r\nok")
    await client.silence()


# Of each: how its polls may end.  None is a success.
BEHAVIOURS = {
    endless_headers: {"protocol"},
    endless_short_headers: {"protocol"},
    endless_line: {"protocol"},
    endless_status_line: {"protocol"},
    slow_head: {"read_timeout"},
    slow_body: {"read_timeout"},
    tiny_chunks: {None},
    endless_extension: {None, "protocol"},
    endless_trailers: {None, "protocol"},
    huge_chunk: {None},
    impossible_chunk: {"protocol"},
    big_body: {None},
    endless_body: {None},
    gzip_bomb: {None},
    chunked_gzip_bomb: {None},
    redirect_loop: {"too_many_redirects"},
    informational: {"protocol"},
    garbage: {"protocol"},
    garbage_after: {None},
    many_answers: {None},
    other_protocol: {"protocol"},
    two_lengths: {"protocol"},
    hang: {"read_timeout"},
    close_unanswered: {"closed", "reset"},
    reset_unanswered: {"reset"},
    close_in_body: {"closed"},
    reset_in_body: {"reset"},
    close_in_head: {"closed"},
}
SOCKETS = {
    silent: ("https", {"connect_timeout"}),
    trickled_handshake: ("https", {"connect_timeout"}),
    endless_handshake: ("https", {"tls_other", "connect_timeout"}),
    no_tls: ("https", {"tls_other"}),
    close_at_once: ("http", {"closed", "reset"}),
    reset_at_once: ("http", {"reset", "closed"}),
    answer_at_once: ("http", {None, "read_timeout"}),  # which answers no request that follows
}
NOT_ACCEPTING = "not_accepting"  # a port whose queue is full for good
ENDS = (
    {behaviour.__name__: ends for behaviour, ends in BEHAVIOURS.items()}
    | {behaviour.__name__: ends for behaviour, (_, ends) in SOCKETS.items()}
    | {NOT_ACCEPTING: {"connect_timeout"}}
)
BY_NAME = {behaviour.__name__: behaviour for behaviour in BEHAVIOURS}
BOMB = gzip.compress(bytes(BIG_BYTES), 9) if __name__ == "__main__" else b""


async def serve_requests(client):
    while not client.writer.is_closing():
        request = await client.request()
        await BY_NAME[request.split(b" ", 2)[1].split(b"/")[1].decode()](client)


def serving(behaviour):
    async def serve_client(reader, writer):
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await behaviour(Client(reader, writer))
        except RuntimeError:  # what uvloop says of a write to a connection that its client has reset
            if not writer.is_closing():
                raise
        finally:
            writer.close()

    return serve_client


async def main():
    sockets = {}
    servers = [await asyncio.start_server(serving(serve_requests), "127.0.0.1", 0, backlog=BACKLOG)]
    for behaviour in SOCKETS:
        servers.append(await asyncio.start_server(serving(behaviour), "127.0.0.1", 0, backlog=BACKLOG))
        sockets[behaviour.__name__] = servers[-1].sockets[0].getsockname()[1]
    with mute_port() as sockets[NOT_ACCEPTING]:
        sys.stdout.write(json.dumps({"port": servers[0].sockets[0].getsockname()[1], "sockets": sockets}) + "\n")
        sys.stdout.flush()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(0, lambda: os.read(0, 1_024) or ended.set())
        await ended.wait()
        loop.remove_reader(0)
        for server in servers:
            server.close()


if __name__ == "__main__":
    uvloop.run(main())
