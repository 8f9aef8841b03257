"""Threads for name lookups, which block for as long as a name server lets them wait and can't be called off.

They are daemons: a process whose lookups hang ends all the same.  A thread is started when all others are busy, and
kept.  How many lookups run at once is for the caller to decide.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

# As socket.getaddrinfo returns them, and as a connect takes them.
AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
Lookup = Callable[[str, int], Sequence[AddressInfo]]
LookupResult: TypeAlias = Sequence[AddressInfo] | BaseException
OnLookedUp = Callable[[LookupResult], None]


class LookupThreads:
    """To be made inside a running loop, which also hears the results."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[str, int, OnLookedUp] | None] = queue.SimpleQueue()
        self._started = 0
        self._busy = 0

    def run(self, host: str, port: int, done: OnLookedUp) -> None:
        """Look the name up; ``done`` is called from the loop, unless that is closed meanwhile."""
        self._busy += 1
        if self._busy > self._started:
            self._started += 1
            threading.Thread(target=self._work, name=f"lookup-{self._started}", daemon=True).start()
        self._jobs.put((host, port, done))

    def close(self) -> None:
        """Threads end when their lookup does; its result is dropped with the loop."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            host, port, done = job
            result: LookupResult
            try:
                result = self._lookup(host, port)
            except BaseException as error:  # noqa: BLE001 - it is for the one who asked to judge
                result = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._hear, done, result)

    def _hear(self, done: OnLookedUp, result: LookupResult) -> None:
        self._busy -= 1
        done(result)
