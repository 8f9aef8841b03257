"""Gathers the facts that ``cluster doctor`` judges: from the kernel, the file system, the database, a running cluster.

Nothing is changed, started or kept: a port is bound for an instant and never listened on, the database is only read.
All checks run at once, each in a thread of its own and for ``CHECK_S`` at most; one that hangs or fails is named in
``DoctorFacts.unanswered`` and holds nothing up.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import platform
import pwd
import re
import resource
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

import cluster
from cluster import config, database, sockets
from cluster.access.server_tls import server_certificate
from cluster.admin_client import AdminClient
from cluster.bounded import Question, resolve_host
from cluster.capacity import CapacityPlan, ProjectGroup, make_plan
from cluster.cli.plan import facts_of_this_machine
from cluster.doctor.facts import (
    ClockFacts,
    ClusterFacts,
    ConfiguredFacts,
    DatabaseFacts,
    DirectoryFacts,
    DoctorFacts,
    HttpPortFacts,
    HttpTlsFacts,
    KernelFacts,
    LimitFacts,
    PackageFacts,
    ResourceFacts,
    SecretFacts,
    TableFacts,
    VersionFacts,
)
from cluster.doctor.judging import cluster_facts
from cluster.embedded import cluster_database, running_dsn
from cluster.errors import ClusterError, NotRunningError
from cluster.secret_values import OTHERS
from cluster.settings import Settings
from cluster.supervisor.lock import LockHolder, find_holder

CHECK_S = 15.0
CONNECT_S = 5.0
STATEMENT_S = 8.0
ADMIN_S = 5.0
PINGS = 5
SAMPLED_PROJECTS = 200
RESPONSE_S = 0.2  # of projects without a result yet, as `cluster plan` takes it
SECRET_FILES_LOOKED_AT = 4_096
UNLIMITED_FILES = 1 << 62
_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?([a-z_]+)")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)(;.*)?")
_TIME_ERROR = 5  # adjtimex: the clock is not synchronised


def gather(settings: Settings) -> DoctorFacts:
    """All facts there are, within about ``CHECK_S``."""
    checks: dict[str, Callable[[], Any]] = {
        "limits": limit_facts,
        "kernel": kernel_facts,
        "http_port": lambda: http_port_facts(settings),
        "directory": lambda: directory_facts(settings),
        "clock": lambda: clock_facts(settings),
        "database": lambda: asked_database(settings),
        "versions": version_facts,
        "resources": resource_facts,
        "cluster": lambda: running_cluster(settings),
    }
    if settings.secrets_dir is not None:
        checks["secrets"] = lambda: secret_facts(settings.secrets_dir or Path())
    if settings.http_cert is not None or settings.http_key is not None:
        checks["http_tls"] = lambda: http_tls_facts(settings)
    questions = {name: Question(check) for name, check in checks.items()}
    deadline = time.monotonic() + CHECK_S
    answers: dict[str, Any] = {}
    unanswered: dict[str, str] = {}
    for name, question in questions.items():
        try:
            answers[name] = question.answer(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            unanswered[name] = f"no answer within {CHECK_S:g} s"
        except (ClusterError, psutil.Error, OSError) as error:
            unanswered[name] = " ".join(str(error).split())
    asked: tuple[DatabaseFacts, ClockFacts | None] | None = answers.get("database")
    plan = None
    if asked is not None:
        answers["database"], offset = asked
        if offset is not None:
            clock = answers.get("clock") or ClockFacts()
            answers["clock"] = msgspec.structs.replace(
                clock,
                database_ahead_s=offset.database_ahead_s,
                database_uncertainty_s=offset.database_uncertainty_s,
            )
        plan = plan_facts(answers["database"], settings)
    return DoctorFacts(configured=configured_facts(settings), plan=plan, unanswered=unanswered, **answers)


def configured_facts(settings: Settings) -> ConfiguredFacts:
    return ConfiguredFacts(
        version=cluster.__version__,
        http_is_local=config.serves_this_machine_only(settings),
        **{
            name: getattr(settings, name)
            for name in msgspec.structs.asdict(settings)
            if name in ConfiguredFacts.__struct_fields__
        },
    )


# ---- the machine ----------------------------------------------------------------------------------------------------


def limit_facts() -> LimitFacts:
    soft, hard = (_limit_of(value) for value in resource.getrlimit(resource.RLIMIT_NOFILE))
    is_root = os.geteuid() == 0  # whom the kernel doesn't count
    processes = None if is_root else _limit_of(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    return LimitFacts(
        files_soft=soft,
        files_hard=hard,
        processes=processes,
        processes_used=None if processes is None else _threads_of(os.getuid()),
        file_bytes=_limit_of(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        address_space_bytes=_limit_of(resource.getrlimit(resource.RLIMIT_AS)[0]),
    )


def _limit_of(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def _threads_of(uid: int) -> int:
    threads = 0
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.uids().real == uid:
                threads += each.num_threads()
    return threads


def kernel_facts() -> KernelFacts:
    ports = _numbers_in("net/ipv4/ip_local_port_range")
    file_max = _number_in("fs/file-max")
    return KernelFacts(
        port_low=ports[0] if len(ports) == 2 else None,
        port_high=ports[1] if len(ports) == 2 else None,
        tcp_tw_reuse=_number_in("net/ipv4/tcp_tw_reuse"),
        somaxconn=_number_in("net/core/somaxconn"),
        file_max=None if file_max is not None and file_max > UNLIMITED_FILES else file_max,
    )


def _number_in(name: str) -> int | None:
    return next(iter(_numbers_in(name)), None)


def _numbers_in(name: str) -> list[int]:
    """Of /proc/sys; none where there is no such file (not Linux, or hidden in a container)."""
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for word in Path("/proc/sys", name).read_text(encoding="ascii").split()]
    return []


def http_port_facts(settings: Settings) -> HttpPortFacts:
    holder = find_holder(settings.run_dir)
    address = holder.http.rpartition("://")[2] if holder is not None and holder.http else settings.http
    host, port = config.split_address(address)
    why = ""
    try:
        for family, kind, protocol, _, where in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind(where)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return HttpPortFacts(address=address, state="refused", why=error.strerror or str(error))
        why = "in use"
    if not why:
        return HttpPortFacts(address=address, state="free")
    listener = _listener(port)
    is_coordinator = listener is not None and "coordinator" in listener.cmdline()
    if holder is not None or (is_coordinator and sockets.is_served(settings.admin)):
        return HttpPortFacts(address=address, state="ours")
    return HttpPortFacts(
        address=address, state="taken", holder="" if listener is None else f"{listener.name()}, pid {listener.pid}"
    )


def _listener(port: int) -> psutil.Process | None:
    """Who listens there, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return psutil.Process(each.pid)
    return None


def directory_facts(settings: Settings) -> DirectoryFacts:
    path = settings.data_dir
    endpoints = (settings.control, settings.results, settings.admin)
    said: dict[str, Any] = {
        "path": str(path),
        "socket_bytes": max(len(os.fsencode(each.removeprefix("ipc://"))) for each in endpoints),
        "socket_bytes_max": sockets.IPC_PATH_MAX,
    }
    try:
        nearest = _nearest(path)
        found = nearest.stat()
        free = shutil.disk_usage(nearest).free
        inodes = os.statvfs(nearest)
    except OSError as error:
        return DirectoryFacts(state="unreachable", why=error.strerror or str(error), **said)
    if nearest == path and not path.is_dir():
        return DirectoryFacts(state="not_a_directory", **said)
    return DirectoryFacts(
        state="there" if nearest == path else "missing",
        nearest=str(nearest),
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        owner=_user_name(found.st_uid),
        is_ours=found.st_uid == os.geteuid() or os.geteuid() == 0,
        mode=found.st_mode & 0o7777,
        file_system=_file_system_of(nearest),
        free_bytes=free,
        inodes_free=inodes.f_favail if inodes.f_files else None,
        **said,
    )


def _nearest(path: Path) -> Path:
    """What is there of it.  Raises OSError where that can't be known."""
    for each in (path, *path.parents):
        try:
            each.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return each
    return Path("/")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _file_system_of(path: Path) -> str | None:
    """Of the mount it is on, from /proc/self/mountinfo; None elsewhere than on Linux."""
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return file_system_in(text, os.path.realpath(path))


def file_system_in(mountinfo: str, path: str) -> str | None:
    """The type of the mount with the longest mount point above ``path``; of several there, the one on top."""
    best, found = -1, None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        words = before.split(" ")
        if not separator or len(words) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        inside = point in {"/", path} or path.startswith(point + "/")
        if inside and len(point) >= best:
            best, found = len(point), after.split(" ")[0]
    return found


def clock_facts(settings: Settings) -> ClockFacts:
    return ClockFacts(synchronised=_clock_synchronised(), step_s=_clock_step_s(find_holder(settings.run_dir)))


def _clock_synchronised() -> bool | None:
    """As the kernel says (adjtimex, which only reads when it is told to change nothing)."""
    if platform.system() != "Linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    timex = ctypes.create_string_buffer(512)  # larger than struct timex; modes, its first field, is 0: read only
    state = int(libc.adjtimex(timex))
    return None if state < 0 else state != _TIME_ERROR


def _clock_step_s(holder: LockHolder | None) -> float | None:
    """How far the clock was set since the supervisor started.

    When it started by the clock of then is in its lock.  When by that of now is known from the kernel, which counts
    from boot, and moves the instant of booting with the clock.
    """
    if holder is None or not holder.pid or not holder.started_at:
        return None
    with contextlib.suppress(psutil.Error, ValueError):
        started = datetime.fromisoformat(holder.started_at).timestamp()
        return psutil.Process(holder.pid).create_time() - started
    return None


def resource_facts() -> ResourceFacts:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return ResourceFacts(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        swap_used_bytes=swap.used,
    )


# ---- the program ----------------------------------------------------------------------------------------------------


def version_facts() -> VersionFacts:
    python = platform.python_version_tuple()
    return VersionFacts(
        python=(int(python[0]), int(python[1]), int(re.match(r"\d*", python[2])[0] or 0)),  # type: ignore[index]
        packages=[package_facts(each) for each in requires("ringpoll") or [] if "extra ==" not in each],
        uvloop_why_not=_uvloop_why_not(),
    )


def package_facts(requirement: str) -> PackageFacts:
    """Of a line of the distribution's metadata, such as ``aiohttp<3.15,>=3.14``."""
    match = _REQUIREMENT.fullmatch(requirement)
    name, wanted = (match[1], match[2].strip()) if match is not None else (requirement, "")
    try:
        found: str | None = installed_version(name)
    except PackageNotFoundError:
        found = None
    return PackageFacts(name=name, wanted=wanted, found=found)


def _uvloop_why_not() -> str:
    try:
        uvloop.new_event_loop().close()
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


def running_cluster(settings: Settings) -> ClusterFacts:
    try:
        with AdminClient(settings) as client:
            return cluster_facts(client.request({"type": "status"}, ADMIN_S)["status"])
    except NotRunningError:
        return ClusterFacts(state="none")
    except (ClusterError, KeyError) as error:
        return ClusterFacts(state="silent", why=str(error))


def secret_facts(path: Path) -> SecretFacts:
    try:
        found = path.stat()
        if not path.is_dir():
            return SecretFacts(path=str(path), state="not_a_directory")
        names = sorted(each.name for each in os.scandir(path))[:SECRET_FILES_LOOKED_AT]
    except FileNotFoundError:
        return SecretFacts(path=str(path), state="missing")
    except OSError:
        return SecretFacts(path=str(path), state="unreadable")
    others, unreadable = [], []
    for name in names:
        each = path / name
        with contextlib.suppress(OSError):  # removed in between, or a link to nowhere
            if each.is_file() and each.stat().st_mode & OTHERS:
                others.append(name)
            if each.is_file() and not os.access(each, os.R_OK):
                unreadable.append(name)
    if found.st_mode & 0o022:
        others.insert(0, "the directory, and write in it")
    # Who may not enter the directory may not read what is in it, whatever its mode.
    reachable = others if found.st_mode & 0o077 else []
    return SecretFacts(
        path=str(path),
        state="there",
        mode=found.st_mode & 0o7777,
        open_files=reachable,
        unreadable_files=unreadable,
    )


def http_tls_facts(settings: Settings) -> HttpTlsFacts:
    from cryptography import x509  # noqa: PLC0415 - few have a certificate here

    cert, key = settings.http_cert, settings.http_key
    said: dict[str, Any] = {"certificate": str(cert or "(none)"), "key": str(key or "(none)")}
    try:
        server_certificate(settings)
        assert cert is not None
        assert key is not None
        until = x509.load_pem_x509_certificates(cert.read_bytes())[0].not_valid_after_utc
        mode = key.stat().st_mode
    except (ClusterError, OSError, ValueError) as error:
        return HttpTlsFacts(**said, why=str(error))
    return HttpTlsFacts(**said, valid_s=(until - datetime.now(UTC)).total_seconds(), key_mode=mode & 0o7777)


# ---- the database ---------------------------------------------------------------------------------------------------


def asked_database(settings: Settings) -> tuple[DatabaseFacts, ClockFacts | None]:
    """And its clock against ours."""
    url = settings.database_url
    embedded = url is None
    if url is None:
        server = cluster_database(settings.data_dir)
        place = f"embedded, {server.base}"
        holder = find_holder(settings.run_dir)
        if holder is not None and not holder.embedded:
            why = "the cluster that runs here uses a database of its own, which this command was not told of"
            return DatabaseFacts(place="DATABASE_URL", state="down", why=why), None
        url = running_dsn(settings.data_dir)
        if url is None:
            return DatabaseFacts(place=place, embedded=True, state="not_started"), None
    else:
        place = database.place(url)
    try:
        resolve_host(url)
        return asyncio.run(asyncio.wait_for(_ask(url, place, embedded=embedded), CHECK_S - 1))
    except TimeoutError:
        why = f"it did not answer within {CHECK_S - 1:g} s"
    except ClusterError as error:
        why = str(error)
    except database.DATABASE_ERRORS as error:
        why = database.describe(error)
    return DatabaseFacts(place=place, embedded=embedded, state="down", why=why), None


async def _ask(url: str, place: str, *, embedded: bool) -> tuple[DatabaseFacts, ClockFacts]:
    conn = await database.connect(url, timeout_s=CONNECT_S)
    try:
        await conn.execute(f"SET statement_timeout = {int(STATEMENT_S * 1_000)}")
        await conn.execute("SET lock_timeout = 1000")
        clock, latency_ms = await _ask_clock(conn)
        schema = await database.schema_version(conn)
        facts: dict[str, Any] = dict(await conn.fetchrow(_SERVER) or {})
        if schema:
            facts |= await _ask_tables(conn)
    finally:
        conn.terminate()
    known = len(database.migrations())
    return DatabaseFacts(
        place=place, embedded=embedded, latency_ms=latency_ms, schema=schema, schema_known=known, **facts
    ), clock


_SERVER = """
    SELECT current_setting('server_version_num')::int AS version,
           'PostgreSQL ' || split_part(current_setting('server_version'), ' ', 1) AS version_text,
           current_setting('max_connections')::int AS connections_max,
           CASE WHEN (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN 0
                ELSE current_setting('superuser_reserved_connections')::int
                     + coalesce(current_setting('reserved_connections', true)::int, 0) END AS connections_reserved,
           current_setting('autovacuum')::bool AS autovacuum,
           pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS read_only,
           coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create,
           pg_database_size(current_database()) AS database_bytes,
           a.used::int AS connections_used, a.ours::int AS connections_ours,
           a.oldest::float8 AS oldest_transaction_s
    FROM (SELECT count(*) FILTER (WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS used,
                 count(*) FILTER (WHERE application_name = 'ringpoll' AND pid <> pg_backend_pid()) AS ours,
                 extract(epoch FROM max(now() - xact_start) FILTER (
                     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())) AS oldest
          FROM pg_stat_activity) a
"""

_PRIVILEGES = """
    SELECT p.privilege || ' on ' || t.name
    FROM unnest($1::text[]) AS t(name), unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS p(privilege)
    WHERE to_regclass(t.name) IS NOT NULL AND NOT has_table_privilege(to_regclass(t.name), p.privilege)
    UNION ALL
    SELECT 'ownership of poll_results' FROM pg_class
    WHERE oid = to_regclass('poll_results') AND NOT pg_has_role(relowner, 'USAGE')
"""

_RESULTS = """
    SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::int8 AS results_bytes,
           count(*) FILTER (WHERE pg_relation_size(inhrelid) > 0)::int AS results_days,
           (max(pg_total_relation_size(inhrelid)) FILTER (WHERE inhrelid = to_regclass($1)
                                                          AND pg_relation_size(inhrelid) > 0))::int8
               AS results_bytes_per_day
    FROM pg_inherits WHERE inhparent = to_regclass('poll_results')
"""

_MOST_DEAD = """
    SELECT relname AS name, n_live_tup AS rows, n_dead_tup AS dead_rows,
           extract(epoch FROM now() - greatest(last_vacuum, last_autovacuum))::float8 AS vacuumed_s
    FROM pg_stat_user_tables ORDER BY n_dead_tup DESC LIMIT 1
"""

_PROJECTS = """
    SELECT count(*)::int AS projects, coalesce(sum(1000.0 / ringpoll_interval_ms(interval, unit)), 0)::float8
           AS polls_per_s FROM projects WHERE enabled
"""

_RESPONSES = """
    SELECT avg(r.response_time_ms)::float8 / 1000
    FROM (SELECT id FROM projects WHERE enabled LIMIT $1) p,
         LATERAL (SELECT response_time_ms FROM poll_results
                  WHERE project_id = p.id AND scheduled_at > now() - interval '2 days'
                  ORDER BY scheduled_at DESC LIMIT 1) r
"""


_CREDENTIALS = """
    SELECT (SELECT count(*) FROM users)::int + (SELECT count(*) FROM api_tokens
            WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))::int
    WHERE has_table_privilege('users', 'SELECT') AND has_table_privilege('api_tokens', 'SELECT')
"""


async def _ask_clock(conn: database.Connection) -> tuple[ClockFacts, float]:
    """The best of some exchanges, and how long one takes in milliseconds."""
    exchanges = []
    for _ in range(PINGS):
        before, began = time.time(), time.monotonic()
        theirs = await conn.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        took = time.monotonic() - began
        exchanges.append((took, theirs - (before + took / 2)))
    took, ahead = min(exchanges)
    latency_ms = statistics.median(each for each, _ in exchanges) * 1_000
    return ClockFacts(database_ahead_s=ahead, database_uncertainty_s=took / 2), latency_ms


async def _ask_tables(conn: database.Connection) -> dict[str, Any]:
    yesterday = f"poll_results_{datetime.now(UTC) - timedelta(days=1):%Y%m%d}"
    facts: dict[str, Any] = dict(await conn.fetchrow(_RESULTS, yesterday) or {})
    ours = [name for each in database.migrations() for name in _TABLE.findall(each.sql)]
    facts["missing_privileges"] = [row[0] for row in await conn.fetch(_PRIVILEGES, ours)]
    dead: Mapping[str, Any] | None = await conn.fetchrow(_MOST_DEAD)
    facts["most_dead"] = None if dead is None else TableFacts(**dead)
    if not any(each.startswith("SELECT") for each in facts["missing_privileges"]):
        facts |= dict(await conn.fetchrow(_PROJECTS) or {})
        if await conn.fetchval("SELECT to_regclass('api_tokens') IS NOT NULL AND to_regclass('users') IS NOT NULL"):
            facts["credentials"] = await conn.fetchval(_CREDENTIALS)
        facts["response_s"] = await conn.fetchval(_RESPONSES, SAMPLED_PROJECTS)
    return facts


def plan_facts(asked: DatabaseFacts, settings: Settings) -> CapacityPlan | None:
    """What the projects of the database need."""
    if not asked.projects or asked.polls_per_s <= 0:
        return None
    response_s = max(0.001, asked.response_s or RESPONSE_S)
    group = ProjectGroup(asked.projects, asked.projects / asked.polls_per_s, response_s)
    machine = facts_of_this_machine(settings)
    if asked.results_bytes_per_day is not None:  # what they really take is judged instead
        machine = msgspec.structs.replace(machine, disk_free_bytes=None)
    return make_plan([group], machine, retention_days=settings.retention_days)
