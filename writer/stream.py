"""One stream as the writer's core keeps it: which batches are in, which are committed, how much waits.

Batches are accepted in the order of their ``seq`` without a gap; what was accepted stays until it is committed.
Positions never go back:  committed_seq <= received_seq.
"""

from collections import deque

import msgspec

from cluster.messages.results import Batch


class PendingBatch(msgspec.Struct, frozen=True, gc=False):
    batch: Batch
    size_bytes: int
    rows: int
    received_ms: int


class Stream:
    __slots__ = (
        "committed_seq", "ending", "heard_ms", "loaded", "peer", "pending", "pending_bytes", "received_seq", "refused",
        "rewound_ms", "stream_id", "taken", "welcome_seq", "worker",
    )  # fmt: skip

    def __init__(self, stream_id: str, worker: str, peer: bytes, first_seq: int, now_ms: int) -> None:
        self.stream_id = stream_id
        self.worker = worker
        self.peer: bytes | None = peer  # None: not connected now
        self.welcome_seq = first_seq  # the oldest batch the worker still has, as it said
        self.loaded = False  # the ledger was read: the positions below are known
        self.committed_seq = 0
        self.received_seq = 0
        self.pending: deque[PendingBatch] = deque()
        self.pending_bytes = 0
        self.taken = 0  # so many of the pending are in the flush in progress
        self.rewound_ms: int | None = None  # a gap is open since its last Rewind
        self.refused = False  # a batch was turned away for want of room; the Rewind comes when there is some
        self.ending = False
        self.heard_ms = now_ms

    def __repr__(self) -> str:
        return (
            f"Stream({self.stream_id} of {self.worker}, committed {self.committed_seq}, received {self.received_seq}, "
            f"{len(self.pending)} pending, {'loaded' if self.loaded else 'not loaded'})"
        )

    def accept(self, pending: PendingBatch) -> None:
        assert pending.batch.seq == self.received_seq + 1
        self.received_seq = pending.batch.seq
        self.rewound_ms = None
        self.refused = False
        self.pending.append(pending)
        self.pending_bytes += pending.size_bytes

    def skip_to(self, first_seq: int) -> int:
        """The worker no longer has what lies between: take first_seq next.  Returns how many batches were skipped."""
        skipped = max(0, first_seq - 1 - self.received_seq)
        self.received_seq += skipped
        return skipped

    def take(self) -> PendingBatch:
        """The oldest batch that is not in a flush; the caller made sure there is one."""
        taken = self.pending[self.taken]
        self.taken += 1
        return taken

    @property
    def waiting(self) -> int:
        """Batches that are in no flush yet."""
        return len(self.pending) - self.taken

    def commit(self, position: int) -> None:
        """The flush in progress is committed, and the ledger stands at ``position``."""
        self.committed_seq = max(self.committed_seq, position)
        self.received_seq = max(self.received_seq, position)
        self.taken = 0
        while self.pending and self.pending[0].batch.seq <= self.committed_seq:
            self.pending_bytes -= self.pending.popleft().size_bytes

    def check(self) -> None:
        assert self.committed_seq <= self.received_seq, self
        assert 0 <= self.taken <= len(self.pending), self
        assert self.pending_bytes == sum(p.size_bytes for p in self.pending), self
        assert self.loaded or not self.pending, self
        seqs = [p.batch.seq for p in self.pending]
        assert seqs == sorted(set(seqs)), self
        assert not seqs or (seqs[0] > self.committed_seq and seqs[-1] <= self.received_seq), self
