"""What the coordinator's core hears, and what it asks for.  Events are facts in the past tense, effects imperatives."""

from typing import Literal

import msgspec

from cluster.messages.control import (
    EndedSpan,
    FromCoordinator,
    RemovedProject,
    ToCoordinator,
    WorkerStats,
    WriterHeartbeat,
)


class ProjectRecord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A project as the coordinator keeps it: what it weighs, and its encoded ProjectSpec, which only workers read."""

    id: int
    weight: float  # polls per second
    blob: bytes  # cluster.project.encode_spec(spec)


# ---- events -------------------------------------------------------------------------------------------------------


class MessageReceived(msgspec.Struct, frozen=True):
    peer: bytes
    message: ToCoordinator


class PeerUnreachable(msgspec.Struct, frozen=True):
    """A send to this routing id failed: the connection is gone, or the peer does not read."""

    peer: bytes


class ProjectsChanged(msgspec.Struct, frozen=True):
    """Enabled projects as they are now, and projects that are no more.  Records equal to those held change nothing.

    ``initial``: part of the load at the start, so nothing is polled at once.  ``ended``: spans that ended after
    everything was last accounted for; those nobody was told of are only to be accounted.  ``token``: answered by
    ``ConfirmChange`` when the workers that are to drop projects have acknowledged.
    """

    records: list[ProjectRecord]
    removed: list[RemovedProject]
    initial: bool = False
    ended: list[EndedSpan] = []
    token: int | None = None


class LoadProgressed(msgspec.Struct, frozen=True):
    loaded: int
    total: int | None


class LoadFinished(msgspec.Struct, frozen=True):
    """The first load is complete: assignment may begin."""


class ScaleRequested(msgspec.Struct, frozen=True):
    workers: int | None
    max_concurrent_http: int | None


class DrainRequested(msgspec.Struct, frozen=True):
    """Move everything off this worker and let it end; the cluster has one worker less."""

    worker: str


class DatabaseStateChanged(msgspec.Struct, frozen=True):
    up: bool


Event = (
    MessageReceived
    | PeerUnreachable
    | ProjectsChanged
    | LoadProgressed
    | LoadFinished
    | ScaleRequested
    | DrainRequested
    | DatabaseStateChanged
)

# ---- effects ------------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    peer: bytes
    message: FromCoordinator | msgspec.Struct


class SaveEpoch(msgspec.Struct, frozen=True):
    """Durable before any following effect is performed."""

    epoch: int


class JournalProjects(msgspec.Struct, frozen=True):
    """What really changed, for the project file that lets a cluster start without its database."""

    records: list[ProjectRecord]
    removed: list[int]


class ConfirmChange(msgspec.Struct, frozen=True):
    """The change with this token has been acknowledged by every worker it concerned."""

    token: int


class WriteLog(msgspec.Struct, frozen=True):
    level: Literal["debug", "info", "warning", "error"]
    text: str


Effect = Send | SaveEpoch | JournalProjects | ConfirmChange | WriteLog

# ---- what outlives the process, and what others may look at -------------------------------------------------------


class Totals(msgspec.Struct):
    """Counted since `cluster up`; never go back."""

    executed: int = 0
    success: int = 0
    failure: int = 0
    unknown: int = 0
    missed: dict[str, int] = {}
    lateness_counts: list[int] = []
    local_causes: dict[str, int] = {}  # of ``unknown``, by what of its machine it was


class DurableState(msgspec.Struct, kw_only=True):
    """Saved about once a second by the shell, and given to the next coordinator's core."""

    run_id: str = ""
    epoch: int = 0
    marks: list[int | None] = []  # per partition: every tick <= it is in the database; None: never polled
    totals: Totals = msgspec.field(default_factory=Totals)  # of incarnations that are gone
    counted: dict[str, WorkerStats] = {}  # incarnation -> its last totals
    worker_names: list[str] = []  # who is to run, after `scale` and `drain`; empty: as configured
    max_concurrent_http: int | None = None
    duplicates_gone: int = 0  # of writer incarnations that are gone
    rejects_gone: int = 0
    rows_gone: int = 0
    writer_last: WriterHeartbeat | None = None


Phase = Literal["loading", "gathering", "running", "stopping"]
WorkerState = Literal["starting", "running", "hung", "restarting", "draining"]


class WorkerView(msgspec.Struct, frozen=True):
    name: str
    pid: int
    incarnation: str
    state: WorkerState
    projects: int  # as assigned
    partitions: int
    weight: float
    slice: int
    stats: WorkerStats


class View(msgspec.Struct, frozen=True):
    """Everything /status is made of that the core knows."""

    phase: Phase
    epoch: int
    projects: int
    projects_loaded: int
    projects_total: int | None
    partitions_assigned: int
    max_concurrent_http: int
    workers_wanted: int
    workers: list[WorkerView]
    totals: Totals  # all incarnations, those alive included
    writer: WriterHeartbeat | None  # rows_written, duplicates, rejects since `cluster up`
    writer_state: Literal["running", "restarting", "waiting_for_database"]
    database_up: bool
    horizon_ms: int | None  # every tick before it is accounted for in the database
