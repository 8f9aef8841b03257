"""The target's process, and its log as a book: every request by project, in order, with its instant.

All instants are seconds since the epoch on the machine's own clock, which no test steps.  Request n of a project is the
n-th entry of its list.  ``refresh`` reads what was written since; questions answer from what was read.
"""

import itertools
import subprocess
import sys
from array import array
from bisect import bisect_left, bisect_right
from pathlib import Path

from tests.faults.target import RECORD, STALL

ROOT = Path(__file__).parents[2]
END_S = 15.0


class RequestLog:
    """A context manager: the target runs inside it."""

    def __init__(self, path):
        self._path = path
        self._process = None
        self._file = None
        self._rest = b""
        self.port = 0
        self.arrivals = {}  # project number -> instants
        self.delays_s = {}  # project number -> how long an answer took
        self._stalls_at = array("d")
        self._stalls_s = array("d")

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.target", str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,  # no ^C from a terminal: its log is wanted to the end
        )
        try:
            line = self._process.stdout.readline()
            assert line, f"the target did not start: exit status {self._process.wait()}"
            self.port = int(line)
            self._file = self._path.open("rb")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_exc):
        try:
            self._end()
            self.refresh()
        finally:
            self._file.close()

    def _end(self):
        try:
            self._process.stdin.close()
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()

    def url(self, number, delay_ms=0):
        return f"http://127.0.0.1:{self.port}/{number}" + (f"/{delay_ms}" if delay_ms else "")

    def refresh(self):
        data = self._rest + self._file.read()
        whole = len(data) - len(data) % RECORD.size
        self._rest = data[whole:]
        for at_ns, number, value in RECORD.iter_unpack(data[:whole]):
            if number == STALL:
                self._stalls_at.append(at_ns / 1e9)
                self._stalls_s.append(value / 1e6)
            else:
                times = self.arrivals.get(number)
                if times is None:
                    times = self.arrivals[number] = array("d")
                    self.delays_s[number] = value / 1e6
                times.append(at_ns / 1e9)
        return self

    # ---- questions ------------------------------------------------------------------------------------------------

    def total(self):
        return sum(map(len, self.arrivals.values()))

    def between(self, number, since, until):
        """How many requests of a project arrived in [since, until]."""
        times = self.arrivals.get(number, ())
        return bisect_right(times, until) - bisect_left(times, since)

    def lagging(self, numbers, since, times=1):
        """The projects that were polled less often than that since an instant."""
        until = float("inf")
        return [number for number in numbers if self.between(number, since, until) < times]

    def widest_gap(self, number, since, until):
        """The longest time between two requests of which one is in [since, until]; what lies open at its end, too."""
        times = self.arrivals.get(number, ())
        first = max(0, bisect_left(times, since) - 1)
        last = bisect_right(times, until) + 1
        seen = list(times[first:last])
        if not seen or seen[-1] < until:
            seen.append(until)
        return max((after - before for before, after in itertools.pairwise(seen)), default=until - since)

    def stall_s(self, since, until=float("inf")):
        """The worst stall of a process that does little, in a window."""
        low, high = bisect_left(self._stalls_at, since), bisect_right(self._stalls_at, until)
        return max(self._stalls_s[low:high], default=0.0)
