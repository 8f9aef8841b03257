"""How long the loop stood still lately, so that a time-out is not blamed on a target that our own loop kept waiting.

A timer falls due every ``SAMPLE_S``; how late it comes is how long the loop stood still, give or take that distance.
Stalls below ``NOTED_S`` are not kept, and of longer ones the last ``KEPT_MAX``.  One that goes on is known before its
timer has run: what runs first after a stall may ask.
"""

import asyncio
import time
from collections import deque

SAMPLE_S = 0.05
NOTED_S = 0.25
KEPT_MAX = 64


class Stalls:
    """Of the running loop, from now on until ``close``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._kept: deque[tuple[float, float]] = deque(maxlen=KEPT_MAX)  # ended_at, length_s
        self._expect(time.monotonic())

    def longest_s(self, since: float, now: float) -> float:
        """The longest of those that lie, wholly or in part, between two instants (monotonic seconds); what lies
        before ``since`` is left out.  ``now`` is now.
        """
        longest_s = min(max(0.0, now - self._due_at), now - since)
        for ended_at, length_s in reversed(self._kept):
            if ended_at <= since:
                break
            longest_s = max(longest_s, min(length_s, ended_at - since))
        return longest_s

    def close(self) -> None:
        self._timer.cancel()

    def _expect(self, now: float) -> None:
        self._due_at = now + SAMPLE_S
        self._timer = self._loop.call_later(SAMPLE_S, self._sample)

    def _sample(self) -> None:
        now = time.monotonic()
        if now - self._due_at >= NOTED_S:
            self._kept.append((now, now - self._due_at))
        self._expect(now)
