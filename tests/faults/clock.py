"""A wall clock that tests step under the processes of a cluster; the machine's own clock stays as it is.

It works through ``stepped_time/sitecustomize.py``.  ``apart_s`` follows what ``cluster.clock`` promises of a process
that ran through every step (a step forward of more than 2 s is taken at once, all else at 20 ms a second).
"""

import mmap
import os
import struct
import time
from pathlib import Path

from cluster.clock import SLEW_MS_PER_CALL, STEP_MS

EVERYBODY = "all"
DIRECTORY = Path(__file__).parent / "stepped_time"


class SteppedClock:
    """``roles``: names whose clock can be stepped alone.  ``environ`` goes into the environment of the processes."""

    def __init__(self, directory, roles=()):
        directory.mkdir(mode=0o755)
        paths = [str(DIRECTORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environ = {"PYTHONPATH": os.pathsep.join(paths), "RINGPOLL_TEST_CLOCK": str(directory)}
        self._views = {name: _open_view(directory / name) for name in (EVERYBODY, *roles)}
        self._followed_s = dict.fromkeys(self._views, 0.0)  # by a process that was there all the time
        self._followed_at = time.monotonic()

    def step(self, seconds, role=EVERYBODY):
        """Forward, or back when negative."""
        self._follow()
        view = self._views[role]
        view[:8] = struct.pack("<q", struct.unpack("<q", view[:8])[0] + round(seconds * 1e9))
        for name in self._views:
            if self._offset_s(name) - self._followed_s[name] > STEP_MS / 1000:
                self._followed_s[name] = self._offset_s(name)

    def apart_s(self):
        """How far the clocks of two processes may be apart, whenever they were started."""
        offsets = self._offsets_s()
        return max(offsets) - min(offsets)

    def slowest_offset_s(self):
        """The least that the clock of a process may be ahead of the machine's."""
        return min(self._offsets_s())

    def _offsets_s(self):
        self._follow()
        return [*map(self._offset_s, self._views), *self._followed_s.values()]

    def _offset_s(self, name):
        """Of a process that is started now."""
        names = {EVERYBODY, name}
        return sum(struct.unpack("<q", self._views[each][:8])[0] for each in names) / 1e9

    def _follow(self):
        now = time.monotonic()
        most_s = (now - self._followed_at) * SLEW_MS_PER_CALL / 1000
        self._followed_at = now
        for name, followed_s in self._followed_s.items():
            self._followed_s[name] = followed_s + max(-most_s, min(most_s, self._offset_s(name) - followed_s))

    def close(self):
        for view in self._views.values():
            view.close()


def _open_view(path):
    path.write_bytes(bytes(8))
    path.chmod(0o644)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 8)
