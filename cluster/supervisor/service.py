"""The supervisor's shell: performs what its core decides.

It prepares the data directory and the database, starts child processes, passes on their log lines, speaks with the
coordinator, and keeps the embedded PostgreSQL running.  ``supervise`` returns the exit status of ``cluster up``, or
raises ClusterError when the cluster can't be started; nothing is left behind either way.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TextIO, TypeVar

import asyncpg
import msgspec
import uvloop
import zmq

from cluster import config, database, sockets
from cluster.access.credentials import expect_somebody
from cluster.access.server_tls import server_certificate
from cluster.channel import Channel
from cluster.clock import Clock
from cluster.driver import Driver
from cluster.embedded import EmbeddedPostgres, cluster_database
from cluster.errors import ClusterError
from cluster.logs import LogSink, is_human, setup_supervisor
from cluster.messages import control
from cluster.runtime import EXIT_BUG, orphans_end_within_s
from cluster.settings import Settings
from cluster.supervisor.core import (
    CoordinatorSpoke,
    EndSupervision,
    ProcessEnded,
    ProcessSpawned,
    Report,
    SignalProcess,
    SpawnFailed,
    SpawnProcess,
    StopRequested,
    SupervisionBegan,
    SupervisorCore,
    SupervisorEffect,
    SupervisorEvent,
    TellCoordinator,
)
from cluster.supervisor.display import Display
from cluster.supervisor.leftover import left_over
from cluster.supervisor.lock import LockHolder, SupervisorLock, held_role_locks, supervisor_lock
from cluster.supervisor.notify import VARIABLE as NOTIFY_VARIABLE
from cluster.supervisor.notify import notify_service_manager
from cluster.supervisor.process import ChildProcess

ORPHANS_POLL_S = 0.1
POSTGRES_CHECK_S = 1.0
POSTGRES_RETRY_MAX_S = 10.0
CHATTY_LEVELS = frozenset({"error", "critical"})

logger = logging.getLogger("cluster.supervisor")

T = TypeVar("T")
Announce = Callable[[str], None]
RoleCommand = Callable[[str, str], list[str]]  # role, name


def role_command(role: str, name: str) -> list[str]:
    """The name is there for people who look at a process list; the role takes it from its environment."""
    module = "cluster.demo" if role == "demo" else role
    return [sys.executable, "-m", module, name]


class _StoppedAtStart(Exception):  # noqa: N818 - not an error
    """Someone asked for a stop before the roles were started."""


def supervise(
    settings: Settings,
    *,
    demo: bool = False,
    announce: Announce = print,
    log: TextIO | None = None,
    command: RoleCommand = role_command,
) -> int:
    """Run a cluster to its end.  ``announce`` shows what a person wants to see, ``log`` takes the log lines."""
    stream = sys.stderr if log is None else log
    with supervisor_lock(settings.run_dir) as lock:
        human = is_human(settings.log_format, stream)
        display = Display(stream, human=human)
        sink = LogSink(display.write_line, human=human, colour=human and stream.isatty())
        setup_supervisor(sink, settings.log_level)
        try:
            service = SupervisorService(settings, lock, display, sink, announce=announce, command=command, demo=demo)
            return uvloop.run(service.run())
        finally:
            display.close()
            sink.close()
            logging.getLogger().handlers.clear()


class SupervisorService:
    def __init__(
        self,
        settings: Settings,
        lock: SupervisorLock,
        display: Display,
        sink: LogSink,
        *,
        announce: Announce,
        command: RoleCommand,
        demo: bool,
    ) -> None:
        self._lock = lock
        self._display = display
        self._sink = sink
        self._announce = announce
        self._command = command
        self._demo = demo
        self._clock = Clock(jump=False)
        self._settings = msgspec.structs.replace(
            settings, run_id=uuid.uuid4().hex, run_started_at_ms=self._clock.now_ms(), supervised=True
        )
        self._holder = LockHolder(
            pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            http=config.http_url(settings),
            embedded=settings.database_url is None,
        )
        self._postgres: EmbeddedPostgres | None = None
        self._children: dict[tuple[str, str], ChildProcess] = {}  # by name and incarnation
        self._last_errors: dict[tuple[str, str], str] = {}
        self._driver: Driver[SupervisorEvent, SupervisorEffect] | None = None
        self._channel: Channel | None = None
        self._ended: asyncio.Future[EndSupervision] | None = None
        self._stop_why = ""
        self._malformed = 0
        self._untold = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        loop.set_exception_handler(self._on_unhandled)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        self._lock.write(self._holder)
        failed: ClusterError | None = None
        try:
            await self._prepare()
            return await self._supervise()
        except _StoppedAtStart:
            return await self._end("stopped before anything was started")
        except ClusterError as error:
            failed = error
            raise
        finally:
            await self._clean_up(failed)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    # ---- before the roles -----------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        settings = self._settings
        endpoints = (settings.control, settings.results, settings.admin)
        for endpoint in endpoints:
            sockets.check_endpoint(endpoint)
        if settings.database_url is None:  # before orphans are waited for: they may need it to finish
            self._postgres = cluster_database(settings.data_dir)
            await self._step(asyncio.to_thread(self._postgres.start))
            self._settings = msgspec.structs.replace(settings, database_url=self._postgres.dsn())
        await self._wait_for_orphans()
        for endpoint in endpoints:
            sockets.remove_ipc_path(endpoint)
        check_address(settings.http)
        server_certificate(settings)  # a bad one is said here, and not by a role that is started again and again
        empty = await self._step(self._migrate())
        self._say_what_runs(empty=empty)

    async def _step(self, work: Awaitable[T]) -> T:
        """One step of the start, after which a stop that was asked for meanwhile is obeyed."""
        result = await work
        if self._stop_why:
            raise _StoppedAtStart
        return result

    async def _wait_for_orphans(self) -> None:
        """Roles of an earlier supervisor that was killed end by themselves; two of a name must never meet."""
        deadline = time.monotonic() + orphans_end_within_s(self._settings.grace_s)
        told = False
        while held := held_role_locks(self._settings.run_dir):
            names = ", ".join(held)
            if not told:
                logger.warning("waiting for processes of an earlier run to end: %s", names)
                told = True
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"processes of an earlier run still use {self._settings.data_dir}: {names}; end them first",
                    code="already_running",
                )
            await self._step(asyncio.sleep(ORPHANS_POLL_S))

    async def _migrate(self) -> bool:
        """Bring the database to this program's schema; True when it has no project yet."""
        url = self._settings.database_url
        assert url is not None
        try:
            conn = await database.connect(url)
        except ClusterError as error:
            journal = self._settings.data_dir / "coordinator" / "projects.journal"
            if error.code != "database_unavailable" or not journal.exists():
                raise
            logger.warning("%s; starting with the projects known from the last run", error)
            return False
        try:
            for name in await database.migrate(conn):
                logger.info("applied migration %s", name)
            if not config.serves_this_machine_only(self._settings):
                await expect_somebody(conn, self._settings.http)
            return not await conn.fetchval("SELECT EXISTS (SELECT 1 FROM projects)")
        except database.DATABASE_ERRORS as error:
            raise ClusterError(f"cannot prepare the database: {database.describe(error)}") from error
        finally:
            await _close(conn)

    def _say_what_runs(self, *, empty: bool) -> None:
        settings = self._settings
        url = settings.database_url or ""
        if self._postgres is not None:
            where = f"embedded PostgreSQL in {self._postgres.base} (psql '{url}')"
        else:
            where = database.place(url)
        lines = [
            f"ringpoll: {settings.workers} workers, at most {settings.max_concurrent_http} HTTP requests in flight",
            f"  status    {config.http_url(settings)}/status   (or: cluster status{self._data_dir_flag()})",
            f"  data      {settings.data_dir}",
            f"  database  {where}",
        ]
        if empty and not self._demo:
            lines.append("no project yet; add the first one with:")
            lines.append(f"  cluster add https://example.org --interval 30s{self._data_dir_flag()}")
        for line in lines:
            self._announce(line)

    def _data_dir_flag(self) -> str:
        """What a command needs to find this cluster from the same environment."""
        usual = os.environ.get("CLUSTER_DATA_DIR") or str(config.default_data_dir(os.environ))
        chosen = str(self._settings.data_dir)
        return "" if chosen == usual else f" --data-dir {chosen}"

    # ---- while the roles run --------------------------------------------------------------------------------------

    async def _supervise(self) -> int:
        assert self._ended is not None
        core = SupervisorCore(
            pid=os.getpid(),
            run_id=self._settings.run_id,
            workers=self._settings.workers,
            grace_ms=self._settings.grace_s * 1_000,
            new_incarnation=lambda: uuid.uuid4().hex,
            demo=self._demo,
        )
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        guard = asyncio.create_task(self._guard_postgres()) if self._postgres is not None else None
        try:
            self._channel = Channel(sockets.connect_dealer(context, self._settings.control), self._on_frames)
            self._driver = Driver(core, self._clock, self._perform)
            self._driver.submit(SupervisionBegan())
            end = await self._ended
        finally:
            if guard is not None:
                guard.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await guard
            if self._driver is not None:
                self._driver.close()
            for child in self._children.values():  # only after a bug of ours: they must not outlive us
                child.signal(signal.SIGKILL)
            if self._channel is not None:
                self._channel.close()
            context.term()
        return await self._end("stopped", (end.why or "the cluster did not stop cleanly") if end.exit_status else "")

    def _submit(self, event: SupervisorEvent) -> None:
        assert self._driver is not None
        self._driver.submit(event)

    def _on_signal(self, number: signal.Signals) -> None:
        name = signal.Signals(number).name
        first = not self._stop_why
        self._stop_why = self._stop_why or name
        if self._driver is not None:  # before all that a full disk may refuse
            self._submit(StopRequested(name))
        notify_service_manager("STOPPING=1")
        if first:
            try:
                self._lock.write(msgspec.structs.replace(self._holder, stopping=True))
            except ClusterError as error:
                logger.warning("stopping, which others can't see in the lock file: %s", error)

    def _on_frames(self, frames: list[bytes]) -> None:
        try:
            (body,) = frames
            message = control.decode_to_supervisor(body)
        except (ValueError, msgspec.MsgspecError):
            self._malformed += 1
            logger.warning("ignored a malformed message from the coordinator (%d so far)", self._malformed)
            return
        if isinstance(message, control.CoordinatorHeartbeat) and self._display.show_progress(
            message, self._clock.now_ms()
        ):
            notify_service_manager("READY=1", f"STATUS=polling {message.projects_loaded} projects")
        self._submit(CoordinatorSpoke(message))

    def _on_unhandled(self, _loop: asyncio.AbstractEventLoop, details: dict[str, Any]) -> None:
        error = details.get("exception")
        logger.critical(str(details.get("message")), exc_info=error if isinstance(error, BaseException) else None)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(EndSupervision(EXIT_BUG, f"a bug in the supervisor: {error or details}"))

    def _perform(self, effect: SupervisorEffect) -> None:
        match effect:
            case SpawnProcess():
                self._spawn(effect)
            case SignalProcess():
                child = self._children.get((effect.name, effect.incarnation))
                if child is not None:
                    child.signal(signal.SIGKILL if effect.signal == "kill" else signal.SIGTERM)
            case TellCoordinator():
                if self._channel is None or not self._channel.send(control.encode(effect.message)):
                    self._untold += 1  # the next hello says it again
            case Report():
                logger.log(logging.getLevelNamesMapping()[effect.level.upper()], effect.text)
            case EndSupervision():
                if self._ended is not None and not self._ended.done():
                    self._ended.set_result(effect)

    def _spawn(self, effect: SpawnProcess) -> None:
        key = (effect.name, effect.incarnation)
        settings = msgspec.structs.replace(self._settings, name=effect.name, incarnation=effect.incarnation)
        environ = config.role_environ(settings, os.environ) | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        environ.pop(NOTIFY_VARIABLE, None)
        try:
            self._children[key] = ChildProcess(
                self._command(effect.role, effect.name),
                environ,
                lambda pid, line: self._on_line(key, pid, line),
                lambda exit_status: self._on_end(key, exit_status),
            )
        except OSError as error:
            self._submit(SpawnFailed(*key, f"cannot start a process: {error.strerror}"))
            return
        self._submit(ProcessSpawned(*key, self._children[key].pid))

    def _on_line(self, key: tuple[str, str], pid: int, line: bytes) -> None:
        fields = self._sink.pass_on(key[0], pid, line)
        if fields is not None and (fields["level"] in CHATTY_LEVELS or fields.get("logger") == "output"):
            self._last_errors[key] = str(fields["msg"])[:500]

    def _on_end(self, key: tuple[str, str], exit_status: int) -> None:
        del self._children[key]
        self._submit(ProcessEnded(*key, exit_status, self._last_errors.pop(key, "")))

    async def _guard_postgres(self) -> None:
        """Start the embedded server again when it dies; the roles reconnect by themselves."""
        assert self._postgres is not None
        delay_s = POSTGRES_CHECK_S
        while True:
            await asyncio.sleep(delay_s)
            if self._postgres.running():
                delay_s = POSTGRES_CHECK_S
                continue
            logger.error("the embedded PostgreSQL has ended; starting it again, see %s", self._postgres.log)
            try:
                await asyncio.to_thread(self._postgres.revive)
            except ClusterError as error:
                delay_s = min(POSTGRES_RETRY_MAX_S, delay_s * 2)
                logger.error("%s", error)  # noqa: TRY400 - a person's error, not a traceback

    # ---- after the roles ------------------------------------------------------------------------------------------

    async def _end(self, said: str, why: str = "") -> int:
        """Nothing runs any more.  Raises ClusterError when that was no clean end, or when results wait."""
        settings = self._settings
        try:
            left = await left_over(settings.wal_dir, settings.database_url)
        except ClusterError as error:
            left = f"whether results wait is not known: {error}"
        if why or left:
            raise ClusterError("; ".join(part for part in (why, left) if part))
        logger.info(said)
        return 0

    async def _clean_up(self, failed: ClusterError | None) -> None:
        """``failed``: what is said last; trouble on the way here does not take its place."""
        try:
            if self._postgres is not None:
                logger.info("giving up the embedded PostgreSQL in %s", self._postgres.base)
                await asyncio.to_thread(self._postgres.stop)
        except ClusterError as error:
            if failed is None:
                raise
            logger.error("%s", error)  # noqa: TRY400 - a person's error, not a traceback
        finally:
            try:
                self._remove_traces()
            except OSError as error:  # a disk that is read-only by now
                logger.info("sockets and locks are left for the next start to remove: %s", error)

    def _remove_traces(self) -> None:
        held = held_role_locks(self._settings.run_dir)
        if not held:
            for endpoint in (self._settings.control, self._settings.results, self._settings.admin):
                sockets.remove_ipc_path(endpoint)
        for path in self._settings.run_dir.glob("*.lock"):
            if path.stem not in {*held, "supervisor"}:
                path.unlink(missing_ok=True)


async def _close(conn: database.Connection) -> None:
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        await conn.close(timeout=5)


def check_address(address: str) -> None:
    """Raises ClusterError unless the HTTP address can be listened on now."""
    host, port = config.split_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(1)
    except OSError as error:
        raise ClusterError(
            f"cannot listen on http://{address}: {error.strerror}; choose another address with --http HOST:PORT",
            code="address_unavailable",
        ) from error
