"""The cluster's log as it is written: every line with the instant at which it could be read, on the machine's clock.

The lines' own instants are the roles', whose clocks tests step; so what was seen when is taken down here.
"""

import json
import re
import time
from typing import NamedTuple

from tests.faults.background import Watcher

READ_S = 0.02
_ENDED = re.compile(r"(\S+) (was ended by signal \d+|ended with status \d+)")


class LogLine(NamedTuple):
    at: float
    level: str
    role: str
    text: str


class ProcessEnd(NamedTuple):
    at: float
    name: str
    how: str


class LogWatch(Watcher):
    """A context manager: a thread reads the file inside it, whether or not it exists yet."""

    def __init__(self, path):
        super().__init__()
        self._path = path
        self._lines = []

    def watch(self):
        while not self._path.exists():
            if self.enough.wait(READ_S):
                return
        rest = b""
        with self._path.open("rb") as file:
            last = False
            while not last:
                last = self.enough.wait(READ_S)
                *whole, rest = (rest + file.read()).split(b"\n")
                now = time.time()
                self._lines += [_log_line(now, line) for line in whole]

    # ---- questions ------------------------------------------------------------------------------------------------

    def since(self, since, until=float("inf")):
        return [line for line in list(self._lines) if since <= line.at <= until]

    def first(self, pattern, since):
        """When a line that matches was first seen since an instant, or None."""
        return next((line.at for line in self.since(since) if re.search(pattern, line.text)), None)

    def ends(self, since, until=float("inf")):
        """Processes whose end the supervisor reported."""
        found = ((line.at, _ENDED.match(line.text)) for line in self.since(since, until) if line.role == "supervisor")
        return [ProcessEnd(at, match[1], match[2]) for at, match in found if match]


def _log_line(at, line):
    try:
        fields = json.loads(line)
        return LogLine(at, fields["level"], fields["role"], fields["msg"])
    except (ValueError, KeyError, TypeError):
        return LogLine(at, "output", "", line.decode(errors="replace"))
