"""The admin socket: decodes requests, has them done, answers each exactly once.

- A reply goes out in the envelope the request came in (REQ's with its empty frame, DEALER's without), in its encoding.
- At most ``REQUESTS_MAX`` are in progress; one more is answered ``busy``.
- Each is answered within ``ANSWER_S`` (a reload of everything, which may take longer, within ``RELOAD_ANSWER_S``).
- Before there is a core to ask (``open``) a request waits for ``STARTING_S``, then the answer is ``starting``.
- A request larger than ``ADMIN_REQUEST_BYTES_MAX`` is refused in words, up to what the socket takes at all.
- Nothing that arrives ends in an exception: it is answered with an error or, where nobody can be answered, counted.

What a request means to projects is ``ProjectRequests``' part, what it means to workers the core's.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, assert_never

from cluster.channel import Channel
from cluster.database import connect, describe
from cluster.errors import ClusterError, InvalidInputError
from cluster.messages.admin import (
    AddProject,
    AdminRequest,
    DrainWorker,
    ErrorReply,
    GetStatus,
    ReloadProjects,
    RemoveProjects,
    ScaleCluster,
    decode_request,
    encode_reply,
    is_json,
)
from cluster.project import ProjectFields, project_from_map
from cluster.sockets import ADMIN_REQUEST_BYTES_MAX
from coordinator.events import DrainRequested, Event, ScaleRequested, View
from coordinator.project_rows import DATABASE_AWAY, Applied
from coordinator.throttle import ThrottledLog

REQUESTS_MAX = 256
ANSWER_S = 10.0
STARTING_S = 3.0
RELOAD_ANSWER_S = 110.0
CONFIRM_S = 5.0
PURGE_ANSWER_S = 8.0  # a purge that takes longer goes on after the reply
PURGE_ROWS = 10_000  # per statement
PURGES_MAX = 16
FRAMES_MAX = 16

logger = logging.getLogger("coordinator.admin")


class Projects(Protocol):
    """What the admin socket wants of ProjectRequests."""

    async def insert(self, fields: ProjectFields) -> int: ...

    async def enable(self, project_id: int) -> None: ...

    async def remove(self, ids: Sequence[int], *, delete: bool, token: int) -> None: ...

    async def reload(self) -> Applied: ...


class AdminDesk:
    """``attach`` it to a channel; ``submit`` gives the core an event, ``status`` makes the status document."""

    def __init__(
        self,
        projects: Projects,
        submit: Callable[[Event], None],
        view: Callable[[], View],
        status: Callable[[], dict[str, Any]],
        database_url: str,
        *,
        supervised: bool,
    ) -> None:
        self._projects = projects
        self._submit = submit
        self._view = view
        self._status = status
        self._database_url = database_url
        self._supervised = supervised
        self._opened = asyncio.Event()
        self._channel: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._purges: set[asyncio.Task[None]] = set()
        self._tokens = itertools.count(1)
        self._confirmations: dict[int, asyncio.Future[None]] = {}
        self._throttled = ThrottledLog(logger)
        self.requests_ok = 0
        self.requests_refused = 0
        self.replies_lost = 0  # the client was gone

    def attach(self, channel: Channel) -> None:
        self._channel = channel

    def open(self) -> None:
        """From now on events and views have a core behind them."""
        self._opened.set()

    async def close(self) -> None:
        """Requests in progress get no answer any more."""
        tasks = [*self._tasks, *self._purges]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def confirm(self, token: int) -> None:
        """The core: every worker concerned has acknowledged."""
        confirmation = self._confirmations.get(token)
        if confirmation is not None and not confirmation.done():
            confirmation.set_result(None)

    # ---- frames ---------------------------------------------------------------------------------------------------

    def on_frames(self, frames: list[bytes]) -> None:
        """For a ROUTER's channel: [routing id, body] or [routing id, ..., b"", body]."""
        split = frames.index(b"", 1, -1) + 1 if b"" in frames[1:-1] else 1
        envelope, body = frames[:split], frames[split:]
        if len(body) != 1 or len(frames) > FRAMES_MAX:
            self._refuse(envelope[:FRAMES_MAX], ErrorReply("malformed", "a request is exactly one frame"), as_json=True)
            return
        as_json = is_json(body[0])
        if sum(map(len, frames[1:])) > ADMIN_REQUEST_BYTES_MAX:
            reply = ErrorReply("invalid_request", f"the request is larger than {ADMIN_REQUEST_BYTES_MAX} bytes")
            self._refuse(envelope, reply, as_json=as_json)
            return
        if len(self._tasks) >= REQUESTS_MAX:
            reply = ErrorReply("busy", f"{REQUESTS_MAX} requests are in progress; try again")
            self._refuse(envelope, reply, as_json=as_json)
            return
        try:
            request = decode_request(body[0])
        except InvalidInputError as error:
            self._refuse(envelope, ErrorReply(error.code, str(error)), as_json=as_json)
            return
        task = asyncio.get_running_loop().create_task(self._answer(envelope, request, as_json=as_json))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # an exception is a bug of ours: to the loop's handler

    async def _answer(self, envelope: list[bytes], request: AdminRequest, *, as_json: bool) -> None:
        limit_s = RELOAD_ANSWER_S if isinstance(request, ReloadProjects) else ANSWER_S
        try:
            async with asyncio.timeout(limit_s):
                await self._until_opened()
                reply = await self._perform(request)
        except TimeoutError:
            text = f"not done within {limit_s:g} s; it may still take effect, see `cluster status` and the log"
            self._refuse(envelope, ErrorReply("timeout", text), as_json=as_json)
        except ClusterError as error:
            self._refuse(envelope, ErrorReply(error.code, str(error)), as_json=as_json)
        else:
            self.requests_ok += 1
            self._send(envelope, {"type": "ok", **reply}, as_json=as_json)

    async def _until_opened(self) -> None:
        try:
            async with asyncio.timeout(STARTING_S):
                await self._opened.wait()
        except TimeoutError:
            raise ClusterError(
                "the coordinator is starting and waits for what the database remembers; nothing was changed, try again",
                code="starting",
            ) from None

    def _refuse(self, envelope: list[bytes], reply: ErrorReply, *, as_json: bool) -> None:
        self.requests_refused += 1
        self._throttled.warning(f"admin request refused ({reply.code}): {reply.message}")
        self._send(envelope, reply, as_json=as_json)

    def _send(self, envelope: list[bytes], reply: dict[str, Any] | ErrorReply, *, as_json: bool) -> None:
        body = encode_reply(reply, as_json=as_json)
        if self._channel is None or not self._channel.reply([*envelope, body]):
            self.replies_lost += 1

    # ---- requests -------------------------------------------------------------------------------------------------

    async def _perform(self, request: AdminRequest) -> dict[str, Any]:
        match request:
            case GetStatus():
                return {"status": self._status()}
            case AddProject():
                return await self._add(request)
            case RemoveProjects():
                return await self._remove(request)
            case ReloadProjects():
                applied = await self._projects.reload()
                return {
                    "added": len(applied.added),
                    "changed": len(applied.changed),
                    "removed": len(applied.removed),
                }
            case ScaleCluster(workers, max_concurrent_http):
                if workers is not None and not self._supervised:
                    raise ClusterError(
                        "the roles run without a supervisor, so nobody here can start or end worker processes; start "
                        "another one with `cluster worker --name NAME`, end one with SIGTERM",
                        code="no_supervisor",
                    )
                self._submit(ScaleRequested(workers, max_concurrent_http))
                view = self._view()
                return {"workers": view.workers_wanted, "max_concurrent_http": view.max_concurrent_http}
            case DrainWorker(worker):
                return self._drain(worker)
            case _:
                assert_never(request)

    async def _add(self, request: AddProject) -> dict[str, Any]:
        if request.project is not None:
            return {"id": await self._projects.insert(project_from_map(request.project))}
        assert request.id is not None
        await self._projects.enable(request.id)
        return {"id": request.id}

    async def _remove(self, request: RemoveProjects) -> dict[str, Any]:
        if request.purge and len(self._purges) >= PURGES_MAX:
            raise ClusterError(f"{PURGES_MAX} purges are in progress; nothing was changed, try again", code="busy")
        ids = sorted(set(request.ids))
        token = next(self._tokens)
        confirmation: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confirmations[token] = confirmation
        try:
            await self._projects.remove(ids, delete=request.delete, token=token)
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
        reply: dict[str, Any] = {"ids": ids, "deleted": request.delete}
        if request.purge:
            purge = asyncio.get_running_loop().create_task(purge_results(self._database_url, ids))
            self._purges.add(purge)
            purge.add_done_callback(self._purged)
            await asyncio.wait({purge}, timeout=PURGE_ANSWER_S - CONFIRM_S)
            reply["purged"] = purge.done()
        return reply

    def _purged(self, task: asyncio.Task[None]) -> None:
        self._purges.discard(task)
        if not task.cancelled():
            task.result()

    def _drain(self, worker: str) -> dict[str, Any]:
        view = self._view()
        if worker not in {each.name for each in view.workers}:
            raise ClusterError(f"there is no worker {worker!a}; `cluster status` lists them", code="unknown_worker")
        if view.workers_wanted <= 1:
            raise ClusterError(
                f"{worker} is the only worker, so there is nobody to take over; `cluster down` stops everything",
                code="last_worker",
            )
        self._submit(DrainRequested(worker))
        return {"worker": worker}


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
