"""One stream as the writer's core keeps it: which batches are in, which are committed, how much waits.

Batches are accepted in the order of their ``seq`` without a gap; what was accepted stays until it is committed.
committed_seq <= received_seq, and neither goes back but by ``reset``, when the database turned out to be an older one.
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
        "abandoned", "acked_seq", "committed_seq", "ending", "heard_ms", "loaded", "owed_rows",
        "owed_seq", "peer", "pending", "pending_bytes", "received_seq", "refused", "rewound_ms", "sender", "stream_id",
        "taken", "waiting_bytes", "welcome_seq", "worker",
    )  # fmt: skip

    def __init__(self, stream_id: str, worker: str, peer: bytes, first_seq: int, now_ms: int) -> None:
        self.stream_id = stream_id
        self.worker = worker
        self.peer: bytes | None = peer  # None: not connected now
        self.sender = ("", "")  # who sends it: name and incarnation
        self.welcome_seq = first_seq  # the oldest batch the worker still has, as it said
        self.acked_seq = 0  # what the worker was told is committed, as it said or as we told it
        self.owed_seq = 0  # what was received before the last reset
        self.owed_rows = 0  # and thrown away by it, while it is not committed
        self.loaded = False  # the ledger was read: the positions below are known
        self.committed_seq = 0
        self.received_seq = 0
        self.pending: deque[PendingBatch] = deque()
        self.pending_bytes = 0
        self.taken = 0  # so many of the pending are in the flush in progress
        self.waiting_bytes = 0  # of the pending that are in no flush
        self.rewound_ms: int | None = None  # a gap is open since its last Rewind
        self.refused = False  # a batch was turned away for want of room; the Rewind comes when there is some
        self.ending = False
        self.abandoned = False  # its sender is gone; nothing comes unless somebody adopts it
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
        self.waiting_bytes += pending.size_bytes

    def skip_to(self, first_seq: int) -> int:
        """The worker no longer has what lies between: take first_seq next.  Returns how many batches were skipped."""
        skipped = max(0, first_seq - 1 - self.received_seq)
        self.received_seq += skipped
        return skipped

    def take(self) -> PendingBatch:
        """The oldest batch that is not in a flush; the caller made sure there is one."""
        taken = self.pending[self.taken]
        self.taken += 1
        self.waiting_bytes -= taken.size_bytes
        return taken

    @property
    def waiting(self) -> int:
        """Batches that are in no flush yet."""
        return len(self.pending) - self.taken

    def commit(self, position: int) -> None:
        """The flush in progress is committed, and the ledger stands at ``position``."""
        self.committed_seq = max(self.committed_seq, position)
        self.received_seq = max(self.received_seq, position)
        self.acked_seq = max(self.acked_seq, self.committed_seq)
        if self.committed_seq >= self.owed_seq:
            self.owed_rows = 0
        for _ in range(self.taken):
            self.pending_bytes -= self.pending.popleft().size_bytes
        self.taken = 0
        while self.pending and self.pending[0].batch.seq <= self.committed_seq:
            size_bytes = self.pending.popleft().size_bytes
            self.pending_bytes -= size_bytes
            self.waiting_bytes -= size_bytes

    def reset(self) -> None:
        """Nothing is known any more of what the ledger says; what was received has to be sent again."""
        self.loaded = False
        self.owed_seq = self.received_seq
        self.owed_rows += sum(pending.rows for pending in self.pending)
        self.pending.clear()
        self.pending_bytes = self.waiting_bytes = self.taken = 0
        self.rewound_ms = None
        self.refused = False

    def load(self, position: int) -> bool:
        """The ledger stands at ``position``.  False: it stood further once, so the database is an older one.

        What the worker no longer has is no sign of that: it may have been given up before it was ever committed.
        """
        known = max(position, self.welcome_seq - 1)
        went_back = known < self.acked_seq
        self.acked_seq = known
        self.loaded = True
        self.committed_seq = self.received_seq = position
        if position >= self.owed_seq:
            self.owed_rows = 0
        return not went_back

    @property
    def is_ahead(self) -> bool:
        """The worker was told more than the ledger has: the database may be an older one."""
        return self.acked_seq > max(self.committed_seq, self.welcome_seq - 1)

    def check(self) -> None:
        assert self.committed_seq <= self.received_seq, self
        assert 0 <= self.taken <= len(self.pending), self
        assert self.pending_bytes == sum(p.size_bytes for p in self.pending), self
        assert self.waiting_bytes == sum(p.size_bytes for p in list(self.pending)[self.taken :]), self
        assert self.loaded or not self.pending, self
        seqs = [p.batch.seq for p in self.pending]
        assert seqs == sorted(set(seqs)), self
        assert not seqs or (seqs[0] > self.committed_seq and seqs[-1] <= self.received_seq), self
