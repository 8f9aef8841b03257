"""The OpenAPI 3.1 document: made of the table of routes and of its types, never written by hand.

What a type can't say is added here: problems, security, examples.
"""

from collections.abc import Iterable
from types import UnionType
from typing import Any, get_args, get_type_hints

import msgspec
import orjson

import cluster
from coordinator.web.problems import PROBLEMS, ProblemDetails
from coordinator.web.route import API, Route
from coordinator.web.shapes import PATH_TYPES

PROBLEM_TYPE = "application/problem+json"
_REF = "#/components/schemas/{name}"

_DESCRIPTION = """\
Projects of a ringpoll cluster, their results and history, and the cluster itself.

Instants are ISO 8601 in UTC with milliseconds, durations end in `_ms`. Lists come in pages: hand `next_cursor` back as
`cursor`. Errors are problem details (RFC 9457) that name each wrong field. Secrets are shown as `***`, which is refused
where it is written back. On loopback no authentication is needed; elsewhere send `Authorization: Bearer TOKEN`, or log
in and send `X-CSRF-Token` with everything that changes something.
"""

_PROJECT = {
    "id": 1, "url": "https://shop.example/health", "name": "shop", "method": "GET", "headers": None, "body": None,
    "expected_status": "200", "interval": 30, "unit": "seconds", "timeout_ms": 10_000, "follow_redirects": True,
    "enabled": True, "down_after": 2, "up_after": 1, "assertions": None, "verify_tls": True, "ca_file": None,
    "client_cert_file": None, "client_key_file": None, "server_name": None, "ip_version": None,
    "connection_reuse": "auto", "body_limit_bytes": None, "connect_timeout_ms": None, "user_agent": None,
    "basic_auth": None, "bearer_token": None, "proxy": None, "retries": 0, "retry_delay_ms": 1_000,
    "created_at": "2026-01-31T12:00:00.000Z", "updated_at": "2026-01-31T12:00:00.000Z", "state": "up",
    "state_since": "2026-01-31T12:00:00.000Z", "invalid_reason": None,
    "last_result": {
        "polled_at": "2026-01-31T12:00:30.000Z", "status": "success", "status_code": 200, "response_time_ms": 41.5,
        "error_code": None, "error_message": None,
    },
}  # fmt: skip

# By operation: of the body, and of the answer.
_BODIES: dict[str, Any] = {
    "createProject": {"url": "https://shop.example/health", "name": "shop", "interval": "30s", "timeout_ms": 10_000},
    "patchProject": {"interval": "1m", "headers": {"Accept": "text/html", "X-Old": None}},
    "changeProjects": {"action": "disable", "ids": [1, 2]},
    "setScale": {"workers": 4, "max_concurrent_http": 500},
    "logIn": {"user": "ann", "password": "correct horse battery staple"},
}
_ANSWERS: dict[str, Any] = {
    "createProject": _PROJECT,
    "getProject": _PROJECT,
    "patchProject": _PROJECT,
    "listProjects": {"items": [_PROJECT], "next_cursor": None},
    "changeProjects": {"action": "disable", "ids": [1, 2]},
    "getScale": {"workers": 4, "max_concurrent_http": 500},
    "setScale": {"workers": 4, "max_concurrent_http": 500},
    "reload": {"added": 0, "changed": 0, "removed": 0},
}
_PROBLEM = {
    "type": "urn:ringpoll:problem:invalid_request",
    "title": "The request is not valid",
    "status": 422,
    "detail": "limit: Expected `int` <= 500",
    "code": "invalid_request",
    "errors": [{"field": "limit", "message": "Expected `int` <= 500"}],
}
_EVENTS = (
    "Each event has a name and JSON: `status` each second, the status document without `loop_lag_counts`; `change`, "
    'as an item of /changes; `projects`, `{"ids": [...]}` or null when they are many. A line of `:` is a heartbeat.'
)


def openapi_json(table: Iterable[Route]) -> bytes:
    return orjson.dumps(openapi_document(table)) + b"\n"


def openapi_document(table: Iterable[Route]) -> dict[str, Any]:
    """Of the routes that are the API's."""
    routes = [route for route in table if route.path.startswith(f"{API}/")]
    schemas, components = _schemas_of(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ringpoll", "version": cluster.__version__, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": _problem_responses(schemas),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`cluster token create`"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "ringpoll_session",
                    "description": "POST /session. What changes something needs the header X-CSRF-Token, too. "
                    "Under TLS the cookie is `__Host-ringpoll`.",
                },
            },
        },
    }


def _schemas_of(routes: list[Route]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The schema of each type that is used, and the components that these refer to."""
    used = [ProblemDetails, *PATH_TYPES.values()]
    for route in routes:
        used += [kind for kind in (*_alternatives(route.body), route.answer) if kind is not None]
        if route.query is not None:
            used += get_type_hints(route.query, include_extras=True).values()
    schemas, components = msgspec.json.schema_components(used, ref_template=_REF)
    found = {_key(kind): schema for kind, schema in zip(used, schemas, strict=True)}
    for route in routes:
        if len(kinds := _alternatives(route.body)) > 1:
            found[_key(route.body)] = {"oneOf": [found[_key(kind)] for kind in kinds]}
    return found, dict(components)


def _alternatives(body: Any) -> tuple[Any, ...]:
    """The types that a body may have; msgspec doesn't know what tells several apart."""
    return get_args(body) if isinstance(body, UnionType) else (body,)


def _key(kind: Any) -> str:
    """Types that are equal are not always the same object, and not all can be hashed."""
    return repr(kind)


def _operation(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "description": f"Scope: {route.scope}." + (f" {_EVENTS}" if route.operation == "streamEvents" else ""),
        "tags": [route.path.removeprefix(f"{API}/").partition("/")[0]],
        "security": [] if route.scope == "none" else [{"token": []}, {"session": []}],
        "parameters": _parameters(route, schemas),
        "responses": _responses(route, schemas),
    }
    if route.body is not None:
        content: dict[str, Any] = {"schema": schemas[_key(route.body)]}
        if route.operation in _BODIES:
            content["example"] = _BODIES[route.operation]
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    return operation


def _parameters(route: Route, schemas: dict[Any, Any]) -> list[dict[str, Any]]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schemas[_key(kind)]}
        for name, kind in PATH_TYPES.items()
        if f"{{{name}}}" in route.path
    ]
    if route.query is not None:
        hints = get_type_hints(route.query, include_extras=True)
        for field in msgspec.structs.fields(route.query):
            schema = _without_null(schemas[_key(hints[field.name])])
            if field.default is not None and not field.required:
                schema = {**schema, "default": field.default}
            parameters.append({"name": field.name, "in": "query", "required": field.required, "schema": schema})
    if route.if_match:
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "required": False,
                "description": "The ETag of the version that you have seen; 412 when it is no longer the newest.",
                "schema": {"type": "string", "examples": ["*"]},
            }
        )
    return parameters


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is left out is left out, and never null."""
    if "enum" in schema:
        return schema | {"enum": [value for value in schema["enum"] if value is not None]}
    if "anyOf" in schema:
        others = [each for each in schema["anyOf"] if each != {"type": "null"}]
        if len(others) == 1:
            return {**{name: value for name, value in schema.items() if name != "anyOf"}, **others[0]}
        return schema | {"anyOf": others}
    return schema


def _responses(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    good: dict[str, Any] = {"description": route.summary}
    if route.media_type != "application/json":
        is_text = route.media_type != "text/event-stream"
        good["content"] = {route.media_type: {"schema": {"type": "string"}} if is_text else {}}
    elif route.status != 204:
        content: dict[str, Any] = {"schema": {} if route.answer is None else schemas[_key(route.answer)]}
        if route.operation in _ANSWERS:
            content["example"] = _ANSWERS[route.operation]
        good["content"] = {"application/json": content}
    if route.etag:
        good["headers"] = {"ETag": {"description": "Of this version.", "schema": {"type": "string"}}}
    if route.status == 201:
        good.setdefault("headers", {})["Location"] = {"description": "Of the new one.", "schema": {"type": "string"}}
        good["links"] = {
            operation: {"operationId": operation, "parameters": {"id": "$response.body#/id"}}
            for operation in ("getProject", "patchProject", "deleteProject")
        }
    return {str(route.status): good} | {
        str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in problem_statuses(route)
    }


def problem_statuses(route: Route) -> list[int]:
    """With which a route may answer that it could not do what it was asked."""
    statuses = {403, 422, 500, 503}
    if route.scope != "none" or route.operation == "logIn":
        statuses |= {401, 429}
    if "{" in route.path or route.body is not None:
        statuses.add(404)
    statuses |= {504} if route.method == "GET" else {409, 504}
    if route.if_match:
        statuses.add(412)
    if route.body is not None:
        statuses |= {400, 408, 413, 415}
    return sorted(statuses)


def _problem_responses(schemas: dict[Any, Any]) -> dict[str, Any]:
    responses = {}
    for status in sorted({kind.status for kind in PROBLEMS.values()}):
        codes = [code for code, kind in PROBLEMS.items() if kind.status == status]
        content: dict[str, Any] = {"schema": schemas[_key(ProblemDetails)]}
        if status == 422:
            content["example"] = _PROBLEM
        responses[f"Problem{status}"] = {
            "description": "; ".join(f"`{code}`: {PROBLEMS[code].title}" for code in codes),
            "content": {PROBLEM_TYPE: content},
        }
    return responses
