"""Who is to own each partition, and how many slots each worker has; and what is to be done about the difference.

Pure; part of the coordinator's core.  ``plan`` asks the ring whenever membership or weights have changed, offers what
is unowned, withdraws what is owned by another than wanted.  Slices follow demand: they are split again when membership
or the total changed, or when a worker queues at its limit while another leaves much of its slice unused.
"""

from collections import defaultdict

from cluster.messages.control import Retire
from coordinator.events import Effect, Send, WriteLog
from coordinator.member import Member
from coordinator.ownership import Partition
from coordinator.ring import assign, overloaded
from coordinator.slots import split_slots
from coordinator.state import ClusterState, worker_number
from coordinator.telling import Teller

JOIN_SETTLE_MS = 300  # several newcomers make one plan
REVOKE_AGAIN_MS = 2_000
SLICES_MS = 1_000
WEIGHT_SHARE = 0.25  # of the total: how much of a slice follows the weight of what a worker owns, before any demand


class Placement:
    def __init__(self, state: ClusterState, teller: Teller, now_ms: int) -> None:
        self._state = state
        self._teller = teller
        self.dirty = False  # membership or the total changed: slices are to be split again
        self.plan_at_ms: int | None = None
        self._slices_at_ms = now_ms

    def overloaded(self) -> bool:
        return overloaded(self._state.catalog.weights, self._state.ownership.wanted(), self._state.ring)

    def open_session(self, member: Member, now_ms: int) -> list[Effect]:
        """Tell a worker everything anew, its slice first."""
        effects = self._teller.open_session(member, now_ms)
        effects += self.send_slices(now_ms)
        return effects + self._teller.pump(member, now_ms)

    def plan_soon(self, now_ms: int) -> None:
        self.plan_at_ms = now_ms if set(self._state.names) <= self._state.present() else now_ms + JOIN_SETTLE_MS

    def _eligible(self) -> list[str]:
        """Who may own partitions: running, and with a slot each when there are fewer slots than workers."""
        running = [member.name for member in self._state.members.values() if member.state == "running" and member.link]
        return sorted(running, key=worker_number)[: self._state.slices.total]

    def plan(self, now_ms: int) -> list[Effect]:
        """Decide who is to own what, and set the differences going."""
        self.plan_at_ms = None
        members = self._eligible()
        if self._state.phase != "running" or not members:
            return []
        if tuple(members) != self._state.ring:
            self._state.ring = tuple(members)
            self.dirty = True
        wanted = assign(self._state.catalog.weights, members, self._state.ownership.wanted())
        effects: list[Effect] = []
        moved = 0
        for index, (partition, target) in enumerate(zip(self._state.ownership.partitions, wanted, strict=True)):
            if partition.wanted != target:
                moved += 1
                previous = self._state.members.get(partition.wanted or "")
                if previous is not None and partition.owner is None:
                    previous.grants.pop(index, None)
                partition.wanted = target
            if partition.owner is None:
                self.offer(index)
            elif partition.owner != target:
                self._withdraw(index, partition, now_ms)
            elif partition.revoked_at_ms is not None:
                self._keep(index, partition)
        if moved:
            effects += self._state.next_epoch()
        effects += self.share_slots(now_ms)
        return effects + self._teller.pump_all(now_ms)

    def offer(self, index: int) -> None:
        """An unowned partition goes to who is to own it, when that worker can be told."""
        partition = self._state.ownership.partitions[index]
        target = self._state.members.get(partition.wanted or "")
        if target is not None and target.link is not None and partition.owner is None:
            target.grants[index] = None

    def _keep(self, index: int, partition: Partition) -> None:
        """The owner is to keep it after all.  A revoke that was sent takes its course; then it is granted back."""
        owner = self._state.members.get(partition.owner or "")
        if owner is None or owner.link is None or partition.revoke_sent:
            return
        if not partition.granted_seq:
            if not owner.snapshot:
                return  # left out of the snapshot
            owner.grants[index] = None
        owner.revokes.discard(index)
        partition.revoked_at_ms = None
        self._teller.revoking.discard(index)

    def _withdraw(self, index: int, partition: Partition, now_ms: int) -> None:
        owner = self._state.members.get(partition.owner or "")
        if owner is None or owner.link is None:
            return
        if partition.revoked_at_ms is None:
            partition.revoked_at_ms = now_ms
            if partition.granted_seq or index in owner.grants:  # else it is given up at the snapshot's end
                owner.revokes.add(index)
        self._teller.revoking.add(index)

    def revoke_again(self, now_ms: int) -> list[Effect]:
        touched: set[str] = set()
        for index in list(self._teller.revoking):
            partition = self._state.ownership.partitions[index]
            if partition.revoked_at_ms is None or partition.owner is None:
                self._teller.revoking.discard(index)
                continue
            owner = self._state.members.get(partition.owner)
            waited_ms = now_ms - partition.revoked_at_ms
            if owner is not None and owner.link is not None and not owner.snapshot and waited_ms >= REVOKE_AGAIN_MS:
                partition.revoked_at_ms = now_ms
                owner.revokes.add(index)
                touched.add(owner.name)
        return [effect for name in sorted(touched) for effect in self._teller.pump(self._state.members[name], now_ms)]

    def retire_if_empty(self, member: Member) -> list[Effect]:
        """A draining worker that owns nothing any more may end, once its cuts have reached the new owners."""
        if (
            member.state == "draining"
            and member.link is not None
            and self._state.phase == "running"
            and not member.snapshot
            and not self._state.ownership.owned_by(member.name)
            and self._state.ownership.all_taken_over()
        ):
            first = not member.retired
            member.retired = True
            log: list[Effect] = [WriteLog("info", f"{member.name} has handed everything over and may end")]
            return [*(log if first else []), Send(member.link.peer, Retire())]
        return []

    def share_slots(self, now_ms: int, *, when_due: bool = False) -> list[Effect]:
        if when_due and now_ms < self._slices_at_ms:
            return []
        self._slices_at_ms = now_ms + SLICES_MS
        if not self._state.ring:
            return []
        if self.dirty or self._starved():
            self.dirty = False
            self._state.slices.want(self._targets())
        return self.send_slices(now_ms)

    def _starved(self) -> bool:
        """Does a member queue at its limit while another leaves a good part of its slice unused?"""
        members = [self._state.members[name] for name in self._state.ring if name in self._state.members]
        pressed = any(
            member.stats.queue_depth > 0 and member.stats.active_http >= 0.9 * self._state.slices.slice_of(member.name)
            for member in members
        )
        return pressed and any(member.demand < 0.8 * self._state.slices.wanted_of(member.name) for member in members)

    def _targets(self) -> dict[str, int]:
        weights: defaultdict[str, float] = defaultdict(float)
        for index, partition in enumerate(self._state.ownership.partitions):
            if partition.wanted is not None:
                weights[partition.wanted] += self._state.catalog.weights[index]
        ring = [name for name in self._state.ring if name in self._state.members]
        whole = sum(weights[name] for name in ring)
        leaving = {
            member.name: self._state.slices.slice_of(member.name)
            for member in self._state.members.values()
            if member.state == "draining" and member.link is not None and not member.retired
        }
        total = self._state.slices.total - sum(leaving.values())
        if total < len(ring):
            leaving = {}
            total = self._state.slices.total
        ring = ring[:total]
        demands = {
            name: self._state.members[name].demand
            + WEIGHT_SHARE * self._state.slices.total * (weights[name] / whole if whole > 0 else 1 / len(ring))
            for name in ring
        }
        return split_slots(total, demands) | leaving

    def send_slices(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for name, slice_ in self._state.slices.next_changes().items():
            member = self._state.members.get(name)
            if member is not None and member.link is not None:
                member.limits = slice_
                effects += self._teller.pump(member, now_ms)
        return effects
