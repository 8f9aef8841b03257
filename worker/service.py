"""The worker's process: sockets, prober, WAL, heartbeat.  It performs what ``core`` decides and decides nothing.

Finished polls are gathered and handed to the core together: with its next decision when that is near and nothing waits
for a slot, else at the end of the loop's turn.  The heartbeat runs in
this loop: if it stops polling, it stops proving itself.
"""

import asyncio
import logging
import os
from functools import partial
from typing import Any

import psutil
import zmq
from msgspec.structs import astuple

from cluster.channel import Channel
from cluster.clock import Clock
from cluster.driver import Driver
from cluster.loop_lag import LoopLag
from cluster.messages import UNDECODABLE, control, results
from cluster.messages.results import PollResult
from cluster.runtime import RoleContext
from cluster.secret_values import SecretSource
from cluster.sockets import connect_dealer
from cluster.tracing import open_tracing
from worker.core import COMMIT_MAX_MS, WorkerCore
from worker.events import (
    AbortPolls,
    AcknowledgeWal,
    CoordinatorSaid,
    Effect,
    Event,
    Exit,
    ForgetStream,
    HeartbeatDue,
    OpenStream,
    PollsAborted,
    PollsFinished,
    PollStart,
    ReadWal,
    StartPolls,
    StopRedirects,
    StopRequested,
    TellCoordinator,
    TellWriter,
    Vitals,
    WriterSaid,
    WriteWal,
)
from worker.lateness import Lateness
from worker.own_endpoints import guard_of
from worker.poll_tracing import PollTracing
from worker.probe.choose import ChoosingProber
from worker.probe.interface import ProbeOutcome, Prober
from worker.probe.own_fault_sieve import OwnFaultSieve
from worker.recorder import WalRecorder
from worker.retries import Retries

HEARTBEAT_S = 1.0
GATHER_MS = 5
REPLAY_MAX_MS = 7 * 86_400_000  # until it is interrupted
LAST_WORDS_S = 0.2  # for the sockets to deliver what was sent last

logger = logging.getLogger("worker")


async def serve(context: RoleContext) -> int:
    """Run until the core says ``Exit``."""
    service = WorkerService(context)
    try:
        return await service.run()
    finally:
        await service.close()


class WorkerService:
    def __init__(self, context: RoleContext) -> None:
        settings = context.settings
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._clock = Clock(jump=True)
        self._recorder = WalRecorder(settings, self._submit)
        self._core = WorkerCore(
            name=settings.name,
            incarnation=settings.incarnation,
            pid=os.getpid(),
            stream_id=self._recorder.first_stream_id,
            grace_ms=settings.grace_s * 1000,
            now_ms=self._clock.now_ms(),
            commit_max_ms=REPLAY_MAX_MS if settings.replay else COMMIT_MAX_MS,
        )
        self._driver: Driver[Event, Effect] = Driver(self._core, self._clock, self._perform, self._take_finished)
        prober = ChoosingProber(
            body_limit_bytes=settings.body_limit_bytes,
            secrets=SecretSource(os.environ, settings.secrets_dir),
            guard=guard_of(settings),
        )
        self._prober: Prober = prober
        self._sieve = OwnFaultSieve(lambda: prober.names_answered_at)
        self._zmq = zmq.Context()
        self._coordinator = Channel(connect_dealer(self._zmq, settings.control), self._on_coordinator)
        self._writer = Channel(connect_dealer(self._zmq, settings.results), self._on_writer)
        self._process = psutil.Process()
        self._retries = Retries(self._ask, partial(self._on_outcome, is_sifted=True))
        self._finished: list[PollResult] = []
        self._in_flight: set[int] = set()
        self._lateness = Lateness()
        self._lag = LoopLag()
        self._malformed = 0
        tracing = open_tracing(settings, "worker") if settings.trace_every else None
        self._traced = None if tracing is None else PollTracing(tracing, settings.trace_every, self._clock.now_us)
        self._says_polls = logger.isEnabledFor(logging.DEBUG)
        self._exit: asyncio.Future[Exit] = self._loop.create_future()

    async def run(self) -> int:
        logger.info("starting")
        self._driver.wake()  # for its first timer
        if self._context.settings.replay:
            streams = await self._recorder.adopt_everything()
            logger.info("delivering %d streams", streams)
            self._driver.submit(StopRequested())
        self._lag.start()
        self._beat()
        stopping = asyncio.ensure_future(self._context.stopping.wait())
        awaited: list[asyncio.Future[Any]] = [stopping, self._exit]
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not self._exit.done():
            if self._context.settings.replay:
                self._driver.close()
                logger.warning("interrupted; what is not delivered stays in the WAL")
                return 1
            self._driver.submit(StopRequested())
        end = await self._exit
        self._driver.close()
        logger.log(logging.ERROR if end.status else logging.INFO, end.text)
        await asyncio.sleep(LAST_WORDS_S)
        return end.status

    async def close(self) -> None:
        self._driver.close()
        self._lag.close()
        self._coordinator.close()
        self._writer.close()
        self._zmq.destroy(linger=0)
        await self._prober.close(0.0)
        await self._sieve.close()
        await self._recorder.close()
        if self._traced is not None:
            await self._traced.close()

    def _submit(self, event: Event) -> None:
        self._driver.submit(event)

    # ---- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartPolls(polls):
                for poll in polls:
                    self._start(poll)
            case TellWriter(body):
                self._writer.send(body)  # what is not queued is sent again: the writer's credit bounds it
            case TellCoordinator(message):
                self._coordinator.send(control.encode(message))  # lost messages are asked for again
            case WriteWal() | ReadWal() | AcknowledgeWal() | ForgetStream() | OpenStream():
                self._recorder.perform(effect)
            case StopRedirects(project_ids):
                self._prober.cancel_redirects(project_ids)
                self._retries.stop(project_ids)
            case AbortPolls():
                self._abort()
            case Exit():
                if not self._exit.done():
                    self._exit.set_result(effect)

    def _start(self, poll: PollStart) -> None:
        started_us = self._clock.now_us()
        if poll.trigger == "tick":
            self._lateness.add(started_us / 1000 - poll.scheduled_at_ms)
        self._in_flight.add(poll.spec.id)
        self._ask(poll, started_us)

    def _ask(self, poll: PollStart, started_us: int) -> None:
        self._prober.start(poll.spec, partial(self._on_outcome, poll, started_us))

    def _on_outcome(self, poll: PollStart, started_us: int, outcome: ProbeOutcome, *, is_sifted: bool = False) -> None:
        if (outcome.error_code is not None or self._sieve.asks) and not is_sifted:
            found = self._sieve.sift(outcome, partial(self._on_outcome, poll, started_us, is_sifted=True))
            if found is None:
                return  # for now: its slot is taken until it is delivered
            outcome = found
        attempts = None
        options = poll.spec.options
        if options is not None and options.retries:
            attempts = self._retries.take(poll, started_us, outcome)
            if attempts is None:
                return  # it is made once more before it counts
        self._in_flight.discard(poll.spec.id)
        if not self._finished and (self._core.ticker.waiting or not self._driver.rings_within(GATHER_MS)):
            self._loop.call_soon(self._driver.wake)
        *fields, expires_at_s = astuple(outcome)  # those of a result, in their order
        self._finished.append(
            PollResult(
                *(
                    poll.spec.id,
                    poll.scheduled_at_ms,
                    started_us,
                    poll.trigger,
                    *fields,
                    poll.epoch,
                    attempts,
                    expires_at_s,
                )
            )
        )
        if self._traced is not None:
            self._traced.poll_finished(poll, started_us, outcome)
        if self._says_polls:
            logger.debug(
                "polled project %d: %s %s %s",
                poll.spec.id,
                outcome.status,
                outcome.status_code if outcome.status_code is not None else "-",
                outcome.error_message or f"{outcome.response_time_ms or 0:.1f} ms",
            )

    def _take_finished(self) -> Event | None:
        if not self._finished:
            return None
        finished, self._finished = self._finished, []
        return PollsFinished(finished, self._sieve.take_causes())

    def _abort(self) -> None:
        self._prober.cancel_all()
        self._sieve.let_go()
        self._retries.let_go()
        if (finished := self._take_finished()) is not None:
            self._driver.submit(finished)
        aborted = sorted(self._in_flight)
        self._in_flight.clear()
        logger.warning("%d polls were broken off at the end of the grace period", len(aborted))
        self._driver.submit(PollsAborted(aborted))

    # ---- messages -------------------------------------------------------------------------------------------------

    def _on_coordinator(self, frames: list[bytes]) -> None:
        try:
            message = control.decode_to_worker(frames[0] if len(frames) == 1 else b"")
        except UNDECODABLE as error:
            self._reject("coordinator", error)
        else:
            self._driver.submit(CoordinatorSaid(message))

    def _on_writer(self, frames: list[bytes]) -> None:
        try:
            message = results.decode_from_writer(frames[0] if len(frames) == 1 else b"")
        except UNDECODABLE as error:
            self._reject("writer", error)
        else:
            self._driver.submit(WriterSaid(message))

    def _reject(self, sender: str, error: Exception) -> None:
        self._malformed += 1
        if self._malformed == 1 or self._malformed % 1_000 == 0:
            logger.warning("malformed message from the %s (%d so far): %s", sender, self._malformed, error)

    # ---- heartbeat ------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        if self._exit.done():
            return
        self._loop.call_later(HEARTBEAT_S, self._beat)
        self._clock.follow()
        self._recorder.beat()
        self._sieve.ask()
        recent = self._lateness.beat()
        vitals = Vitals(
            lateness_counts=list(self._lateness.total.counts),
            lateness_p50_ms=recent.percentile(0.5),
            lateness_p99_ms=recent.percentile(0.99),
            lateness_max_ms=recent.max_ms,
            loop_lag_ms=self._lag.beat(),
            loop_lag_counts=list(self._lag.total.counts),
            rss_bytes=self._process.memory_info().rss,
            wal_full=self._recorder.full,
            wal_damaged=self._recorder.damaged,
            wal_sync_failures=self._recorder.sync_failures,
            spans_dropped=0 if self._traced is None else self._traced.dropped,
        )
        self._driver.submit(HeartbeatDue(vitals))
