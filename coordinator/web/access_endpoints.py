"""Endpoints of the session and of the audit log; who may do what is decided in access.py."""

from aiohttp import web

from cluster.access import audit_log
from coordinator.web.call import Call, iso_ms
from coordinator.web.problems import to_json


async def get_session(call: Call) -> web.StreamResponse:
    return to_json(await call.backend.access.who(call.request))


async def log_in(call: Call) -> web.StreamResponse:
    view, cookie = await call.backend.access.log_in(call.request, call.body)
    answer = to_json(view)
    call.backend.access.give_cookie(answer, cookie)
    return answer


async def log_out(call: Call) -> web.StreamResponse:
    await call.backend.access.log_out(call.request)
    answer = web.Response(status=204)
    call.backend.access.take_cookie(answer)
    return answer


async def list_audit_log(call: Call) -> web.StreamResponse:
    query = call.query
    async with call.backend.pool.connection() as conn:
        found = await audit_log.read(
            conn,
            actor=query.actor,
            before_id=None if query.cursor is None else int(query.cursor),
            limit=query.limit + 1,
        )
    items = [
        {
            "id": each.id,
            "at": iso_ms(each.at),
            "actor": each.actor,
            "action": each.action,
            "subject": each.subject,
            "address": each.address,
            "details": each.details,
        }
        for each in found[: query.limit]
    ]
    return to_json({"items": items, "next_cursor": str(items[-1]["id"]) if len(found) > query.limit else None})
