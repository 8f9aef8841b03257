"""Messages on the coordinator's control socket.  Map-encoded msgpack, one body frame each.

Workers, the writer and the supervisor connect a DEALER; the coordinator binds a ROUTER.  A peer introduces itself
with its hello; to a message from a stranger the coordinator answers ``WhoAreYou``.

The state of a worker is a sequence: ``Reset`` opens a session, every following ``Grant``, ``Revoke``, ``Upsert``,
``Remove``, ``Limits`` and ``Settle`` carries the session and the next ``seq``, ``SnapshotEnd`` closes the opening
snapshot.  The worker acknowledges cumulatively (``Ack``), ignores what it has seen, and asks for a new session
(``Resync``) at a gap.  All of them are idempotent.
"""

from typing import Annotated, Literal

import msgspec

from cluster.project import ProjectSpec

# What a peer says is bounded where it is decoded, so that no number of its choosing reaches an index or a sum.
PartitionIndex = Annotated[int, msgspec.Meta(ge=0, le=4_095)]
ProjectNumber = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Slots = Annotated[int, msgspec.Meta(ge=0, le=100_000)]

# ---- shared parts -------------------------------------------------------------------------------------------------

TriggerName = Literal["tick", "immediate", "manual"]
ResumeReason = Literal["handover", "down"]


class WaitingPoll(msgspec.Struct, array_like=True, frozen=True):
    """A poll that was due at the old owner and had not started; the new owner takes its place in the line."""

    project_id: ProjectNumber
    scheduled_at_ms: int
    trigger: TriggerName


class BusyProject(msgspec.Struct, array_like=True, frozen=True):
    """A poll still in flight at the old owner: the new owner starts none for the project before it is settled."""

    project_id: ProjectNumber
    until_ms: int


class Cut(msgspec.Struct, frozen=True):
    """How far a released partition was brought: every tick <= cut_ms is started, counted missed, or in ``waiting``.

    ``cut_ms`` None: the worker neither holds the partition nor remembers having held it.  ``resume_after_ms``: as it
    was granted; what lies before is for former owners to commit.
    """

    partition: PartitionIndex
    epoch: int
    cut_ms: int | None
    waiting: list[WaitingPoll] = []
    busy: list[BusyProject] = []
    fresh: bool = True  # held until now; False: remembered
    resume_after_ms: int | None = None


class EndedSpan(msgspec.Struct, array_like=True, frozen=True):
    """A time of a project's life that its partition's owner may not have seen: its ticks are only to be accounted.

    ``unheard``: also those before the point from which the owner went on: whoever was to account for them did not.
    """

    project_id: int
    since_ms: int
    until_ms: int
    interval_ms: int
    unheard: bool = False


class PartitionGrant(msgspec.Struct, frozen=True):
    """One partition, or (``last`` false) a part of a large one; the worker applies it when the last part is there.

    ``resume_after_ms``: every tick <= it is accounted for; None: the projects were never polled.  ``reason``: what
    older unpolled ticks are counted as.  A worker that holds the partition already keeps its own schedule and takes
    from the grant what changed.
    """

    partition: int
    resume_after_ms: int | None
    reason: ResumeReason
    projects: list[ProjectSpec]
    waiting: list[WaitingPoll] = []
    busy: list[BusyProject] = []
    immediate: list[int] = []  # ids of new projects whose immediate poll nobody has started
    unseen: list[int] = []  # ids of changed projects: the former owner may not have known, so its cut does not count
    ended: list[EndedSpan] = []
    last: bool = True


class HeldPartition(msgspec.Struct, array_like=True, frozen=True):
    partition: PartitionIndex
    epoch: int
    resume_after_ms: int | None = None  # as granted; what lies before is for former owners to commit


class RemovedProject(msgspec.Struct, array_like=True, frozen=True):
    """Ticks before ``until_ms`` that were not started are missed(paused)."""

    project_id: int
    until_ms: int


# ---- worker -> coordinator ------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", frozen=True):
    worker: str
    incarnation: str
    pid: int
    stream_id: str
    slice: Slots  # the slice in force, 0 for a newcomer
    held: list[HeldPartition] = []
    released: list[Cut] = []  # the last cuts: a coordinator that was restarted may not know them
    draining: bool = False


WalState = Literal["ok", "full", "failing"]  # full: its limits are reached; failing: it can't be written


class WorkerStats(msgspec.Struct, frozen=True):
    """Totals of this incarnation and gauges of this moment."""

    executed: int = 0
    success: int = 0
    failure: int = 0
    unknown: int = 0
    missed: dict[str, int] = {}  # ticks by reason
    active_http: int = 0
    queue_depth: int = 0
    projects: int = 0
    unacked_results: int = 0
    wal_bytes: int = 0  # of results that are not acknowledged
    wal_state: WalState = "ok"
    wal_damaged: int = 0  # ranges of bytes of the WAL that could not be read
    wal_sync_failures: int = 0
    wal_dropped: int = 0  # results given up because the WAL was full
    lateness_counts: list[int] = []  # cumulative, by cluster.histogram.BOUNDS_MS
    lateness_p50_ms: float = 0.0  # of about the last ten seconds
    lateness_p99_ms: float = 0.0
    lateness_max_ms: float = 0.0
    loop_lag_ms: float = 0.0  # the worst since the last heartbeat
    loop_lag_counts: list[int] = []  # cumulative, by cluster.histogram.BOUNDS_MS, one every 50 ms
    rss_bytes: int = 0
    local_causes: dict[str, int] = {}  # what of its machine ``unknown`` polls came to grief on


class Heartbeat(msgspec.Struct, tag="heartbeat", frozen=True):
    """Once a second, from the loop that polls.

    Every tick <= committed_at_ms of an owned partition is in the database, but for partitions in ``lagging``, where
    every tick < the given instant is.  ``oldest_ms`` is the minimum over everything this worker still has to commit,
    released partitions included.
    """

    incarnation: str
    session: int  # with ``seq``: what of the coordinator's sequence was applied when this was made
    seq: int
    stats: WorkerStats
    committed_at_ms: int
    oldest_ms: int
    lagging: dict[int, int] = {}


class Ack(msgspec.Struct, tag="ack", frozen=True):
    session: int
    seq: int


class Resync(msgspec.Struct, tag="resync", frozen=True):
    session: int


class Released(msgspec.Struct, tag="released", frozen=True):
    """Answer to ``Revoke``: these partitions are no longer polled here."""

    session: int
    cuts: list[Cut]


class Settled(msgspec.Struct, tag="settled", frozen=True):
    """Polls of released partitions that were in flight (``Cut.busy``, the same entries) have finished."""

    finished: list[BusyProject]


class SliceReached(msgspec.Struct, tag="slice_reached", frozen=True):
    """In flight is at or below the slice of the ``Limits`` with this seq, and that slice is in force.

    Answers the newest ``Limits`` only.
    """

    session: int
    seq: int
    slice: int


class Leaving(msgspec.Struct, tag="leaving", frozen=True):
    """The worker's last word on a graceful stop: all it had is committed, up to ``committed_at_ms``."""

    incarnation: str
    stats: WorkerStats
    committed_at_ms: int


# ---- coordinator -> worker ------------------------------------------------------------------------------------------


class WhoAreYou(msgspec.Struct, tag="who_are_you", frozen=True):
    pass


class Reset(msgspec.Struct, tag="reset", frozen=True):
    """Opens a session with seq 1; a snapshot of everything the worker is to hold follows."""

    session: int
    seq: int
    epoch: int


class Grant(msgspec.Struct, tag="grant", frozen=True):
    session: int
    seq: int
    epoch: int
    partitions: list[PartitionGrant]


class SnapshotEnd(msgspec.Struct, tag="snapshot_end", frozen=True):
    """What the worker held before the session and was not granted in it, it gives up."""

    session: int
    seq: int


class Revoke(msgspec.Struct, tag="revoke", frozen=True):
    session: int
    seq: int
    epoch: int
    partitions: list[int]


class Upsert(msgspec.Struct, tag="upsert", frozen=True):
    session: int
    seq: int
    epoch: int
    projects: list[ProjectSpec]
    immediate: list[int] = []


class Remove(msgspec.Struct, tag="remove", frozen=True):
    """``ended``: spans that began and ended before the coordinator heard of them."""

    session: int
    seq: int
    epoch: int
    projects: list[RemovedProject]
    ended: list[EndedSpan] = []


class Limits(msgspec.Struct, tag="limits", frozen=True):
    session: int
    seq: int
    slice: int
    max_per_host: int  # of this worker; 0 = none


class Settle(msgspec.Struct, tag="settle", frozen=True):
    session: int
    seq: int
    finished: list[BusyProject]


class Retire(msgspec.Struct, tag="retire", frozen=True):
    """Everything was handed over: finish, commit, exit with 0."""


# ---- writer -> coordinator -----------------------------------------------------------------------------------------

WriterState = Literal["running", "waiting_for_database"]


class WriterHeartbeat(msgspec.Struct, tag="writer_heartbeat", frozen=True):
    """Once a second from the writer's loop; the first one introduces it."""

    incarnation: str
    pid: int
    state: WriterState
    rows_written: int = 0
    rows_per_s: float = 0.0
    lag_ms: float = 0.0  # age of the oldest result received and not committed
    duplicates: int = 0
    rejects: int = 0
    streams: int = 0
    pending_rows: int = 0
    rss_bytes: int = 0
    rollup_lag_ms: float = 0.0  # how long ago it was up to when polls are rolled up into minutes, hours and days


# ---- supervisor <-> coordinator --------------------------------------------------------------------------------------


class ProcessAlive(msgspec.Struct, array_like=True, frozen=True):
    name: str
    incarnation: str
    pid: int


class SupervisorHello(msgspec.Struct, tag="supervisor_hello", frozen=True):
    """Who is alive now; sent on start, on ``WhoAreYou`` and about once a second."""

    pid: int
    run_id: str
    workers_wanted: int
    alive: list[ProcessAlive]
    stopping: bool = False


class ProcessStarted(msgspec.Struct, tag="process_started", frozen=True):
    name: str
    incarnation: str
    pid: int


class ProcessExited(msgspec.Struct, tag="process_exited", frozen=True):
    """waitpid returned: the fence.  Whatever the process was doing, it does no more."""

    name: str
    incarnation: str
    exit_status: int  # negative: ended by that signal
    restarting: bool


class SupervisorStopping(msgspec.Struct, tag="supervisor_stopping", frozen=True):
    """The cluster is being stopped: nothing is reassigned any more."""


class CoordinatorHeartbeat(msgspec.Struct, tag="coordinator_heartbeat", frozen=True):
    """About once a second to the supervisor, from the coordinator's loop; also its answer to a hello."""

    projects_loaded: int
    projects_total: int | None  # None: not known (yet)
    partitions_assigned: int
    phase: Literal["loading", "gathering", "running", "stopping"]
    database_up: bool


class KillProcess(msgspec.Struct, tag="kill_process", frozen=True):
    """The process hangs: SIGKILL it, start it again."""

    name: str
    incarnation: str
    reason: str


class SetWorkers(msgspec.Struct, tag="set_workers", frozen=True):
    """Run exactly these workers: start the missing ones; one that is no longer listed is not started again."""

    names: list[str]


ToCoordinator = (
    Hello
    | Heartbeat
    | Ack
    | Resync
    | Released
    | Settled
    | SliceReached
    | Leaving
    | WriterHeartbeat
    | SupervisorHello
    | ProcessStarted
    | ProcessExited
    | SupervisorStopping
)
ToWorker = WhoAreYou | Reset | Grant | SnapshotEnd | Revoke | Upsert | Remove | Limits | Settle | Retire
ToSupervisor = WhoAreYou | CoordinatorHeartbeat | KillProcess | SetWorkers
FromCoordinator = ToWorker | CoordinatorHeartbeat | KillProcess | SetWorkers

decode_to_coordinator = msgspec.msgpack.Decoder(ToCoordinator).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_supervisor = msgspec.msgpack.Decoder(ToSupervisor).decode
encode = msgspec.msgpack.Encoder().encode
