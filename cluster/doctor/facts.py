"""What ``cluster doctor`` judges: plain facts of this machine, the database, the configuration and a running cluster.

Gathered by ``cluster.doctor.gathering``, judged by ``cluster.doctor.judging``.  None: not known, so not judged.
"""

import msgspec

from cluster.capacity import CapacityPlan


class LimitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of a process that this user starts; None: no limit."""

    files_soft: int | None
    files_hard: int | None
    processes: int | None
    processes_used: int | None  # threads count as the kernel counts them; of root none are counted
    file_bytes: int | None
    address_space_bytes: int | None


class KernelFacts(msgspec.Struct, frozen=True, kw_only=True):
    port_low: int | None = None
    port_high: int | None = None
    tcp_tw_reuse: int | None = None  # 0 off, 1 on, 2 loopback only
    somaxconn: int | None = None
    file_max: int | None = None  # of the whole system


class HttpPortFacts(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    state: str  # free | ours | taken | refused
    why: str = ""  # refused: the system's words
    holder: str = ""  # taken: by whom, where it may be known


class DirectoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    state: str  # there | missing | not_a_directory | unreachable
    why: str = ""
    nearest: str = ""  # the directory that is there: itself, or the one in which it would be made
    writable: bool = True  # of ``nearest``
    owner: str = ""
    is_ours: bool = True  # the owner is who asks, or root asks
    mode: int = 0
    file_system: str | None = None
    free_bytes: int | None = None
    inodes_free: int | None = None  # None also where the file system has no number of them
    socket_bytes: int = 0  # of the longest path of a socket
    socket_bytes_max: int = 0


class ClockFacts(msgspec.Struct, frozen=True, kw_only=True):
    synchronised: bool | None = None
    step_s: float | None = None  # the clock's jump since the cluster started
    database_ahead_s: float | None = None  # of our clock
    database_uncertainty_s: float = 0.0


class TableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A table or result partition with the most dead rows."""

    name: str
    rows: int
    dead_rows: int
    vacuumed_s: float | None  # ago; None: never


class DatabaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    place: str
    embedded: bool = False
    state: str = "up"  # up | down | not_started: an embedded server without a cluster
    why: str = ""
    latency_ms: float = 0.0
    version: int = 0  # 180001
    version_text: str = ""
    schema: int = 0
    schema_known: int = 0
    may_create: bool = True  # tables, for migrations and daily partitions
    missing_privileges: list[str] = []  # "SELECT on projects"
    read_only: bool = False
    connections_max: int = 0
    connections_reserved: int = 0  # for superusers
    connections_used: int = 0
    connections_ours: int = 0
    database_bytes: int = 0
    results_bytes: int = 0
    results_days: int = 0  # partitions that are not empty
    results_bytes_per_day: int | None = None  # of the last whole day
    autovacuum: bool = True
    most_dead: TableFacts | None = None
    oldest_transaction_s: float | None = None  # of others, open
    credentials: int | None = None  # tokens that are valid, and users
    projects: int = 0
    polls_per_s: float = 0.0
    response_s: float | None = None  # mean of the newest results of some projects


class PackageFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    wanted: str  # ">=3.14,<3.15"
    found: str | None


class VersionFacts(msgspec.Struct, frozen=True, kw_only=True):
    python: tuple[int, int, int]
    packages: list[PackageFacts]
    uvloop_why_not: str = ""  # it can't make a loop


class ResourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    swap_used_bytes: int


class ClusterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``state``: running | none | silent (somebody holds the lock, and nobody answers)."""

    state: str
    why: str = ""
    version: str = ""
    health: str = ""
    reasons: list[str] = []  # why it isn't ready
    invalid: dict[str, str] = {}  # projects that can't be polled, and why
    invalid_count: int = 0
    workers: int = 0
    max_concurrent_http: int = 0
    wal_bytes_max: int = 0  # of the worker with most
    wal_damaged: int = 0
    rejects: int = 0


class SecretFacts(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    state: str  # there | missing | not_a_directory | unreadable
    mode: int = 0
    open_files: list[str] = []  # that others than their owner may read or write
    unreadable_files: list[str] = []


class HttpTlsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``why``: the files can't be used."""

    certificate: str
    key: str
    why: str = ""
    valid_s: float | None = None  # for how long still; below 0: it has expired
    key_mode: int = 0


class ConfiguredFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is configured and other facts are held against."""

    version: str
    workers: int
    max_concurrent_http: int
    retention_days: int
    wal_limit_bytes: int
    wal_free_floor_bytes: int
    http_is_local: bool = True  # then nobody has to log in


class DoctorFacts(msgspec.Struct, frozen=True, kw_only=True):
    configured: ConfiguredFacts
    limits: LimitFacts | None = None
    kernel: KernelFacts | None = None
    http_port: HttpPortFacts | None = None
    directory: DirectoryFacts | None = None
    clock: ClockFacts | None = None
    database: DatabaseFacts | None = None
    versions: VersionFacts | None = None
    resources: ResourceFacts | None = None
    plan: CapacityPlan | None = None  # for the projects of the database
    cluster: ClusterFacts | None = None
    secrets: SecretFacts | None = None  # None also where no directory is configured
    http_tls: HttpTlsFacts | None = None  # None also where HTTP has no TLS
    unanswered: dict[str, str] = {}  # checks that gave no facts, and why
