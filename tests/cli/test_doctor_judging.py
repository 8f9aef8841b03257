"""What the doctor says of which facts: every finding of the catalogue, with its whole words."""

import msgspec
import pytest

from cluster.capacity import MachineFacts, ProjectGroup, make_plan
from cluster.doctor.catalogue import CATALOGUE
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
from cluster.doctor.judging import cluster_facts, fits, judge

GIB = 1 << 30
PLAN = make_plan(
    [ProjectGroup(1_000, 10.0, 0.2)],
    MachineFacts(cores=4, memory_bytes=8 * GIB, descriptors=None, disk_free_bytes=None),
    retention_days=90,
)
TLS = HttpTlsFacts(certificate="/c.pem", key="/k.pem", valid_s=90 * 86_400.0, key_mode=0o600)
WELL = DoctorFacts(
    configured=ConfiguredFacts(
        version="0.1.0",
        workers=2,
        max_concurrent_http=500,
        retention_days=90,
        wal_limit_bytes=4 * GIB,
        wal_free_floor_bytes=GIB // 4,
    ),
    limits=LimitFacts(
        files_soft=1_024,
        files_hard=65_536,
        processes=4_096,
        processes_used=100,
        file_bytes=None,
        address_space_bytes=None,
    ),
    kernel=KernelFacts(port_low=32_768, port_high=60_999, tcp_tw_reuse=2, somaxconn=4_096, file_max=1_000_000),
    http_port=HttpPortFacts(address="127.0.0.1:8700", state="free"),
    directory=DirectoryFacts(
        path="/var/lib/x",
        state="there",
        nearest="/var/lib/x",
        owner="ann",
        mode=0o755,
        file_system="ext4",
        free_bytes=100 * GIB,
        inodes_free=1_000_000,
        socket_bytes=40,
        socket_bytes_max=103,
    ),
    clock=ClockFacts(synchronised=True, step_s=-0.8, database_ahead_s=0.004, database_uncertainty_s=0.001),
    database=DatabaseFacts(
        place='"p" at db:5432',
        latency_ms=0.5,
        version=180_001,
        version_text="PostgreSQL 18.1",
        schema=8,
        schema_known=8,
        connections_max=100,
        connections_reserved=3,
        connections_used=12,
        connections_ours=5,
        database_bytes=3 * GIB,
        results_bytes=2 * GIB,
        results_days=4,
        results_bytes_per_day=GIB // 2,
        most_dead=TableFacts(name="project_states", rows=1_000_000, dead_rows=1_000, vacuumed_s=60.0),
        oldest_transaction_s=0.1,
    ),
    versions=VersionFacts(python=(3, 12, 1), packages=[PackageFacts(name="aiohttp", wanted=">=3.14", found="3.14.2")]),
    resources=ResourceFacts(cores=4, memory_bytes=8 * GIB, memory_available_bytes=4 * GIB, swap_used_bytes=0),
    plan=PLAN,
    cluster=ClusterFacts(state="running", version="0.1.0", health="healthy", workers=2, max_concurrent_http=500),
    secrets=SecretFacts(path="/etc/x/secrets", state="there", mode=0o700),
)


def facts(**parts):
    """WELL with changes: ``limits={"files_hard": 10}``; None takes the part away."""
    changed = {
        name: change if change is None or not isinstance(change, dict) or name == "unanswered"
        else msgspec.structs.replace(getattr(WELL, name), **change)
        for name, change in parts.items()
    }  # fmt: skip
    return msgspec.structs.replace(WELL, **changed)


WELL_CODES = [
    "python.ok", "packages.ok", "uvloop.ok", "open_files.ok", "processes.ok", "file_size.ok", "address_space.ok",
    "local_ports.ok", "listen_queue.ok", "http_port.ok", "data_directory.ok", "file_system.ok", "socket_paths.ok",
    "disk_space.ok", "clock.ok", "database_clock.ok", "database.ok", "database_version.ok", "schema.ok",
    "privileges.ok", "connections.ok", "tables.ok", "memory.ok", "capacity.ok", "cluster.ready", "projects.ok",
    "results.ok", "secrets.ok",
]  # fmt: skip


def test_where_all_is_well_every_check_says_so():
    found = judge(WELL)
    assert [each.code for each in found] == WELL_CODES
    assert {each.level for each in found} == {"ok"}
    assert {each.remedy for each in found} == {""}


def test_without_facts_nothing_is_judged():
    assert judge(DoctorFacts(configured=WELL.configured)) == []


# (changes, code, level, what, where, remedy)
CASES = [
    (
        {"configured": {"max_concurrent_http": 70_000}},
        "open_files.too_few", "problem",
        "a worker that takes over from all others may need 72,064 open files, 65,536 are allowed",
        "ulimit -Hn",
        ("raise the hard limit to 72064 or more (LimitNOFILE= of the service, nofile in /etc/security/limits.conf, "
        "--ulimit nofile= of the container), or lower --max-concurrent-http"),
    ),
    (
        {"kernel": {"file_max": 4_000}},
        "open_files.system", "problem",
        "all processes of this system may have 4,000 files open, the workers may need 4,628",
        "/proc/sys/fs/file-max",
        "sysctl -w fs.file-max=9256, and write it into /etc/sysctl.d/",
    ),
    (
        {"limits": {"processes": 120}},
        "processes.too_few", "problem",
        "this user may have 120 processes and threads and has 100; the cluster needs about 48 more",
        "ulimit -u",
        ("raise the limit (TasksMax= and LimitNPROC= of the service, nproc in /etc/security/limits.conf), "
        "or lower --workers"),
    ),
    (
        {"limits": {"file_bytes": 1_000}},
        "file_size.too_small", "problem",
        "a file may have 1,000 bytes; a segment of the WAL needs 67,108,864",
        "ulimit -f",
        "ulimit -f unlimited where the cluster is started (LimitFSIZE=infinity of the service)",
    ),
    (
        {"limits": {"address_space_bytes": GIB}},
        "address_space.too_small", "warning",
        "a process may have 1.0 GiB of address space; workers with many projects need more",
        "ulimit -v",
        ("ulimit -v unlimited where the cluster is started (LimitAS=infinity of the service); limit memory by cgroup "
        "(MemoryMax=) instead"),
    ),
    (
        {"kernel": {"tcp_tw_reuse": 0}, "configured": {"max_concurrent_http": 5_000}},
        "local_ports.too_few", "warning",
        "28,232 local ports; polls on new connections may need 35,000 to one address",
        "net.ipv4.ip_local_port_range",
        ("sysctl -w net.ipv4.ip_local_port_range='1024 65000' net.ipv4.tcp_tw_reuse=1, and write it into "
        "/etc/sysctl.d/; it only matters where most projects are behind one address"),
    ),
    (
        {"kernel": {"somaxconn": 64}},
        "listen_queue.short", "warning",
        "64 connections may wait to be accepted by the status pages and the sockets of the cluster",
        "net.core.somaxconn",
        "sysctl -w net.core.somaxconn=4096, and write it into /etc/sysctl.d/",
    ),
    ({"http_port": {"state": "ours"}}, "http_port.ours", "ok",
     "used by the cluster that runs here", "--http 127.0.0.1:8700", ""),
    (
        {"http_port": {"state": "taken", "holder": "nginx, pid 7"}},
        "http_port.taken", "problem",
        "another program listens there (nginx, pid 7)",
        "--http 127.0.0.1:8700",
        "stop it, or give another port (--http, CLUSTER_HTTP)",
    ),
    (
        {"http_port": {"state": "refused", "why": "Permission denied"}},
        "http_port.refused", "problem",
        "this address can't be listened on: Permission denied",
        "--http 127.0.0.1:8700",
        "give an address of this machine and a port above 1023 (--http, CLUSTER_HTTP)",
    ),
    ({"directory": {"state": "missing", "nearest": "/var/lib"}}, "data_directory.new", "ok",
     "will be made by the first start", "/var/lib/x", ""),
    (
        {"directory": {"state": "not_a_directory"}},
        "data_directory.not_a_directory", "problem", "is not a directory", "/var/lib/x",
        "move it away, or give another directory (--data-dir, CLUSTER_DATA_DIR)",
    ),
    (
        {"directory": {"state": "unreachable", "why": "Stale file handle"}},
        "data_directory.unreachable", "problem", "can't be looked at: Stale file handle", "/var/lib/x",
        "mend its file system or its permissions, or give another directory (--data-dir, CLUSTER_DATA_DIR)",
    ),
    (
        {"directory": {"writable": False, "nearest": "/var/lib", "owner": "root"}},
        "data_directory.not_writable", "problem",
        "this user may not write in it (its owner is root, mode 0755)",
        "/var/lib",
        ("run the cluster and this as its owner, or `chown` it, or give another directory (--data-dir, "
        "CLUSTER_DATA_DIR)"),
    ),
    (
        {"directory": {"is_ours": False, "owner": "bob"}},
        "data_directory.foreign", "warning", "belongs to bob", "/var/lib/x",
        "run the cluster as bob, or `chown -R` it; files of two users in one data directory are in each other's way",
    ),
    (
        {"directory": {"mode": 0o777}},
        "data_directory.open", "warning",
        "others may write in it (mode 0777): whoever does can speak to the cluster or damage the WAL",
        "/var/lib/x",
        "chmod go-w /var/lib/x",
    ),
    (
        {"directory": {"file_system": "nfs4"}},
        "file_system.network", "problem",
        "is on nfs4, a network file system: its locks and sockets don't hold between processes as they must",
        "/var/lib/x",
        "give a directory on a local disk (--data-dir, CLUSTER_DATA_DIR)",
    ),
    (
        {"directory": {"file_system": "tmpfs"}},
        "file_system.memory", "warning",
        "is on tmpfs, in memory: results that wait there are gone after a restart of the machine",
        "/var/lib/x",
        "give a directory on a disk (--data-dir, CLUSTER_DATA_DIR)",
    ),
    (
        {"directory": {"socket_bytes": 104}},
        "socket_paths.too_long", "problem",
        "a socket's path would have 104 bytes, 103 may be",
        "/var/lib/x",
        ("give a shorter --data-dir, or --control-endpoint, --results-endpoint and --admin-endpoint in a short one "
        "such as ipc:///run/ringpoll/admin.sock"),
    ),
    (
        {"directory": {"free_bytes": GIB // 4}},
        "disk_space.below_floor", "problem",
        "256.0 MiB free, --wal-free-floor is 256.0 MiB: nothing would be polled",
        "/var/lib/x",
        "make room, or give a larger disk (--data-dir); --wal-free-floor may be lower where nothing else fills it",
    ),
    (
        {"directory": {"free_bytes": 8 * GIB}},
        "disk_space.below_limit", "warning",
        ("8.0 GiB free; the WAL of 2 workers may take 8.0 GiB (--wal-limit) while the database is away, and leaves "
        "256.0 MiB"),
        "/var/lib/x",
        ("make room, or lower --wal-limit; polling stops (--wal-full stop) or results are given up (drop_oldest) when "
        "the disk is full before the limit is reached"),
    ),
    (
        {"directory": {"inodes_free": 999}},
        "disk_space.inodes", "problem", "999 files may still be made", "/var/lib/x",
        "delete small files on this file system (df -i), or give another directory (--data-dir)",
    ),
    (
        {"clock": {"synchronised": False}},
        "clock.not_synchronised", "warning",
        "the kernel says that nothing keeps it right; ticks are instants of the wall clock",
        "this machine",
        "run an NTP client (systemd-timesyncd, chrony); in a container or virtual machine, see to the host's",
    ),
    (
        {"clock": {"step_s": -3_600.0}},
        "clock.stepped", "warning",
        "was set back by 3600 s since the cluster started; ticks of the span between are missed or late",
        "this machine",
        "have the NTP client slew (chrony: makestep only at boot), and look at `cluster audit` for that time",
    ),
    (
        {"clock": {"database_ahead_s": -1.5, "database_uncertainty_s": 0.1}},
        "database_clock.off", "warning",
        "is 1.4 s behind of ours: instants made by triggers and by polls don't fit together",
        '"p" at db:5432',
        "run an NTP client on both machines (chrony, systemd-timesyncd)",
    ),
    (
        {"clock": {"database_ahead_s": 120.0, "database_uncertainty_s": 0.0}},
        "database_clock.far_off", "problem",
        "is 120 s ahead of ours: spans of projects, and with them `cluster audit`, are wrong by it",
        '"p" at db:5432',
        "set the clock that is wrong (`timedatectl`), and run an NTP client on both machines",
    ),
    ({"database": {"state": "not_started", "place": "embedded, /d"}}, "database.not_started", "ok",
     "the embedded PostgreSQL runs while a cluster does; nothing more is known of it now", "embedded, /d", ""),
    (
        {"database": {"state": "down", "why": "it did not answer within 14 s"}},
        "database.away", "problem", "it did not answer within 14 s", '"p" at db:5432',
        "start it, or correct DATABASE_URL (--database-url); what is polled meanwhile waits in the WAL",
    ),
    (
        {"database": {"latency_ms": 80.0}},
        "database.slow", "warning",
        "PostgreSQL 18.1, answers in 80 ms; the writer waits so long at each statement",
        '"p" at db:5432',
        "put it nearer (same data centre), or look for what loads it (pg_stat_activity, iostat)",
    ),
    (
        {"database": {"version": 130_004, "version_text": "PostgreSQL 13.4"}},
        "database_version.old", "warning", "PostgreSQL 13.4 gets no corrections any more", '"p" at db:5432',
        "upgrade to PostgreSQL 14 or newer",
    ),
    (
        {"database": {"version": 110_004, "version_text": "PostgreSQL 11.4"}},
        "database_version.too_old", "problem", "PostgreSQL 11.4; the tables need 12 or newer", '"p" at db:5432',
        "upgrade PostgreSQL, or leave DATABASE_URL away for the embedded one",
    ),
    ({"database": {"schema": 0}}, "schema.none", "warning", "it has no tables of ours yet", '"p" at db:5432',
     "`cluster migrate`, or just `cluster up`"),
    ({"database": {"schema": 7}}, "schema.behind", "warning",
     "the tables are of version 7, this program's of 8", '"p" at db:5432',
     "`cluster migrate`; `cluster up` does it, too"),
    ({"database": {"schema": 9}}, "schema.ahead", "problem",
     "the tables are of version 9, this program knows 8", '"p" at db:5432',
     "install the newer ringpoll that migrated it"),
    (
        {"database": {"missing_privileges": [f"SELECT on t{number}" for number in range(7)]}},
        "privileges.missing", "problem",
        "this user lacks SELECT on t0, SELECT on t1, SELECT on t2, SELECT on t3, SELECT on t4 and 2 more",
        '"p" at db:5432',
        "make the user the owner of the tables (ALTER TABLE ... OWNER TO), or GRANT these as their owner",
    ),
    (
        {"database": {"may_create": False}},
        "privileges.create", "problem",
        "this user may not create tables: neither migrations nor daily partitions",
        '"p" at db:5432',
        "GRANT CREATE ON SCHEMA public TO the user, or make it the owner of the database",
    ),
    (
        {"database": {"read_only": True}},
        "privileges.read_only", "problem",
        "it takes no writes: a standby, or default_transaction_read_only",
        '"p" at db:5432',
        "give the primary in DATABASE_URL (several hosts and target_session_attrs=primary), or end the read-only mode",
    ),
    (
        {"database": {"connections_used": 95, "connections_ours": 0}},
        "connections.few", "problem",
        "95 of 100 connections are used, 3 of the rest are reserved; the cluster needs about 10",
        '"p" at db:5432',
        "raise max_connections in postgresql.conf, or end clients that hold many (pg_stat_activity)",
    ),
    (
        {"database": {"autovacuum": False}},
        "tables.no_autovacuum", "problem", "autovacuum is off: tables and indexes grow without end",
        '"p" at db:5432',
        "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf()",
    ),
    (
        {"database": {"most_dead": TableFacts(name="projects", rows=200_000, dead_rows=150_000, vacuumed_s=None)}},
        "tables.vacuum_late", "warning",
        "table projects has 150,000 dead rows beside 200,000, never vacuumed",
        '"p" at db:5432',
        ("VACUUM (ANALYZE) projects; look for long transactions that keep autovacuum from it, or lower "
        "autovacuum_vacuum_scale_factor"),
    ),
    (
        {"database": {"oldest_transaction_s": 7_200.0}},
        "tables.old_transaction", "warning",
        "a transaction has been open for 2.0 h: dead rows are kept, and it may hold locks",
        '"p" at db:5432',
        ("find it (SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start) and end it "
        "(pg_terminate_backend)"),
    ),
    (
        {"database": {"embedded": True, "results_bytes_per_day": 2 * GIB}},
        "tables.disk_of_embedded", "warning",
        "results of 90 days at 2.0 GiB a day come to 180.0 GiB, 100.0 GiB are free on its disk",
        '"p" at db:5432',
        "lower --retention-days, poll less often, or give a larger disk",
    ),
    (
        {"versions": {"python": (3, 10, 2)}},
        "python.too_old", "problem", "Python 3.10.2; 3.11 or newer is needed", "this environment",
        "install a newer Python and ringpoll into a new virtual environment",
    ),
    (
        {"versions": {"packages": [PackageFacts(name="rich", wanted=">=14", found="13.9"),
                                   PackageFacts(name="yarl", wanted="", found=None)]}},
        "packages.wrong", "problem",
        "rich 13.9 (needed >=14), yarl is not installed (needed in any version)",
        "this environment",
        "pip install --upgrade ringpoll (in a virtual environment of its own)",
    ),
    (
        {"versions": {"uvloop_why_not": "no epoll"}},
        "uvloop.broken", "problem", "can't make an event loop: no epoll", "this environment",
        "pip install --force-reinstall uvloop",
    ),
    (
        {"resources": {"memory_available_bytes": 100 << 20}},
        "memory.low", "warning", "100.0 MiB of 8.0 GiB are available", "this machine",
        "end what takes it, or add memory: a worker that the kernel kills loses its last 50 ms",
    ),
    (
        {"resources": {"swap_used_bytes": GIB}},
        "memory.swapping", "warning", "1.0 GiB are swapped out: a role that is swapped in polls late", "this machine",
        "add memory, or give the cluster's service MemorySwapMax=0",
    ),
    (
        {"plan": msgspec.structs.replace(PLAN, warnings=["the disk is small"])},
        "capacity.short", "warning", "the disk is small", "this machine", "see `cluster plan` with your numbers",
    ),
    (
        {"cluster": {"workers": 1}},
        "capacity.workers", "warning", "100.0 polls/s want 2 workers, there are 1", "--workers",
        "cluster scale --workers 2, and write it into the configuration",
    ),
    (
        {"cluster": None, "configured": {"max_concurrent_http": 50}},
        "capacity.slots", "warning",
        "1,000 projects want 100 requests in flight for a margin of 5, 50 may be",
        "--max-concurrent-http",
        "cluster scale --max-concurrent-http 100, and write it into the configuration",
    ),
    (
        {"cluster": {"workers": 9}},
        "capacity.more_workers_than_cores", "warning", "9 workers on 4 cores", "--workers",
        "one worker per core is enough: --workers 4",
    ),
    ({"cluster": {"state": "none"}}, "cluster.none", "ok", "none runs on this data directory", "/var/lib/x", ""),
    (
        {"cluster": {"state": "silent", "why": "no answer"}},
        "cluster.silent", "problem", "is there, and does not answer: no answer", "/var/lib/x",
        "look at its log; it may still be starting. `cluster down` stops it, the same user may ask it",
    ),
    (
        {"cluster": {"reasons": ["1 of 2 workers run", "the database does not answer"]}},
        "cluster.not_ready", "problem",
        "is not ready: 1 of 2 workers run; the database does not answer", "/var/lib/x",
        "deploy/RUNBOOK.md, reasons of /readyz",
    ),
    (
        {"cluster": {"health": "critical"}},
        "cluster.critical", "problem",
        "runs, but its health is critical: too many requests are in flight or wait", "/var/lib/x",
        "cluster scale --max-concurrent-http with a higher number, or find the slow targets with `cluster top`",
    ),
    (
        {"cluster": {"version": "0.0.9"}},
        "cluster.other_version", "warning", "runs version 0.0.9, this command is of version 0.1.0", "/var/lib/x",
        "restart it (`cluster down`, `cluster up`), or run this command from its environment",
    ),
    (
        {"cluster": {"invalid_count": 2, "invalid": {"3": "assertions: no list", "5": "url: none"}}},
        "projects.invalid", "problem",
        "2 enabled projects can't be polled: 3: assertions: no list; 5: url: none",
        "table projects",
        "correct the rows; `cluster projects show ID` says what is wrong with one",
    ),
    (
        {"cluster": {"rejects": 4}},
        "results.rejected", "warning", "the database refused 4 results since the start", "table ingest_reject",
        "SELECT error, count(*) FROM ingest_reject GROUP BY 1 says why; mend the cause",
    ),
    (
        {"cluster": {"wal_damaged": 3}},
        "results.wal_damaged", "warning", "3 ranges of the WAL could not be read", "/var/lib/x/wal/quarantine",
        "check the disk (dmesg, smartctl); the log says what is lost",
    ),
    (
        {"cluster": {"wal_bytes_max": 4 * GIB}},
        "results.wal_full", "problem", "a worker's WAL has 4.0 GiB of --wal-limit 4.0 GiB", "/var/lib/x/wal",
        "see why results don't land (`cluster status`: writer, database); raise --wal-limit if there is room",
    ),
    (
        {"secrets": {"state": "missing"}},
        "secrets.missing", "problem",
        "does not exist: references to files and sealed values stand for nothing",
        "--secrets-dir /etc/x/secrets",
        "mkdir -m 700 /etc/x/secrets, or leave --secrets-dir away",
    ),
    (
        {"secrets": {"state": "not_a_directory"}},
        "secrets.not_a_directory", "problem", "is not a directory", "--secrets-dir /etc/x/secrets",
        "give the directory that has the files (--secrets-dir, CLUSTER_SECRETS_DIR)",
    ),
    (
        {"secrets": {"unreadable_files": ["token"]}},
        "secrets.unreadable", "problem", "this user can't read token", "--secrets-dir /etc/x/secrets",
        "chown the files to the user the workers run as",
    ),
    (
        {"secrets": {"open_files": ["sealing.key"]}},
        "secrets.open", "warning", "others may read sealing.key", "--secrets-dir /etc/x/secrets",
        "chmod go-rwx /etc/x/secrets /etc/x/secrets/*",
    ),
    (
        {"configured": {"http_is_local": False}, "database": {"credentials": 3}},
        "http_access.ok", "ok", "3 tokens and users may log in", "--http 127.0.0.1:8700", "",
    ),
    (
        {"configured": {"http_is_local": False}, "database": {"credentials": 0}},
        "http_access.nobody", "problem",
        "--http lets others in, and there is neither a valid token nor a user: nobody gets in",
        "--http 127.0.0.1:8700",
        "cluster token create --name NAME --scope admin, or cluster user add NAME --scope admin",
    ),
    (
        {"http_tls": TLS}, "http_tls.ok", "ok", "the certificate and its key fit, valid for 90 days",
        "--http-cert /c.pem", "",
    ),
    (
        {"http_tls": msgspec.structs.replace(TLS, why="cannot read it")},
        "http_tls.unusable", "problem", "cannot read it", "--http-cert /c.pem",
        "give the chain and its unencrypted private key, both in PEM and readable for the coordinator's user",
    ),
    (
        {"http_tls": msgspec.structs.replace(TLS, valid_s=-1.0)},
        "http_tls.expired", "problem", "the certificate has expired", "--http-cert /c.pem",
        "renew it; the files are read again within seconds, without a restart",
    ),
    (
        {"http_tls": msgspec.structs.replace(TLS, valid_s=5 * 86_400.0)},
        "http_tls.expires", "warning", "the certificate expires in 5 days", "--http-cert /c.pem",
        "renew it; the files are read again within seconds, without a restart",
    ),
    (
        {"http_tls": msgspec.structs.replace(TLS, key_mode=0o644)},
        "http_tls.open_key", "warning", "others may read the key (mode 0644)", "--http-key /k.pem",
        "chmod go-rwx /k.pem",
    ),
    (
        {"unanswered": {"directory": "no answer within 15 s"}},
        "unanswered.unanswered", "warning", "nothing is known of it: no answer within 15 s", "directory",
        "run this as the user of the cluster, and look at what it hangs on (df, the name server, dmesg)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "code", "level", "what", "where", "remedy"), CASES, ids=[each[1] for each in CASES]
)
def test_a_finding(changes, code, level, what, where, remedy):
    found = {each.code: each for each in judge(facts(**changes))}
    assert code in found, sorted(set(found) - set(WELL_CODES))
    one = found[code]
    assert (one.level, one.what, one.where, one.remedy) == (level, what, where, remedy)
    assert one.check == code.split(".")[0]


def test_every_finding_is_in_a_case_above():
    assert {each[1] for each in CASES} | set(WELL_CODES) == set(CATALOGUE)


def test_what_is_not_well_has_a_remedy_and_what_is_well_has_none():
    for code, (level, _, _, remedy) in CATALOGUE.items():
        assert bool(remedy) is (level != "ok"), code


def test_a_finding_takes_the_place_of_what_is_well():
    for changes, code, level, *_ in CASES:
        if level == "ok" or code in ("unanswered.unanswered", "tables.old_transaction", "tables.vacuum_late",
                                     "tables.no_autovacuum", "tables.disk_of_embedded", "disk_space.inodes",
                                     "open_files.system", "memory.swapping", "cluster.other_version",
                                     "capacity.more_workers_than_cores", "http_tls.open_key"):  # fmt: skip
            continue
        codes = {each.code for each in judge(facts(**changes))}
        assert code.split(".")[0] + ".ok" not in codes, code


def test_a_sticky_directory_of_all_is_not_complained_of():
    codes = [each.code for each in judge(facts(directory={"mode": 0o1777}))]
    assert "data_directory.open" not in codes


@pytest.mark.parametrize(
    ("found", "wanted", "answer"),
    [
        ("3.14.2", ">=3.14,<3.15", True),
        ("3.15", ">=3.14,<3.15", False),
        ("3.13.9", ">=3.14,<3.15", False),
        ("1.1.20251105", "<2,>=1.1.20251105", True),
        ("14", ">=14", True),
        ("14.0.0", "==14", True),
        ("14.1", "!=14.1", False),
        ("2.0rc1", ">=2", True),
        (None, "", False),
        ("7.2", "", True),
        ("7.2", "~=7.0", True),
    ],
)
def test_versions_fit_their_bounds(found, wanted, answer):
    assert fits(found, wanted) is answer


STATUS = {
    "version": "0.1.0", "phase": "running", "health": "healthy", "database": {"state": "up"}, "workers_wanted": 1,
    "writer": {"state": "running", "rejects": 2}, "partitions": 4_096, "partitions_assigned": 4_096,
    "max_concurrent_http": 500, "invalid_projects": 1, "invalid_project_reasons": {"3": "url: none"},
    "workers": [{"state": "running", "wal_state": "ok", "wal_bytes": 70, "wal_damaged": 1}],
}  # fmt: skip


def test_the_status_document_as_facts():
    assert cluster_facts(STATUS) == ClusterFacts(
        state="running", version="0.1.0", health="healthy", invalid={"3": "url: none"}, invalid_count=1, workers=1,
        max_concurrent_http=500, wal_bytes_max=70, wal_damaged=1, rejects=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"phase": "loading"}, "its phase is loading"),
        ({"database": {"state": "down"}}, "the database does not answer"),
        ({"writer": {"state": "waiting_for_database"}}, "the writer is waiting for database"),
        ({"workers_wanted": 3}, "1 of 3 workers run"),
        ({"partitions_assigned": 7}, "7 of 4096 partitions have an owner"),
        ({"workers": [{"state": "running", "wal_state": "full"}]}, "1 of 1 workers cannot write their WAL"),
    ],
)
def test_why_a_cluster_is_not_ready(change, reason):
    assert cluster_facts(STATUS | change).reasons == [reason]
