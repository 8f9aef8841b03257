"""The connections that wait for their next request, of either engine.

``IdlePool`` is a plain data structure with limits: how many wait, how long, how old.  It opens nothing and reads no
clock.  ``KeptConnections`` adds the loop's part: the sweep, and closing all that wait.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from worker.probe.request import Origin

IDLE_S = 65.0
IDLE_MAX = 2_000
AGE_MAX_S = 300.0  # then the host's name is looked up again
SWEEP_S = 5.0
CLOSE_WAIT_S = 1.0

MakeRoom = Callable[[], Awaitable[bool]]


class Keepable(Protocol):
    """As much of a connection as is needed to keep it."""

    @property
    def origin(self) -> Origin: ...

    @property
    def opened_at(self) -> float: ...

    @property
    def closed(self) -> asyncio.Future[None] | None:
        """Done when the connection is closed; None when it is."""

    @property
    def keep(self) -> bool:
        """Whether another request may be sent on it."""

    def discard(self) -> None: ...


C = TypeVar("C", bound=Keepable)


class IdlePool(Generic[C]):
    """Connections between two requests, the most recently used first in line.  Time is an argument (monotonic s)."""

    def __init__(self, idle_max: int = IDLE_MAX, idle_s: float = IDLE_S, age_max_s: float = AGE_MAX_S) -> None:
        self._idle_max = idle_max
        self._idle_s = idle_s
        self._age_max_s = age_max_s
        self._by_origin: dict[Origin, list[C]] = {}
        self._since: dict[C, float] = {}  # in the order in which they became idle

    def __len__(self) -> int:
        return len(self._since)

    def take(self, origin: Origin, now: float) -> C | None:
        waiting = self._by_origin.get(origin)
        while waiting:
            connection = waiting.pop()
            del self._since[connection]
            if connection.keep and now - connection.opened_at < self._age_max_s:
                return connection
            connection.discard()
        return None

    def give(self, connection: C, now: float) -> None:
        """Keep a connection for a next request; one that can have none is closed.

        Over the limit, the one idle longest goes.
        """
        if not connection.keep or now - connection.opened_at >= self._age_max_s:
            connection.discard()
            return
        if len(self._since) >= self._idle_max:
            if not self._idle_max:
                connection.discard()
                return
            self._drop(next(iter(self._since)))
        waiting = self._by_origin.get(connection.origin)
        if waiting is None:
            waiting = self._by_origin[connection.origin] = []
        waiting.append(connection)
        self._since[connection] = now

    def expire(self, now: float) -> None:
        """Close those idle for too long, and forget those their peer has closed, and origins where none waits."""
        for connection, since in list(self._since.items()):
            if now - since >= self._idle_s or not connection.keep:
                self._drop(connection)
        for origin in [origin for origin, waiting in self._by_origin.items() if not waiting]:
            del self._by_origin[origin]

    def drain(self) -> list[C]:
        """Take out all that wait."""
        waiting = list(self._since)
        self._since.clear()
        self._by_origin.clear()
        return waiting

    def _drop(self, connection: C) -> None:
        del self._since[connection]
        self._by_origin[connection.origin].remove(connection)
        connection.discard()


class KeptConnections(Generic[C]):
    """To be made inside a running loop.  ``take`` and ``give`` are the pool's."""

    def __init__(self, pool: IdlePool[C] | None = None) -> None:
        self._pool: IdlePool[C] = IdlePool() if pool is None else pool
        self._loop = asyncio.get_running_loop()
        self._sweep = self._loop.call_later(SWEEP_S, self._sweep_idle)
        self._closing: asyncio.Task[bool] | None = None
        self.take = self._pool.take
        self.give = self._pool.give

    def __len__(self) -> int:
        return len(self._pool)

    async def make_room(self) -> bool:
        """Close all that wait; False: there were none.

        Polls that lack descriptors at the same time wait for the same connections to close.
        """
        if self._closing is None or self._closing.done():
            self._closing = self._loop.create_task(self._close_all())
        return await asyncio.shield(self._closing)

    async def close(self) -> None:
        self._sweep.cancel()
        if self._closing is not None:
            await self._closing
        await self._close_all()

    def _sweep_idle(self) -> None:
        self._pool.expire(time.monotonic())
        self._sweep = self._loop.call_later(SWEEP_S, self._sweep_idle)

    async def _close_all(self) -> bool:
        pooled = self._pool.drain()
        closing = []
        for connection in pooled:
            closed = connection.closed
            connection.discard()
            if closed is not None:
                closing.append(closed)
        if closing:
            done, _ = await asyncio.wait(closing, timeout=CLOSE_WAIT_S)
            for closed in done:
                closed.exception()  # how it came to its end no longer matters, and is not to be logged as overlooked
        return bool(pooled)
