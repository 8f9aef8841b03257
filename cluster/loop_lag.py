"""How late a loop runs its timers: what any of its callbacks would have waited, sampled every ``LAG_SAMPLE_S``.

A stall is seen by the sample that falls due in it, and by what is left of it then: of many short ones some are seen.
"""

import asyncio

from cluster.histogram import Histogram

LAG_SAMPLE_S = 0.05


class LoopLag:
    """Of the running loop.  ``total``: every sample since ``start``."""

    def __init__(self) -> None:
        self.total = Histogram()
        self._loop = asyncio.get_running_loop()
        self._worst_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._expect(self._loop.time())

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def beat(self) -> float:
        """The worst since the last time it was asked for, in milliseconds."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s * 1000

    def _expect(self, now_s: float) -> None:
        due_s = now_s + LAG_SAMPLE_S
        self._timer = self._loop.call_at(due_s, self._sample, due_s)

    def _sample(self, due_s: float) -> None:
        now_s = self._loop.time()
        lag_s = max(0.0, now_s - due_s)
        self.total.add(lag_s * 1000)
        self._worst_s = max(self._worst_s, lag_s)
        self._expect(now_s)
