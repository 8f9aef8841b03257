"""Answers that no server should give, fed to both engines without a socket.

``Stage`` holds both engines in a loop of its own, with connections whose transport is a double; ``Stage.play`` feeds
one script and checks the laws:

- exactly one outcome, with a code from the fixed list and words for people, by the time-out or the connection's end;
- no exception in the loop, and none that an engine had to take for a bug of its own;
- a connection that is kept has nothing left on it: what is asked next is answered by what comes next;
- where both engines call it a success, they say the same of it.
"""

import asyncio
import itertools
import re
from typing import NamedTuple

from cluster.project import ProjectSpec
from tests.probe.probe_scripts import SilentTransport
from worker.probe.aiohttp_engine import AiohttpProber
from worker.probe.connection import Connection
from worker.probe.errors import ERROR_CODES, MESSAGE_MAX
from worker.probe.lean_connection import LeanConnection
from worker.probe.lean_engine import LeanProber

BODY_LIMIT_BYTES = 65_536
TIMEOUT_MS = 3
LONG_TIMEOUT_MS = 60_000  # where the connection's end is what ends a poll
PATIENCE_S = 5.0  # for a time-out of some milliseconds: beyond it something hangs
TURNS = 3  # of the loop, in which a task reads what has come
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ENDS = ("close", "reset", "silence")
METHODS = ("GET", "HEAD", "POST")
POSSIBLE = frozenset(ERROR_CODES) - {"dns", "connect_refused", "tls_verify", "tls_other", "invalid_request", "local"}

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"(?i)\ncontent-length:[ \t]*(\d+)[ \t]*\r?\n")


class Script(NamedTuple):
    method: str
    end: str
    parts: tuple  # of bytes: what the server sends, packet by packet

    @classmethod
    def of_bytes(cls, data):
        """A script out of any bytes: three that choose, and the answer."""
        choice, first, second = (data + b"\0\0\0")[:3]
        answer = data[3:]
        cuts = sorted({first * len(answer) // 256, second * len(answer) // 256} - {0})
        if choice & 128:  # byte by byte, at the beginning
            cuts = sorted({*cuts, *range(1, min(len(answer), 64))})
        edges = [0, *cuts, len(answer)]
        parts = tuple(answer[start:end] for start, end in itertools.pairwise(edges) if start < end)
        end = ENDS[2] if choice // 3 % 8 == 7 else ENDS[choice // 3 % 2]  # silence takes as long as 40 others
        return cls(METHODS[choice % 3], end, parts)


class UnwiredTransport(SilentTransport):
    """What an engine writes to; a close reaches the connection in a later turn, as a loop's does."""

    def __init__(self, loop, connection):
        super().__init__()
        self._loop = loop
        self._connection = connection
        self.written = 0

    def write(self, data):
        self.written += 1

    def lose(self, error):
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._connection.connection_lost, error)

    def close(self):
        self.lose(None)

    abort = close


class UnwiredConnector:
    """Connections to anywhere, without a network."""

    def __init__(self, make_connection):
        self._make_connection = make_connection
        self.opened = []

    async def connect(self, poll, origin):
        poll.connect_s = 0.0
        connection = self._make_connection(origin)
        transport = UnwiredTransport(asyncio.get_running_loop(), connection)
        connection.connection_made(transport)
        self.opened.append((connection, transport))
        return connection

    def close(self):
        pass


class Stage:
    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._complaints = []
        self._loop.set_exception_handler(lambda _loop, context: self._complaints.append(context))
        self._engines = self._loop.run_until_complete(self._make())

    async def _make(self):
        loop = asyncio.get_running_loop()
        lean = LeanProber(body_limit_bytes=BODY_LIMIT_BYTES)
        aiohttp = AiohttpProber(body_limit_bytes=BODY_LIMIT_BYTES)
        lean._connector = UnwiredConnector(lambda origin: LeanConnection(lean, origin))
        aiohttp._connector = UnwiredConnector(lambda origin: Connection(loop, origin))
        return {"lean": lean, "aiohttp": aiohttp}

    def close(self):
        async def close_all():
            for prober in self._engines.values():
                await prober.close(0)

        self._loop.run_until_complete(close_all())
        self._loop.close()

    def play(self, script):
        """The outcomes by engine."""
        outcomes = {name: self._loop.run_until_complete(self._poll(name, script)) for name in self._engines}
        assert not self._complaints, self._complaints
        lean, aiohttp = outcomes["lean"], outcomes["aiohttp"]
        if lean.status == aiohttp.status == "success":
            said = [(each.status_code, each.size_bytes) for each in (lean, aiohttp)]
            assert said[0] == said[1], f"lean and aiohttp say {said}"
        return outcomes

    async def _poll(self, name, script):
        prober = self._engines[name]
        connector = prober._connector
        connector.opened.clear()
        outcome, first = await self._exchange(prober, script.method, script.parts, script.end)
        check_outcome(outcome)
        if first is None:
            return outcome
        connection, transport = first
        if len(connector.opened) == 1 and not transport.closing and connection.keep:
            _expect_whole(script, outcome)
            again, _ = await self._exchange(prober, "GET", (OK,), "close", kept=first)
            assert (again.status, again.size_bytes) == ("success", 2), f"on a kept connection: {again}"
        await self._forget(prober)
        return outcome

    async def _exchange(self, prober, method, parts, end, kept=None):
        told = []
        loop = asyncio.get_running_loop()
        timeout_ms = TIMEOUT_MS if end == "silence" else LONG_TIMEOUT_MS
        spec = ProjectSpec(1, "http://a.test/x", 1_000, 0, method=method, timeout_ms=timeout_ms)
        opened = prober._connector.opened
        written = kept[1].written if kept else 0
        prober.start(spec, told.append)
        await self._turns(lambda: told or (kept[1].written > written if kept else opened))
        first = kept or (opened[0] if opened else None)
        if first is None:  # on a busy machine the time-out may pass before the connection is there
            assert told, "neither a connection nor an outcome"
            return told[0], None
        connection, transport = first
        for part in parts:
            await asyncio.sleep(0)
            if transport.closing:
                break
            connection.data_received(part)
            await self._turns(lambda: told)
        answered = 0 if kept is None else len(opened)
        deadline = loop.time() + PATIENCE_S
        ended = False
        while not told:
            for follower, wire in opened[max(1, answered) :]:  # the hops of redirects
                if wire.written and not wire.closing:
                    follower.data_received(OK)
            answered = max(1, len(opened))
            if not ended and end != "silence" and not transport.closing:
                ended = True
                transport.lose(ConnectionResetError(104, "reset") if end == "reset" else None)
            assert loop.time() < deadline, f"no outcome, and {prober!r}"
            await asyncio.sleep(0 if end != "silence" else 0.001)
        await self._turns(lambda: False)
        assert len(told) == 1, f"{len(told)} outcomes"
        assert prober.in_flight == 0
        return told[0], first

    async def _turns(self, enough):
        for _ in range(TURNS):
            if enough():
                return
            await asyncio.sleep(0)

    async def _forget(self, prober):
        for connection, _ in prober._connector.opened:
            connection.discard()
        prober._kept._pool.drain()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def check_outcome(outcome):
    noticed_late = outcome.error_code == "local" and "too busy" in outcome.error_message
    assert outcome.error_code is None or outcome.error_code in POSSIBLE or noticed_late, outcome
    assert outcome.status in {"success", "failure"} or noticed_late, outcome
    assert (outcome.status == "success") == (outcome.error_code is None), outcome
    if outcome.error_code is not None:
        assert 0 < len(outcome.error_message) <= MESSAGE_MAX, outcome
        assert outcome.error_message.isprintable(), outcome
    assert outcome.status_code is None or 100 <= outcome.status_code <= 999, outcome
    assert outcome.size_bytes is None or 0 <= outcome.size_bytes <= BODY_LIMIT_BYTES, outcome


def _expect_whole(script, outcome):
    """A kept connection had an answer with one length, and nothing behind it but line breaks."""
    sent = b"".join(script.parts)
    if script.method == "HEAD" or outcome.status_code in {101, 204, 304} or outcome.status != "success":
        return
    head = _END_OF_HEAD.search(sent)
    if head is None or (lengths := _LENGTH.findall(sent[: head.end()])) == []:
        return
    if re.match(rb"HTTP/1\.[01] 1\d\d", sent.lstrip(b"\r\n")) or b"chunked" in sent[: head.end()].lower():
        return
    assert len(set(map(int, lengths))) == 1, lengths
    rest = sent[head.end() + int(lengths[0]) :]
    assert not rest.strip(b"\r\n"), f"kept, with {rest[:50]!r} behind the answer"
