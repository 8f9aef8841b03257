"""Who owns each partition, who is to own it, and from where a new owner goes on.

Pure bookkeeping over 4096 partitions; ``core`` compares *wanted* with *owner* and acts on the difference:

    owner is None, wanted = w            ->  grant to w, with the partition's resume point
    owner = a,     wanted = w, a != w    ->  revoke from a; its cut becomes the resume point; then as above
    owner = a died                       ->  owner None, resume after the mark (reason handover)

A resume point is kept until the grant that carries it is acknowledged: a grant may have to be sent again.

A *mark* is what survives an owner: every tick <= it is in the database.  A *cut* is exact: every tick <= it was taken
care of by an owner that still lives.
"""

from collections import defaultdict

import msgspec

from cluster.messages.control import BusyProject, Cut, ResumeReason, WaitingPoll
from cluster.ticks import PARTITIONS, partition_of


class Resume(msgspec.Struct, frozen=True):
    after_ms: int | None
    reason: ResumeReason
    waiting: list[WaitingPoll] = []


class Partition(msgspec.Struct, gc=False):
    owner: str | None = None  # it was granted, or claimed in a hello, and not yet given up
    wanted: str | None = None
    epoch: int = 0  # of the grant in force
    mark_ms: int | None = None
    resume: Resume | None = None  # set until a grant is acknowledged
    base: Resume | None = None  # where the owner took over from one that lives, until the mark is beyond it
    busy: list[BusyProject] = []  # polls in flight at former owners that live, as far as known
    granted_seq: int = 0  # of the owner's session; 0: its grant has not been sent in this session
    revoked_at_ms: int | None = None  # a revoke is under way
    revoke_sent: bool = False  # and can't be taken back


class Ownership:
    def __init__(self, marks: list[int | None], *, cold_reason: ResumeReason = "down") -> None:
        self.partitions = [
            Partition(mark_ms=mark, resume=Resume(mark, cold_reason)) for mark in (marks or [None] * PARTITIONS)
        ]
        assert len(self.partitions) == PARTITIONS
        self._owned: defaultdict[str, set[int]] = defaultdict(set)  # by owner

    def owned_by(self, worker: str) -> list[int]:
        return sorted(self._owned[worker]) if worker in self._owned else []

    def _give(self, index: int, worker: str | None) -> None:
        partition = self.partitions[index]
        if partition.owner is not None:
            self._owned[partition.owner].discard(index)
        if worker is not None:
            self._owned[worker].add(index)
        partition.owner = worker

    def owners(self) -> list[str | None]:
        return [partition.owner for partition in self.partitions]

    def wanted(self) -> list[str | None]:
        return [partition.wanted for partition in self.partitions]

    def all_taken_over(self) -> bool:
        """Has every owner acknowledged its grant?"""
        return all(partition.resume is None for partition in self.partitions)

    def assigned(self) -> int:
        return sum(len(indices) for indices in self._owned.values())

    def adopt(self, index: int, worker: str, epoch: int) -> bool:
        """A worker says that it holds a partition.  The newest grant wins; False when it is not this one.

        It may have said so before a newer grant reached it: that one stays in force, for its cut will name it.
        """
        partition = self.partitions[index]
        if partition.owner not in (None, worker) and partition.epoch >= epoch:
            return False
        if partition.owner == worker:
            epoch = max(epoch, partition.epoch)
        else:
            partition.base = None
        self._give(index, worker)
        partition.epoch = epoch
        partition.resume = None
        partition.revoked_at_ms = None
        partition.revoke_sent = False
        partition.granted_seq = 0
        return True

    def granted(self, index: int, worker: str, epoch: int, seq: int) -> None:
        partition = self.partitions[index]
        assert partition.owner in (None, worker), f"partition {index} is owned by {partition.owner}"
        self._give(index, worker)
        partition.epoch = epoch
        partition.granted_seq = seq
        partition.revoked_at_ms = None
        partition.revoke_sent = False

    def grant_acked(self, index: int, worker: str, seq: int) -> None:
        """The owner has it: from now on its heartbeats speak for the partition."""
        partition = self.partitions[index]
        if partition.owner == worker and partition.granted_seq == seq and partition.resume is not None:
            partition.base = partition.resume
            partition.resume = None

    def released(self, cut: Cut, worker: str, *, same_session: bool) -> bool:
        """A worker gave a partition up.  False when that is old news.

        A cut of an older epoch is news only when the worker was not granted the partition in this session: the grant
        of the epoch in force never reached it.  It is exact when the worker held the partition until then.
        """
        partition = self.partitions[cut.partition]
        not_granted = same_session and not partition.granted_seq
        exact = cut.cut_ms is not None and (cut.epoch == partition.epoch or (not_granted and cut.fresh))
        if partition.owner != worker or not (exact or not_granted):
            return False
        self._give(cut.partition, None)
        partition.granted_seq = 0
        partition.revoked_at_ms = None
        partition.revoke_sent = False
        if cut.cut_ms is None or not exact:
            partition.resume = partition.resume or _after_loss(partition)
        else:
            partition.resume = Resume(cut.cut_ms, "handover", cut.waiting)
        self.in_flight(cut)
        return True

    def in_flight(self, cut: Cut) -> None:
        """Polls that were in flight at the cut are waited for, whatever the cut is worth as a resume point."""
        partition = self.partitions[cut.partition]
        partition.busy = [entry for entry in partition.busy if entry not in cut.busy] + cut.busy

    def settled(self, entry: BusyProject) -> int | None:
        """A poll that was in flight at a former owner has ended.  Returns its partition; None when that is old news."""
        index = partition_of(entry.project_id)
        partition = self.partitions[index]
        if entry not in partition.busy:
            return None
        partition.busy = [other for other in partition.busy if other != entry]
        return index

    def still_busy(self, index: int, now_ms: int) -> list[BusyProject]:
        partition = self.partitions[index]
        if partition.busy:
            partition.busy = [entry for entry in partition.busy if entry.until_ms > now_ms]
        return partition.busy

    def remembered(self, cut: Cut) -> None:
        """A cut that a former coordinator may have known: a resume point where nobody holds it, else the base."""
        partition = self.partitions[cut.partition]
        known = partition.resume if partition.owner is None else partition.base
        known_ms = max((known.after_ms if known is not None else None) or 0, partition.mark_ms or 0)
        if cut.cut_ms is None or cut.cut_ms <= known_ms:
            return
        resume = Resume(cut.cut_ms, "handover", _not_done(cut.waiting, partition.mark_ms or -1))
        if partition.owner is None:
            partition.resume = resume
        else:
            partition.base = resume

    def lost(self, worker: str) -> list[int]:
        """The worker is dead.  Returns the partitions it had."""
        indices = self.owned_by(worker)
        for index in indices:
            partition = self.partitions[index]
            self._give(index, None)
            partition.granted_seq = 0
            partition.revoked_at_ms = None
            partition.revoke_sent = False
            partition.resume = _after_loss(partition)
        return indices

    def session_opened(self, worker: str) -> None:
        """Every grant of this worker has to be sent again; a revoke under way is part of the snapshot now."""
        for index in self._owned.get(worker, ()):
            self.partitions[index].granted_seq = 0

    def committed(self, worker: str, seq: int, at_ms: int, lagging: dict[int, int]) -> set[int]:
        """A heartbeat made after the deltas up to ``seq`` were applied.  Returns the partitions it speaks for."""
        spoken_for: set[int] = set()
        for index in self._owned.get(worker, ()):
            partition = self.partitions[index]
            speaks = partition.revoked_at_ms is None  # else it may have given it up, and not speak of it any more
            if speaks and 0 < partition.granted_seq <= seq:
                late_ms = lagging.get(index)
                mark = at_ms if late_ms is None else late_ms - 1
                # It goes back for a tick of a project that its owner heard of after the mark was made.
                if partition.mark_ms is None or mark > partition.mark_ms or late_ms is not None:
                    partition.mark_ms = mark
                base = partition.base
                if base is not None and partition.mark_ms >= (base.after_ms or 0):
                    partition.base = None
                spoken_for.add(index)
        return spoken_for

    def marks(self) -> list[int | None]:
        return [partition.mark_ms for partition in self.partitions]


def _after_loss(partition: Partition) -> Resume:
    """Where to go on after an owner that left no cut: the newest point that is certain, and what it may have begun."""
    start = partition.resume or partition.base
    partition.base = None
    if start is None:
        return Resume(partition.mark_ms, "handover")
    done_ms = -1 if partition.mark_ms is None else partition.mark_ms
    waiting = _not_done(start.waiting, done_ms)
    # Nobody had polled it before that owner (None); the owner may have, so the newest tick is polled now.
    return Resume(max(start.after_ms or 0, done_ms), start.reason, waiting)


def _not_done(waiting: list[WaitingPoll], done_ms: int) -> list[WaitingPoll]:
    return [poll for poll in waiting if poll.scheduled_at_ms > done_ms]
