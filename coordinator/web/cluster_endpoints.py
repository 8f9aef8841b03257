"""Endpoints about the cluster as a whole: workers, limits, reload, and what was there before the API."""

import asyncio
import logging
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from cluster.access.audit_log import AuditEntry, record
from cluster.errors import ClusterError
from coordinator.status import not_ready
from coordinator.web.call import Call
from coordinator.web.feed import send_events
from coordinator.web.problems import ProblemError, to_json

RELOAD_S = 110.0

logger = logging.getLogger("coordinator.web")


async def get_healthz(_call: Call) -> web.StreamResponse:
    return web.Response(text="ok\n")


async def get_readyz(call: Call) -> web.StreamResponse:
    reasons = not_ready(call.backend.view())
    return to_json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)


async def get_metrics(call: Call) -> web.StreamResponse:
    call.backend.expect_started()
    encode, content_type = choose_encoder(",".join(call.request.headers.getall("Accept", [])))
    return web.Response(body=encode(call.backend.registry), headers={"Content-Type": content_type})


async def get_status(call: Call) -> web.StreamResponse:
    return to_json(call.backend.status())


async def stream_events(call: Call) -> web.StreamResponse:
    access, request = call.backend.access, call.request
    return await send_events(call.backend.feed, request, lambda: access.still_allowed(request))


async def list_workers(call: Call) -> web.StreamResponse:
    return to_json({"items": call.backend.status()["workers"], "next_cursor": None})


async def get_worker(call: Call) -> web.StreamResponse:
    name = call.path["name"]
    for worker in call.backend.status()["workers"]:
        if worker["name"] == name:
            return to_json(worker)
    raise ClusterError(f"there is no worker {name!a}", code="unknown_worker")


async def drain_worker(call: Call) -> web.StreamResponse:
    await call.backend.desk.opened()
    name = call.path["name"]
    call.backend.desk.drain(name)
    await _note(call, "worker.drain", f"worker:{name}")
    return to_json({"worker": name})


async def get_scale(call: Call) -> web.StreamResponse:
    call.backend.expect_started()
    return to_json(_scale(call.backend.view()))


async def set_scale(call: Call) -> web.StreamResponse:
    await call.backend.desk.opened()
    view = call.backend.desk.scale(call.body.workers, call.body.max_concurrent_http)
    wanted = {name: value for name, value in msgspec.structs.asdict(call.body).items() if value is not None}
    await _note(call, "cluster.scale", "cluster", wanted)
    return to_json(_scale(view))


async def reload_projects(call: Call) -> web.StreamResponse:
    await call.backend.desk.opened()
    try:
        async with asyncio.timeout(RELOAD_S):
            applied = await call.backend.desk.projects.reload()
    except TimeoutError:
        raise ProblemError("timeout", f"not done within {RELOAD_S:g} s; it goes on") from None
    await _note(call, "cluster.reload", "cluster")
    return to_json({"added": len(applied.added), "changed": len(applied.changed), "removed": len(applied.removed)})


async def _note(call: Call, action: str, subject: str, details: dict[str, int] | None = None) -> None:
    """In the audit log.  What steers the cluster is done without a database, too: then the log has the line."""
    requester = call.requester
    entry = AuditEntry(
        actor=requester.actor, action=action, subject=subject, address=requester.address, details=details or {}
    )
    try:
        async with call.backend.pool.connection() as connection:
            await record(connection, entry)
    except ProblemError as problem:
        logger.warning("%s %s by %s is not in the audit log: %s", action, subject, requester.actor, problem)


def _scale(view: Any) -> dict[str, int]:
    return {"workers": view.workers_wanted, "max_concurrent_http": view.max_concurrent_http}
