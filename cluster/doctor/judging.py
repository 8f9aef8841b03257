"""What ``cluster doctor`` says of the facts: ok, warning or problem; what, where, and what to do.  Pure.

The words are those of ``cluster.doctor.catalogue``; here are the thresholds.  What is not known is not judged, and a
check that gave no facts is a warning of its own.
"""

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from cluster.amounts import size
from cluster.capacity import DESCRIPTORS_OF_A_WORKER, KEPT_PER_WORKER_MAX, WORKERS_MIN
from cluster.doctor.catalogue import Finding, finding
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
    ResourceFacts,
    SecretFacts,
    VersionFacts,
)

PYTHON_MIN = (3, 11)
POSTGRESQL_MIN = 120_000  # jsonpath, and primary keys of partitioned tables
POSTGRESQL_KEPT_UP_MIN = 140_000  # older ones get no corrections any more
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "glusterfs", "fuse.glusterfs",
                        "fuse.sshfs", "lustre", "beegfs")  # fmt: skip
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
INODES_FREE_MIN = 1_000
CLOCK_OFF_WARNING_S = 1.0
CLOCK_OFF_PROBLEM_S = 60.0
CLOCK_STEP_S = 5.0  # a supervisor says when it started some seconds after its process began
LATENCY_WARNING_MS = 50.0
# The coordinator's for loading, its pulse, its listener and its requests; the writer's; one of a command.
CONNECTIONS_OF_A_CLUSTER = 10
DEAD_SHARE = 0.4
DEAD_ROWS_MIN = 100_000
VACUUM_LATE_S = 86_400.0
OPEN_TRANSACTION_S = 3_600.0
TIME_WAIT_S = 60  # for so long a closed connection keeps its port
POLL_S = 10  # a slot's poll, when all slots are used
PORTS_SHARE = 0.8
SOMAXCONN_MIN = 128
PROCESSES_OF_A_ROLE = 8  # with its threads
FILE_BYTES_MIN = 64 << 20  # of a segment of the WAL
ADDRESS_SPACE_MIN = 4 << 30
MEMORY_AVAILABLE_MIN = 256 << 20
INVALID_SHOWN = 5
NAMES_SHOWN = 5
WAL_FULL_SHARE = 0.8
CERTIFICATE_S_MIN = 14 * 86_400.0


def judge(facts: DoctorFacts) -> list[Finding]:
    """Every finding, in the order in which a person should read them."""
    found: list[Finding] = []
    configured = facts.configured
    if facts.versions is not None:
        found += judge_versions(facts.versions)
    if facts.limits is not None:
        found += judge_limits(facts.limits, facts.kernel or KernelFacts(), configured)
    if facts.kernel is not None:
        found += judge_kernel(facts.kernel, configured)
    if facts.http_port is not None:
        found += judge_http_port(facts.http_port)
    if facts.directory is not None:
        found += judge_directory(facts.directory, configured)
    if facts.clock is not None:
        found += judge_clock(facts.clock, facts.database)
    if facts.database is not None:
        found += judge_database(facts.database, configured, facts.directory)
    if facts.resources is not None:
        found += judge_resources(facts.resources, facts, configured)
    if facts.cluster is not None:
        found += judge_cluster(facts.cluster, facts.directory.path if facts.directory is not None else "", configured)
    if facts.http_port is not None and facts.database is not None:
        found += judge_http_access(facts.http_port, facts.database, configured)
    if facts.http_tls is not None:
        found += judge_http_tls(facts.http_tls)
    if facts.secrets is not None:
        found += judge_secrets(facts.secrets)
    found += [finding("unanswered.unanswered", check=check, why=why) for check, why in facts.unanswered.items()]
    return found


# ---- the machine ----------------------------------------------------------------------------------------------------


def judge_limits(limits: LimitFacts, kernel: KernelFacts, configured: ConfiguredFacts) -> Iterator[Finding]:
    needed = DESCRIPTORS_OF_A_WORKER + configured.max_concurrent_http + KEPT_PER_WORKER_MAX
    too_few = limits.files_hard is not None and limits.files_hard < needed
    yield finding("open_files.too_few" if too_few else "open_files.ok", needed=needed, limit=_limit(limits.files_hard))
    # The slots are shared out, the connections that are kept are not.
    of_all = configured.max_concurrent_http + configured.workers * (DESCRIPTORS_OF_A_WORKER + KEPT_PER_WORKER_MAX)
    if kernel.file_max is not None and kernel.file_max < of_all:
        yield finding("open_files.system", file_max=kernel.file_max, needed=of_all, wanted=2 * of_all)
    processes = (configured.workers + 4) * PROCESSES_OF_A_ROLE
    used = limits.processes_used or 0
    if limits.processes is not None and limits.processes - used < processes:
        yield finding("processes.too_few", limit=_limit(limits.processes), used=used, needed=processes)
    else:
        yield finding("processes.ok", limit=_limit(limits.processes))
    if limits.file_bytes is not None and limits.file_bytes < FILE_BYTES_MIN:
        yield finding("file_size.too_small", limit=limits.file_bytes, needed=FILE_BYTES_MIN)
    else:
        yield finding("file_size.ok")
    if limits.address_space_bytes is not None and limits.address_space_bytes < ADDRESS_SPACE_MIN:
        yield finding("address_space.too_small", limit=size(limits.address_space_bytes))
    else:
        yield finding("address_space.ok")


def judge_kernel(kernel: KernelFacts, configured: ConfiguredFacts) -> Iterator[Finding]:
    if kernel.port_low is not None and kernel.port_high is not None:
        ports = kernel.port_high - kernel.port_low + 1
        # A port is in use while its connection is, and without reuse for another minute.
        needed = configured.max_concurrent_http
        if kernel.tcp_tw_reuse == 0:
            needed += needed * TIME_WAIT_S // POLL_S  # when each poll makes a connection
        few = needed > ports * PORTS_SHARE
        yield finding("local_ports.too_few" if few else "local_ports.ok", ports=ports, needed=needed)
    if kernel.somaxconn is not None:
        short = kernel.somaxconn < SOMAXCONN_MIN
        yield finding("listen_queue.short" if short else "listen_queue.ok", somaxconn=kernel.somaxconn)


def judge_http_port(port: HttpPortFacts) -> Iterator[Finding]:
    code = {"free": "ok"}.get(port.state, port.state)
    holder = f" ({port.holder})" if port.holder else ""
    yield finding(f"http_port.{code}", address=port.address, why=port.why, holder=holder)


def judge_directory(directory: DirectoryFacts, configured: ConfiguredFacts) -> Iterator[Finding]:
    path, mode = directory.path, f"{directory.mode & 0o7777:04o}"
    if directory.state in {"not_a_directory", "unreachable"}:
        yield finding(f"data_directory.{directory.state}", path=path, why=directory.why)
        return
    if not directory.writable:
        yield finding(
            "data_directory.not_writable", path=path, nearest=directory.nearest, owner=directory.owner, mode=mode
        )
    elif directory.state == "missing":
        yield finding("data_directory.new", path=path)
    else:
        if not directory.is_ours:
            yield finding("data_directory.foreign", nearest=directory.nearest, owner=directory.owner)
        if directory.mode & 0o022 and not directory.mode & 0o1000:
            yield finding("data_directory.open", path=path, mode=mode)
        if directory.is_ours and not directory.mode & 0o022:
            yield finding("data_directory.ok", path=path, note=f" (owner {directory.owner}, mode {mode})")
    kind = directory.file_system
    if kind is not None:
        code = "network" if kind in NETWORK_FILE_SYSTEMS else "memory" if kind in MEMORY_FILE_SYSTEMS else "ok"
        yield finding(f"file_system.{code}", file_system=kind, path=path)
    most = directory.socket_bytes_max
    code = "too_long" if directory.socket_bytes > most else "ok"
    yield finding(f"socket_paths.{code}", path=path, bytes=directory.socket_bytes, most=most)
    yield from _judge_space(directory, configured)


def _judge_space(directory: DirectoryFacts, configured: ConfiguredFacts) -> Iterator[Finding]:
    if directory.free_bytes is None:
        return
    floor, wal = configured.wal_free_floor_bytes, configured.workers * configured.wal_limit_bytes
    said = {"path": directory.path, "free": size(directory.free_bytes), "floor": size(floor)}
    if directory.free_bytes <= floor:
        yield finding("disk_space.below_floor", **said)
    elif directory.free_bytes - floor < wal:
        yield finding("disk_space.below_limit", **said, wal=size(wal), workers=configured.workers)
    else:
        yield finding("disk_space.ok", **said)
    if directory.inodes_free is not None and directory.inodes_free < INODES_FREE_MIN:
        yield finding("disk_space.inodes", path=directory.path, inodes=directory.inodes_free)


def judge_clock(clock: ClockFacts, database: DatabaseFacts | None) -> Iterator[Finding]:
    if clock.synchronised is False:
        yield finding("clock.not_synchronised")
    if clock.step_s is not None and abs(clock.step_s) >= CLOCK_STEP_S:
        yield finding("clock.stepped", step_s=abs(clock.step_s), direction="forward" if clock.step_s > 0 else "back")
    elif clock.synchronised:
        note = "" if clock.step_s is None else ", and was not set since the cluster started"
        yield finding("clock.ok", note=note)
    if clock.database_ahead_s is not None and database is not None:
        off_s = max(0.0, abs(clock.database_ahead_s) - clock.database_uncertainty_s)  # what is sure
        direction = "ahead" if clock.database_ahead_s > 0 else "behind"
        far = "far_off" if off_s >= CLOCK_OFF_PROBLEM_S else "off" if off_s >= CLOCK_OFF_WARNING_S else "ok"
        yield finding(
            f"database_clock.{far}", place=database.place, off_s=off_s, off_ms=off_s * 1_000, direction=direction
        )


def judge_resources(resources: ResourceFacts, facts: DoctorFacts, configured: ConfiguredFacts) -> Iterator[Finding]:
    available, whole = size(resources.memory_available_bytes), size(resources.memory_bytes)
    low = resources.memory_available_bytes < MEMORY_AVAILABLE_MIN
    yield finding("memory.low" if low else "memory.ok", available=available, whole=whole)
    if resources.swap_used_bytes > resources.memory_bytes // 10:
        yield finding("memory.swapping", swap=size(resources.swap_used_bytes))
    running = facts.cluster if facts.cluster is not None and facts.cluster.state == "running" else None
    workers = running.workers if running is not None else configured.workers
    slots = running.max_concurrent_http if running is not None else configured.max_concurrent_http
    if workers > max(WORKERS_MIN, resources.cores):
        enough = max(WORKERS_MIN, resources.cores)
        yield finding("capacity.more_workers_than_cores", workers=workers, cores=resources.cores, enough=enough)
    plan = facts.plan
    if plan is None:
        return
    said = {"projects": plan.projects, "rate": plan.polls_per_s}
    short = [finding("capacity.short", warning=warning) for warning in plan.warnings]
    if workers < plan.workers:
        short.append(finding("capacity.workers", **said, wanted=plan.workers, workers=workers))
    if slots < plan.max_concurrent_http:
        short.append(finding("capacity.slots", **said, wanted=plan.max_concurrent_http, slots=slots))
    yield from short or [finding("capacity.ok", **said)]


# ---- the database ---------------------------------------------------------------------------------------------------


def judge_database(
    database: DatabaseFacts, configured: ConfiguredFacts, directory: DirectoryFacts | None
) -> Iterator[Finding]:
    place = database.place
    if database.state != "up":
        code = {"down": "away"}.get(database.state, database.state)
        yield finding(f"database.{code}", place=place, why=database.why)
        return
    answers = {"place": place, "version_text": database.version_text, "latency_ms": database.latency_ms}
    yield finding("database.slow" if database.latency_ms >= LATENCY_WARNING_MS else "database.ok", **answers)
    age = "too_old" if database.version < POSTGRESQL_MIN else "ok"
    if age == "ok" and database.version < POSTGRESQL_KEPT_UP_MIN:
        age = "old"
    least, kept_up = POSTGRESQL_MIN // 10_000, POSTGRESQL_KEPT_UP_MIN // 10_000
    yield finding(f"database_version.{age}", **answers, least=least, kept_up=kept_up)
    schema, known = database.schema, database.schema_known
    code = "none" if not schema else "behind" if schema < known else "ahead" if schema > known else "ok"
    yield finding(f"schema.{code}", place=place, schema=schema, known=known)
    yield from _judge_privileges(database)
    free = database.connections_max - database.connections_reserved - database.connections_used
    few = free + database.connections_ours < CONNECTIONS_OF_A_CLUSTER
    yield finding(
        "connections.few" if few else "connections.ok",
        place=place,
        used=database.connections_used,
        most=database.connections_max,
        reserved=database.connections_reserved,
        ours=CONNECTIONS_OF_A_CLUSTER,
    )
    if schema:
        yield from _judge_tables(database, configured, directory)


def _judge_privileges(database: DatabaseFacts) -> Iterator[Finding]:
    wrong = []
    if database.read_only:
        wrong.append(finding("privileges.read_only", place=database.place))
    if not database.may_create:
        wrong.append(finding("privileges.create", place=database.place))
    if database.missing_privileges:
        missing = _some(database.missing_privileges)
        wrong.append(finding("privileges.missing", place=database.place, missing=missing))
    yield from wrong or [finding("privileges.ok", place=database.place)]


def _judge_tables(
    database: DatabaseFacts, configured: ConfiguredFacts, directory: DirectoryFacts | None
) -> Iterator[Finding]:
    place, per_day = database.place, database.results_bytes_per_day
    growth = "" if per_day is None else f"; {size(per_day)} yesterday, {configured.retention_days} days are kept"
    yield finding(
        "tables.ok",
        place=place,
        results=size(database.results_bytes),
        days=database.results_days,
        whole=size(database.database_bytes),
        growth=growth,
    )
    if not database.autovacuum:
        yield finding("tables.no_autovacuum", place=place)
    dead = database.most_dead
    if (
        dead is not None
        and dead.dead_rows >= DEAD_ROWS_MIN
        and dead.dead_rows > DEAD_SHARE * dead.rows
        and (dead.vacuumed_s is None or dead.vacuumed_s > VACUUM_LATE_S)
    ):
        ago = "never vacuumed" if dead.vacuumed_s is None else f"vacuumed {dead.vacuumed_s / 3_600:.0f} h ago"
        yield finding(
            "tables.vacuum_late", place=place, table=dead.name, dead=dead.dead_rows, rows=dead.rows, vacuumed=ago
        )
    if database.oldest_transaction_s is not None and database.oldest_transaction_s >= OPEN_TRANSACTION_S:
        yield finding("tables.old_transaction", place=place, hours=database.oldest_transaction_s / 3_600)
    if database.embedded and per_day is not None and directory is not None and directory.free_bytes is not None:
        whole = per_day * configured.retention_days
        if whole - database.results_bytes > directory.free_bytes - configured.wal_free_floor_bytes:
            yield finding(
                "tables.disk_of_embedded",
                place=place,
                retention=configured.retention_days,
                per_day=size(per_day),
                whole=size(whole),
                free=size(directory.free_bytes),
            )


# ---- the program ----------------------------------------------------------------------------------------------------


def judge_versions(versions: VersionFacts) -> Iterator[Finding]:
    old = versions.python[:2] < PYTHON_MIN
    yield finding(
        "python.too_old" if old else "python.ok",
        version="Python " + ".".join(str(each) for each in versions.python),
        least=".".join(str(each) for each in PYTHON_MIN),
    )
    wrong = [
        f"{each.name} {each.found or 'is not installed'} (needed {each.wanted or 'in any version'})"
        for each in versions.packages
        if not fits(each.found, each.wanted)
    ]
    if wrong:
        yield finding("packages.wrong", wrong=_some(wrong))
    else:
        yield finding("packages.ok", count=len(versions.packages))
    if versions.uvloop_why_not:
        yield finding("uvloop.broken", why=versions.uvloop_why_not)
    else:
        yield finding("uvloop.ok")


def judge_cluster(cluster: ClusterFacts, path: str, configured: ConfiguredFacts) -> Iterator[Finding]:
    if cluster.state != "running":
        yield finding(f"cluster.{cluster.state}", path=path, why=cluster.why)
        return
    if cluster.reasons:
        yield finding("cluster.not_ready", path=path, reasons="; ".join(cluster.reasons))
    elif cluster.health == "critical":
        yield finding("cluster.critical", path=path)
    else:
        yield finding("cluster.ready", path=path, health=cluster.health, workers=cluster.workers)
    if cluster.version != configured.version:
        yield finding("cluster.other_version", path=path, theirs=cluster.version, ours=configured.version)
    if cluster.invalid_count:
        shown = "; ".join(f"{each}: {why}" for each, why in list(cluster.invalid.items())[:INVALID_SHOWN])
        yield finding("projects.invalid", count=cluster.invalid_count, shown=shown)
    else:
        yield finding("projects.ok", path=path)
    wrong = []
    if cluster.wal_bytes_max > WAL_FULL_SHARE * configured.wal_limit_bytes:
        limit = size(configured.wal_limit_bytes)
        wrong.append(finding("results.wal_full", path=path, wal=size(cluster.wal_bytes_max), limit=limit))
    if cluster.rejects:
        wrong.append(finding("results.rejected", rejects=cluster.rejects))
    if cluster.wal_damaged:
        wrong.append(finding("results.wal_damaged", path=path, damaged=cluster.wal_damaged))
    yield from wrong or [finding("results.ok", path=path)]


def judge_http_access(port: HttpPortFacts, database: DatabaseFacts, configured: ConfiguredFacts) -> Iterator[Finding]:
    if not configured.http_is_local and database.credentials is not None:
        code = "ok" if database.credentials else "nobody"
        yield finding(f"http_access.{code}", address=f"--http {port.address}", count=database.credentials)


def judge_http_tls(tls: HttpTlsFacts) -> Iterator[Finding]:
    said = {"certificate": tls.certificate, "key": tls.key}
    if tls.why:
        yield finding("http_tls.unusable", **said, why=tls.why)
        return
    if tls.valid_s is not None and tls.valid_s <= 0:
        yield finding("http_tls.expired", **said)
    elif tls.valid_s is not None and tls.valid_s < CERTIFICATE_S_MIN:
        yield finding("http_tls.expires", **said, days=tls.valid_s / 86_400)
    else:
        note = "" if tls.valid_s is None else f", valid for {tls.valid_s / 86_400:.0f} days"
        yield finding("http_tls.ok", **said, note=note)
    if tls.key_mode & 0o077:
        yield finding("http_tls.open_key", **said, mode=f"{tls.key_mode & 0o7777:04o}")


def judge_secrets(secrets: SecretFacts) -> Iterator[Finding]:
    path = secrets.path
    if secrets.state in {"missing", "not_a_directory"}:
        yield finding(f"secrets.{secrets.state}", path=path)
    elif secrets.state == "unreadable" or secrets.unreadable_files:
        yield finding("secrets.unreadable", path=path, files=_some(secrets.unreadable_files) or "the directory")
    elif secrets.open_files:
        yield finding("secrets.open", path=path, files=_some(secrets.open_files))
    else:
        yield finding("secrets.ok", path=path)


def _some(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _limit(value: int | None) -> str:
    return "any number" if value is None else f"{value:,}"


# ---- facts out of what others say -----------------------------------------------------------------------------------

_CLAUSE = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9]+(?:\.[0-9]+)*)")
_RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_OPERATORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def fits(found: str | None, wanted: str) -> bool:
    """Whether a version is within bounds such as ``>=3.14,<3.15``; a clause that isn't understood is not judged."""
    release = _RELEASE.match(found or "")
    if release is None:
        return False
    for clause in wanted.split(","):
        match = _CLAUSE.fullmatch(clause.strip())
        if match is None:
            continue
        ours, bound = _numbers(release[0]), _numbers(match[2])
        length = max(len(ours), len(bound))
        if not _OPERATORS[match[1]](_padded(ours, length), _padded(bound, length)):
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split("."))


def _padded(numbers: tuple[int, ...], length: int) -> tuple[int, ...]:
    return numbers + (0,) * (length - len(numbers))


def cluster_facts(document: dict[str, Any]) -> ClusterFacts:
    """Of the status document; the reasons are those of /readyz, in short."""
    workers = document.get("workers") or []
    writer = document.get("writer") or {}
    reasons = []
    if document.get("phase") != "running":
        reasons.append(f"its phase is {document.get('phase')}")
    if (document.get("database") or {}).get("state") != "up":
        reasons.append("the database does not answer")
    if writer.get("state") != "running":
        reasons.append(f"the writer is {str(writer.get('state')).replace('_', ' ')}")
    running, wanted = sum(each.get("state") == "running" for each in workers), document.get("workers_wanted") or 0
    if running < wanted:
        reasons.append(f"{running} of {wanted} workers run")
    assigned, partitions = document.get("partitions_assigned") or 0, document.get("partitions") or 0
    if assigned < partitions:
        reasons.append(f"{assigned} of {partitions} partitions have an owner")
    blocked = sum(each.get("wal_state", "ok") != "ok" for each in workers)
    if blocked:
        reasons.append(f"{blocked} of {len(workers)} workers cannot write their WAL")
    return ClusterFacts(
        state="running",
        version=str(document.get("version", "")),
        health=str(document.get("health", "")),
        reasons=reasons,
        invalid={str(each): str(why) for each, why in (document.get("invalid_project_reasons") or {}).items()},
        invalid_count=int(document.get("invalid_projects") or 0),
        workers=int(wanted),
        max_concurrent_http=int(document.get("max_concurrent_http") or 0),
        wal_bytes_max=max((int(each.get("wal_bytes") or 0) for each in workers), default=0),
        wal_damaged=sum(int(each.get("wal_damaged") or 0) for each in workers),
        rejects=int(writer.get("rejects") or 0),
    )
