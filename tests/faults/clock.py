"""A wall clock that tests step under the processes of a cluster; the machine's own clock stays as it is.

It works through ``stepped_time/sitecustomize.py``.  ``slewing_s`` follows what ``cluster.clock`` promises of a process
that ran through every step (a step forward of more than 2 s is taken at once, all else at 20 ms a second): so far such
a process and one started now may be apart.
"""

import mmap
import os
import struct
import time
from pathlib import Path

from cluster.clock import SLEW_MS_PER_CALL, STEP_MS

DIRECTORY = Path(__file__).parent / "stepped_time"


class SteppedClock:
    """``roles``: names whose clock can be stepped alone.  ``environ`` goes into the environment of the processes."""

    def __init__(self, directory, roles=()):
        directory.mkdir(mode=0o755)
        paths = [str(DIRECTORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ = {"PYTHONPATH": os.pathsep.join(paths), "RINGPOLL_TEST_CLOCK": str(directory)}
        self._views = {name: _open_view(directory / name) for name in ("all", *roles)}
        self._followed_s = 0.0
        self._followed_at = time.monotonic()

    def offset_s(self, role="all"):
        return struct.unpack_from("<q", self._views[role])[0] / 1e9

    def step(self, seconds, role="all"):
        """Forward, or back when negative."""
        self.slewing_s()
        offset_ns = struct.unpack_from("<q", self._views[role])[0] + round(seconds * 1e9)
        self._views[role][:8] = struct.pack("<q", offset_ns)
        if role == "all" and self.offset_s() - self._followed_s > STEP_MS / 1000:
            self._followed_s = self.offset_s()

    def slewing_s(self):
        """How far a process that was there all the time may be from one that is started now."""
        now = time.monotonic()
        moved_s = (now - self._followed_at) * SLEW_MS_PER_CALL / 1000
        self._followed_at = now
        apart_s = self.offset_s() - self._followed_s
        self._followed_s += max(-moved_s, min(moved_s, apart_s))
        return abs(self.offset_s() - self._followed_s)

    def slowest_offset_s(self):
        """The least that the clock of a process may be ahead of the machine's."""
        self.slewing_s()
        return min(self.offset_s(), self._followed_s)

    def close(self):
        for view in self._views.values():
            view.close()


def _open_view(path):
    path.write_bytes(bytes(8))
    path.chmod(0o644)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 8)
