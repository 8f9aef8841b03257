"""New and changed projects that their owner knows, but for which no mark speaks yet.

A mark says that every tick up to an instant is in the database, as far as the worker knew of the projects when it made
the mark.  A project the worker hears of at 12:00:05 may have had a tick at 12:00:04; the mark of 12:00:04 that arrives
at 12:00:06 does not speak for it.  So from the acknowledgement of a project until a mark that was made after it, the
project is remembered here: should its owner die meanwhile, the next owner accounts for it from its beginning.
"""

from collections import defaultdict, deque
from collections.abc import Container

import msgspec


class Hearing(msgspec.Struct, frozen=True):
    """When a worker heard of a project: the message of this session and number."""

    incarnation: str
    session: int
    seq: int


class UncoveredProjects:
    def __init__(self) -> None:
        self._by_partition: defaultdict[int, dict[int, Hearing]] = defaultdict(dict)
        self._by_worker: defaultdict[str, deque[tuple[Hearing, int, int]]] = defaultdict(deque)  # oldest first

    def heard(self, hearing: Hearing, partition: int, project_id: int) -> None:
        self._by_partition[partition][project_id] = hearing
        self._by_worker[hearing.incarnation].append((hearing, partition, project_id))

    def covered(self, incarnation: str, session: int, seq: int, spoken_for: Container[int]) -> None:
        """A mark of this worker for these partitions, made when it had applied this much, is in the database."""
        line = self._by_worker.get(incarnation)
        if line is None:
            return
        waiting = []
        while line and (line[0][0].session, line[0][0].seq) <= (session, seq):
            hearing, partition, project_id = line.popleft()
            if self._by_partition.get(partition, {}).get(project_id) != hearing:
                continue  # it was heard of again, or is gone
            if partition in spoken_for:
                self.drop(partition, project_id)
            else:
                waiting.append((hearing, partition, project_id))
        line.extendleft(reversed(waiting))
        if not line:
            self._by_worker.pop(incarnation, None)

    def drop(self, partition: int, project_id: int) -> None:
        projects = self._by_partition.get(partition, {})
        projects.pop(project_id, None)
        if not projects:
            self._by_partition.pop(partition, None)

    def take(self, partition: int) -> list[int]:
        """The partition has no owner any more: its projects here, which are forgotten."""
        return list(self._by_partition.pop(partition, {}))

    def gone(self, incarnation: str) -> None:
        self._by_worker.pop(incarnation, None)

    def items(self) -> list[tuple[int, list[int]]]:
        """Partitions and their project ids."""
        return [(partition, list(projects)) for partition, projects in self._by_partition.items()]
