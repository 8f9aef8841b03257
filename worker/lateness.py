"""How late polls start: totals for metrics, and the last ten seconds or so for people."""

from cluster.histogram import Histogram

WINDOW_BEATS = 5  # heartbeats per half of the window


class Lateness:
    def __init__(self) -> None:
        self.total = Histogram()
        self._current = Histogram()
        self._previous = Histogram()
        self._beats = 0

    def add(self, lateness_ms: float) -> None:
        self.total.add(lateness_ms)
        self._current.add(lateness_ms)

    def beat(self) -> Histogram:
        """Once per heartbeat: the recent past, between WINDOW_BEATS and twice as many heartbeats long."""
        recent = Histogram()
        recent.counts = [a + b for a, b in zip(self._current.counts, self._previous.counts, strict=True)]
        recent.max_ms = max(self._current.max_ms, self._previous.max_ms)
        self._beats += 1
        if self._beats >= WINDOW_BEATS:
            self._previous, self._current, self._beats = self._current, Histogram(), 0
        return recent
