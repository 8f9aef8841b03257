"""Server-sent events: one source for all clients, who get what is newest.

- While there is a client, each second: one status document, encoded once, and one look into the table of changes.
- Each client has room for one status, CHANGES_KEPT changes and the ids of IDS_MAX projects: who reads slowly misses
  older ones, and nobody waits for anybody.  Who takes nothing for STALLED_S is let go.
- A change of state is sent when it is seen while ``read_changes`` still gives it.  What a client missed is at /changes.
- At most CLIENTS_MAX clients.  ``close`` ends all streams at once.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson
from aiohttp import web

from coordinator.web.problems import ProblemError

CLIENTS_MAX = 100
EVERY_S = 1.0
CHANGES_KEPT = 100
IDS_MAX = 100
HEARTBEAT_S = 10.0
STALLED_S = 30.0
RECONNECT_MS = 2_000

logger = logging.getLogger("coordinator.web.feed")

ReadChanges = Callable[[], Awaitable[list[dict[str, Any]]]]  # the newest of the last minutes, oldest first


class Subscriber:
    """One client: what it has not been sent yet."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._status: bytes | None = None
        self._changes: deque[bytes] = deque(maxlen=CHANGES_KEPT)
        self._ids: set[int] = set()
        self._projects_changed = False
        self._ended = False

    def put_status(self, event: bytes) -> None:
        self._status = event
        self._wake.set()

    def put_change(self, event: bytes) -> None:
        self._changes.append(event)
        self._wake.set()

    def put_projects(self, ids: Iterable[int]) -> None:
        self._projects_changed = True
        if len(self._ids) <= IDS_MAX:
            self._ids.update(ids)
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def next(self) -> bytes | None:
        """What is to be sent now; None at the end."""
        while not self._ended:
            if found := self._take():
                return found
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                return b":\n\n"  # a comment
            self._wake.clear()
        return None

    def _take(self) -> bytes:
        parts = []
        if self._projects_changed:
            ids = sorted(self._ids) if len(self._ids) <= IDS_MAX else None
            parts.append(event_of("projects", {"ids": ids}))
            self._projects_changed, self._ids = False, set()
        parts += self._changes
        self._changes.clear()
        if self._status is not None:
            parts.append(self._status)
            self._status = None
        return b"".join(parts)


class EventFeed:
    """``status`` is None while there is none; ``read_changes`` raises ProblemError while the database is away."""

    def __init__(self, status: Callable[[], dict[str, Any] | None], read_changes: ReadChanges) -> None:
        self._status = status
        self._read_changes = read_changes
        self._subscribers: set[Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._seen: set[tuple[int, str]] | None = None  # changes that were there already; None: nobody has looked
        self._closed = False

    def subscribe(self) -> Subscriber:
        if self._closed:
            raise ProblemError("stopping", "the coordinator is being stopped")
        if len(self._subscribers) >= CLIENTS_MAX:
            raise ProblemError("busy", f"{CLIENTS_MAX} clients are listening to events; try again later")
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        if self._task is None:
            self._seen = None
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._stopped)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)
        if not self._subscribers and self._task is not None:
            self._task.cancel()
            self._task = None

    def projects_changed(self, ids: Iterable[int]) -> None:
        """These were added, changed or removed."""
        found = list(ids)
        if found:
            for subscriber in self._subscribers:
                subscriber.put_projects(found)

    def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for subscriber in self._subscribers:
            subscriber.end()

    async def _run(self) -> None:
        while True:
            status = self._status()
            if status is not None:
                event = event_of("status", without_lag_counts(status))
                for subscriber in self._subscribers:
                    subscriber.put_status(event)
            await self._look_for_changes()
            await asyncio.sleep(EVERY_S)

    async def _look_for_changes(self) -> None:
        try:
            changes = await self._read_changes()
        except ProblemError as error:
            logger.debug("no changes of state for the clients: %s", error)
            return
        keys = [(change["project_id"], change["changed_at"]) for change in changes]
        if self._seen is not None:
            for key, change in zip(keys, changes, strict=True):
                if key not in self._seen:
                    event = event_of("change", change)
                    for subscriber in self._subscribers:
                        subscriber.put_change(event)
        self._seen = set(keys)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a bug in the source of events", exc_info=error)
            for subscriber in list(self._subscribers):
                subscriber.end()
            self._task = None


def event_of(name: str, content: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS))


def without_lag_counts(status: dict[str, Any]) -> dict[str, Any]:
    """The status document for those who get it each second."""

    def bare(part: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in part.items() if name != "loop_lag_counts"}

    return status | {
        "coordinator": bare(status["coordinator"]),
        "workers": [bare(worker) for worker in status["workers"]],
    }


async def send_events(
    feed: EventFeed, request: web.Request, allowed: Callable[[], Awaitable[bool]]
) -> web.StreamResponse:
    """One client's stream, to its end, or until who listens is not ``allowed`` to any more."""
    headers = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # proxies pass each event on at once
    }
    if request.method == "HEAD":
        return web.Response(headers=headers)
    subscriber = feed.subscribe()
    response = web.StreamResponse(headers=headers)
    try:
        with contextlib.suppress(ConnectionError, TimeoutError):  # it left, or stalled
            await response.prepare(request)
            await response.write(b"retry: %d\n\n" % RECONNECT_MS)
            while (chunk := await subscriber.next()) is not None and await allowed():
                async with asyncio.timeout(STALLED_S):
                    await response.write(chunk)
    finally:
        feed.unsubscribe(subscriber)
    return response
