"""Endpoints about projects: list, create, read, patch, switch, delete, and many at once.

Changes go by ``RequestDesk``, as those of the admin socket: when the answer is sent, the project is polled, or no
longer.  Where an answer shows the project as it is afterwards, it is read anew; if the database went away in between,
the problem says that the change was made.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from yarl import URL

from cluster import history
from cluster.errors import ClusterError, InvalidInputError
from cluster.masking import MASK, has_mask, kept_secrets
from cluster.project import FIELD_NAMES, ProjectFields, project_from_map
from coordinator.project_rows import INVALID_KEPT_MAX
from coordinator.web import project_queries as queries
from coordinator.web.call import Call
from coordinator.web.decoding import NAME_SHOWN_CHARS, decode_body
from coordinator.web.history_maps import period_s, summary_map
from coordinator.web.paging import bad_cursor, etag_of, expect_match, read_cursor, write_cursor
from coordinator.web.problems import FieldError, ProblemError, invalid_fields, problem_of, to_json
from coordinator.web.shapes import BulkCreate, BulkSwitch

ANSWER_S = 10.0
ERRORS_MAX = 20  # of a bulk request


async def list_projects(call: Call) -> web.StreamResponse:
    query = call.query
    after = None
    if query.cursor is not None:
        after = read_cursor(query.cursor, queries.ListPlace)
        if after.sort != query.sort:
            raise bad_cursor()
    selection = queries.selection_of(query)
    async with call.backend.pool.connection() as connection:
        rows = await queries.fetch_page(connection, query, selection, after)
        more, rows = len(rows) > query.limit, rows[: query.limit]
        reasons = await _reasons(call, connection, rows)
        items = [queries.project_map(row, reasons) for row in rows]
        if query.summary is not None and items:
            until = datetime.now(UTC)
            since = until - timedelta(seconds=period_s(query.summary))
            found = await history.bars(connection, [row["id"] for row in rows], since, until)
            for item in items:
                item["summary"] = summary_map(found[item["id"]]) if item["id"] in found else None
        answer: dict[str, Any] = {
            "items": items,
            "next_cursor": write_cursor(queries.place_of(rows[-1], query.sort)) if more else None,
        }
        if query.total:
            answer["total"] = await queries.count_projects(connection, selection)
    return to_json(answer)


async def create_project(call: Call) -> web.StreamResponse:
    fields = _project_of(call.body)
    project_id = await _done(call, lambda: call.backend.desk.projects.insert(fields, call.requester))
    call.backend.feed.projects_changed([project_id])
    return await _shown_changed(call, project_id, status=201, headers={"Location": f"{call.request.path}/{project_id}"})


async def get_project(call: Call) -> web.StreamResponse:
    if call.query.reveal:
        call.expect_scope("admin", "to see secrets")
    return await _shown(call, call.path["id"], reveal=call.query.reveal)


async def patch_project(call: Call) -> web.StreamResponse:
    patch = _expect_fields(call.body)
    _expect_no_mask(patch)
    project_id = call.path["id"]
    await _done(
        call,
        lambda: call.backend.desk.update(
            project_id, lambda before: _rewritten(call, before, patch), call.requester, _guard(call)
        ),
    )
    call.backend.feed.projects_changed([project_id])
    return await _shown_changed(call, project_id)


async def delete_project(call: Call) -> web.StreamResponse:
    await _done(
        call,
        lambda: call.backend.desk.remove(
            [call.path["id"]], call.requester, delete=True, purge=call.query.purge, guard=_guard(call)
        ),
    )
    call.backend.feed.projects_changed([call.path["id"]])
    return web.Response(status=204)


async def enable_project(call: Call) -> web.StreamResponse:
    project_id = call.path["id"]
    await _done(call, lambda: call.backend.desk.projects.enable_all([project_id], call.requester, _guard(call)))
    call.backend.feed.projects_changed([project_id])
    return await _shown_changed(call, project_id)


async def disable_project(call: Call) -> web.StreamResponse:
    project_id = call.path["id"]
    await _done(call, lambda: call.backend.desk.remove([project_id], call.requester, guard=_guard(call)))
    call.backend.feed.projects_changed([project_id])
    return await _shown_changed(call, project_id)


async def change_projects(call: Call) -> web.StreamResponse:
    """Many at once."""
    desk = call.backend.desk
    content = call.body
    if isinstance(content, dict) and content.get("action") == "create":
        projects = _projects_of(decode_body(BulkCreate, content).projects)
        ids = await _done(call, lambda: desk.projects.insert_all(projects, call.requester))
        call.backend.feed.projects_changed(ids)
        return to_json({"action": "create", "ids": ids})
    body = decode_body(BulkSwitch, content)
    ids = sorted(set(body.ids))
    if body.action == "enable":
        await _done(call, lambda: desk.projects.enable_all(ids, call.requester))
    else:
        await _done(call, lambda: desk.remove(ids, call.requester, delete=body.action == "delete"))
    call.backend.feed.projects_changed(ids)
    return to_json({"action": body.action, "ids": ids})


# ---- fields ---------------------------------------------------------------------------------------------------------


def _expect_fields(content: Any) -> dict[str, Any]:
    """A map of fields that there are."""
    if not isinstance(content, dict):
        raise ProblemError("invalid_request", "the body must be a JSON object of the fields of a project")
    unknown = [name for name in content if name not in FIELD_NAMES][:ERRORS_MAX]
    if unknown:
        text = f"is not known; known are {', '.join(FIELD_NAMES)}"
        raise invalid_fields([FieldError(ascii(name)[1:-1][:NAME_SHOWN_CHARS], text) for name in unknown])
    return content


def _expect_no_mask(content: dict[str, Any]) -> None:
    masked = [name for name, value in content.items() if has_mask(name, value)]
    if masked:
        text = f"{MASK} stands for a secret that was not shown; leave it out to keep it, or write the secret"
        raise invalid_fields([FieldError(name, text) for name in masked])


def _project_of(content: Any) -> ProjectFields:
    written = _expect_fields(content)
    if "url" not in written:
        raise invalid_fields([FieldError("url", "is required")])
    _expect_no_mask(written)
    return _validated(written)


def _validated(written: dict[str, Any]) -> ProjectFields:
    try:
        return project_from_map(written)
    except InvalidInputError as error:
        raise problem_of(error) from error


def _projects_of(contents: list[dict[str, Any]]) -> list[ProjectFields]:
    """All that is wrong with them is said at once, up to a limit."""
    projects = []
    errors: list[FieldError] = []
    for number, content in enumerate(contents):
        try:
            projects.append(_project_of(content))
        except ProblemError as problem:
            errors += [FieldError(f"projects[{number}].{each.field}", each.message) for each in problem.errors] or [
                FieldError(f"projects[{number}]", str(problem))
            ]
        if len(errors) >= ERRORS_MAX:
            break
    if errors:
        raise invalid_fields(errors[:ERRORS_MAX])
    return projects


def _rewritten(call: Call, before: dict[str, Any], patch: dict[str, Any]) -> ProjectFields:
    """What may be changed without seeing secrets does not tell them: not to another server, nor one less trusted."""
    fields = _patched(before, patch)
    if _is_sent_elsewhere(before, fields) and (kept := kept_secrets(before, patch)):
        call.expect_scope("admin", f"to send secrets elsewhere; or write them anew ({', '.join(kept)})")
    return fields


def _is_sent_elsewhere(before: dict[str, Any], fields: ProjectFields) -> bool:
    differs = any(before[name] != getattr(fields, name) for name in ("proxy", "ca_file", "server_name"))
    unverified = before["verify_tls"] and not fields.verify_tls
    return differs or unverified or _origin(before["url"]) != _origin(fields.url)


def _origin(url: str) -> URL | None:
    """None: a row of SQL may have what is no URL."""
    try:
        return URL(url).origin()
    except ValueError:
        return None


def _patched(before: dict[str, Any], patch: dict[str, Any]) -> ProjectFields:
    """A JSON merge patch (RFC 7396) of the fields: null is the default again, headers are merged by name."""
    written = {name: value for name, value in before.items() if value is not None}
    if isinstance(patch.get("interval"), str) and "unit" not in patch:
        written.pop("unit", None)  # '5m' has its own
    for name, value in patch.items():
        if value is None:
            written.pop(name, None)
        elif name == "headers" and isinstance(value, dict):
            merged = {**(written.get("headers") or {}), **value}
            written["headers"] = {header: given for header, given in merged.items() if given is not None}
        else:
            written[name] = value
    if "url" not in written:
        raise invalid_fields([FieldError("url", "is required, so it can't be null")])
    return _validated(written)


# ---- asking and showing ---------------------------------------------------------------------------------------------


def _guard(call: Call) -> Callable[[Any], None]:
    return lambda row: expect_match(call.request, row)


async def _done(call: Call, ask: Callable[[], Any]) -> Any:
    """Have the desk do something, within ANSWER_S."""
    try:
        async with asyncio.timeout(ANSWER_S):
            await call.backend.desk.opened()
            return await ask()
    except TimeoutError:
        raise ClusterError(f"not done within {ANSWER_S:g} s; it may still take effect", code="timeout") from None


async def _shown(
    call: Call,
    project_id: int,
    *,
    reveal: bool = False,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> web.StreamResponse:
    async with call.backend.pool.connection() as connection:
        row = await queries.fetch_project(connection, project_id)
        if row is None:
            raise ClusterError(f"there is no project {project_id}", code="unknown_project")
        reasons = await _reasons(call, connection, [row])
    shown = queries.project_map(row, reasons, reveal=reveal)
    return to_json(shown, status, {"ETag": etag_of(row), **(headers or {})})


async def _shown_changed(
    call: Call, project_id: int, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.StreamResponse:
    try:
        return await _shown(call, project_id, status=status, headers=headers)
    except ProblemError as problem:
        raise ProblemError(problem.code, f"the change to project {project_id} was made, but {problem}") from problem


async def _reasons(call: Call, connection: Any, rows: list[Any]) -> dict[int, str]:
    known = call.backend.counts().invalid_projects
    return await queries.reasons_of(connection, rows, known, INVALID_KEPT_MAX)
