"""How late polls start: totals for metrics, and the last ten seconds or so for people."""

from cluster.histogram import Histogram

WINDOW_BEATS = 5  # heartbeats per half of the window


class Lateness:
    def __init__(self) -> None:
        self._current = Histogram()
        self._previous = Histogram()
        self._older = Histogram()
        self._beats = 0

    @property
    def total(self) -> Histogram:
        return self._older + self._previous + self._current

    def add(self, lateness_ms: float) -> None:
        self._current.add(lateness_ms)

    def beat(self) -> Histogram:
        """Once per heartbeat: the recent past, between WINDOW_BEATS and twice as many heartbeats long."""
        recent = self._previous + self._current
        self._beats += 1
        if self._beats >= WINDOW_BEATS:
            self._older += self._previous
            self._previous, self._current, self._beats = self._current, Histogram(), 0
        return recent
