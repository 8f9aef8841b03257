"""A local HTTP server that remembers every request: what integration tests believe instead of the cluster's own words.

    /ok/TAG           200 at once                  /status/N/TAG     status N at once
    /delay/MS/TAG     200 after MS milliseconds    /hang/TAG         no answer before ``release``
    /fail/N/TAG       500 to the first N, then 200

It runs in a thread and loop of its own, so that a test that waits doesn't stop it.  A request counts as in flight from
its last byte received until its answer is written or its connection is lost; the client sees the end later, so what is
counted here is never above what the client has in flight.  It also measures how long its own loop was stalled: what
the machine, and not the cluster, adds to a gap.
"""

import asyncio
import itertools
import threading
import time
from collections import defaultdict

import uvloop

STALL_SAMPLE_S = 0.01


class Target:
    """Usable as a context manager.  All instants are ``time.time()``."""

    def __init__(self):
        self.port = 0
        self.in_flight = 0
        self.arrivals = defaultdict(list)  # by tag
        self.levels = []  # (instant, requests in flight) at each arrival: every maximum is here
        self.stalls = []  # (instant, seconds) of the loop's own delays above a sample
        self._connections = set()
        self._ready = threading.Event()
        self._released = None
        self._loop = None
        self._stop = None
        self._thread = threading.Thread(target=self._run, name="target", daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10), "the target did not start"
        return self

    def __exit__(self, *_exc):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    # ---- what tests ask -------------------------------------------------------------------------------------------

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def count(self, tag):
        return len(self.arrivals.get(tag, ()))

    def counts(self, tags):
        return {tag: self.count(tag) for tag in tags}

    def total(self):
        return sum(len(times) for times in list(self.arrivals.values()))

    def since(self, tag, instant):
        return [at for at in list(self.arrivals.get(tag, ())) if at >= instant]

    def widest_gap(self, tag, since, until):
        """The longest time without a request in [since, until], counted from the window's ends, too."""
        times = [since, *(at for at in list(self.arrivals.get(tag, ())) if since < at < until), until]
        return max(after - before for before, after in itertools.pairwise(times))

    def peak(self, since, until=float("inf")):
        return max((level for at, level in list(self.levels) if since <= at <= until), default=0)

    def stall_s(self, since, until=float("inf")):
        """The worst stall of a process that does nearly nothing: the machine's noise."""
        return max((seconds for at, seconds in list(self.stalls) if since <= at <= until), default=0.0)

    def release(self):
        self._loop.call_soon_threadsafe(self._released.set)

    # ---- its thread -----------------------------------------------------------------------------------------------

    def _run(self):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._stop, self._released = asyncio.Event(), asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        self._sample(self._loop.time())
        self._ready.set()
        await self._stop.wait()
        server.close()
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            await asyncio.sleep(0)

    def _sample(self, expected):
        late = self._loop.time() - expected
        if late > STALL_SAMPLE_S:
            self.stalls.append((time.time(), late))
        self._loop.call_later(STALL_SAMPLE_S, self._sample, self._loop.time() + STALL_SAMPLE_S)


class _Connection(asyncio.Protocol):
    def __init__(self, target):
        self._target = target
        self._buffer = b""
        self._transport = None
        self._answering = None

    def connection_made(self, transport):
        self._transport = transport
        self._target._connections.add(self)

    def abort(self):
        self._transport.abort()

    def data_received(self, data):
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or self._answering is not None:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        self._answer(head.split(b" ", 2)[1].decode().strip("/").split("/"))

    def _answer(self, parts):
        target, loop = self._target, asyncio.get_running_loop()
        now = time.time()
        target.in_flight += 1
        target.levels.append((now, target.in_flight))
        target.arrivals[parts[-1]].append(now)
        match parts:
            case ["delay", ms, _]:
                self._answering = loop.call_later(int(ms) / 1000, self._finish, 200)
            case ["hang", _]:
                self._answering = loop.create_task(self._hang())
            case ["fail", times, tag]:
                self._finish(500 if target.count(tag) <= int(times) else 200)
            case ["status", status, _]:
                self._finish(int(status))
            case _:
                self._finish(200)

    async def _hang(self):
        await self._target._released.wait()
        self._finish(200)

    def _finish(self, status):
        self._target.in_flight -= 1
        self._answering = None
        self._transport.write(b"HTTP/1.1 %d Answer\r\nContent-Length: 2\r\n\r\nok" % status)

    def connection_lost(self, _error):
        self._target._connections.discard(self)
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None
            self._target.in_flight -= 1
