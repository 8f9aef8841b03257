"""The admin socket: decodes requests, has them done, answers each exactly once.

- A reply goes out in the envelope the request came in (REQ's with its empty frame, DEALER's without), in its encoding.
- At most ``REQUESTS_MAX`` are in progress; one more is answered ``busy``.
- Each is answered within ``ANSWER_S`` (a reload of everything, which may take longer, within ``RELOAD_ANSWER_S``).
- A request larger than ``ADMIN_REQUEST_BYTES_MAX`` is refused in words, up to what the socket takes at all.
- Nothing that arrives ends in an exception: it is answered with an error or, where nobody can be answered, counted.

What a request does is ``RequestDesk``'s part.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, assert_never

from cluster.channel import Channel
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
from cluster.project import project_from_map
from cluster.sockets import ADMIN_REQUEST_BYTES_MAX
from coordinator.requests import RequestDesk
from coordinator.throttle import ThrottledLog

REQUESTS_MAX = 256
ANSWER_S = 10.0
RELOAD_ANSWER_S = 110.0
FRAMES_MAX = 16

logger = logging.getLogger("coordinator.admin")


class AdminDesk:
    """``attach`` it to a channel; ``status`` makes the status document."""

    def __init__(self, requests: RequestDesk, status: Callable[[], dict[str, Any]]) -> None:
        self._requests = requests
        self._status = status
        self._channel: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttled = ThrottledLog(logger)
        self.requests_ok = 0
        self.requests_refused = 0
        self.replies_lost = 0  # the client was gone

    def attach(self, channel: Channel) -> None:
        self._channel = channel

    async def close(self) -> None:
        """Requests in progress get no answer any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
                await self._requests.opened()
                reply = await self._perform(request)
        except TimeoutError:
            text = f"not done within {limit_s:g} s; it may still take effect, see `cluster status` and the log"
            self._refuse(envelope, ErrorReply("timeout", text), as_json=as_json)
        except ClusterError as error:
            self._refuse(envelope, ErrorReply(error.code, str(error)), as_json=as_json)
        else:
            self.requests_ok += 1
            self._send(envelope, {"type": "ok", **reply}, as_json=as_json)

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
                applied = await self._requests.projects.reload()
                return {
                    "added": len(applied.added),
                    "changed": len(applied.changed),
                    "removed": len(applied.removed),
                }
            case ScaleCluster(workers, max_concurrent_http):
                view = self._requests.scale(workers, max_concurrent_http)
                return {"workers": view.workers_wanted, "max_concurrent_http": view.max_concurrent_http}
            case DrainWorker(worker):
                self._requests.drain(worker)
                return {"worker": worker}
            case _:
                assert_never(request)

    async def _add(self, request: AddProject) -> dict[str, Any]:
        if request.project is not None:
            return {"id": await self._requests.projects.insert(project_from_map(request.project))}
        assert request.id is not None
        await self._requests.projects.enable(request.id)
        return {"id": request.id}

    async def _remove(self, request: RemoveProjects) -> dict[str, Any]:
        changed = await self._requests.remove(request.ids, delete=request.delete, purge=request.purge)
        reply: dict[str, Any] = {"ids": changed.ids, "deleted": request.delete}
        return reply if changed.purged is None else reply | {"purged": changed.purged}
