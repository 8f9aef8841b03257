"""Every finding of ``cluster doctor`` by its code (``check.finding``), with its words.

A *problem* keeps a cluster from running, from polling on time or from keeping results; a *warning* may come to that, or
costs something.  A remedy is something to do, with the command, the option or the file in it; where all is well there
is none.
"""

from typing import Any, Literal

import msgspec

Level = Literal["ok", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    code: str  # check.finding
    level: Level
    what: str
    where: str
    remedy: str = ""

    @property
    def check(self) -> str:
        return self.code.partition(".")[0]


# Of each: its level, what, where, and the remedy.
CATALOGUE: dict[str, tuple[Level, str, str, str]] = {
    "open_files.ok": ("ok", "a worker may need {needed:,} open files, {limit} are allowed", "ulimit -Hn", ""),
    "open_files.too_few": (
        "problem",
        "a worker that takes over from all others may need {needed:,} open files, {limit} are allowed",
        "ulimit -Hn",
        (
            "raise the hard limit to {needed} or more (LimitNOFILE= of the service, nofile in "
            "/etc/security/limits.conf, --ulimit nofile= of the container), or lower --max-concurrent-http"
        ),
    ),
    "open_files.system": (
        "problem",
        "all processes of this system may have {file_max:,} files open, the workers may need {needed:,}",
        "/proc/sys/fs/file-max",
        "sysctl -w fs.file-max={wanted}, and write it into /etc/sysctl.d/",
    ),
    "processes.ok": ("ok", "processes and threads: {limit} are allowed", "ulimit -u", ""),
    "processes.too_few": (
        "problem",
        "this user may have {limit} processes and threads and has {used:,}; the cluster needs about {needed:,} more",
        "ulimit -u",
        (
            "raise the limit (TasksMax= and LimitNPROC= of the service, nproc in /etc/security/limits.conf), "
            "or lower --workers"
        ),
    ),
    "file_size.ok": ("ok", "the size of a file is not limited", "ulimit -f", ""),
    "file_size.too_small": (
        "problem",
        "a file may have {limit:,} bytes; a segment of the WAL needs {needed:,}",
        "ulimit -f",
        "ulimit -f unlimited where the cluster is started (LimitFSIZE=infinity of the service)",
    ),
    "address_space.ok": ("ok", "address space is not limited", "ulimit -v", ""),
    "address_space.too_small": (
        "warning",
        "a process may have {limit} of address space; workers with many projects need more",
        "ulimit -v",
        (
            "ulimit -v unlimited where the cluster is started (LimitAS=infinity of the service); limit memory by "
            "cgroup (MemoryMax=) instead"
        ),
    ),
    "local_ports.ok": ("ok", "{ports:,} local ports, {needed:,} may be in use", "net.ipv4.ip_local_port_range", ""),
    "local_ports.too_few": (
        "warning",
        "{ports:,} local ports; polls on new connections may need {needed:,} to one address",
        "net.ipv4.ip_local_port_range",
        (
            "sysctl -w net.ipv4.ip_local_port_range='1024 65000' net.ipv4.tcp_tw_reuse=1, and write it into "
            "/etc/sysctl.d/; it only matters where most projects are behind one address"
        ),
    ),
    "listen_queue.ok": ("ok", "{somaxconn:,} connections may wait to be accepted", "net.core.somaxconn", ""),
    "listen_queue.short": (
        "warning",
        "{somaxconn:,} connections may wait to be accepted by the status pages and the sockets of the cluster",
        "net.core.somaxconn",
        "sysctl -w net.core.somaxconn=4096, and write it into /etc/sysctl.d/",
    ),
    "http_port.ok": ("ok", "free for the status pages", "--http {address}", ""),
    "http_port.ours": ("ok", "used by the cluster that runs here", "--http {address}", ""),
    "http_port.taken": (
        "problem",
        "another program listens there{holder}",
        "--http {address}",
        "stop it, or give another port (--http, CLUSTER_HTTP)",
    ),
    "http_port.refused": (
        "problem",
        "this address can't be listened on: {why}",
        "--http {address}",
        "give an address of this machine and a port above 1023 (--http, CLUSTER_HTTP)",
    ),
    "data_directory.ok": ("ok", "can be used{note}", "{path}", ""),
    "data_directory.new": ("ok", "will be made by the first start", "{path}", ""),
    "data_directory.not_a_directory": (
        "problem",
        "is not a directory",
        "{path}",
        "move it away, or give another directory (--data-dir, CLUSTER_DATA_DIR)",
    ),
    "data_directory.unreachable": (
        "problem",
        "can't be looked at: {why}",
        "{path}",
        "mend its file system or its permissions, or give another directory (--data-dir, CLUSTER_DATA_DIR)",
    ),
    "data_directory.not_writable": (
        "problem",
        "this user may not write in it (its owner is {owner}, mode {mode})",
        "{nearest}",
        (
            "run the cluster and this as its owner, or `chown` it, or give another directory (--data-dir, "
            "CLUSTER_DATA_DIR)"
        ),
    ),
    "data_directory.foreign": (
        "warning",
        "belongs to {owner}",
        "{nearest}",
        (
            "run the cluster as {owner}, or `chown -R` it; files of two users in one data directory are in each "
            "other's way"
        ),
    ),
    "data_directory.open": (
        "warning",
        "others may write in it (mode {mode}): whoever does can speak to the cluster or damage the WAL",
        "{path}",
        "chmod go-w {path}",
    ),
    "file_system.ok": ("ok", "{file_system}", "{path}", ""),
    "file_system.network": (
        "problem",
        "is on {file_system}, a network file system: its locks and sockets don't hold between processes as they must",
        "{path}",
        "give a directory on a local disk (--data-dir, CLUSTER_DATA_DIR)",
    ),
    "file_system.memory": (
        "warning",
        "is on {file_system}, in memory: results that wait there are gone after a restart of the machine",
        "{path}",
        "give a directory on a disk (--data-dir, CLUSTER_DATA_DIR)",
    ),
    "socket_paths.ok": ("ok", "the longest path of a socket has {bytes} bytes, {most} may be", "{path}", ""),
    "socket_paths.too_long": (
        "problem",
        "a socket's path would have {bytes} bytes, {most} may be",
        "{path}",
        (
            "give a shorter --data-dir, or --control-endpoint, --results-endpoint and --admin-endpoint in a short one "
            "such as ipc:///run/ringpoll/admin.sock"
        ),
    ),
    "disk_space.ok": ("ok", "{free} free", "{path}", ""),
    "disk_space.below_floor": (
        "problem",
        "{free} free, --wal-free-floor is {floor}: nothing would be polled",
        "{path}",
        "make room, or give a larger disk (--data-dir); --wal-free-floor may be lower where nothing else fills it",
    ),
    "disk_space.below_limit": (
        "warning",
        (
            "{free} free; the WAL of {workers} workers may take {wal} (--wal-limit) while the database is away, and "
            "leaves {floor}"
        ),
        "{path}",
        (
            "make room, or lower --wal-limit; polling stops (--wal-full stop) or results are given up (drop_oldest) "
            "when the disk is full before the limit is reached"
        ),
    ),
    "disk_space.inodes": (
        "problem",
        "{inodes:,} files may still be made",
        "{path}",
        "delete small files on this file system (df -i), or give another directory (--data-dir)",
    ),
    "clock.ok": ("ok", "is synchronised{note}", "this machine", ""),
    "clock.not_synchronised": (
        "warning",
        "the kernel says that nothing keeps it right; ticks are instants of the wall clock",
        "this machine",
        "run an NTP client (systemd-timesyncd, chrony); in a container or virtual machine, see to the host's",
    ),
    "clock.stepped": (
        "warning",
        "was set {direction} by {step_s:.0f} s since the cluster started; ticks of the span between are missed or late",
        "this machine",
        "have the NTP client slew (chrony: makestep only at boot), and look at `cluster audit` for that time",
    ),
    "database_clock.ok": ("ok", "differs by {off_ms:.0f} ms from ours", "{place}", ""),
    "database_clock.off": (
        "warning",
        "is {off_s:.1f} s {direction} of ours: instants made by triggers and by polls don't fit together",
        "{place}",
        "run an NTP client on both machines (chrony, systemd-timesyncd)",
    ),
    "database_clock.far_off": (
        "problem",
        "is {off_s:.0f} s {direction} of ours: spans of projects, and with them `cluster audit`, are wrong by it",
        "{place}",
        "set the clock that is wrong (`timedatectl`), and run an NTP client on both machines",
    ),
    "database.ok": ("ok", "{version_text}, answers in {latency_ms:.1f} ms", "{place}", ""),
    "database.not_started": (
        "ok",
        "the embedded PostgreSQL runs while a cluster does; nothing more is known of it now",
        "{place}",
        "",
    ),
    "database.away": (
        "problem",
        "{why}",
        "{place}",
        "start it, or correct DATABASE_URL (--database-url); what is polled meanwhile waits in the WAL",
    ),
    "database.slow": (
        "warning",
        "{version_text}, answers in {latency_ms:.0f} ms; the writer waits so long at each statement",
        "{place}",
        "put it nearer (same data centre), or look for what loads it (pg_stat_activity, iostat)",
    ),
    "database_version.ok": ("ok", "{version_text}", "{place}", ""),
    "database_version.old": (
        "warning",
        "{version_text} gets no corrections any more",
        "{place}",
        "upgrade to PostgreSQL {kept_up} or newer",
    ),
    "database_version.too_old": (
        "problem",
        "{version_text}; the tables need {least} or newer",
        "{place}",
        "upgrade PostgreSQL, or leave DATABASE_URL away for the embedded one",
    ),
    "schema.ok": ("ok", "the tables are those of this version ({schema})", "{place}", ""),
    "schema.none": (
        "warning",
        "it has no tables of ours yet",
        "{place}",
        "`cluster migrate`, or just `cluster up`",
    ),
    "schema.behind": (
        "warning",
        "the tables are of version {schema}, this program's of {known}",
        "{place}",
        "`cluster migrate`; `cluster up` does it, too",
    ),
    "schema.ahead": (
        "problem",
        "the tables are of version {schema}, this program knows {known}",
        "{place}",
        "install the newer ringpoll that migrated it",
    ),
    "privileges.ok": ("ok", "this user may do what the cluster does", "{place}", ""),
    "privileges.missing": (
        "problem",
        "this user lacks {missing}",
        "{place}",
        "make the user the owner of the tables (ALTER TABLE ... OWNER TO), or GRANT these as their owner",
    ),
    "privileges.create": (
        "problem",
        "this user may not create tables: neither migrations nor daily partitions",
        "{place}",
        "GRANT CREATE ON SCHEMA public TO the user, or make it the owner of the database",
    ),
    "privileges.read_only": (
        "problem",
        "it takes no writes: a standby, or default_transaction_read_only",
        "{place}",
        "give the primary in DATABASE_URL (several hosts and target_session_attrs=primary), or end the read-only mode",
    ),
    "connections.ok": ("ok", "{used} of {most} connections are used; we need about {ours}", "{place}", ""),
    "connections.few": (
        "problem",
        "{used} of {most} connections are used, {reserved} of the rest are reserved; the cluster needs about {ours}",
        "{place}",
        "raise max_connections in postgresql.conf, or end clients that hold many (pg_stat_activity)",
    ),
    "tables.ok": ("ok", "results take {results} in {days} days; the database {whole}{growth}", "{place}", ""),
    "tables.no_autovacuum": (
        "problem",
        "autovacuum is off: tables and indexes grow without end",
        "{place}",
        "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf()",
    ),
    "tables.vacuum_late": (
        "warning",
        "table {table} has {dead:,} dead rows beside {rows:,}, {vacuumed}",
        "{place}",
        (
            "VACUUM (ANALYZE) {table}; look for long transactions that keep autovacuum from it, or lower "
            "autovacuum_vacuum_scale_factor"
        ),
    ),
    "tables.old_transaction": (
        "warning",
        "a transaction has been open for {hours:.1f} h: dead rows are kept, and it may hold locks",
        "{place}",
        (
            "find it (SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start) and end it "
            "(pg_terminate_backend)"
        ),
    ),
    "tables.disk_of_embedded": (
        "warning",
        "results of {retention} days at {per_day} a day come to {whole}, {free} are free on its disk",
        "{place}",
        "lower --retention-days, poll less often, or give a larger disk",
    ),
    "python.ok": ("ok", "{version}", "this environment", ""),
    "python.too_old": (
        "problem",
        "{version}; {least} or newer is needed",
        "this environment",
        "install a newer Python and ringpoll into a new virtual environment",
    ),
    "packages.ok": ("ok", "{count} packages are as needed", "this environment", ""),
    "packages.wrong": (
        "problem",
        "{wrong}",
        "this environment",
        "pip install --upgrade ringpoll (in a virtual environment of its own)",
    ),
    "uvloop.ok": ("ok", "works", "this environment", ""),
    "uvloop.broken": (
        "problem",
        "can't make an event loop: {why}",
        "this environment",
        "pip install --force-reinstall uvloop",
    ),
    "memory.ok": ("ok", "{available} of {whole} available", "this machine", ""),
    "memory.low": (
        "warning",
        "{available} of {whole} are available",
        "this machine",
        "end what takes it, or add memory: a worker that the kernel kills loses its last 50 ms",
    ),
    "memory.swapping": (
        "warning",
        "{swap} are swapped out: a role that is swapped in polls late",
        "this machine",
        "add memory, or give the cluster's service MemorySwapMax=0",
    ),
    "capacity.ok": (
        "ok",
        "{projects:,} projects, {rate:,.1f} polls/s: this machine and these options carry them",
        "this machine",
        "",
    ),
    "capacity.short": ("warning", "{warning}", "this machine", "see `cluster plan` with your numbers"),
    "capacity.workers": (
        "warning",
        "{rate:,.1f} polls/s want {wanted} workers, there are {workers}",
        "--workers",
        "cluster scale --workers {wanted}, and write it into the configuration",
    ),
    "capacity.slots": (
        "warning",
        "{projects:,} projects want {wanted:,} requests in flight for a margin of 5, {slots:,} may be",
        "--max-concurrent-http",
        "cluster scale --max-concurrent-http {wanted}, and write it into the configuration",
    ),
    "capacity.more_workers_than_cores": (
        "warning",
        "{workers} workers on {cores} cores",
        "--workers",
        "one worker per core is enough: --workers {enough}",
    ),
    "cluster.none": ("ok", "none runs on this data directory", "{path}", ""),
    "cluster.ready": ("ok", "runs, {health}: {workers} workers", "{path}", ""),
    "cluster.silent": (
        "problem",
        "is there, and does not answer: {why}",
        "{path}",
        "look at its log; it may still be starting. `cluster down` stops it, the same user may ask it",
    ),
    "cluster.not_ready": ("problem", "is not ready: {reasons}", "{path}", "deploy/RUNBOOK.md, reasons of /readyz"),
    "cluster.critical": (
        "problem",
        "runs, but its health is critical: too many requests are in flight or wait",
        "{path}",
        "cluster scale --max-concurrent-http with a higher number, or find the slow targets with `cluster top`",
    ),
    "cluster.other_version": (
        "warning",
        "runs version {theirs}, this command is of version {ours}",
        "{path}",
        "restart it (`cluster down`, `cluster up`), or run this command from its environment",
    ),
    "projects.ok": ("ok", "all can be polled", "{path}", ""),
    "projects.invalid": (
        "problem",
        "{count:,} enabled projects can't be polled: {shown}",
        "table projects",
        "correct the rows; `cluster projects show ID` says what is wrong with one",
    ),
    "results.ok": ("ok", "none was refused, the WAL is whole", "{path}", ""),
    "results.rejected": (
        "warning",
        "the database refused {rejects:,} results since the start",
        "table ingest_reject",
        "SELECT error, count(*) FROM ingest_reject GROUP BY 1 says why; mend the cause",
    ),
    "results.wal_damaged": (
        "warning",
        "{damaged:,} ranges of the WAL could not be read",
        "{path}/wal/quarantine",
        "check the disk (dmesg, smartctl); the log says what is lost",
    ),
    "results.wal_full": (
        "problem",
        "a worker's WAL has {wal} of --wal-limit {limit}",
        "{path}/wal",
        "see why results don't land (`cluster status`: writer, database); raise --wal-limit if there is room",
    ),
    "http_access.ok": ("ok", "{count:,} tokens and users may log in", "{address}", ""),
    "http_access.nobody": (
        "problem",
        "--http lets others in, and there is neither a valid token nor a user: nobody gets in",
        "{address}",
        "cluster token create --name NAME --scope admin, or cluster user add NAME --scope admin",
    ),
    "http_tls.ok": ("ok", "the certificate and its key fit{note}", "--http-cert {certificate}", ""),
    "http_tls.unusable": (
        "problem",
        "{why}",
        "--http-cert {certificate}",
        "give the chain and its unencrypted private key, both in PEM and readable for the coordinator's user",
    ),
    "http_tls.expired": (
        "problem",
        "the certificate has expired",
        "--http-cert {certificate}",
        "renew it; the files are read again within seconds, without a restart",
    ),
    "http_tls.expires": (
        "warning",
        "the certificate expires in {days:.0f} days",
        "--http-cert {certificate}",
        "renew it; the files are read again within seconds, without a restart",
    ),
    "http_tls.open_key": (
        "warning",
        "others may read the key (mode {mode})",
        "--http-key {key}",
        "chmod go-rwx {key}",
    ),
    "secrets.ok": ("ok", "only their owner can read them", "{path}", ""),
    "secrets.missing": (
        "problem",
        "does not exist: references to files and sealed values stand for nothing",
        "--secrets-dir {path}",
        "mkdir -m 700 {path}, or leave --secrets-dir away",
    ),
    "secrets.not_a_directory": (
        "problem",
        "is not a directory",
        "--secrets-dir {path}",
        "give the directory that has the files (--secrets-dir, CLUSTER_SECRETS_DIR)",
    ),
    "secrets.unreadable": (
        "problem",
        "this user can't read {files}",
        "--secrets-dir {path}",
        "chown the files to the user the workers run as",
    ),
    "secrets.open": (
        "warning",
        "others may read {files}",
        "--secrets-dir {path}",
        "chmod go-rwx {path} {path}/*",
    ),
    "unanswered.unanswered": (
        "warning",
        "nothing is known of it: {why}",
        "{check}",
        "run this as the user of the cluster, and look at what it hangs on (df, the name server, dmesg)",
    ),
}


def finding(code: str, **values: Any) -> Finding:
    level, what, where, remedy = CATALOGUE[code]
    return Finding(
        code=code,
        level=level,
        what=what.format(**values),
        where=where.format(**values),
        remedy=remedy.format(**values),
    )
