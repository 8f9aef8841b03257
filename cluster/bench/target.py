"""The cheapest HTTP target: HTTP/1.1 with keep-alive on loopback, a fixed answer, little CPU per request.

``python -m cluster.bench.target [MILLISECONDS]`` prints its port and serves until its standard input ends; it answers
after so many milliseconds, or at once.  Requests have no body; a request for ``/count`` is answered with the number of
all others.  It looks at nothing but the end of a request's head.
"""

import asyncio
import os
import sys
from typing import cast

import uvloop

from cluster.runtime import raise_descriptor_limit

HEAD_BYTES_MAX = 64 << 10
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
END_OF_HEAD = b"\r\n\r\n"


class Requests:
    def __init__(self) -> None:
        self.answered = 0


class TargetProtocol(asyncio.Protocol):
    def __init__(self, requests: Requests, latency_s: float = 0.0) -> None:
        self._requests = requests
        self._latency_s = latency_s
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if data.startswith(b"GET /count "):
            body = b"%d" % self._requests.answered
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        heads = data.count(END_OF_HEAD)
        if not data.endswith(END_OF_HEAD):
            self._rest = data.rpartition(END_OF_HEAD)[2]
            if len(self._rest) > HEAD_BYTES_MAX:
                transport.abort()
                return
        if heads:
            self._requests.answered += heads
            if self._latency_s:
                asyncio.get_running_loop().call_later(self._latency_s, self._answer, heads)
            else:
                transport.write(ANSWER * heads)

    def _answer(self, heads: int) -> None:
        if self._transport is not None:
            self._transport.write(ANSWER * heads)


async def serve(latency_s: float) -> None:
    raise_descriptor_limit()
    loop = asyncio.get_running_loop()
    requests = Requests()
    server = await loop.create_server(lambda: TargetProtocol(requests, latency_s), "127.0.0.1", 0, backlog=4_096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended = asyncio.Event()

    def on_input() -> None:
        if not os.read(0, 1_024):
            ended.set()

    loop.add_reader(0, on_input)
    await ended.wait()
    loop.remove_reader(0)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1]) / 1_000 if len(sys.argv) > 1 else 0.0))
