"""The coordinator's process around its core: sockets, files, the database, HTTP.

- The control socket hands messages to the core; what can't be decoded is counted, and logged once a second at most.
- Effects are performed at once and in order; an epoch is on disk before anything that carries it is sent.
- Each second: the clock follows the system's, the state is saved.
- A coordinator that has lost its state file assigns nothing before the database has told it how far it was: until then
  it only tells the supervisor that it lives, and says to everybody else that it is starting.

It decides nothing about workers (see core.py) and knows no SQL (see projects.py).
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol, assert_never

import zmq
from prometheus_client import CollectorRegistry

from cluster import database
from cluster.access.credentials import Credentials, expect_somebody
from cluster.access.server_tls import server_certificate
from cluster.channel import Channel
from cluster.clock import Clock
from cluster.driver import Driver
from cluster.errors import ClusterError, ExitCode
from cluster.loop_lag import LoopLag
from cluster.messages import UNDECODABLE, control
from cluster.runtime import RoleContext
from cluster.settings import Settings
from cluster.sockets import bind_router, make_ipc_private, remove_ipc_path
from cluster.ticks import PARTITIONS
from coordinator.admin import AdminDesk
from coordinator.events import (
    ConfirmChange,
    DatabaseStateChanged,
    DrainRequested,
    DurableState,
    Effect,
    Event,
    JournalProjects,
    LoadFinished,
    LoadProgressed,
    MessageReceived,
    PeerUnreachable,
    ProjectRecord,
    ProjectsChanged,
    SaveEpoch,
    ScaleRequested,
    Send,
    Totals,
    View,
    WriteLog,
)
from coordinator.journal import ProjectJournal
from coordinator.project_requests import ProjectRequests
from coordinator.project_rows import Applied, ClusterMemory
from coordinator.projects import ProjectSource
from coordinator.requests import RequestDesk
from coordinator.status import ClusterCollector, ShellCounts, document
from coordinator.store import StateFile
from coordinator.throttle import ThrottledLog
from coordinator.web.access import Access
from coordinator.web.call import Backend
from coordinator.web.feed import EventFeed
from coordinator.web.history_endpoints import changes_reader
from coordinator.web.pool import ApiPool
from coordinator.web.server import WebServer

SECOND_S = 1.0
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

logger = logging.getLogger("coordinator")


class CoordinatorState(Protocol):
    """What the shell wants of the core (coordinator.core.CoordinatorCore)."""

    def handle(self, event: Event, now_ms: int) -> list[Effect]: ...

    def next_timer(self) -> int | None: ...

    def handle_timer(self, now_ms: int) -> list[Effect]: ...

    def view(self, now_ms: int) -> View: ...

    def durable(self, now_ms: int) -> DurableState: ...

    def project_ids(self) -> set[int]: ...

    def has_project(self, project_id: int) -> bool: ...

    def horizon_ms(self) -> int | None: ...


class MakeCore(Protocol):
    def __call__(
        self,
        *,
        max_concurrent_http: int,
        max_per_host: int,
        workers_wanted: int,
        run_id: str,
        restored: DurableState,
        now_ms: int,
    ) -> CoordinatorState: ...


class CoordinatorService:
    """Everything of one coordinator process.  ``run`` returns its exit status."""

    def __init__(self, context: RoleContext, make_core: MakeCore) -> None:
        settings = context.settings
        if settings.database_url is None:
            raise ClusterError(
                "the coordinator has no database; give --database-url or DATABASE_URL", code="no_database"
            )
        database.check_url(settings.database_url)
        self._context = context
        self._settings = settings
        self._make_core = make_core
        self._loop = asyncio.get_running_loop()
        self._clock = Clock(jump=False)
        self._started_at = time.time()
        directory = settings.data_dir / "coordinator"
        self._state = StateFile(directory)
        self._journal = ProjectJournal(directory)
        self._source = ProjectSource(
            settings.database_url, self, self._journal, self._clock.now_ms, settings.reload_interval_s
        )
        self._requests = RequestDesk(
            ProjectRequests(self._source),
            self._submit,
            self.view,
            settings.database_url,
            supervised=settings.supervised,
        )
        self._desk = AdminDesk(self._requests, lambda: document(self.view(), self.counts()))
        registry = CollectorRegistry()
        registry.register(ClusterCollector(self.view, self.counts))
        pool = ApiPool(settings.database_url)
        self._feed = EventFeed(
            lambda: None if self._core is None else document(self.view(), self.counts()), changes_reader(pool)
        )
        self._access = Access(settings, Credentials(settings.database_url))
        self.server = WebServer(
            settings.http,
            Backend(
                view=self.view,
                counts=self.counts,
                started=lambda: self._core is not None,
                desk=self._requests,
                pool=pool,
                registry=registry,
                feed=self._feed,
                access=self._access,
            ),
            certificate=server_certificate(settings),
        )
        self._core: CoordinatorState | None = None
        self._driver: Driver[Event, Effect] | None = None
        self._zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control: Channel | None = None
        self._admin: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._collecting: Applied | None = None  # what the core says really changed, while ``apply`` runs
        self._added: set[int] = set()
        self._lag = LoopLag()
        self._lag_ms = 0.0
        self._malformed = 0
        self._unsent = 0
        self._save_failures = 0
        self._throttled = ThrottledLog(logger)
        self._save_throttled = ThrottledLog(logger, every_s=60.0)

    # ---- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        try:
            await self._start()
            await self._context.stopping.wait()
            return await self._stop()
        finally:
            await self._close()

    async def _start(self) -> None:
        settings = self._settings
        logger.info("starting")
        self._lag.start()
        await self._expect_somebody()
        await self.server.start()
        self._control = Channel(bind_router(self._zmq, settings.control), self._on_control)
        make_ipc_private(settings.control)
        self._admin = Channel(bind_router(self._zmq, settings.admin, admin=True), self._desk.on_frames)
        make_ipc_private(settings.admin)
        self._desk.attach(self._admin)
        restored = self._state.load()
        memory = await self._until_stopped(self._source.remember(wait=restored is None))
        if self._context.stopping.is_set():
            return
        now_ms = self._clock.now_ms()
        self._core = self._make_core(
            max_concurrent_http=settings.max_concurrent_http,
            max_per_host=settings.max_per_host,
            workers_wanted=settings.workers,
            run_id=settings.run_id,
            restored=recalled(restored, memory),
            now_ms=now_ms,
        )
        self._driver = Driver(self._core, self._clock, self._perform)
        self._driver.wake()
        self._requests.open()
        self._begin(self._source.run())
        self._begin(self._each_second())

    async def _expect_somebody(self) -> None:
        """Nothing is served beyond loopback before there is a token or a user; a supervisor has seen to that already.

        Raises ClusterError.  While the database can't say, what needs authentication is answered with 503.
        """
        settings = self._settings
        if not self._access.required or settings.supervised:
            return
        assert settings.database_url is not None
        conn: database.Connection | None = None
        try:
            conn = await database.connect(settings.database_url)
            await expect_somebody(conn, settings.http)
        except (ClusterError, *database.DATABASE_ERRORS) as error:
            if conn is not None and isinstance(error, ClusterError):
                raise
            logger.warning("who may use the HTTP API is not known yet, so nobody may: %s", database.describe(error))
        finally:
            if conn is not None:
                conn.terminate()

    async def _until_stopped(self, work: Coroutine[Any, Any, ClusterMemory | None]) -> ClusterMemory | None:
        task = self._loop.create_task(work)
        stopping = self._loop.create_task(self._context.stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, stopping):
                each.cancel()

    async def _stop(self) -> int:
        await self.server.close()
        if self._admin is not None:
            self._admin.close()
            remove_ipc_path(self._settings.admin)
        await self._desk.close()
        await self._requests.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._core is not None:
            await self._source.close()
            self._state.save(self._core.durable(self._clock.now_ms()))
            logger.info("stopped after %d polls", self.view().totals.executed)
        return int(ExitCode.DONE)

    async def _close(self) -> None:
        """Give back everything, also after a failed start."""
        self._lag.close()
        await self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._driver is not None:
            self._driver.close()
        for channel, endpoint in ((self._control, self._settings.control), (self._admin, self._settings.admin)):
            if channel is not None:
                channel.close()
                remove_ipc_path(endpoint)
        await self._journal.close()
        self._zmq.destroy(linger=0)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._context.fail("a task of the coordinator failed", error)

    async def _each_second(self) -> None:
        while True:
            await asyncio.sleep(SECOND_S)
            self._clock.follow()
            self._lag_ms = self._lag.beat()
            assert self._core is not None
            try:
                await self._state.save_soon(self._core.durable(self._clock.now_ms()))
            except OSError as error:
                self._save_failures += 1
                self._save_throttled.warning(f"cannot save {self._state.path}: {error.strerror}; is the disk full?")

    # ---- the control socket, and effects --------------------------------------------------------------------------

    def _on_control(self, frames: list[bytes]) -> None:
        try:
            peer, body = frames
            message = control.decode_to_coordinator(body)
        except UNDECODABLE as error:
            self._malformed += 1
            self._throttled.warning(f"a message on the control socket is not understood and ignored: {error}")
            return
        if self._driver is not None:
            self._driver.submit(MessageReceived(peer, message))
        elif isinstance(message, control.SupervisorHello) and self._control is not None:
            beat = control.CoordinatorHeartbeat(0, None, 0, "loading", database_up=False)
            self._control.send(control.encode(beat), peer)

    def _perform(self, effect: Effect) -> None:
        assert self._core is not None
        assert self._driver is not None
        assert self._control is not None
        match effect:
            case Send(peer, message):
                if not self._control.send(control.encode(message), peer):
                    self._unsent += 1
                    self._driver.submit(PeerUnreachable(peer))
            case SaveEpoch(epoch):
                state = self._core.durable(self._clock.now_ms())
                state.epoch = max(epoch, state.epoch)
                self._save_now(state)
            case JournalProjects(records, removed):
                self._journal.append(records, removed)
                if self._collecting is not None:
                    for record in records:
                        (self._collecting.added if record.id in self._added else self._collecting.changed).append(
                            record.id
                        )
                    self._collecting.removed += removed
            case ConfirmChange(token):
                self._requests.confirm(token)
            case WriteLog(level, text):
                logger.log(_LEVELS[level], "%s", text)
            case _:
                assert_never(effect)

    def _submit(self, event: Event) -> None:
        assert self._driver is not None, "requests come after the start"
        self._driver.submit(event)
        if isinstance(event, ScaleRequested | DrainRequested) and self._core is not None:
            self._save_now(self._core.durable(self._clock.now_ms()))  # before it is answered

    def _save_now(self, state: DurableState) -> None:
        """Without its file a coordinator goes on: the database has the epoch, too, and workers say theirs."""
        try:
            self._state.save(state)
        except ClusterError as error:
            self._save_failures += 1
            self._save_throttled.warning(str(error))

    # ---- ProjectSink ----------------------------------------------------------------------------------------------

    def apply(
        self,
        records: list[ProjectRecord],
        removed: list[control.RemovedProject],
        *,
        initial: bool = False,
        ended: list[control.EndedSpan] | None = None,
        token: int | None = None,
    ) -> Applied:
        assert self._core is not None
        if not (records or removed or ended) and token is None:
            return Applied()
        self._added = {record.id for record in records if not self._core.has_project(record.id)}
        self._collecting = applied = Applied()
        try:
            self._submit(ProjectsChanged(records, removed, initial=initial, ended=ended or [], token=token))
        finally:
            self._collecting = None
        if not initial:
            self._feed.projects_changed([*applied.added, *applied.changed, *applied.removed])
        return applied

    def load_progressed(self, loaded: int, total: int | None) -> None:
        self._submit(LoadProgressed(loaded, total))

    def load_finished(self) -> None:
        self._submit(LoadFinished())

    def database_changed(self, up: bool) -> None:
        if self._driver is not None:
            self._submit(DatabaseStateChanged(up))

    def has_project(self, project_id: int) -> bool:
        return self._core is not None and self._core.has_project(project_id)

    def project_ids(self) -> set[int]:
        return set() if self._core is None else self._core.project_ids()

    def project_count(self) -> int:
        return self.view().projects

    def progress(self) -> tuple[int | None, int]:
        assert self._core is not None
        return self._core.horizon_ms(), self._core.durable(self._clock.now_ms()).epoch

    # ---- what others look at --------------------------------------------------------------------------------------

    def view(self) -> View:
        return _nothing_yet(self._settings) if self._core is None else self._core.view(self._clock.now_ms())

    def counts(self) -> ShellCounts:
        since = self._settings.run_started_at_ms / 1000 or self._started_at
        return ShellCounts(
            uptime_s=max(0.0, time.time() - since),
            refused={
                "control_malformed": self._malformed,
                "control_unsent": self._unsent,
                "admin_refused": self._desk.requests_refused,
                "admin_replies_lost": self._desk.replies_lost,
                "notifications_malformed": self._source.notifications_malformed,
                "journal_records_dropped": self._journal.records_dropped,
                "state_saves_failed": self._save_failures,
                **self._access.refused,
            },
            invalid_projects=self._source.invalid,
            admin_requests=self._desk.requests_ok,
            loop_lag_ms=self._lag_ms,
            loop_lag_counts=list(self._lag.total.counts),
        )


def recalled(restored: DurableState | None, memory: ClusterMemory | None) -> DurableState:
    """What the core begins with: the file, or else what the database remembers; never an epoch below either."""
    state = restored or DurableState()
    if memory is not None:
        state.epoch = max(state.epoch, memory.epoch)
        if restored is None:
            # Every tick before accounted_to is in the database, and a mark includes its own instant.
            mark = None if memory.accounted_to_ms is None else memory.accounted_to_ms - 1
            state.marks = [mark] * PARTITIONS
    return state


def _nothing_yet(settings: Settings) -> View:
    return View(
        phase="loading",
        epoch=0,
        projects=0,
        projects_loaded=0,
        projects_total=None,
        partitions_assigned=0,
        max_concurrent_http=settings.max_concurrent_http,
        workers_wanted=settings.workers,
        workers=[],
        totals=Totals(),
        writer=None,
        writer_state="restarting",
        database_up=False,
        horizon_ms=None,
    )


async def serve(context: RoleContext, make_core: MakeCore) -> int:
    return await CoordinatorService(context, make_core).run()
