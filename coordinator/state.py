"""What the parts of the coordinator's core share: the cluster as it is known now.

Data only.  ``core`` changes it in answer to events, ``placement`` decides who is to own what and how many slots each
has, ``telling`` says it to the workers.
"""

from coordinator.catalog import Catalog
from coordinator.events import Effect, Phase, SaveEpoch
from coordinator.member import Member
from coordinator.ownership import Ownership, Partition
from coordinator.slots import SliceBook


class ClusterState:
    def __init__(
        self, *, epoch: int, ownership: Ownership, slices: SliceBook, names: list[str], max_per_host: int
    ) -> None:
        self.phase: Phase = "loading"
        self.epoch = epoch
        self.catalog = Catalog()
        self.ownership = ownership
        self.slices = slices
        self.names = names  # who is to run
        self.members: dict[str, Member] = {}  # who runs, by name
        self.ring: tuple[str, ...] = ()  # who may own partitions, as of the last plan
        self.max_per_host = max_per_host

    def next_epoch(self) -> list[Effect]:
        self.epoch += 1
        return [SaveEpoch(self.epoch)]

    def per_host(self) -> int:
        """Each worker's share of the limit per host, rounded up; 0: none."""
        return -(-self.max_per_host // max(1, len(self.ring)))

    def told_owner(self, partition: Partition) -> Member | None:
        """The owner, if its grant was sent in the session that is open."""
        owner = self.members.get(partition.owner or "")
        return owner if owner is not None and owner.link is not None and partition.granted_seq else None

    def present(self) -> set[str]:
        return {member.name for member in self.members.values() if member.speaks}


def worker_number(name: str) -> tuple[int, str]:
    """Sort key: worker-2 before worker-10."""
    tail = name.rpartition("-")[2]
    return (int(tail) if tail.isdecimal() else 1 << 30, name)
