"""What people ask of the cluster, by the admin socket or by HTTP: projects, workers, limits.

- Before there is a core to ask (``open``) a request waits for ``STARTING_S``, then the answer is ``starting``.
- What takes polling away is answered when every worker concerned has acknowledged it, within ``CONFIRM_S``.
- A purge that takes longer than its request goes on behind it; at most ``PURGES_MAX`` of them.

What a request means to the table is ``ProjectRequests``' part, what it means to workers the core's.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from cluster.database import connect, describe
from cluster.errors import ClusterError
from cluster.project import ProjectFields
from coordinator.events import DrainRequested, Event, ScaleRequested, View
from coordinator.project_requests import ADMIN_SOCKET, Change, Guard, Requester
from coordinator.project_rows import DATABASE_AWAY, Applied

STARTING_S = 3.0
CONFIRM_S = 5.0
PURGE_ANSWER_S = 8.0  # a purge that takes longer goes on after the reply
PURGE_ROWS = 10_000  # per statement
PURGES_MAX = 16

logger = logging.getLogger("coordinator.requests")


class Projects(Protocol):
    """What requests want of ProjectRequests."""

    async def insert(self, fields: ProjectFields, requester: Requester = ADMIN_SOCKET) -> int: ...

    async def insert_all(self, projects: Sequence[ProjectFields], requester: Requester) -> list[int]: ...

    async def enable(self, project_id: int, requester: Requester = ADMIN_SOCKET) -> None: ...

    async def enable_all(
        self, ids: Sequence[int], requester: Requester, guard: Guard | None = None
    ) -> tuple[int, int]: ...

    async def update(
        self, project_id: int, change: Change, requester: Requester, *, token: int, guard: Guard | None = None
    ) -> bool: ...

    async def remove(
        self,
        ids: Sequence[int],
        *,
        delete: bool,
        token: int,
        requester: Requester = ADMIN_SOCKET,
        guard: Guard | None = None,
    ) -> None: ...

    async def reload(self) -> Applied: ...


class Changed(msgspec.Struct, frozen=True):
    """``ids``: what was changed; ``purged``: whether a purge is done already, None when none was asked for."""

    ids: list[int]
    purged: bool | None = None


class RequestDesk:
    """``submit`` gives the core an event.  Who asks in vain gets a ClusterError that says if something was changed."""

    def __init__(
        self,
        projects: Projects,
        submit: Callable[[Event], None],
        view: Callable[[], View],
        database_url: str,
        *,
        supervised: bool,
    ) -> None:
        self.projects = projects
        self._submit = submit
        self._view = view
        self._database_url = database_url
        self._supervised = supervised
        self._opened = asyncio.Event()
        self._purges: set[asyncio.Task[None]] = set()
        self._tokens = itertools.count(1)
        self._confirmations: dict[int, asyncio.Future[None]] = {}

    def open(self) -> None:
        """From now on events and views have a core behind them."""
        self._opened.set()

    async def opened(self) -> None:
        """Wait until they have."""
        try:
            async with asyncio.timeout(STARTING_S):
                await self._opened.wait()
        except TimeoutError:
            raise ClusterError(
                "the coordinator is starting and waits for what the database remembers; nothing was changed, try again",
                code="starting",
            ) from None

    async def close(self) -> None:
        """Purges in progress end where they are."""
        purges = list(self._purges)
        for purge in purges:
            purge.cancel()
        await asyncio.gather(*purges, return_exceptions=True)

    def confirm(self, token: int) -> None:
        """The core: every worker concerned has acknowledged."""
        confirmation = self._confirmations.get(token)
        if confirmation is not None and not confirmation.done():
            confirmation.set_result(None)

    async def confirmed(self, change: Callable[[int], Awaitable[bool]]) -> None:
        """Have a change made with a token; if it says that it ends polling, wait until the core confirms that."""
        token = next(self._tokens)
        confirmation: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confirmations[token] = confirmation
        try:
            if await change(token):
                async with asyncio.timeout(CONFIRM_S):
                    await confirmation
        except TimeoutError:
            raise ClusterError(
                f"the change is stored, but a worker has not confirmed it within {CONFIRM_S:g} s; it is told again "
                "until it does",
                code="timeout",
            ) from None
        finally:
            del self._confirmations[token]

    async def update(self, project_id: int, change: Change, requester: Requester, guard: Guard | None = None) -> None:
        """Change fields of a project."""
        await self.confirmed(
            lambda token: self.projects.update(project_id, change, requester, token=token, guard=guard)
        )

    async def remove(
        self,
        wanted: Sequence[int],
        requester: Requester = ADMIN_SOCKET,
        *,
        delete: bool = False,
        purge: bool = False,
        guard: Guard | None = None,
    ) -> Changed:
        """Disable or delete projects, all or none; ``purge``: with ``delete``, what is known of them as well."""
        self._expect_room_to_purge(purge)
        ids = sorted(set(wanted))

        async def change(token: int) -> bool:
            await self.projects.remove(ids, delete=delete, token=token, requester=requester, guard=guard)
            return True

        await self.confirmed(change)
        return Changed(ids, await self._purge(ids) if purge else None)

    def _expect_room_to_purge(self, purge: bool) -> None:
        if purge and len(self._purges) >= PURGES_MAX:
            raise ClusterError(f"{PURGES_MAX} purges are in progress; nothing was changed, try again", code="busy")

    async def _purge(self, ids: list[int]) -> bool:
        purge = asyncio.get_running_loop().create_task(purge_results(self._database_url, ids))
        self._purges.add(purge)
        purge.add_done_callback(self._purged)
        await asyncio.wait({purge}, timeout=PURGE_ANSWER_S - CONFIRM_S)
        return purge.done()

    def _purged(self, task: asyncio.Task[None]) -> None:
        self._purges.discard(task)
        if not task.cancelled():
            task.result()  # an exception is a bug of ours: to the loop's handler

    def scale(self, workers: int | None, max_concurrent_http: int | None) -> View:
        """The cluster as it is to be now."""
        if workers is not None and not self._supervised:
            raise ClusterError(
                "the roles run without a supervisor, so nobody here can start or end worker processes; start "
                "another one with `cluster worker --name NAME`, end one with SIGTERM",
                code="no_supervisor",
            )
        self._submit(ScaleRequested(workers, max_concurrent_http))
        return self._view()

    def drain(self, worker: str) -> None:
        view = self._view()
        if worker not in {each.name for each in view.workers}:
            raise ClusterError(f"there is no worker {worker!a}; `cluster status` lists them", code="unknown_worker")
        if view.workers_wanted <= 1:
            raise ClusterError(
                f"{worker} is the only worker, so there is nobody to take over; `cluster down` stops everything",
                code="last_worker",
            )
        self._submit(DrainRequested(worker))


async def purge_results(database_url: str, ids: Sequence[int]) -> None:
    """Delete what is known of projects that are no more: spans first, so that the accounts are right all the time."""
    try:
        connection = await connect(database_url)
        try:
            await connection.execute(
                "DELETE FROM project_spans WHERE project_id = ANY($1::bigint[]) AND until IS NOT NULL", ids
            )
            for project_id in ids:
                await _delete_in_parts(connection, "missed_polls", "first_tick", project_id)
                await _delete_in_parts(connection, "state_changes", "changed_at", project_id)
                await _delete_in_parts(connection, "poll_results", "scheduled_at", project_id)
                await _delete_rollups(connection, project_id)
        finally:
            connection.terminate()
    except ClusterError as error:
        logger.warning("results of deleted projects were not purged: %s", error)
    except DATABASE_AWAY as error:
        logger.warning("results of deleted projects were not all purged: %s", describe(error))


async def _delete_in_parts(connection: Any, table: str, key: str, project_id: int) -> None:
    statement = f"""
        DELETE FROM {table} WHERE project_id = $1 AND {key} IN
            (SELECT {key} FROM {table} WHERE project_id = $1 ORDER BY {key} LIMIT {PURGE_ROWS})"""  # noqa: S608 - ours
    deleted = PURGE_ROWS
    while deleted == PURGE_ROWS:
        deleted = int((await connection.execute(statement, project_id, timeout=60)).split()[-1])


_ROLLUPS = {
    "rollup_minutes": "1 minute",
    "rollup_hours": "1 hour",
    "rollup_quarters": "6 hours",
    "rollup_days": "1 day",
    "rollup_weeks": "7 days",
}


async def _delete_rollups(connection: Any, project_id: int) -> None:
    """Its polls are gone, so nothing follows; whoever is rolling them up at this moment is waited for.

    Keys begin with the time, so each instant is looked up.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off")
        await connection.execute("SET LOCAL enable_mergejoin = off")
        await connection.execute("SELECT FROM rollup_progress FOR UPDATE", timeout=60)
        for table, every in _ROLLUPS.items():
            await connection.execute(
                f"""
                DELETE FROM {table} r
                USING generate_series((SELECT min(at) FROM {table}), (SELECT max(at) FROM {table}),
                                      interval '{every}') g (at)
                WHERE r.at = g.at AND r.project_id = $1""",  # noqa: S608 - names of ours
                project_id,
                timeout=60,
            )
