"""What the writer's core hears, and what it asks for.  Events are facts in the past tense, effects imperatives.

For a test double of the database: ``LoadLedger`` is answered by ``LedgerLoaded`` or ``DatabaseFailed``,
``CommitFlush`` by ``FlushCommitted``, ``LedgerWentBack`` or ``DatabaseFailed``.  The core asks for one of them at a
time and repeats it, unchanged, after a failure; a failed commit may nevertheless have happened (its COMMIT's outcome
can be unknown), which the database finds out by comparing the ledger with each part's ``base_seq``.
"""

from typing import Literal

import msgspec

from cluster.messages.results import Batch, FromWriter, ToWriter


class StreamPart(msgspec.Struct, frozen=True):
    """One stream's share of a flush: consecutive batches, and what the ledger says of the stream before them."""

    stream_id: str
    worker: str
    base_seq: int  # the ledger's last_seq before this flush; 0: the stream has no row yet
    batches: list[Batch]  # by rising seq; not empty

    @property
    def first_seq(self) -> int:
        return self.batches[0].seq

    @property
    def last_seq(self) -> int:
        return self.batches[-1].seq


class Flush(msgspec.Struct, frozen=True):
    """What is committed in one transaction: all of it, in one piece, or nothing."""

    flush_id: int
    parts: list[StreamPart]
    rows: int  # results and missed ranges
    oldest_ms: int  # when the oldest of it was received


# ---- events ---------------------------------------------------------------------------------------------------------


class MessageReceived(msgspec.Struct, frozen=True):
    peer: bytes
    message: ToWriter
    size_bytes: int  # as received; counts against the stream's credit


class PeerUnreachable(msgspec.Struct, frozen=True):
    """A send to this routing id failed: the connection is gone, or the peer does not read."""

    peer: bytes


class LedgerLoaded(msgspec.Struct, frozen=True):
    """For each stream asked for: its last_seq, 0 when it has no row."""

    positions: dict[str, int]


class FlushCommitted(msgspec.Struct, frozen=True):
    """Counts are of rows: ``written`` of poll_results, ``duplicates`` already there, ``rejects`` set aside."""

    flush_id: int
    positions: dict[str, int]  # the ledger's last_seq per stream of the flush; at least the part's last_seq
    written: int
    duplicates: int = 0
    rejects: int = 0


class LedgerWentBack(msgspec.Struct, frozen=True):
    """A stream of the flush stands before its ``base_seq``: the database is an older one.  Nothing was committed."""

    flush_id: int


FailureKind = Literal["retry", "fatal"]


class DatabaseFailed(msgspec.Struct, frozen=True):
    """The operation asked for did not succeed.  ``fatal``: only a person can mend it; it is repeated all the same."""

    kind: FailureKind
    error: str  # one line


class StopRequested(msgspec.Struct, frozen=True):
    """Commit what was received, for at most ``grace_ms``, then ``Finish``."""

    grace_ms: int


Event = (
    MessageReceived | PeerUnreachable | LedgerLoaded | FlushCommitted | LedgerWentBack | DatabaseFailed | StopRequested
)

# ---- effects --------------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    peer: bytes
    message: FromWriter


class LoadLedger(msgspec.Struct, frozen=True):
    stream_ids: list[str]


class CommitFlush(msgspec.Struct, frozen=True):
    flush: Flush


class MarkEnded(msgspec.Struct, frozen=True):
    """Note in the ledger that nothing follows.  Nothing depends on it, so its outcome is not reported."""

    stream_ids: list[str]


class WriteLog(msgspec.Struct, frozen=True):
    level: Literal["debug", "info", "warning", "error"]
    text: str


class Finish(msgspec.Struct, frozen=True):
    """The last effect: the process may end.  ``uncommitted``: results and missed ranges given up."""

    uncommitted: int


Effect = Send | LoadLedger | CommitFlush | MarkEnded | WriteLog | Finish
