"""Resident memory of every role of a cluster over time, by its process."""

import contextlib
import statistics
import time
from typing import NamedTuple

import psutil

from tests.faults.background import Watcher

SAMPLE_S = 1.0
COURSE_STEPS = 8


class Growth(NamedTuple):
    name: str
    before_mib: float  # the median before
    least: float  # in proportion to it
    most: float
    course_mib: str  # in equal steps over the window, for people


def mib(size_bytes):
    return round(size_bytes / (1 << 20), 1)


class MemoryWatch(Watcher):
    """A context manager: a thread samples inside it."""

    def __init__(self, cluster):
        super().__init__()
        self._cluster = cluster
        self._samples = []  # (instant, name, pid, bytes)

    def watch(self):
        supervisor = psutil.Process(self._cluster.process.pid)
        while not self.enough.wait(SAMPLE_S):
            now = time.time()
            for name, process in {"supervisor": supervisor, **self._cluster.role_processes()}.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._samples.append((now, name, process.pid, process.memory_info().rss))

    def growth(self, began, since, until):
        """Of each role: what it had in [began, since], and the extremes of [since, until] in proportion to that."""
        found = []
        for name, pid in sorted({(name, pid) for _, name, pid, _ in list(self._samples)}):
            mine = [(at, size) for at, some, number, size in list(self._samples) if (some, number) == (name, pid)]
            before = [size for at, size in mine if began <= at < since]
            during = [size for at, size in mine if since <= at <= until]
            assert before, f"{name} was not there before"
            assert during, f"{name} was not there all the time"
            base = statistics.median(before)
            steps = during[:: max(1, len(during) // COURSE_STEPS)]
            course = " ".join(str(round(mib(size))) for size in steps)
            found.append(Growth(name, mib(base), round(min(during) / base, 3), round(max(during) / base, 3), course))
        return found
