"""What a benchmark stands on: a target, a database, a cluster as ``cluster up`` starts it, and what each of them costs.

Everything is on loopback and below one temporary directory, which is removed at the end, however that comes: a task
that is cancelled ends the cluster at once, for nobody wants its results any more, and a ``guard`` does so when we are
killed.  Nothing of the user's own cluster is touched: its variables are not passed on, the port is a free one, the
cluster runs in the temporary directory.

CPU time is read from ``/proc/PID/stat`` (user and system, 10 ms resolution) and counted by role:

    supervisor, coordinator, writer, workers   the processes of `cluster up`
    postgresql                                 the postmaster and all its processes, those that ended included;
                                               nothing when it runs on another machine
    target                                     the HTTP server that is polled; not part of the product

It judges nothing and prints nothing.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec
import psutil

from cluster import config, database
from cluster.bench.guard import BenchGuard, drop_database
from cluster.embedded import EmbeddedPostgres, cluster_database
from cluster.errors import ClusterError
from cluster.supervisor.notify import VARIABLE as NOTIFY_VARIABLE

STOP_S = 120.0
ABANDON_S = 20.0  # for `cluster up` to end its roles when nobody wants their results
TARGET_END_S = 10.0
TROUBLE = ("killing it", "stood still", "died", "FATAL", '"level":"error"', "Traceback")
READ_S = 0.05  # between two looks at a condition
STATUS_TIMEOUT_S = 60.0
ROLES = ("supervisor", "coordinator", "writer", "workers", "postgresql")
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

T = TypeVar("T")


class BenchError(ClusterError):
    """The benchmark could not be carried out."""


async def to_the_end(work: Awaitable[T]) -> T:
    """Its result; a cancellation waits until it is over, because what it has set up by then must be taken down.

    It is not cancelled itself.
    """
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        working.exception()  # nobody wants to hear of it: ^C on a terminal reaches initdb, too
        raise


def environ_without_a_cluster() -> dict[str, str]:
    """Ours, without what configures a cluster of the user or tells a service manager of one."""
    dropped = {*config.VARIABLES, NOTIFY_VARIABLE}
    kept = {
        name: value for name, value in os.environ.items() if name not in dropped and not name.startswith(config.PREFIX)
    }
    return kept | {"PYTHONSAFEPATH": "1"}  # nothing of the directory we happen to stand in


# ---- the target -----------------------------------------------------------------------------------------------------


class BenchTarget:
    def __init__(self, latency_ms: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.bench.target", str(latency_ms)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ_without_a_cluster(),
            start_new_session=True,  # no ^C from a terminal: it ends with its input
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            raise BenchError(f"the target did not start: {said.decode(errors='replace')[-500:]}")
        self.url = f"http://127.0.0.1:{int(line)}"
        self.process = psutil.Process(self._process.pid)

    def answered(self) -> int:
        with _open(f"{self.url}/count", timeout=STATUS_TIMEOUT_S) as answer:
            return int(answer.read())

    def close(self) -> None:
        try:
            self._process.communicate(timeout=TARGET_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


# ---- the database ---------------------------------------------------------------------------------------------------


class Database:
    """A migrated database of its own: on the cluster's embedded server, or a new one on the server of DATABASE_URL."""

    def __init__(self, data_dir: Path, server_url: str | None) -> None:
        self._server_url = server_url
        self._embedded: EmbeddedPostgres | None = None
        self._created = False
        self._name = f"ringpoll_bench_{uuid.uuid4().hex[:12]}"
        self._data_dir = data_dir
        self.url = ""
        self.postmaster: psutil.Process | None = None  # None: it is not on this machine

    @property
    def to_drop(self) -> tuple[str, str] | None:
        """The server and the name of the database that ``start`` creates there."""
        return None if self._server_url is None else (self._server_url, self._name)

    @property
    def is_embedded(self) -> bool:
        return self._embedded is not None

    async def start(self) -> None:
        if self._server_url is None:
            self._embedded = cluster_database(self._data_dir)
            await to_the_end(asyncio.to_thread(self._embedded.start))
            self.url = self._embedded.dsn()
        else:
            conn = await database.connect(self._server_url)
            try:
                self._created = True
                await to_the_end(conn.execute(f"CREATE DATABASE {self._name}"))
            except database.DATABASE_ERRORS as error:
                self._created = False
                where = database.place(self._server_url)
                raise BenchError(f"cannot create a database on {where}: {database.describe(error)}") from error
            finally:
                await conn.close()
            self.url = urlunsplit(urlsplit(self._server_url)._replace(path=f"/{self._name}"))
        conn = await database.connect(self.url)
        try:
            await database.migrate(conn)
            self.postmaster = _postmaster(await conn.fetchval("SELECT pg_backend_pid()"))
        finally:
            await conn.close()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[database.Connection]:
        conn = await database.connect(self.url)
        try:
            yield conn
        finally:
            await conn.close()

    async def insert_projects(self, count: int, url: str, interval: int, unit: str) -> float:
        """``count`` projects by one COPY; returns the seconds it took, triggers included."""
        records = [(f"check {n}", f"{url}/check/{n}", interval, unit) for n in range(1, count + 1)]
        async with self.connection() as conn:
            began = time.monotonic()
            await conn.copy_records_to_table("projects", records=records, columns=("name", "url", "interval", "unit"))
            return time.monotonic() - began

    async def close(self) -> None:
        if self._embedded is not None:
            await to_the_end(asyncio.to_thread(self._embedded.stop))
            shutil.rmtree(self._embedded.run, ignore_errors=True)  # it is elsewhere when the path is long
        elif self._server_url is not None and self._created:
            await drop_database(self._server_url, self._name)


def _postmaster(backend_pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(backend_pid).parent()
        if parent is not None and parent.name().startswith("postgres"):
            return parent
    return None


# ---- the cluster ----------------------------------------------------------------------------------------------------


class Cluster:
    """``cluster up``; its output goes to a log file, or (``shown``) to our own terminal."""

    def __init__(self, data_dir: Path, db: Database, options: Sequence[str], *, shown: bool = False) -> None:
        self.address = f"127.0.0.1:{_free_port()}"
        self.log = data_dir / "cluster.log"
        self._data_dir = data_dir
        self._pids: dict[str, set[int]] = {}  # by name, every one that a status document showed
        environ = environ_without_a_cluster()
        if not db.is_embedded:
            environ["DATABASE_URL"] = db.url
        self._environ = environ
        self.started_at = time.monotonic()
        command = [sys.executable, "-m", "cluster", "up", "--data-dir", str(data_dir), "--http", self.address, *options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environ,
                cwd=data_dir,
                stdin=subprocess.DEVNULL,
                stdout=None if shown else log,
                stderr=None if shown else log,
                start_new_session=True,
            )
        self.process = psutil.Process(self._process.pid)

    async def status(self) -> tuple[dict[str, Any], float]:
        """The status document, and the seconds the coordinator took to give it."""
        began = time.monotonic()
        document = await asyncio.to_thread(_get_json, f"http://{self.address}/status")
        took_s = time.monotonic() - began
        for process in (*document["workers"], document["writer"] | {"name": "writer"}):
            if process["pid"]:
                self._pids.setdefault(process["name"], set()).add(process["pid"])
        return document, took_s

    async def wait(
        self, condition: Callable[[dict[str, Any]], bool], what: str, deadline_s: float, every_s: float = READ_S
    ) -> dict[str, Any]:
        """The first status document that fulfils the condition."""
        until = time.monotonic() + deadline_s
        document: dict[str, Any] = {}
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise BenchError(f"`cluster up` ended with {self._process.returncode}: {self.tail()}")
            with contextlib.suppress(OSError):  # not up yet, or restarting
                document, _ = await self.status()
                if condition(document):
                    return document
            await asyncio.sleep(every_s)
        raise BenchError(f"waited {deadline_s:g} s for {what}; status was {document}; log: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2_000:] if self.log.exists() else ""

    def ended(self) -> bool:
        return self._process.poll() is not None

    def incidents(self) -> list[str]:
        """Processes that were replaced, and lines of the log (if it has them) about trouble; at most twenty."""
        replaced = [f"{name} was restarted" for name, pids in self._pids.items() if len(pids) > 1]
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return [*replaced, *(line for line in text.splitlines() if any(word in line for word in TROUBLE))][:20]

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run another ``cluster`` command; its exit status and output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cluster",
            *arguments,
            "--data-dir",
            str(self._data_dir),
            env=self._environ,
            cwd=self._data_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        return process.returncode or 0, (out or err).decode()

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait, STOP_S)

    async def abandon(self) -> None:
        """Leave nothing behind after a failure or an interruption: nobody waits for its results."""
        if self._process.poll() is None:
            await to_the_end(asyncio.to_thread(self._abandon))

    def _abandon(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # the second one ends it at once
            self._process.send_signal(number)
        try:
            self._process.wait(ABANDON_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes = [*self.process.children(), self.process]
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(processes[:-1], timeout=ABANDON_S)
            self._process.wait()


def _get_json(url: str) -> dict[str, Any]:
    with _open(url, timeout=STATUS_TIMEOUT_S) as answer:
        document: dict[str, Any] = json.loads(answer.read())
        return document


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# ---- what it costs --------------------------------------------------------------------------------------------------


class Usage(msgspec.Struct):
    """By role.  ``pss_bytes`` counts a page that n processes share as 1/n in each; empty where it can't be read."""

    at_s: float  # monotonic
    cpu_s: dict[str, float]
    rss_bytes: dict[str, int]
    pss_bytes: dict[str, int]
    processes: dict[str, int]


def processes_of(cluster: Cluster, db: Database, target: BenchTarget) -> dict[str, list[psutil.Process]]:
    roles: dict[str, list[psutil.Process]] = {"supervisor": [cluster.process], "target": [target.process]}
    for child in cluster.process.children():
        words = child.cmdline()
        role = words[words.index("-m") + 1] if "-m" in words else ""
        if role == "worker":
            roles.setdefault("workers", []).append(child)
        elif role in {"coordinator", "writer"}:
            roles[role] = [child]
    if db.postmaster is not None:
        roles["postgresql"] = [db.postmaster, *db.postmaster.children()]
    return roles


def measure(roles: dict[str, list[psutil.Process]], *, memory: bool = False) -> Usage:
    usage = Usage(time.monotonic(), {}, {}, {}, {})
    for role, processes in roles.items():
        cpu = 0.0
        rss = pss = alive = 0
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu += times.user + times.system
                if role == "postgresql" and process is processes[0]:
                    cpu += times.children_user + times.children_system  # of backends that have ended
                rss += process.memory_info().rss
                pss += _pss_bytes(process.pid) if memory else 0
                alive += 1
        usage.cpu_s[role] = cpu
        usage.rss_bytes[role] = rss
        usage.processes[role] = alive
        if pss:
            usage.pss_bytes[role] = pss
    return usage


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)


# ---- all of it ------------------------------------------------------------------------------------------------------


class Rig:
    """Target and database, and a directory for a cluster."""

    def __init__(self, directory: Path, target: BenchTarget, db: Database) -> None:
        self.directory = directory
        self.target = target
        self.db = db

    @contextlib.asynccontextmanager
    async def cluster(self, *options: str, shown: bool = False) -> AsyncIterator[Cluster]:
        """A running cluster, stopped in the end, and at once when it was left with an error."""
        cluster = Cluster(self.directory, self.db, options, shown=shown)
        try:
            yield cluster
            status = await cluster.stop()
            if status:
                raise BenchError(f"`cluster up` ended with {status}: {cluster.tail()}")
        finally:
            await cluster.abandon()


def _make_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="ringpoll-bench-"))
    directory.chmod(0o755)  # as root the embedded server runs under another account, which must reach it
    return directory


@contextlib.asynccontextmanager
async def rig(server_url: str | None, latency_ms: int = 0) -> AsyncIterator[Rig]:
    """``latency_ms``: how long the target takes to answer."""
    directory = _make_directory()
    async with contextlib.AsyncExitStack() as stack:
        db = Database(directory, server_url)
        guard = BenchGuard(directory, db.to_drop, environ_without_a_cluster())
        stack.callback(guard.close)
        stack.callback(_remove, directory)
        target = BenchTarget(latency_ms)
        stack.callback(target.close)
        stack.push_async_callback(db.close)
        await db.start()
        yield Rig(directory, target, db)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise BenchError(f"could not remove {directory}; remove it")


def machine() -> dict[str, Any]:
    """Where it was measured, and how busy that machine was otherwise: the load average at this moment."""
    return {
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "load_average": [round(each, 2) for each in os.getloadavg()],
    }


def spread(samples: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max."""
    ordered = sorted(samples) or [0.0]
    last = len(ordered) - 1
    return {
        "p50": round(ordered[last // 2], 1),
        "p99": round(ordered[round(last * 0.99)], 1),
        "max": round(ordered[-1], 1),
    }


def total(counts: dict[str, int]) -> int:
    return Counter(counts).total()
