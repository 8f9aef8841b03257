"""The probe engine on aiohttp: a task per poll, aiohttp's response protocol on connections of our own.

It owns the order of an exchange: name, connect, TLS, request, head, redirects, body; the one deadline over all of it;
and the one retry: a request that was sent on a kept connection and lost it before any byte of an answer is sent once
more on a new connection, and the poll uses only new connections from then on.  A request on a new connection is never
repeated.

When descriptors run out, the connections that wait for a next request are closed and the connect is tried once more.

Not here: when a poll is due, how many run at once, per-host limits, storing results; HTTP/2, cookies.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Collection
from functools import partial

import msgspec
from aiohttp import ClientError, StreamReader
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

from cluster.project import ProjectSpec
from worker.probe.connection import INFORMATIONAL_MAX, Connection
from worker.probe.connector import Connector
from worker.probe.deadlines import LATE_READ_S, READ_FIRST_S
from worker.probe.errors import ProbeError, from_lost
from worker.probe.expected import parse_expected
from worker.probe.guard import OPEN_GUARD, Guard
from worker.probe.in_flight import UNFORESEEN, PollInFlight
from worker.probe.interface import OnOutcome, ProbeOutcome
from worker.probe.judging import LOOKED_AT_BYTES_MAX, Answer, Judge, JudgeThread, judge_for, judged
from worker.probe.lookup_threads import Lookup
from worker.probe.pool import IdlePool, KeptConnections, MakeRoom
from worker.probe.request import (
    REDIRECT_STATUSES,
    HttpRequest,
    first_request,
)
from worker.probe.resolver import system_lookup
from worker.probe.stalls import Stalls

CACHED_REQUESTS_MAX = 4_096
CACHED_REQUEST_MAX_BYTES = 8_192

logger = logging.getLogger("worker.probe")


class Body(msgspec.Struct):
    """What was read of one: ``kept`` None: it was only counted; ``whole``: that is all of it."""

    kept: list[bytes] | None
    whole: bool = True


class AiohttpProber:
    """See ``interface.Prober``.  To be made inside a running loop; ``lookup`` and ``tls`` default to the system's.

    ``make_room``: closes connections that nobody needs when descriptors run out; default: this engine's own.
    """

    def __init__(
        self,
        *,
        body_limit_bytes: int,
        lookup: Lookup = system_lookup,
        tls: ssl.SSLContext | None = None,
        pool: IdlePool[Connection] | None = None,
        make_room: MakeRoom | None = None,
        guard: Guard = OPEN_GUARD,
    ) -> None:
        self._body_limit_bytes = body_limit_bytes
        self._loop = asyncio.get_running_loop()
        self._kept = KeptConnections(pool)
        self.make_room = self._kept.make_room
        self._connector = Connector(partial(Connection, self._loop), lookup, tls, make_room or self.make_room, guard)
        self._stalls = Stalls()
        self._tasks: dict[asyncio.Task[None], PollInFlight] = {}
        self._requests: dict[int, tuple[ProjectSpec, HttpRequest]] = {}
        self._judge_thread = JudgeThread()
        self._closed = False

    def __repr__(self) -> str:
        return f"<AiohttpProber {len(self._tasks)} in flight, {len(self._kept)} idle connections>"

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    @property
    def names_answered_at(self) -> float:
        return self._connector.names_answered_at

    def start(self, spec: ProjectSpec, done: OnOutcome) -> None:
        assert not self._closed, "start() after close()"
        poll = PollInFlight(spec, done)
        task = self._loop.create_task(self._run(poll))
        self._tasks[task] = poll
        task.add_done_callback(self._ended)

    def cancel_redirects(self, project_ids: Collection[int]) -> None:
        for poll in self._tasks.values():
            if poll.spec.id in project_ids:
                poll.stay = True

    def cancel_all(self) -> None:
        for task, poll in self._tasks.items():
            poll.dropped = True
            task.cancel()

    async def close(self, grace_s: float) -> None:
        self._closed = True
        if self._tasks and grace_s > 0:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        self.cancel_all()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        self._judge_thread.close()
        self._stalls.close()
        self._connector.close()
        await self._kept.close()

    # ---- the life of a poll -----------------------------------------------------------------------------------------

    async def _run(self, poll: PollInFlight) -> None:
        task = asyncio.current_task()
        assert task is not None
        remaining_s = poll.started_at + poll.spec.timeout_ms / 1e3 - time.monotonic()
        deadline = self._loop.call_later(max(0.0, remaining_s), self._expire, task, poll)
        try:
            outcome = await self._exchange(poll)
        except ProbeError as error:
            outcome = poll.failed(error)
        except asyncio.CancelledError:
            if poll.dropped or not poll.expired:
                raise
            outcome = poll.failed(poll.out_of_time())
        except Exception:
            logger.exception(UNFORESEEN, *poll.named())
            outcome = poll.failed(poll.blunder())
        finally:
            deadline.cancel()
            if poll.connection is not None:
                poll.connection.discard()
        if not poll.dropped:
            poll.done(outcome)

    def _expire(self, task: asyncio.Task[None], poll: PollInFlight) -> None:
        if poll.answered:
            return
        now = time.monotonic()
        late_s = now - poll.started_at - poll.spec.timeout_ms / 1e3
        if late_s >= LATE_READ_S and not poll.late_s:  # what came meanwhile is first to be read
            poll.late_s = late_s
            self._loop.call_later(READ_FIRST_S, self._expire_if_running, task, poll)
            return
        poll.expired = True
        poll.late_s = max(late_s, self._stalls.longest_s(poll.started_at, now))
        task.cancel()

    def _expire_if_running(self, task: asyncio.Task[None], poll: PollInFlight) -> None:
        if task in self._tasks:
            self._expire(task, poll)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "taking a poll's outcome failed", "exception": error})

    # ---- the exchange -----------------------------------------------------------------------------------------------

    async def _exchange(self, poll: PollInFlight) -> ProbeOutcome:
        spec = poll.spec
        try:
            expected = parse_expected(spec.expected_status)
            own = request = self._request(spec)
            judge = None if spec.assertions is None else judge_for(spec.assertions)
        except ValueError as error:
            raise ProbeError("invalid_request", str(error)) from error
        only_new = False
        while True:
            origin = request.origin
            poll.peer = str(origin)
            _expect_to_go_on(poll)
            connection = None if only_new else self._kept.take(origin, time.monotonic())
            reused = connection is not None
            if connection is None:
                poll.needed_connection = True
                connection = await self._connector.connect(poll, origin)
            elif poll.needed_connection is None:
                poll.needed_connection = False
            poll.connection = connection
            _expect_to_go_on(poll)
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
                self._kept.give(connection, time.monotonic())  # what is left of that body is not worth waiting for
                continue

            body = await self._read_body(poll, connection, payload, message, judge)
            ended_at = time.monotonic()
            poll.transfer_s = ended_at - first_byte_at
            poll.connection = None
            poll.answered = True
            answer = None if judge is None else self._answer(poll, connection, message, body, ended_at)
            self._kept.give(connection, time.monotonic())
            outcome = poll.complete(ended_at, expected)
            if judge is None or answer is None:
                return outcome
            failures = judge.failures_at_once(answer)
            if failures is None:
                failures = await self._judge_thread.failures(judge, answer)
            return judged(outcome, failures)

    def _answer(
        self, poll: PollInFlight, connection: Connection, message: RawResponseMessage, body: Body, ended_at: float
    ) -> Answer:
        limit_bytes = min(self._limit_bytes(poll), LOOKED_AT_BYTES_MAX)
        return Answer(
            message.code,
            (ended_at - poll.started_at) * 1e3,
            [(_text(name), _text(value)) for name, value in message.raw_headers],
            None if body.kept is None else b"".join(body.kept)[:limit_bytes],
            body.whole and (poll.size_bytes or 0) <= limit_bytes,
            connection.certificate,
            limit_bytes,
        )

    def _limit_bytes(self, poll: PollInFlight) -> int:
        options = poll.spec.options
        return (options and options.body_limit_bytes) or self._body_limit_bytes

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

    def _redirect(
        self, poll: PollInFlight, own: HttpRequest, request: HttpRequest, status: int, location: str
    ) -> HttpRequest:
        request = poll.redirected(own.target, request, status, location)
        poll.hops += 1
        poll.status_code = poll.first_byte_s = poll.remote_address = None
        return request

    async def _read_body(
        self,
        poll: PollInFlight,
        connection: Connection,
        payload: StreamReader,
        message: RawResponseMessage,
        judge: Judge | None,
    ) -> Body:
        """Count the body up to the limit, and keep it when it is looked at."""
        body = Body([] if judge is not None and judge.needs_body else None)
        limit_bytes = self._limit_bytes(poll)
        size = poll.size_bytes = 0
        try:
            while chunk := await _next_piece(payload):
                if body.kept is not None and size < LOOKED_AT_BYTES_MAX:
                    body.kept.append(chunk)
                size += len(chunk)
                poll.size_bytes = size
                if size >= limit_bytes and not payload.is_eof():
                    body.whole = False
                    break
        except (ClientError, OSError, HttpProcessingError) as error:
            if connection.mostly_framing:  # as much as is read of it, like a body up to its limit
                poll.size_bytes = min(payload.total_bytes, limit_bytes)
                body.whole = False
                return body
            length = message.headers.get("Content-Length")
            of = f" of {length}" if length else ""
            raise _broken(connection, f"after {size}{of} body bytes") from error
        if connection.lost and isinstance(connection.lost_error, OSError):
            # A body that only the end of the connection delimits, and the end was none.
            raise from_lost(connection.lost_error, poll.peer, f"after {size} body bytes")
        poll.size_bytes = min(size, limit_bytes)
        body.whole = body.whole and size <= limit_bytes
        return body


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape").strip(" \t")


def _expect_to_go_on(poll: PollInFlight) -> None:
    if poll.hops and poll.stay:
        raise ProbeError("local", f"the project was removed before its redirect to {poll.peer} was followed", "removed")


async def _read_head(connection: Connection) -> tuple[RawResponseMessage, StreamReader]:
    """The first answer that is not informational."""
    for _ in range(INFORMATIONAL_MAX):
        message, payload = await connection.read()
        if message.code >= 200 or message.code == 101:
            return message, payload
    raise ProbeError("protocol", f"{connection.origin} sent {INFORMATIONAL_MAX} informational answers and no other")


async def _next_piece(payload: StreamReader) -> bytes:
    """What came of a body meanwhile; empty: it is over.

    Not ``readany``: that is woken by a chunk's end, too, and waits for good when the error that follows came before it
    waited again.
    """
    if (error := payload.exception()) is not None:
        raise error
    while not payload.at_eof():
        piece = payload.read_nowait()
        if not piece:
            piece, _ = await payload.readchunk()
        if piece:
            return piece
    return b""


def _broken(connection: Connection, doing: str) -> ProbeError:
    """What ended an exchange, from what the connection knows rather than from the exception it ended in."""
    peer = str(connection.origin)
    if connection.fault is not None:
        return ProbeError("protocol", f"{peer} sent no valid HTTP answer: {connection.fault}")
    return from_lost(connection.lost_error, peer, doing)
