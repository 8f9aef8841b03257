"""The enabled projects by partition, as encoded blobs: what a million of them cost is this module's concern.

It tells what really changed, so that a reload is a diff.  It knows nothing of workers.
"""

from cluster.messages.control import RemovedProject
from cluster.project import decode_spec
from cluster.ticks import PARTITIONS, partition_of
from coordinator.events import ProjectRecord


class Catalog:
    def __init__(self) -> None:
        self._blobs: list[dict[int, bytes]] = [{} for _ in range(PARTITIONS)]
        self.weights: list[float] = [0.0] * PARTITIONS  # polls per second
        self.count = 0

    def put(self, record: ProjectRecord) -> tuple[int, bool] | None:
        """Take a record.  Returns (partition, is new), or None when nothing changed."""
        partition = partition_of(record.id)
        blobs = self._blobs[partition]
        old = blobs.get(record.id)
        if old == record.blob:
            return None
        if old is None:
            self.count += 1
        else:
            self.weights[partition] -= _weight(old)
        blobs[record.id] = record.blob
        self.weights[partition] += record.weight
        return partition, old is None

    def remove(self, removed: RemovedProject) -> int | None:
        """Forget a project.  Returns its partition, or None when it wasn't there."""
        partition = partition_of(removed.project_id)
        old = self._blobs[partition].pop(removed.project_id, None)
        if old is None:
            return None
        self.count -= 1
        self.weights[partition] = max(0.0, self.weights[partition] - _weight(old)) if self._blobs[partition] else 0.0
        return partition

    def blob(self, project_id: int) -> bytes | None:
        return self._blobs[partition_of(project_id)].get(project_id)

    def blobs(self, partition: int) -> list[bytes]:
        return list(self._blobs[partition].values())

    def size(self, partition: int) -> int:
        return len(self._blobs[partition])

    def ids(self) -> set[int]:
        return set().union(*self._blobs)

    def __contains__(self, project_id: int) -> bool:
        return project_id in self._blobs[partition_of(project_id)]


def _weight(blob: bytes) -> float:
    return 1000 / decode_spec(blob).interval_ms
