"""Problem details (RFC 9457): every kind of error that the API answers with, and how errors of ours become one.

``PROBLEMS`` is the table of codes; ``type`` is ``urn:ringpoll:problem:<code>``.  Below /api an error is a problem; at
the paths that were there before it is ``{"type": "error", "code", "message"}``, with the same codes.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import orjson
from aiohttp import web

from cluster.errors import ClusterError
from cluster.project import field_of

API_PREFIX = "/api/"
RETRY_AFTER_S = 1
URN = "urn:ringpoll:problem:"

logger = logging.getLogger("coordinator.web")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemKind(msgspec.Struct, frozen=True):
    status: int
    title: str


PROBLEMS: dict[str, ProblemKind] = {
    "malformed": ProblemKind(400, "The request is not understood"),
    "unauthenticated": ProblemKind(401, "Authentication is needed"),
    "forbidden": ProblemKind(403, "Not allowed"),
    "cross_site": ProblemKind(403, "Not from this site"),
    "not_found": ProblemKind(404, "There is nothing here"),
    "unknown_project": ProblemKind(404, "There is no such project"),
    "unknown_worker": ProblemKind(404, "There is no such worker"),
    "method_not_allowed": ProblemKind(405, "Not possible here"),
    "request_timeout": ProblemKind(408, "The request did not arrive in time"),
    "conflict": ProblemKind(409, "Something else happened meanwhile"),
    "last_worker": ProblemKind(409, "The last worker can't be drained"),
    "locked": ProblemKind(409, "Somebody else holds the project"),
    "no_supervisor": ProblemKind(409, "Nobody here can start or end workers"),
    "precondition_failed": ProblemKind(412, "The project was changed since it was read"),
    "too_large": ProblemKind(413, "The request is too large"),
    "unsupported_media_type": ProblemKind(415, "The body must be JSON"),
    "expectation_failed": ProblemKind(417, "The expectation can't be met"),
    "invalid_request": ProblemKind(422, "The request is not valid"),
    "invalid_project": ProblemKind(422, "The project can't be polled"),
    "too_many_requests": ProblemKind(429, "Too many requests"),
    "internal": ProblemKind(500, "A fault of the coordinator"),
    "failed": ProblemKind(500, "It failed"),
    "busy": ProblemKind(503, "Too much is in progress"),
    "database_unavailable": ProblemKind(503, "The database does not answer"),
    "starting": ProblemKind(503, "The coordinator is starting"),
    "stopping": ProblemKind(503, "The coordinator is being stopped"),
    "timeout": ProblemKind(504, "Not done in time"),
}
_CODE_OF_STATUS = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    417: "expectation_failed",
}


class FieldError(msgspec.Struct, frozen=True):
    """``field``: the name of a field of the body, of a query parameter or of a header."""

    field: str
    message: str


class ProblemDetails(msgspec.Struct, frozen=True):
    """What an error is answered with (RFC 9457), as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = []


class ProblemError(Exception):
    """To be answered with that problem."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = PROBLEMS[code]
        self.code = code
        self.errors = list(errors)
        self.headers = dict(headers or {})
        if self.kind.status == 503:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))

    def details(self) -> ProblemDetails:
        return ProblemDetails(URN + self.code, self.kind.title, self.kind.status, str(self), self.code, self.errors)


def invalid_fields(errors: Sequence[FieldError], code: str = "invalid_request") -> ProblemError:
    """At least one."""
    detail = "; ".join(f"{each.field}: {each.message}" for each in errors)
    return ProblemError(code, detail, errors=errors)


def problem_of(error: ClusterError) -> ProblemError:
    """An error of ours as the problem that it is."""
    code = error.code if error.code in PROBLEMS else "failed"
    if error.code.startswith("database_"):
        code = "database_unavailable"
    text = str(error)
    field = field_of(error) if code == "invalid_request" else None
    errors = [] if field is None else [FieldError(field, text.removeprefix(f"{field}:").strip())]
    return ProblemError(code, text, errors=errors)


def to_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(content, default=msgspec.to_builtins, option=orjson.OPT_NON_STR_KEYS) + b"\n",
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def problem_answer(problem: ProblemError, request: web.Request) -> web.Response:
    if not request.path.startswith(API_PREFIX):
        content = {"type": "error", "code": problem.code, "message": str(problem)}
        return to_json(content, problem.kind.status, problem.headers)
    answer = to_json(problem.details(), problem.kind.status, problem.headers)
    answer.content_type = "application/problem+json"
    return answer


@web.middleware
async def errors_as_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware: nothing that goes wrong leaves as anything but a problem."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem_answer(problem, request)
    except ClusterError as error:
        return problem_answer(problem_of(error), request)
    except web.HTTPException as answer:
        if answer.status < 400:
            raise
        return problem_answer(_problem_of_http(answer, request), request)
    except Exception:
        logger.exception("a bug in the answer to %s %s", request.method, request.path)
        return problem_answer(ProblemError("internal", "the coordinator could not answer; its log says why"), request)


def _problem_of_http(answer: web.HTTPException, request: web.Request) -> ProblemError:
    """Of what aiohttp itself refuses."""
    path = request.path[:200]
    match answer:
        case web.HTTPNotFound():
            return ProblemError("not_found", f"there is nothing at {path}; / lists what there is")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(answer.allowed_methods))
            text = f"{request.method[:20]} is not possible at {path}, only {allowed}"
            return ProblemError("method_not_allowed", text, headers={"Allow": allowed})
        case _:
            return ProblemError(_CODE_OF_STATUS.get(answer.status, "malformed"), answer.reason)
