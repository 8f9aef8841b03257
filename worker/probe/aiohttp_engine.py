"""The probe engine on aiohttp: a task per poll, aiohttp's response protocol on connections of our own.

It owns the order of an exchange: name, connect, TLS, request, head, redirects, body; the one deadline over all of it;
and the one retry: a request that was sent on a kept connection and lost it before any byte of an answer is sent once
more on a new connection, and the poll uses only new connections from then on.  A request on a new connection is never
repeated.

Not here: when a poll is due, how many run at once, per-host limits, storing results; HTTP/2, proxies, cookies.
"""

import asyncio
import functools
import ipaddress
import logging
import socket
import ssl
import time
from typing import Literal

import aiohappyeyeballs
from aiohttp import ClientError, StreamReader
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

from cluster.project import ProjectSpec
from worker.probe.connection import Connection, IdlePool
from worker.probe.errors import ProbeError, from_connect, from_handshake, from_lost
from worker.probe.expected import parse_expected
from worker.probe.interface import OnOutcome, ProbeOutcome
from worker.probe.request import (
    REDIRECT_STATUSES,
    REDIRECTS_MAX,
    HttpRequest,
    Origin,
    first_request,
    redirected_request,
)
from worker.probe.resolver import AddressInfo, Lookup, Resolver, system_lookup

INFORMATIONAL_MAX = 32
HAPPY_EYEBALLS_DELAY_S = 0.25
TLS_LIMIT_S = 660.0  # above every time-out a project may have: the poll's own deadline is what ends a handshake
TLS_SHUTDOWN_S = 2.0
SWEEP_S = 5.0
CLOSE_WAIT_S = 1.0
CACHED_REQUESTS_MAX = 4_096
CACHED_REQUEST_MAX_BYTES = 8_192

logger = logging.getLogger("worker.probe")

Phase = Literal["lookup", "connect", "handshake", "send", "wait", "body"]


class _Poll:
    """One poll in flight: what is known so far."""

    __slots__ = (
        "connect_s",
        "connection",
        "dns_s",
        "done",
        "expired",
        "first_byte_s",
        "hops",
        "needed_connection",
        "peer",
        "phase",
        "remote_address",
        "size_bytes",
        "spec",
        "started_at",
        "status_code",
        "tls_s",
        "transfer_s",
    )

    def __init__(self, spec: ProjectSpec, done: OnOutcome) -> None:
        self.spec = spec
        self.done = done
        self.started_at = time.monotonic()
        self.expired = False
        self.phase: Phase = "lookup"
        self.peer = ""
        self.hops = 0
        self.connection: Connection | None = None
        self.needed_connection: bool | None = None
        self.dns_s: float | None = None
        self.connect_s: float | None = None
        self.tls_s: float | None = None
        self.first_byte_s: float | None = None
        self.transfer_s: float | None = None
        self.size_bytes: int | None = None
        self.status_code: int | None = None
        self.remote_address: str | None = None

    def complete(self, ended_at: float, expected: frozenset[int]) -> ProbeOutcome:
        matches = self.status_code in expected
        return ProbeOutcome(
            "success" if matches else "failure",
            self.status_code,
            (ended_at - self.started_at) * 1e3,
            None if matches else "status_mismatch",
            None if matches else f"expected {self.spec.expected_status}, got {self.status_code}",
            *self._measures(),
        )

    def failed(self, error: ProbeError) -> ProbeOutcome:
        return ProbeOutcome(
            "unknown" if error.code == "local" else "failure",
            self.status_code,
            None,
            error.code,
            error.message,
            *self._measures(),
        )

    def _measures(
        self,
    ) -> tuple[
        float | None, float | None, float | None, float | None, float | None, int | None, bool | None, str | None
    ]:
        needed = self.needed_connection
        return (
            _ms(self.dns_s),
            _ms(self.connect_s),
            _ms(self.tls_s),
            _ms(self.first_byte_s),
            _ms(self.transfer_s),
            self.size_bytes,
            None if needed is None else not needed,
            self.remote_address,
        )

    def out_of_time(self) -> ProbeError:
        limit = f"{self.spec.timeout_ms / 1000:g} s"
        connection = self.connection
        if self.phase == "send" and connection is not None and connection.sent_at is not None:
            self.phase = "wait"
        if self.hops:
            return ProbeError(
                "total_timeout", f"time-out of {limit} passed after {self.hops} redirect(s), {self.doing()} {self.peer}"
            )
        match self.phase:
            case "lookup":
                return ProbeError("dns", f"looking up {self.peer}: no answer within {limit}")
            case "connect" | "handshake":
                return ProbeError("connect_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")
            case "send":
                return ProbeError("total_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")
            case "wait" | "body":
                return ProbeError("read_timeout", f"time-out of {limit} passed {self.doing()} {self.peer}")

    def doing(self) -> str:
        return {
            "lookup": "looking up",
            "connect": "connecting to",
            "handshake": "in the TLS handshake with",
            "send": "sending the request to",
            "wait": "waiting for the answer of",
            "body": f"reading the body ({self.size_bytes} bytes so far) from",
        }[self.phase]


class AiohttpProber:
    """See ``interface.Prober``.  To be made inside a running loop; ``lookup`` and ``tls`` default to the system's."""

    def __init__(
        self,
        *,
        body_limit_bytes: int,
        lookup: Lookup = system_lookup,
        tls: ssl.SSLContext | None = None,
        pool: IdlePool | None = None,
    ) -> None:
        self._body_limit_bytes = body_limit_bytes
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(lookup)
        self._tls = tls
        self._pool = IdlePool() if pool is None else pool
        self._tasks: dict[asyncio.Task[None], _Poll] = {}
        self._requests: dict[int, tuple[ProjectSpec, HttpRequest]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<AiohttpProber {len(self._tasks)} in flight, {len(self._pool)} idle connections>"

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def start(self, spec: ProjectSpec, done: OnOutcome) -> None:
        assert not self._closed, "start() after close()"
        poll = _Poll(spec, done)
        task = self._loop.create_task(self._run(poll))
        self._tasks[task] = poll
        task.add_done_callback(self._ended)

    def cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def close(self, grace_s: float) -> None:
        self._closed = True
        if self._tasks and grace_s > 0:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        self.cancel_all()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._sweep is not None:
            self._sweep.cancel()
        self._resolver.close()
        closing = []
        for connection in self._pool.drain():
            closed = connection.closed
            connection.discard()
            if closed is not None:
                closing.append(closed)
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_WAIT_S)

    # ---- the life of a poll -----------------------------------------------------------------------------------------

    async def _run(self, poll: _Poll) -> None:
        task = asyncio.current_task()
        assert task is not None
        remaining_s = poll.started_at + poll.spec.timeout_ms / 1e3 - time.monotonic()
        deadline = self._loop.call_later(max(0.0, remaining_s), self._expire, task, poll)
        try:
            outcome = await self._exchange(poll)
        except ProbeError as error:
            outcome = poll.failed(error)
        except asyncio.CancelledError:
            if not poll.expired:
                raise
            outcome = poll.failed(poll.out_of_time())
        except Exception as error:
            # A bug of ours that one project brings out must not end every worker that gets the project.
            logger.exception("probing project %d (%s) failed in an unforeseen way", poll.spec.id, poll.spec.url)
            outcome = poll.failed(ProbeError("local", f"error in the prober itself: {type(error).__name__}: {error}"))
        finally:
            deadline.cancel()
            if poll.connection is not None:
                poll.connection.discard()
        poll.done(outcome)

    def _expire(self, task: asyncio.Task[None], poll: _Poll) -> None:
        poll.expired = True
        task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "taking a poll's outcome failed", "exception": error})

    # ---- the exchange -----------------------------------------------------------------------------------------------

    async def _exchange(self, poll: _Poll) -> ProbeOutcome:
        spec = poll.spec
        try:
            expected = parse_expected(spec.expected_status)
            own = request = self._request(spec)
        except ValueError as error:
            raise ProbeError("invalid_request", str(error)) from error
        only_new = False
        while True:
            origin = request.target.origin
            poll.peer = str(origin)
            connection = None if only_new else self._pool.take(origin, time.monotonic())
            reused = connection is not None
            if connection is None:
                poll.needed_connection = True
                connection = await self._connect(poll, origin)
            elif poll.needed_connection is None:
                poll.needed_connection = False
            poll.connection = connection
            poll.remote_address = connection.remote_address
            poll.phase = "send"
            connection.send(request.wire, without_body=request.method == "HEAD")
            try:
                message, payload = await _read_head(connection)
            except (ClientError, OSError, HttpProcessingError) as error:
                if reused and connection.lost and connection.first_byte_at is None:
                    connection.discard()
                    poll.connection = None
                    only_new = True
                    continue
                raise _broken(connection, "before it had answered") from error
            poll.phase = "body"
            poll.status_code = message.code
            first_byte_at = connection.first_byte_at
            assert first_byte_at is not None
            sent_at = connection.sent_at
            began_at = sent_at if sent_at is not None and sent_at <= first_byte_at else connection.began_at
            poll.first_byte_s = first_byte_at - began_at

            location = message.headers.get("Location") if message.code in REDIRECT_STATUSES else None
            if location and spec.follow_redirects and message.code not in expected:
                request = self._redirect(poll, own, request, message.code, location)
                poll.connection = None
                self._give(connection)  # what is left of that body is not worth waiting for
                continue

            await self._read_body(poll, connection, payload, message)
            ended_at = time.monotonic()
            poll.transfer_s = ended_at - first_byte_at
            poll.connection = None
            self._give(connection)
            return poll.complete(ended_at, expected)

    def _request(self, spec: ProjectSpec) -> HttpRequest:
        cached = self._requests.get(spec.id)
        if cached is not None and (cached[0] is spec or cached[0] == spec):
            return cached[1]
        request = first_request(spec)
        if len(request.wire) <= CACHED_REQUEST_MAX_BYTES:
            if len(self._requests) >= CACHED_REQUESTS_MAX:
                self._requests.pop(next(iter(self._requests)))
            self._requests[spec.id] = (spec, request)
        return request

    def _redirect(self, poll: _Poll, own: HttpRequest, request: HttpRequest, status: int, location: str) -> HttpRequest:
        if poll.hops == REDIRECTS_MAX:
            raise ProbeError("too_many_redirects", f"{poll.peer} redirects once more after {REDIRECTS_MAX} redirects")
        try:
            request = redirected_request(poll.spec, own.target, request, status, location)
        except ValueError as error:
            raise ProbeError("protocol", f"{poll.peer} redirects to where HTTP can't follow: {error}") from error
        poll.hops += 1
        poll.status_code = poll.first_byte_s = poll.remote_address = None
        return request

    async def _read_body(
        self, poll: _Poll, connection: Connection, payload: StreamReader, message: RawResponseMessage
    ) -> None:
        """Count the body up to the limit."""
        size = poll.size_bytes = 0
        try:
            while chunk := await payload.readany():
                size += len(chunk)
                poll.size_bytes = size
                if size >= self._body_limit_bytes and not payload.is_eof():
                    break
        except (ClientError, OSError, HttpProcessingError) as error:
            length = message.headers.get("Content-Length")
            of = f" of {length}" if length else ""
            raise _broken(connection, f"after {size}{of} body bytes") from error
        if connection.lost and isinstance(connection.lost_error, OSError):
            # A body that only the end of the connection delimits, and the end was none.
            raise from_lost(connection.lost_error, poll.peer, f"after {size} body bytes")
        poll.size_bytes = min(size, self._body_limit_bytes)

    def _give(self, connection: Connection) -> None:
        """Keep the connection for a next request; one with an unfinished answer on it is closed instead."""
        self._pool.give(connection, time.monotonic())
        if self._sweep is None and len(self._pool):
            self._sweep = self._loop.call_later(SWEEP_S, self._sweep_idle)

    def _sweep_idle(self) -> None:
        self._sweep = None
        self._pool.expire(time.monotonic())
        if len(self._pool):
            self._sweep = self._loop.call_later(SWEEP_S, self._sweep_idle)

    # ---- connecting -------------------------------------------------------------------------------------------------

    async def _connect(self, poll: _Poll, origin: Origin) -> Connection:
        addresses = _literal(origin) or self._resolver.kept(origin.host, origin.port)
        begun_at = time.monotonic()
        if addresses is None:
            poll.phase = "lookup"
            addresses = await self._resolver.resolve(origin.host, origin.port)
            found_at = time.monotonic()
            poll.dns_s = (poll.dns_s or 0.0) + found_at - begun_at
            begun_at = found_at
        poll.phase = "connect"
        try:
            connected = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S, loop=self._loop
            )
        except OSError as error:
            raise from_connect(error, poll.peer) from error
        connected_at = time.monotonic()
        poll.connect_s = (poll.connect_s or 0.0) + connected_at - begun_at
        factory = functools.partial(Connection, self._loop, origin)
        if origin.scheme == "http":
            try:
                _, connection = await self._loop.create_connection(factory, sock=connected)
            except OSError as error:
                connected.close()
                raise from_connect(error, poll.peer) from error
            return connection
        poll.phase = "handshake"
        try:
            poll.remote_address = str(connected.getpeername()[0])
            _, connection = await self._loop.create_connection(
                factory,
                sock=connected,
                ssl=self._tls_context(),
                server_hostname=origin.host.rstrip(".").partition("%")[0],
                ssl_handshake_timeout=TLS_LIMIT_S,
                ssl_shutdown_timeout=TLS_SHUTDOWN_S,
            )
        except OSError as error:
            connected.close()
            raise from_handshake(error, poll.peer) from error
        poll.tls_s = (poll.tls_s or 0.0) + connection.opened_at - connected_at
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def _ms(duration_s: float | None) -> float | None:
    return None if duration_s is None else duration_s * 1e3


@functools.lru_cache(maxsize=4_096)
def _literal(origin: Origin) -> list[AddressInfo] | None:
    """The address a host is, when it is one."""
    try:
        version = ipaddress.ip_address(origin.host).version
    except ValueError:
        return None
    if version == 4:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (origin.host, origin.port))]
    address, _, zone = origin.host.partition("%")
    scope = 0
    if zone:
        try:
            scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
        except OSError:
            scope = 0
    return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, origin.port, 0, scope))]


async def _read_head(connection: Connection) -> tuple[RawResponseMessage, StreamReader]:
    """The first answer that is not informational."""
    for _ in range(INFORMATIONAL_MAX):
        message, payload = await connection.read()
        if message.code >= 200 or message.code == 101:
            return message, payload
    raise ProbeError("protocol", f"{connection.origin} sent {INFORMATIONAL_MAX} informational answers and no other")


def _broken(connection: Connection, doing: str) -> ProbeError:
    """What ended an exchange, from what the connection knows rather than from the exception it ended in."""
    peer = str(connection.origin)
    if connection.fault is not None:
        return ProbeError("protocol", f"{peer} sent no valid HTTP answer: {connection.fault}")
    return from_lost(connection.lost_error, peer, doing)
