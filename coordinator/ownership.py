"""Who owns each partition, who is to own it, and from where a new owner goes on.

Pure bookkeeping over 4096 partitions; ``core`` compares *wanted* with *owner* and acts on the difference:

    owner is None, wanted = w            ->  grant to w, with the partition's resume point
    owner = a,     wanted = w, a != w    ->  revoke from a; its cut becomes the resume point; then as above
    owner = a died                       ->  owner None, resume after the mark (reason handover)

A *mark* is what survives an owner: every tick <= it is in the database.  A *cut* is exact: every tick <= it was taken
care of by an owner that still lives.
"""

import msgspec

from cluster.messages.control import BusyProject, Cut, ResumeReason, WaitingPoll
from cluster.ticks import PARTITIONS


class Resume(msgspec.Struct, frozen=True):
    after_ms: int | None
    reason: ResumeReason
    waiting: list[WaitingPoll] = []
    busy: list[BusyProject] = []


class Partition(msgspec.Struct, gc=False):
    owner: str | None = None  # it was granted, or claimed in a hello, and not yet given up
    wanted: str | None = None
    epoch: int = 0  # of the grant in force
    mark_ms: int | None = None
    resume: Resume | None = None  # set while it has no owner
    granted_seq: int = 0  # of the owner's session; 0: its grant has not been sent in this session
    revoked_at_ms: int | None = None  # a revoke is under way


class Ownership:
    def __init__(self, marks: list[int | None], *, cold_reason: ResumeReason = "down") -> None:
        self.partitions = [
            Partition(mark_ms=mark, resume=Resume(mark, cold_reason))
            for mark in (marks or [None] * PARTITIONS)
        ]
        assert len(self.partitions) == PARTITIONS

    def owned_by(self, worker: str) -> list[int]:
        return [index for index, partition in enumerate(self.partitions) if partition.owner == worker]

    def owners(self) -> list[str | None]:
        return [partition.owner for partition in self.partitions]

    def wanted(self) -> list[str | None]:
        return [partition.wanted for partition in self.partitions]

    def assigned(self) -> int:
        return sum(partition.owner is not None for partition in self.partitions)

    def adopt(self, index: int, worker: str, epoch: int) -> bool:
        """A worker says that it holds a partition.  The newest grant wins; False when it is not this one."""
        partition = self.partitions[index]
        if partition.owner not in (None, worker) and partition.epoch >= epoch:
            return False
        partition.owner = worker
        partition.epoch = epoch
        partition.resume = None
        partition.revoked_at_ms = None
        partition.granted_seq = 0
        return True

    def granted(self, index: int, worker: str, epoch: int, seq: int) -> None:
        partition = self.partitions[index]
        assert partition.owner in (None, worker), f"partition {index} is owned by {partition.owner}"
        partition.owner = worker
        partition.epoch = epoch
        partition.granted_seq = seq
        partition.resume = None
        partition.revoked_at_ms = None

    def released(self, cut: Cut, worker: str) -> bool:
        """A worker gave a partition up.  False when that is old news."""
        partition = self.partitions[cut.partition]
        if partition.owner != worker or (cut.cut_ms is not None and cut.epoch != partition.epoch):
            return False
        partition.owner = None
        partition.granted_seq = 0
        partition.revoked_at_ms = None
        if cut.cut_ms is None:
            partition.resume = Resume(partition.mark_ms, "handover")
        else:
            partition.resume = Resume(cut.cut_ms, "handover", cut.waiting, cut.busy)
        return True

    def lost(self, worker: str) -> list[int]:
        """The worker is dead.  Returns the partitions it had."""
        indices = self.owned_by(worker)
        for index in indices:
            partition = self.partitions[index]
            partition.owner = None
            partition.granted_seq = 0
            partition.revoked_at_ms = None
            partition.resume = Resume(partition.mark_ms, "handover")
        return indices

    def session_opened(self, worker: str) -> None:
        """Every grant of this worker has to be sent again; a revoke under way is part of the snapshot now."""
        for partition in self.partitions:
            if partition.owner == worker:
                partition.granted_seq = 0

    def committed(self, worker: str, seq: int, at_ms: int, lagging: dict[int, int]) -> None:
        """A heartbeat made after the deltas up to ``seq`` were applied."""
        for index, partition in enumerate(self.partitions):
            if partition.owner == worker and 0 < partition.granted_seq <= seq:
                mark = lagging[index] - 1 if index in lagging else at_ms
                if partition.mark_ms is None or mark > partition.mark_ms:
                    partition.mark_ms = mark

    def marks(self) -> list[int | None]:
        return [partition.mark_ms for partition in self.partitions]
