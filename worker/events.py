"""What a worker's core hears, and what it asks for."""

import msgspec

from cluster.messages.control import ToCoordinator, ToWorker, TriggerName
from cluster.messages.results import FromWriter, MissedRange, PollResult
from cluster.project import ProjectSpec
from cluster.wal.format import Entry


class Vitals(msgspec.Struct, frozen=True):
    """What only the process knows of itself; reported with each heartbeat."""

    lateness_counts: list[int] = []
    lateness_p50_ms: float = 0.0
    lateness_p99_ms: float = 0.0
    lateness_max_ms: float = 0.0
    loop_lag_ms: float = 0.0
    loop_lag_counts: list[int] = []
    rss_bytes: int = 0
    wal_full: bool = False  # its limits are reached, and nothing of it may be given up
    wal_damaged: int = 0
    wal_sync_failures: int = 0
    spans_dropped: int = 0


class AdoptedStream(msgspec.Struct, frozen=True):
    """What a worker that died left in its WAL; counts are of the stream ever."""

    stream_id: str
    worker: str
    first_seq: int
    last_seq: int
    acked_seq: int  # as far as its worker noted it
    records: int  # up to and with last_seq
    size_bytes: int
    records_acked: int  # up to and with acked_seq
    bytes_acked: int


# ---- events -------------------------------------------------------------------------------------------------------


class CoordinatorSaid(msgspec.Struct, frozen=True):
    message: ToWorker


class WriterSaid(msgspec.Struct, frozen=True):
    message: FromWriter


class PollsFinished(msgspec.Struct, frozen=True):
    """All polls that finished in one turn of the loop.  ``local_causes``: of those that are ``unknown``, counted."""

    results: list[PollResult]
    local_causes: dict[str, int] = {}


class PollsAborted(msgspec.Struct, frozen=True):
    """Answer to ``AbortPolls``: these have no result."""

    project_ids: list[int]


class WalWritten(msgspec.Struct, frozen=True):
    """Everything up to ``seq`` is in the WAL, as safely as its fsync policy wants it."""

    stream_id: str
    seq: int


class WalWriteFailed(msgspec.Struct, frozen=True):
    """Nothing of a ``WriteWal`` counts."""


class WalRead(msgspec.Struct, frozen=True):
    """Answer to ``ReadWal``: contiguous from where it was asked for; empty when it can't be read now."""

    stream_id: str
    entries: list[Entry]


class StreamOpened(msgspec.Struct, frozen=True):
    """Answer to ``OpenStream``."""

    stream_id: str


class StreamsAdopted(msgspec.Struct, frozen=True):
    streams: list[AdoptedStream]


class StreamTrimmed(msgspec.Struct, frozen=True):
    """The stream's WAL begins at ``first_seq`` now.  The records were given up for room, and nobody has them."""

    stream_id: str
    first_seq: int
    results: list[PollResult] = []
    missed: list[MissedRange] = []


class HeartbeatDue(msgspec.Struct, frozen=True):
    """Once a second, from the loop that polls."""

    vitals: Vitals


class StopRequested(msgspec.Struct, frozen=True):
    pass


Event = (
    CoordinatorSaid
    | WriterSaid
    | PollsFinished
    | PollsAborted
    | WalWritten
    | WalWriteFailed
    | WalRead
    | StreamOpened
    | StreamsAdopted
    | StreamTrimmed
    | HeartbeatDue
    | StopRequested
)

# ---- effects ------------------------------------------------------------------------------------------------------


class PollStart(msgspec.Struct, frozen=True, gc=False):
    spec: ProjectSpec
    scheduled_at_ms: int
    trigger: TriggerName
    epoch: int


class StartPolls(msgspec.Struct, frozen=True):
    polls: list[PollStart]


class AbortPolls(msgspec.Struct, frozen=True):
    """The grace period is over: end everything in flight and tell which ones with ``PollsAborted``."""


class StopRedirects(msgspec.Struct, frozen=True):
    """Polls of these projects in flight send no further request: they end here when they are redirected."""

    project_ids: list[int]


class TellCoordinator(msgspec.Struct, frozen=True):
    message: ToCoordinator


class TellWriter(msgspec.Struct, frozen=True):
    """An encoded message."""

    body: bytes


class WriteWal(msgspec.Struct, frozen=True):
    """Append what is not there yet; answered by ``WalWritten`` or ``WalWriteFailed``."""

    stream_id: str
    entries: list[Entry]


class ReadWal(msgspec.Struct, frozen=True):
    """Answered by ``WalRead``."""

    stream_id: str
    from_seq: int
    bytes_max: int


class AcknowledgeWal(msgspec.Struct, frozen=True):
    """What lies up to ``seq`` may be deleted when its time has come."""

    stream_id: str
    seq: int


class ForgetStream(msgspec.Struct, frozen=True):
    """Nothing is left of the stream and nothing comes any more: what remains of its WAL may be removed."""

    stream_id: str


class OpenStream(msgspec.Struct, frozen=True):
    """A further stream of this incarnation, with a WAL of its own; answered by ``StreamOpened``."""


class Exit(msgspec.Struct, frozen=True):
    status: int
    text: str


WalEffect = WriteWal | ReadWal | AcknowledgeWal | ForgetStream | OpenStream
Effect = StartPolls | AbortPolls | StopRedirects | TellCoordinator | TellWriter | WalEffect | Exit
