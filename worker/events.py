"""What a worker's core hears, and what it asks for."""

import msgspec

from cluster.messages.control import ToCoordinator, ToWorker, TriggerName
from cluster.messages.results import FromWriter, PollResult
from cluster.project import ProjectSpec


class Vitals(msgspec.Struct, frozen=True):
    """What only the process knows of itself; reported with each heartbeat."""

    lateness_counts: list[int] = []
    lateness_p50_ms: float = 0.0
    lateness_p99_ms: float = 0.0
    lateness_max_ms: float = 0.0
    loop_lag_ms: float = 0.0
    rss_bytes: int = 0


# ---- events -------------------------------------------------------------------------------------------------------


class CoordinatorSaid(msgspec.Struct, frozen=True):
    message: ToWorker


class WriterSaid(msgspec.Struct, frozen=True):
    message: FromWriter


class PollsFinished(msgspec.Struct, frozen=True):
    """All polls that finished in one turn of the loop."""

    results: list[PollResult]


class PollsAborted(msgspec.Struct, frozen=True):
    """Answer to ``AbortPolls``: these have no result."""

    project_ids: list[int]


class HeartbeatDue(msgspec.Struct, frozen=True):
    """Once a second, from the loop that polls."""

    vitals: Vitals


class StopRequested(msgspec.Struct, frozen=True):
    pass


Event = CoordinatorSaid | WriterSaid | PollsFinished | PollsAborted | HeartbeatDue | StopRequested

# ---- effects ------------------------------------------------------------------------------------------------------


class PollStart(msgspec.Struct, frozen=True, gc=False):
    spec: ProjectSpec
    scheduled_at_ms: int
    trigger: TriggerName
    epoch: int
    doubtful: bool = False  # an owner that died may have polled it already


class StartPolls(msgspec.Struct, frozen=True):
    polls: list[PollStart]


class AbortPolls(msgspec.Struct, frozen=True):
    """The grace period is over: end everything in flight and tell which ones with ``PollsAborted``."""


class TellCoordinator(msgspec.Struct, frozen=True):
    message: ToCoordinator


class TellWriter(msgspec.Struct, frozen=True):
    """An encoded message."""

    body: bytes


class Exit(msgspec.Struct, frozen=True):
    status: int
    text: str


Effect = StartPolls | AbortPolls | TellCoordinator | TellWriter | Exit
