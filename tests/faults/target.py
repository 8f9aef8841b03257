"""The HTTP server that a cluster under faults polls: cheap, in a process of its own, and it writes down every request.

``python -m tests.faults.target FILE`` prints its port and serves until its standard input ends.  A request for
``/NUMBER`` or ``/NUMBER/DELAY_MS`` is the next one of project NUMBER; its answer is 200 with a body of
``body_bytes(n)`` bytes, where n counts the requests of that project from 0.  So the size in a row of ``poll_results``
names the request it came from, whatever the clocks of the cluster say.

FILE holds records of ``RECORD``: (instant in ns since the epoch, project number or STALL, value).  The value of a
request is the delay of its answer in µs, that of STALL how long this process was kept from running (the machine's
noise).
Its own clock is never stepped.
"""

import asyncio
import os
import struct
import sys
import time
from collections import defaultdict

import uvloop

RECORD = struct.Struct("<qii")
STALL = -1
BODIES = 512  # different sizes: a size is used again after so many requests of one project
STALL_SAMPLE_S = 0.01
WRITE_S = 0.02
HEAD_BYTES_MAX = 64 << 10
END_OF_HEAD = b"\r\n\r\n"


def body_bytes(request):
    return 1 + request % BODIES


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % body_bytes(n) + b"x" * body_bytes(n) for n in range(BODIES)
]


class RequestWriter:
    def __init__(self, loop, fd):
        self._loop = loop
        self._fd = fd
        self._waiting = bytearray()
        self.counts = defaultdict(int)  # requests by project

    def begin(self):
        self._sample(self._loop.time())
        self._write()

    def note(self, number, value):
        self._waiting += RECORD.pack(time.time_ns(), number, value)

    def _write(self):
        self.write()
        self._loop.call_later(WRITE_S, self._write)

    def write(self):
        while self._waiting:
            del self._waiting[: os.write(self._fd, self._waiting)]

    def _sample(self, expected_s):
        late_s = self._loop.time() - expected_s
        if late_s > STALL_SAMPLE_S:
            self.note(STALL, int(late_s * 1e6))
        self._loop.call_later(STALL_SAMPLE_S, self._sample, self._loop.time() + STALL_SAMPLE_S)


class PolledConnection(asyncio.Protocol):
    def __init__(self, loop, writer):
        self._loop = loop
        self._writer = writer
        self._transport = None
        self._rest = b""

    def connection_made(self, transport):
        self._transport = transport

    def connection_lost(self, _error):
        self._transport = None

    def data_received(self, data):
        self._rest += data
        while self._transport is not None:
            head, found, rest = self._rest.partition(END_OF_HEAD)
            if not found:
                if len(head) > HEAD_BYTES_MAX:
                    self._transport.abort()
                return
            self._rest = rest
            self._answer(head.split(b" ", 2)[1])

    def _answer(self, path):
        try:
            number, delay_ms, *_ = [int(part) for part in path[1:].split(b"/")] + [0]
        except ValueError:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        request = self._writer.counts[number]
        self._writer.counts[number] = request + 1
        self._writer.note(number, delay_ms * 1000)
        if delay_ms:
            self._loop.call_later(delay_ms / 1000, self._send, ANSWERS[request % BODIES])
        else:
            self._send(ANSWERS[request % BODIES])

    def _send(self, answer):
        if self._transport is not None:
            self._transport.write(answer)


async def serve(path):
    loop = asyncio.get_running_loop()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writer = RequestWriter(loop, fd)
    server = await loop.create_server(lambda: PolledConnection(loop, writer), "127.0.0.1", 0, backlog=4_096)
    writer.begin()
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()

    def on_input():
        if not os.read(0, 1_024):
            ended.set()

    loop.add_reader(0, on_input)
    await ended.wait()
    loop.remove_reader(0)
    server.close()
    writer.write()
    os.close(fd)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
