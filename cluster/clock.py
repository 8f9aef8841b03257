"""The clock that drives cores: milliseconds since the epoch that never go back.

It is anchored to the monotonic clock and follows the wall clock: small differences are slewed in, a step forward of
more than ``STEP_MS`` (a suspended machine) is taken at once when ``jump`` is set, a step back is only ever slewed.
Deadlines measured with it therefore survive a stepped system clock; a role that measures the liveness of others keeps
``jump`` off.
"""

import time

NS_PER_MS = 1_000_000
STEP_MS = 2_000
SLEW_MS_PER_CALL = 20  # follow() is called about once a second: 2 %


class Clock:
    def __init__(self, *, jump: bool) -> None:
        self._jump = jump
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._newest_us = 0  # the clock stands there while it is slewed back

    def now_ms(self) -> int:
        return self.now_us() // 1_000

    def now_us(self) -> int:
        """Microseconds since the epoch on the same clock."""
        now_us = (time.monotonic_ns() + self._offset_ns) // 1_000
        if now_us < self._newest_us:
            return self._newest_us
        self._newest_us = now_us
        return now_us

    def follow(self) -> None:
        """Move towards the system's wall clock; call it about once a second."""
        difference_ns = time.time_ns() - time.monotonic_ns() - self._offset_ns
        if self._jump and difference_ns > STEP_MS * NS_PER_MS:
            self._offset_ns += difference_ns
        else:
            slew_ns = SLEW_MS_PER_CALL * NS_PER_MS
            self._offset_ns += max(-slew_ns, min(slew_ns, difference_ns))
