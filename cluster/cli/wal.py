"""Commands that look after the WAL of a data directory: what waits there, and delivering it without a cluster.

``replay`` starts a writer and a worker that only delivers; both end with it.  They meet on a socket of their own: the
configured endpoints may be those of a cluster that runs elsewhere, which must not take them for members.  It may be
interrupted at any time: what is not delivered by then is still there.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import click
import msgspec
import orjson

from cluster import config, database, sockets
from cluster.cli.options import ALL, EVERYWHERE, with_settings
from cluster.embedded import cluster_database
from cluster.errors import ClusterError, ExitCode, InvalidInputError
from cluster.logs import LogSink
from cluster.settings import Settings
from cluster.supervisor.leftover import newer_streams, of_a_newer_version
from cluster.supervisor.lock import LockHolder, held_role_locks, supervisor_lock
from cluster.wal.listing import StreamInfo, list_streams

DATABASE_POLL_S = 1.0
PROGRESS_S = 5.0
WRITER_END_S = 60.0  # everything is committed then
INTERRUPTED_END_S = 5.0
ABANDONED_END_S = 1.0  # of a writer whose worker has ended: nobody hears what it commits yet
CLOSE_S = 5.0

T = TypeVar("T")


@click.group()
def wal() -> None:
    """What workers have polled and the database does not have yet."""


@wal.command(name="list")
@with_settings(*EVERYWHERE)
@click.option("--verify", is_flag=True, help="Read every batch and check it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_command(settings: Settings, verify: bool, as_json: bool) -> int:
    """List the streams on disk.

    A stream in use belongs to a running worker; an orphan is delivered by the next worker that runs here. What is
    acknowledged is kept for 10 minutes. With --verify the exit status is 1 when anything is damaged.
    """
    check_data_dir(settings)
    streams = list_streams(settings.wal_dir, verify=verify)
    if as_json:
        click.echo(orjson.dumps(wal_document(streams), option=orjson.OPT_INDENT_2))
    elif not streams:
        click.echo(f"nothing is in {settings.wal_dir}")
    else:
        from cluster.cli import render  # noqa: PLC0415 - rich is slow to import

        render.show(render.wal_table(streams))
    if newer := newer_streams(streams):
        click.echo(f"Warning: {of_a_newer_version(newer, settings.wal_dir)}", err=True)
    return int(ExitCode.FAILED if verify and any(stream.damaged for stream in streams) else ExitCode.DONE)


@wal.command()
@with_settings(*ALL)
def replay(settings: Settings) -> None:
    """Deliver what orphans hold to the database, and end.

    For a data directory on which no cluster runs; a running one does this by itself.
    """
    check_data_dir(settings)
    with supervisor_lock(settings.run_dir) as lock:
        held = held_role_locks(settings.run_dir)
        if held:
            raise ClusterError(
                f"processes of a cluster on {settings.data_dir} deliver it themselves: {', '.join(held)}",
                code="already_running",
            )
        streams = list_streams(settings.wal_dir)
        newer = newer_streams(streams)
        before = sum(stream.records_unacked for stream in streams)
        if not before:
            if newer:
                raise ClusterError(of_a_newer_version(newer, settings.wal_dir))
            click.echo(f"nothing waits in {settings.wal_dir}")
            return
        lock.write(LockHolder(pid=os.getpid(), embedded=settings.database_url is None))
        click.echo(f"{before} results wait in {settings.wal_dir}")
        why = asyncio.run(Replay(settings, before).run())
        after = waiting_records(settings)
        delivered = max(0, before - after)
        if after:
            raise ClusterError(
                f"{why}: {delivered} results delivered, {after} still wait in {settings.wal_dir}; `cluster wal replay` "
                "or the next `cluster up` delivers them"
            )
        if newer:
            raise ClusterError(f"{delivered} results delivered; {of_a_newer_version(newer, settings.wal_dir)}")
        click.echo(f"{delivered} results delivered, nothing waits any more")


def wal_document(streams: list[StreamInfo]) -> dict[str, Any]:
    """What ``wal list --json`` prints."""
    return {
        "streams": [msgspec.structs.asdict(stream) for stream in streams],
        "records_unacked": sum(stream.records_unacked for stream in streams),
        "bytes": sum(stream.bytes for stream in streams),
        "damaged": sum(stream.damaged for stream in streams),
    }


def check_data_dir(settings: Settings) -> None:
    """A mistyped directory must not look like one in which nothing waits."""
    if not settings.data_dir.is_dir():
        raise InvalidInputError(
            f"there is no data directory {settings.data_dir}: give the --data-dir of a cluster, or set CLUSTER_DATA_DIR"
        )


def waiting_records(settings: Settings) -> int:
    return sum(stream.records_unacked for stream in list_streams(settings.wal_dir))


class Interrupted(Exception):  # noqa: N818 - not an error
    """Someone asked for the end."""


class Replay:
    """One delivery.  ``run`` leaves no process behind, however it ends."""

    def __init__(self, settings: Settings, records: int) -> None:
        private = f"ipc://{settings.run_dir}"  # names no longer than those of a cluster: where it runs, this does
        self._settings = msgspec.structs.replace(
            settings,
            supervised=True,
            control_endpoint=f"{private}/wal-c.sock",
            results_endpoint=f"{private}/wal-r.sock",
        )
        self._records = records
        self._told = 0
        self._roles: dict[str, RoleProcess] = {}
        self._interrupted = asyncio.Event()

    async def run(self) -> str:
        """Deliver; says why it ended.  Raises ClusterError when it can't begin."""
        for endpoint in (self._settings.control, self._settings.results):  # before a database is waited for
            sockets.check_endpoint(endpoint)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        sink = LogSink(
            lambda line: click.echo(line, err=True),
            human=self._settings.log_format != "json",
            colour=sys.stderr.isatty(),
        )
        try:
            async with self._database() as url:
                return await self._deliver(msgspec.structs.replace(self._settings, database_url=url), sink)
        except Interrupted:
            return "interrupted"
        finally:
            sink.close()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
                if self._interrupted.is_set():  # what is left is to say so, whoever keeps pressing
                    signal.signal(number, signal.SIG_IGN)

    def _on_signal(self) -> None:
        if self._interrupted.is_set():  # the second time
            for role in self._roles.values():
                role.kill()
        self._interrupted.set()

    # ---- the database -----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _database(self) -> AsyncIterator[str]:
        """The URL of a database that answers and has our tables."""
        async with contextlib.AsyncExitStack() as stack:
            url = self._settings.database_url
            if url is None:
                server = cluster_database(self._settings.data_dir)
                if not (server.data / "PG_VERSION").exists():
                    raise InvalidInputError(
                        f"no database: set DATABASE_URL (there is no embedded one in {self._settings.data_dir})"
                    )
                stack.push_async_callback(asyncio.to_thread, server.stop)
                await asyncio.to_thread(server.start)
                url = server.dsn()
            await self._unless_interrupted(self._prepare(url))
            yield url

    async def _prepare(self, url: str) -> None:
        conn = await self._connect(url)
        try:
            if await database.schema_version(conn) == 0:
                raise ClusterError(f"the database {database.place(url)} has no tables of ours; run `cluster migrate`")
            for name in await database.migrate(conn):
                click.echo(f"applied migration {name}", err=True)
        except database.DATABASE_ERRORS as error:
            raise ClusterError(f"cannot prepare the database: {database.describe(error)}") from error
        finally:
            with contextlib.suppress(*database.DATABASE_ERRORS):
                await conn.close(timeout=CLOSE_S)

    async def _connect(self, url: str) -> database.Connection:
        told = False
        while True:
            try:
                return await database.connect(url)
            except ClusterError as error:
                if error.code != "database_unavailable":
                    raise
                if not told:
                    click.echo(f"{error}  Waiting for it; Ctrl-C ends this.", err=True)
                    told = True
            await asyncio.sleep(DATABASE_POLL_S)

    async def _unless_interrupted(self, work: Awaitable[T]) -> T:
        working = asyncio.ensure_future(work)
        interrupted = asyncio.ensure_future(self._interrupted.wait())
        await asyncio.wait({working, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait({working})
        raise Interrupted

    # ---- the roles --------------------------------------------------------------------------------------------------

    async def _deliver(self, settings: Settings, sink: LogSink) -> str:
        sockets.remove_ipc_path(settings.results)
        progress = asyncio.ensure_future(self._show_progress())
        try:
            writer = self._roles["writer"] = RoleProcess("writer", "writer", settings, sink)
            worker = self._roles["worker"] = RoleProcess("worker", "replay", settings, sink)
            await self._unless_interrupted(asyncio.wait({writer.ended, worker.ended}, return_when="FIRST_COMPLETED"))
            if writer.ended.done():
                return f"the writer ended (exit status {writer.ended.result()})"
            writer.terminate()
            await self._unless_interrupted(asyncio.wait({writer.ended}, timeout=WRITER_END_S))
            exit_status = worker.ended.result()
            return (
                f"the worker ended (exit status {exit_status})"
                if exit_status
                else "not every stream could be taken over"
            )
        finally:
            progress.cancel()
            await self._end_roles()

    async def _end_roles(self) -> None:
        """Nothing is lost by it: what is not acknowledged stays in the WAL."""
        for name, patience_s in (("worker", INTERRUPTED_END_S), ("writer", ABANDONED_END_S)):
            role = self._roles.get(name)
            if role is not None:
                role.terminate()
                await asyncio.wait({role.ended}, timeout=patience_s)
                role.kill()
                await role.ended

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            with contextlib.suppress(ClusterError):  # it is said in the end
                delivered = self._records - await asyncio.to_thread(waiting_records, self._settings)
                if delivered > self._told:
                    self._told = delivered
                    click.echo(f"{delivered} of {self._records} results delivered", err=True)


class RoleProcess:
    """A role as a child that ends when we do.  ``ended`` has its exit status."""

    def __init__(self, role: str, name: str, settings: Settings, sink: LogSink) -> None:
        from cluster.supervisor.process import ChildProcess  # noqa: PLC0415 - `wal list` doesn't need it

        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._name = name
        self._sink = sink
        environ = config.role_environ(msgspec.structs.replace(settings, name=name, replay=role == "worker"), os.environ)
        self._child = ChildProcess(
            [sys.executable, "-m", role, name],
            environ | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
            self._on_line,
            self.ended.set_result,
        )

    def _on_line(self, pid: int, line: bytes) -> None:
        self._sink.pass_on(self._name, pid, line)

    def terminate(self) -> None:
        self._child.signal(signal.SIGTERM)

    def kill(self) -> None:
        self._child.signal(signal.SIGKILL)
