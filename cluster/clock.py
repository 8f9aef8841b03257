"""The clock that drives cores: milliseconds since the epoch that never go back.

It is anchored to the monotonic clock and follows the wall clock: small differences are slewed in, a step forward of
more than ``STEP_MS`` (a suspended machine) is taken at once when ``jump`` is set, a step back is only ever slewed.
Deadlines measured with it therefore survive a stepped system clock; a role that measures the liveness of others keeps
``jump`` off.
"""

import time

STEP_MS = 2_000
SLEW_MS_PER_CALL = 20  # follow() is called about once a second: 2 %


class Clock:
    def __init__(self, *, jump: bool) -> None:
        self._jump = jump
        self._offset_ms = (time.time_ns() - time.monotonic_ns()) / 1e6
        self._newest_us = 0  # the clock stands there while it is slewed back

    def now_ms(self) -> int:
        return self.now_us() // 1_000

    def now_us(self) -> int:
        """Microseconds since the epoch on the same clock."""
        now_us = int(time.monotonic_ns() / 1e3 + self._offset_ms * 1e3)
        if now_us < self._newest_us:
            return self._newest_us
        self._newest_us = now_us
        return now_us

    def follow(self) -> None:
        """Move towards the system's wall clock; call it about once a second."""
        difference_ms = (time.time_ns() - time.monotonic_ns()) / 1e6 - self._offset_ms
        if self._jump and difference_ms > STEP_MS:
            self._offset_ms += difference_ms
        else:
            self._offset_ms += max(-SLEW_MS_PER_CALL, min(SLEW_MS_PER_CALL, difference_ms))
