"""The writer's process around its core: sockets, the store, heartbeats, the stop.

- The results socket hands messages to the core; what can't be decoded is counted, and logged once a second at most.
- One task uses the database: the operation the core waits for first, then ends of streams, then steps of maintenance
  (result partitions and retention, at the start and each hour).
- Another task keeps the rollups, on a connection of its own (see rollups.py).
- Each second, from the same loop: a heartbeat to the coordinator.

It decides nothing about results (see core.py), and knows no SQL (see store.py).
"""

import asyncio
import contextlib
import gc
import logging
import os
import uuid
from typing import assert_never

import psutil
import zmq

from cluster.channel import Channel
from cluster.clock import Clock
from cluster.driver import Driver
from cluster.errors import ClusterError, ExitCode
from cluster.messages import UNDECODABLE, control, results
from cluster.runtime import RoleContext
from cluster.sockets import bind_router, connect_dealer, make_ipc_private, remove_ipc_path
from writer.core import WriterCore
from writer.events import (
    CommitFlush,
    DatabaseFailed,
    Effect,
    Event,
    Finish,
    LedgerLoaded,
    LoadLedger,
    MarkEnded,
    MessageReceived,
    PeerUnreachable,
    Send,
    StopRequested,
    WriteLog,
)
from writer.partitions import Maintenance
from writer.rollup_plan import Retention
from writer.rollups import Rollups
from writer.store import Store, StoreError

HEARTBEAT_S = 1.0
MAINTENANCE_S = 3_600.0
MAINTENANCE_RETRY_S = 10.0
CLOSE_S = 2.0
ORPHAN_EXTRA_S = 20.0  # beyond the grace of the workers' polls, for their last batches
STREAMS_POLL_S = 0.1
DAYS_OF_YEAR = 366
ENDED_MAX = 4_096  # ends of streams waiting to be noted
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

logger = logging.getLogger("writer")


class WriterService:
    """Everything of one writer process.  ``run`` returns its exit status."""

    def __init__(self, context: RoleContext) -> None:
        settings = context.settings
        if settings.database_url is None:
            raise ClusterError("the writer has no database; give --database-url or DATABASE_URL", code="no_database")
        self._context = context
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._clock = Clock(jump=True)
        self._core = WriterCore(now_ms=self._clock.now_ms())
        self._driver: Driver[Event, Effect] = Driver(self._core, self._clock, self._perform)
        self._store = Store(settings.database_url, retention_days=settings.retention_days, wall_ms=self._clock.now_ms)
        self._rollups = Rollups(
            settings.database_url,
            Retention(
                results=settings.retention_days,
                minutes=settings.history_minutes_days,
                hours=settings.history_hours_days,
                days=settings.history_years * DAYS_OF_YEAR,
            ),
        )
        self._incarnation = settings.incarnation or uuid.uuid4().hex
        self._process = psutil.Process()
        self._zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._results: Channel | None = None
        self._control: Channel | None = None
        self._beat: asyncio.TimerHandle | None = None

        self._wake = asyncio.Event()
        self._operation: CommitFlush | LoadLedger | None = None
        self._ended: dict[str, None] = {}
        self._maintenance: Maintenance | None = None
        self._maintenance_timer: asyncio.TimerHandle | None = None
        self._finished: asyncio.Future[int] = self._loop.create_future()
        self._last_error = ""
        self._closing = False

        self._malformed = 0
        self._malformed_logged = 0

    async def run(self) -> int:
        settings = self._settings
        self._results = Channel(bind_router(self._zmq, settings.results), self._on_results)
        make_ipc_private(settings.results)
        self._control = Channel(connect_dealer(self._zmq, settings.control), self._on_control)
        storing = self._loop.create_task(self._use_database(), name="writer store")
        storing.add_done_callback(self._on_store_ended)
        rolling_up = self._loop.create_task(self._rollups.run(), name="writer rollups")
        rolling_up.add_done_callback(self._on_rollups_ended)
        self._driver.wake()
        self._on_beat()
        self._begin_maintenance()
        logger.info("writer started: results on %s", settings.results)
        try:
            await self._context.stopping.wait()
            if self._context.orphaned:
                await self._until_streams_end(settings.grace_s + ORPHAN_EXTRA_S)
            self._driver.submit(StopRequested(settings.grace_s * 1_000))
            uncommitted = await self._finished
        finally:
            rolling_up.cancel()
            await self._close(storing)
            await asyncio.wait({rolling_up})
        if uncommitted:
            why = self._last_error or "the database did not answer in time"
            logger.error("stopped with %d results not committed, which wait in the workers' WAL: %s", uncommitted, why)
            return ExitCode.FAILED
        logger.info("writer stopped: everything received is committed")
        return ExitCode.DONE

    async def _until_streams_end(self, timeout_s: float) -> None:
        """Without a supervisor the workers finish meanwhile, and their results are to be kept."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._core.view(self._clock.now_ms()).streams:  # noqa: ASYNC110 - the core is pure: no event
                    await asyncio.sleep(STREAMS_POLL_S)

    async def _close(self, storing: asyncio.Task[None]) -> None:
        self._driver.close()
        for timer in (self._beat, self._maintenance_timer):
            if timer is not None:
                timer.cancel()
        for channel in (self._results, self._control):
            if channel is not None:
                channel.close()
        self._zmq.term()
        remove_ipc_path(self._settings.results)
        # Ends of streams may be noted yet; an operation the core no longer waits for is given up.
        self._closing = True
        self._maintenance = None
        self._wake.set()
        if self._operation is None:
            await asyncio.wait({storing}, timeout=CLOSE_S)
        storing.cancel()
        await asyncio.wait({storing})
        await self._store.close()

    def _on_store_ended(self, storing: asyncio.Task[None]) -> None:
        if not storing.cancelled() and (error := storing.exception()) is not None:
            self._context.fail("the writer's database task failed", error)

    def _on_rollups_ended(self, rolling_up: asyncio.Task[None]) -> None:
        if not rolling_up.cancelled() and (error := rolling_up.exception()) is not None:
            self._context.fail("the writer's rollups failed", error)

    # ---- effects ----------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                if self._results is None or not self._results.send(results.encode(message), peer):
                    self._driver.submit(PeerUnreachable(peer))
            case CommitFlush() | LoadLedger():
                assert self._operation is None, "one database operation at a time"
                self._operation = effect
                self._wake.set()
            case MarkEnded(stream_ids):
                for stream_id in stream_ids:
                    if len(self._ended) < ENDED_MAX:
                        self._ended[stream_id] = None
                self._wake.set()
            case WriteLog(level, text):
                logger.log(_LEVELS[level], "%s", text)
            case Finish(uncommitted):
                self._finished.set_result(uncommitted)
            case _:
                assert_never(effect)

    # ---- the database -----------------------------------------------------------------------------------------------

    async def _use_database(self) -> None:
        while True:
            if self._operation is not None:
                event = await self._operate(self._operation)
                self._operation = None
                self._driver.submit(event)
            elif self._ended:
                await self._note_ended()
            elif self._maintenance is not None:
                await self._maintain(self._maintenance)
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _operate(self, operation: CommitFlush | LoadLedger) -> Event:
        try:
            match operation:
                case CommitFlush(flush):
                    return await self._store.commit(flush)
                case LoadLedger(stream_ids):
                    return LedgerLoaded(await self._store.load_ledger(stream_ids))
                case _:
                    assert_never(operation)
        except StoreError as error:
            self._last_error = str(error)
            failed = DatabaseFailed(error.kind, str(error))
        gc.collect()  # each failed connect leaves some 100 KiB in cycles, and an outage has many
        return failed

    async def _note_ended(self) -> None:
        stream_ids = list(self._ended)
        try:
            await self._store.mark_ended(stream_ids)
        except StoreError as error:
            logger.warning("the end of %d streams is not noted in the ledger: %s", len(stream_ids), error)
        for stream_id in stream_ids:
            self._ended.pop(stream_id, None)

    # ---- maintenance ------------------------------------------------------------------------------------------------

    def _begin_maintenance(self) -> None:
        self._maintenance = Maintenance.plan(self._clock.now_ms(), self._settings.retention_days)
        self._maintenance_timer = self._loop.call_later(MAINTENANCE_S, self._begin_maintenance)
        self._wake.set()

    async def _maintain(self, maintenance: Maintenance) -> None:
        try:
            more = await self._store.run(maintenance.run_step)
        except StoreError as error:
            logger.warning("result partitions could not be looked after, trying again: %s", error)
            self._maintenance = None
            if self._maintenance_timer is not None:
                self._maintenance_timer.cancel()
            self._maintenance_timer = self._loop.call_later(MAINTENANCE_RETRY_S, self._begin_maintenance)
        else:
            if not more:
                self._maintenance = None

    # ---- sockets ----------------------------------------------------------------------------------------------------

    def _on_results(self, frames: list[bytes]) -> None:
        if len(frames) != 2:
            self._malformed += 1
            return
        peer, body = frames
        try:
            message = results.decode_to_writer(body)
        except UNDECODABLE:
            self._malformed += 1
            return
        self._driver.submit(MessageReceived(peer, message, len(body)))

    def _on_control(self, frames: list[bytes]) -> None:
        try:
            message = control.decode_to_worker(frames[-1])
        except UNDECODABLE:
            self._malformed += 1
            return
        if isinstance(message, control.WhoAreYou):
            self._send_heartbeat()

    def _on_beat(self) -> None:
        self._beat = self._loop.call_later(HEARTBEAT_S, self._on_beat)
        self._clock.follow()
        self._send_heartbeat()
        if self._malformed != self._malformed_logged:
            logger.warning("%d messages were not understood and ignored", self._malformed - self._malformed_logged)
            self._malformed_logged = self._malformed

    def _send_heartbeat(self) -> None:
        view = self._core.view(self._clock.now_ms())
        beat = control.WriterHeartbeat(
            incarnation=self._incarnation,
            pid=os.getpid(),
            state=view.state,
            rows_written=view.rows_written,
            rows_per_s=view.rows_per_s,
            lag_ms=view.lag_ms,
            duplicates=view.duplicates,
            rejects=view.rejects,
            streams=view.streams,
            pending_rows=view.pending_rows,
            rss_bytes=int(self._process.memory_info().rss),
            rollup_lag_ms=self._rollups.lag_ms(),
        )
        if self._control is not None:
            self._control.send(control.encode(beat))  # False: the coordinator is away; it will hear the next one


async def main(context: RoleContext) -> int:
    return await WriterService(context).run()
