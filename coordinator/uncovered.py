"""What no mark speaks for yet: new spans of projects, and claims.

A mark says that every tick up to an instant is in the database, as far as the worker knew what it had to account for
when it made the mark.  A project the worker hears of at 12:00:05 may have had a tick at 12:00:04; the mark of 12:00:04
that arrives at 12:00:06 does not speak for it.  Nor does it for the ticks of a dead worker that the owner is told to
claim at 12:00:05.  What is *uncovered* bounds the horizon and the marks that outlive everybody, and should the owner
die meanwhile, the next one accounts for it from its beginning.

    word       what it is                              added by                        removed by
    uncovered  a new span of a project, or a claim,    ``begin``: the database tells   ``covered``, ``drop``; a
               that no mark speaks for                 of it, or who owed it died      project also by ``given_up``
                                                       (``Teller._claim``)
    heard      uncovered, and its owner knows it       ``heard``: the owner            ``covered``; ``given_up`` and
                                                       acknowledged the message        ``lost``: it is owner no more
    unseen     uncovered, not heard, and a project     ``begin``, ``lost``             ``heard``, ``drop``
    unheard    (of EndedSpan) a claim: to be           ``Teller``, when it becomes     ``Teller.forget_accounted``: the
               accounted for wherever one resumes      uncovered                       horizon is beyond its end

A project is dropped when it ended; its span, if it was uncovered, becomes a claim.  Who gives a partition up answers
for the projects it has heard of with its ``Debt``; claims are told to the next owner, too.
"""

from collections import defaultdict, deque
from collections.abc import Container

import msgspec

from cluster.messages.control import EndedSpan

Owed = int | EndedSpan  # a project by its id, or a claim


class Hearing(msgspec.Struct, frozen=True):
    """When a worker heard of something: the message of this session and number."""

    incarnation: str
    session: int
    seq: int


class UncoveredItem(msgspec.Struct):
    since_ms: int
    wants_poll: bool = False  # an unseen project's immediate poll
    hearing: Hearing | None = None


class Uncovered:
    def __init__(self) -> None:
        self._by_partition: defaultdict[int, dict[Owed, UncoveredItem]] = defaultdict(dict)
        self._by_worker: defaultdict[str, deque[tuple[Hearing, int, Owed]]] = defaultdict(deque)  # oldest first
        self._oldest: dict[int, int] = {}  # by partition; asked for several times a second, so kept
        self._stale: set[int] = set()  # partitions whose oldest may have ended

    def begin(self, partition: int, owed: Owed, since_ms: int, *, wants_poll: bool = False) -> None:
        """No mark speaks for it from now on, whoever has heard of an earlier span."""
        items = self._by_partition[partition]
        before = items.get(owed)
        items[owed] = UncoveredItem(since_ms, wants_poll or (before is not None and before.wants_poll))
        if before is not None and before.since_ms < since_ms:
            self._stale.add(partition)
        self._oldest[partition] = min(since_ms, self._oldest.get(partition, since_ms))

    def since_of(self, partition: int, owed: Owed) -> int | None:
        """From when it is uncovered; None: it is not."""
        item = self._by_partition.get(partition, {}).get(owed)
        return None if item is None else item.since_ms

    def unseen(self, partition: int) -> dict[int, bool]:
        """Projects no owner has acknowledged, and for each whether its immediate poll is wanted."""
        items = self._by_partition.get(partition, {})
        return {owed: item.wants_poll for owed, item in items.items() if item.hearing is None and isinstance(owed, int)}

    def heard(self, hearing: Hearing, partition: int, owed: Owed, since_ms: int) -> None:
        """Its owner acknowledged what it was told of the span that began then; the first acknowledgement counts."""
        item = self._by_partition.get(partition, {}).get(owed)
        if item is not None and item.hearing is None and item.since_ms == since_ms:
            item.hearing, item.wants_poll = hearing, False
            self._by_worker[hearing.incarnation].append((hearing, partition, owed))

    def covered(self, incarnation: str, session: int, seq: int, spoken_for: Container[int]) -> None:
        """A mark of this worker for these partitions, made when it had applied this much, is in the database."""
        line = self._by_worker.get(incarnation)
        if line is None:
            return
        waiting = []
        while line and (line[0][0].session, line[0][0].seq) <= (session, seq):
            hearing, partition, owed = line.popleft()
            item = self._by_partition.get(partition, {}).get(owed)
            if item is None or item.hearing != hearing:
                continue  # it began again, or is gone
            if partition in spoken_for:
                self.drop(partition, owed)
            else:
                waiting.append((hearing, partition, owed))
        line.extendleft(reversed(waiting))
        if not line:
            self._by_worker.pop(incarnation, None)

    def drop(self, partition: int, owed: Owed) -> None:
        """It is over, or was covered."""
        if self._by_partition.get(partition, {}).pop(owed, None) is not None:
            self._stale.add(partition)

    def given_up(self, partition: int) -> int | None:
        """The owner gave the partition up, and answers for the projects it has heard of: since when they began."""
        oldest_ms: int | None = None
        for owed, item in list(self._by_partition.get(partition, {}).items()):
            if item.hearing is None:
                continue
            item.hearing = None
            if isinstance(owed, int):
                oldest_ms = item.since_ms if oldest_ms is None else min(oldest_ms, item.since_ms)
                self.drop(partition, owed)
        return oldest_ms

    def lost(self, partition: int) -> None:
        """The owner is dead: what it has heard of, nobody has."""
        for item in self._by_partition.get(partition, {}).values():
            item.hearing = None

    def gone(self, incarnation: str) -> None:
        self._by_worker.pop(incarnation, None)

    def since(self) -> dict[int, int]:
        """Per partition, the beginning of the oldest."""
        for partition in self._stale:
            items = self._by_partition.get(partition)
            if items:
                self._oldest[partition] = min(item.since_ms for item in items.values())
            else:
                self._by_partition.pop(partition, None)
                self._oldest.pop(partition, None)
        self._stale.clear()
        return self._oldest
