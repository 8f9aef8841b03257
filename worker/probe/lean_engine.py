"""The lean probe engine: HTTP/1.1 on asyncio.Protocol and httptools, driven by callbacks.

A poll on a kept connection has no task and no timer of its own: ``start`` writes the request, the packet that completes
the answer makes the outcome, and one timer serves the deadlines of all polls.  Only a new connection takes a task, for
as long as it is being opened.  What goes out for a project is prepared once, for the projects polled lately.

It keeps the rules of ``aiohttp_engine``, and the contract suite runs over both: one deadline over all of an exchange;
the one retry, of a request that was sent on a kept connection and lost it before any byte of an answer, on a new
connection; room made once when descriptors run out.

Not here: when a poll is due, how many run at once, per-host limits, storing results; HTTP/2, cookies; what two
peers say to each other after a 101.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Collection
from functools import partial

from cluster.project import ProjectSpec
from worker.probe.connector import Connector
from worker.probe.deadlines import Deadlines
from worker.probe.errors import ProbeError, from_lost, mismatch
from worker.probe.guard import OPEN_GUARD, Guard
from worker.probe.in_flight import UNFORESEEN, as_ms
from worker.probe.interface import OnOutcome, ProbeOutcome
from worker.probe.judging import LOOKED_AT_BYTES_MAX, Answer, Judge, JudgeThread, judge_for, judged
from worker.probe.lean_connection import Hop, LeanConnection, LeanPoll, Plan
from worker.probe.lookup_threads import Lookup
from worker.probe.pool import IdlePool, KeptConnections, MakeRoom
from worker.probe.request import (
    REDIRECT_STATUSES,
)
from worker.probe.resolver import system_lookup
from worker.probe.stalls import Stalls

INFORMATIONAL_MAX = 32
PLANS_MAX = 16_384  # about 20 MB
PLAN_MAX_BYTES = 8_192

logger = logging.getLogger("worker.probe")


class LeanProber:
    """See ``interface.Prober``.  To be made inside a running loop; ``lookup`` and ``tls`` default to the system's.

    ``make_room``: closes connections that nobody needs when descriptors run out; default: this engine's own.
    """

    def __init__(
        self,
        *,
        body_limit_bytes: int,
        lookup: Lookup = system_lookup,
        tls: ssl.SSLContext | None = None,
        pool: IdlePool[LeanConnection] | None = None,
        make_room: MakeRoom | None = None,
        guard: Guard = OPEN_GUARD,
    ) -> None:
        self._body_limit_bytes = body_limit_bytes
        self._loop = asyncio.get_running_loop()
        self._kept = KeptConnections(pool)
        self.make_room = self._kept.make_room
        self._connector = Connector(partial(LeanConnection, self), lookup, tls, make_room or self.make_room, guard)
        self._deadlines: Deadlines[LeanPoll] = Deadlines(self._expire)
        self._stalls = Stalls()
        self._in_flight = 0
        self._openings: set[asyncio.Task[None]] = set()
        self._judge_thread = JudgeThread()
        self._in_judgement: set[LeanPoll] = set()  # their answers are complete: no deadline any more
        self._plans: dict[int, Plan] = {}
        self._all_over: asyncio.Future[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<LeanProber {self._in_flight} in flight, {len(self._kept)} idle connections>"

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def names_answered_at(self) -> float:
        return self._connector.names_answered_at

    def start(self, spec: ProjectSpec, done: OnOutcome) -> None:
        assert not self._closed, "start() after close()"
        poll = LeanPoll(spec, done)
        poll.grain = self._deadlines.add(poll, poll.started_at + spec.timeout_ms / 1e3)
        self._in_flight += 1
        try:
            plan = self._plans.get(spec.id)
            if plan is None or (plan.spec is not spec and plan.spec != spec):
                plan = self._make_plan(spec)
            poll.plan = plan
            self._ask(poll, plan.first, poll.started_at)
        except ProbeError as error:
            self._loop.call_soon(self._fail, poll, error)
        except Exception:
            logger.exception(UNFORESEEN, *poll.named())
            self._loop.call_soon(self._fail, poll, poll.blunder())

    def cancel_redirects(self, project_ids: Collection[int]) -> None:
        for poll in self._deadlines:
            if poll.spec.id in project_ids:
                poll.stay = True

    def cancel_all(self) -> None:
        for poll in [*self._deadlines, *self._in_judgement]:
            poll.dropped = True
            self._let_go(poll)
            self._finish(poll, None)

    async def close(self, grace_s: float) -> None:
        self._closed = True
        if self._in_flight and grace_s > 0:
            self._all_over = self._loop.create_future()
            await asyncio.wait({self._all_over}, timeout=grace_s)
        self.cancel_all()
        if self._openings:
            await asyncio.wait(set(self._openings))
        self._judge_thread.close()
        self._deadlines.close()
        self._stalls.close()
        self._connector.close()
        await self._kept.close()

    # ---- beginnings -------------------------------------------------------------------------------------------------

    def _make_plan(self, spec: ProjectSpec) -> Plan:
        try:
            plan = Plan(spec, self._body_limit_bytes)
        except ValueError as error:
            raise ProbeError("invalid_request", str(error)) from error
        if len(plan.first.wire) <= PLAN_MAX_BYTES:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()  # projects come round in turn: no rule to keep some would do better for less
            self._plans[spec.id] = plan
        return plan

    def _ask(self, poll: LeanPoll, hop: Hop, now: float) -> None:
        """Send a request: on a kept connection, or once there is a new one."""
        poll.hop = hop
        poll.peer = hop.peer
        if not poll.only_new:
            connection = self._kept.take(hop.origin, now)
            if connection is not None:
                if poll.needed_connection is None:
                    poll.needed_connection = False
                poll.reused = True
                poll.connection = connection
                connection.send(poll, hop, now)
                return
        poll.reused = False
        poll.needed_connection = True
        poll.opening = opening = self._loop.create_task(self._open(poll))
        self._openings.add(opening)
        opening.add_done_callback(self._opened)

    async def _open(self, poll: LeanPoll) -> None:
        try:
            connection = await self._connector.connect(poll, poll.hop.origin)
            poll.opening = None
            poll.connection = connection
            _expect_to_go_on(poll)
            connection.send(poll, poll.hop, time.monotonic())
        except ProbeError as error:
            poll.opening = None
            self._fail(poll, error)
        except Exception:
            logger.exception(UNFORESEEN, *poll.named())
            poll.opening = None
            self._fail(poll, poll.blunder())
        else:
            if connection.is_lost:
                self.lost(connection, poll)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._openings.discard(opening)
        if not opening.cancelled() and (error := opening.exception()) is not None:
            self._loop.call_exception_handler({"message": "opening a poll's connection failed", "exception": error})

    # ---- answers ----------------------------------------------------------------------------------------------------

    def received(self, connection: LeanConnection, poll: LeanPoll) -> None:
        try:
            if connection.is_ordinary() or self._look(connection, poll):
                self._complete(connection, poll, connection.received_at)
        except ProbeError as error:
            self._fail(poll, error)
        except Exception:
            logger.exception(UNFORESEEN, *poll.named())
            self._fail(poll, poll.blunder())

    def _look(self, connection: LeanConnection, poll: LeanPoll) -> bool:
        """Whether the poll ends with this packet."""
        fault = connection.fault
        if fault is None and not connection.looked_at:
            fault = connection.head_fault()
            if fault is not None:
                connection.headed = False  # such a head says nothing
        if fault is not None:
            raise ProbeError("protocol", f"{poll.peer} sent no valid HTTP answer: {fault}")
        if not connection.looked_at:
            if connection.informational >= INFORMATIONAL_MAX:
                raise ProbeError("protocol", f"{poll.peer} sent {INFORMATIONAL_MAX} informational answers and no other")
            if not connection.headed:
                return False
            if connection.status in REDIRECT_STATUSES and self._follow(connection, poll):
                return False
            connection.looked_at = True
        if connection.complete or connection.size >= poll.plan.body_limit_bytes:
            return True
        return connection.is_mostly_framing()

    def lost(self, connection: LeanConnection, poll: LeanPoll) -> None:
        try:
            if poll.reused and connection.first_byte_at is None:
                poll.only_new = True
                poll.connection = None
                self._ask(poll, poll.hop, time.monotonic())
            elif (loss := _loss(connection, poll)) is not None:
                self._fail(poll, loss)
            else:
                self._complete(connection, poll, time.monotonic())
        except ProbeError as error:
            self._fail(poll, error)
        except Exception:
            logger.exception(UNFORESEEN, *poll.named())
            self._fail(poll, poll.blunder())

    def _follow(self, connection: LeanConnection, poll: LeanPoll) -> bool:
        """Go where the answer leads; False: it is no redirect to follow."""
        plan, status = poll.plan, connection.status
        if not plan.spec.follow_redirects or status in plan.expected:
            return False
        location = connection.fields().first("location")
        if not location:
            return False
        request = poll.redirected(plan.first.request.target, poll.hop.request, status, location)
        now = time.monotonic()
        poll.connection = None
        connection.end()
        self._kept.give(connection, now)  # what is left of that body is not worth waiting for
        poll.hops += 1
        poll.remote_address = None
        hop = Hop(request)
        poll.peer = hop.peer
        _expect_to_go_on(poll)
        self._ask(poll, hop, now)
        return True

    def _complete(self, connection: LeanConnection, poll: LeanPoll, ended_at: float) -> None:
        """The answer is complete, or as much of it as is read."""
        first_byte_at = connection.first_byte_at
        assert first_byte_at is not None
        sent_at = connection.sent_at
        began_at = sent_at if sent_at is not None and sent_at <= first_byte_at else connection.began_at
        status = connection.status
        plan = poll.plan
        size = min(connection.size, plan.body_limit_bytes)
        assertions = plan.assertions
        answer = None if assertions is None else self._answer(connection, poll, ended_at)
        connection.end()
        poll.connection = None
        self._kept.give(connection, ended_at)
        dns_ms = connect_ms = tls_ms = None
        if needed := poll.needed_connection:
            dns_ms, connect_ms, tls_ms = as_ms(poll.dns_s), as_ms(poll.connect_s), as_ms(poll.tls_s)
        matches = status in plan.expected
        outcome = ProbeOutcome(
            "success" if matches else "failure",
            status,
            (ended_at - poll.started_at) * 1e3,
            None if matches else "status_mismatch",
            None if matches else mismatch(poll.peer, status, poll.spec.expected_status),
            dns_ms,
            connect_ms,
            tls_ms,
            (first_byte_at - began_at) * 1e3,
            (ended_at - first_byte_at) * 1e3,
            size,
            not needed,
            connection.remote_address,
            poll.certificate_expires_at_s,
        )
        if assertions is None or answer is None:
            self._finish(poll, outcome)
        else:
            self._judge(poll, judge_for(assertions), answer, outcome)

    # ---- assertions -------------------------------------------------------------------------------------------------

    def _answer(self, connection: LeanConnection, poll: LeanPoll, ended_at: float) -> Answer:
        kept = connection.kept
        limit_bytes = min(poll.plan.body_limit_bytes, LOOKED_AT_BYTES_MAX)
        return Answer(
            connection.status,
            (ended_at - poll.started_at) * 1e3,
            connection.fields().pairs(),
            None if kept is None else b"".join(kept)[:limit_bytes],
            connection.size <= limit_bytes and (connection.complete or connection.is_lost),
            connection.certificate,
            limit_bytes,
        )

    def _judge(self, poll: LeanPoll, judge: Judge, answer: Answer, outcome: ProbeOutcome) -> None:
        failures = judge.failures_at_once(answer)
        if failures is not None:
            self._finish(poll, judged(outcome, failures))
            return
        assert poll.grain is not None
        poll.grain.discard(poll)
        poll.grain = self._in_judgement
        self._in_judgement.add(poll)
        later = self._judge_thread.failures(judge, answer)
        later.add_done_callback(partial(self._judged, poll, outcome))

    def _judged(self, poll: LeanPoll, outcome: ProbeOutcome, later: asyncio.Future[list[str]]) -> None:
        if poll.grain is None or later.cancelled():
            return
        if (error := later.exception()) is None:
            self._finish(poll, judged(outcome, later.result()))
        else:
            logger.error(UNFORESEEN, *poll.named(), exc_info=error)
            self._fail(poll, poll.blunder())

    # ---- endings ----------------------------------------------------------------------------------------------------

    def _expire(self, poll: LeanPoll) -> None:
        poll.expired = True
        now = time.monotonic()
        late_s = now - poll.started_at - poll.spec.timeout_ms / 1e3
        poll.late_s = max(late_s, self._stalls.longest_s(poll.started_at, now))
        _note_progress(poll)
        self._fail(poll, poll.out_of_time())

    def _fail(self, poll: LeanPoll, error: ProbeError) -> None:
        if poll.grain is None:
            return  # cancelled, or out of time, before it could be said that it failed
        _note_progress(poll)
        outcome = poll.failed(error)
        self._let_go(poll)
        self._finish(poll, outcome)

    def _let_go(self, poll: LeanPoll) -> None:
        connection, poll.connection = poll.connection, None
        if connection is not None:
            connection.discard()
        opening, poll.opening = poll.opening, None
        if opening is not None:
            opening.cancel()

    def _finish(self, poll: LeanPoll, outcome: ProbeOutcome | None) -> None:
        """The poll is in flight no more; ``outcome`` None: and nobody is told."""
        grain = poll.grain
        assert grain is not None
        poll.grain = None
        grain.discard(poll)
        self._in_flight -= 1
        if self._all_over is not None and not self._in_flight and not self._all_over.done():
            self._all_over.set_result(None)
        if outcome is not None:
            try:
                poll.done(outcome)
            except Exception as error:  # noqa: BLE001 - the loop reports it
                self._loop.call_exception_handler({"message": "taking a poll's outcome failed", "exception": error})


def _expect_to_go_on(poll: LeanPoll) -> None:
    if poll.hops and poll.stay:
        raise ProbeError("local", f"the project was removed before its redirect to {poll.peer} was followed", "removed")


def _loss(connection: LeanConnection, poll: LeanPoll) -> ProbeError | None:
    """What it means that a connection ended; None: that the answer did, too."""
    if not connection.headed:
        return from_lost(connection.lost_error, poll.peer, "before it had answered")
    if connection.is_delimited():
        length = connection.fields().first("content-length")
        of = f" of {length}" if length else ""
        return from_lost(connection.lost_error, poll.peer, f"after {connection.size}{of} body bytes")
    if isinstance(connection.lost_error, OSError):
        # A body that only the end of the connection delimits, and the end was none.
        return from_lost(connection.lost_error, poll.peer, f"after {connection.size} body bytes")
    return None


def _note_progress(poll: LeanPoll) -> None:
    """What is known of an answer that is not complete."""
    connection = poll.connection
    if connection is None:
        return
    poll.remote_address = connection.remote_address
    poll.phase = "send"
    if not connection.headed or connection.first_byte_at is None:
        return
    first_byte_at, sent_at = connection.first_byte_at, connection.sent_at
    poll.phase = "body"
    poll.status_code = connection.status
    poll.size_bytes = connection.size if connection.looked_at else None
    poll.first_byte_s = first_byte_at - (
        sent_at if sent_at is not None and sent_at <= first_byte_at else connection.began_at
    )
