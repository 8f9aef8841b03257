"""Log lines that strangers can cause: at most one a second, with the number of those left out."""

import logging
import time


class ThrottledLog:
    def __init__(self, logger: logging.Logger, every_s: float = 1.0) -> None:
        self._logger = logger
        self._every_s = every_s
        self._next_at = 0.0
        self._left_out = 0

    def warning(self, text: str) -> None:
        now = time.monotonic()
        if now < self._next_at:
            self._left_out += 1
            return
        self._next_at = now + self._every_s
        more = f" (and {self._left_out} more like it)" if self._left_out else ""
        self._left_out = 0
        self._logger.warning("%s%s", text, more)
