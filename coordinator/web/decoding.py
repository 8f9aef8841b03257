"""What clients send, made into the types that a route declares, or a problem that names each wrong field.

A query and a body are taken apart by name, so that it is known without reading messages which field is wrong; all that
are wrong are named at once.  Unknown names, and query parameters given twice, are errors.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from types import NoneType
from typing import Any, TypeVar, Union, get_args, get_type_hints

import msgspec
import orjson
from aiohttp import web

from coordinator.web.problems import FieldError, ProblemError, invalid_fields

T = TypeVar("T", bound=msgspec.Struct)

BODY_BYTES_MAX = 8 << 20
BODY_S = 10.0
NAME_SHOWN_CHARS = 60
MESSAGE_CHARS = 300


def decode_query(wanted: type[T], request: web.Request) -> T:
    given: dict[str, str] = {}
    errors = []
    for name, value in request.query.items():
        if name in given:
            errors.append(FieldError(_shown(name), "is given twice"))
        given[name] = value
    return _made(wanted, given, errors, strict=False)


def decode_path(types: Mapping[str, Any], request: web.Request) -> dict[str, Any]:
    values = {}
    for name, text in request.match_info.items():
        try:
            values[name] = msgspec.convert(text, types[name], strict=False)
        except msgspec.ValidationError as error:
            raise invalid_fields([FieldError(name, _message(error))]) from error
    return values


async def read_json(request: web.Request) -> Any:
    """The body, decoded: at most BODY_BYTES_MAX, within BODY_S, and said to be JSON."""
    if request.content_type != "application/json":
        raise ProblemError("unsupported_media_type", "send the body as Content-Type: application/json")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise ProblemError("unsupported_media_type", "JSON is UTF-8; leave the charset out")
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_S):
            raw = await request.read()
    except TimeoutError:
        text = f"the body did not arrive within {BODY_S:g} s"
        raise ProblemError("request_timeout", text, headers={"Connection": "close"}) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ProblemError("malformed", f"the body is not JSON: {error}") from error


def decode_body(wanted: type[T], content: Any) -> T:
    if not isinstance(content, dict):
        raise ProblemError("invalid_request", "the body must be a JSON object")
    return _made(wanted, content, [], strict=True)


def _made(wanted: type[T], given: Mapping[str, Any], errors: list[FieldError], *, strict: bool) -> T:
    fields = _fields_of(wanted)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            errors.append(FieldError(_shown(name), f"is not known here; known are {known}"))
            continue
        try:
            field = fields[name]
            if strict:
                values[name] = msgspec.convert(value, field.type)
            else:
                values[name] = msgspec.convert(value, field.given, strict=field.is_instant)
        except msgspec.ValidationError as error:
            errors.append(FieldError(name, _message(error)))
    errors += [
        FieldError(field.name, "is required")
        for field in msgspec.structs.fields(wanted)
        if field.required and field.name not in given
    ]
    if errors:
        raise invalid_fields(errors)
    try:
        return wanted(**values)
    except ValueError as error:  # of __post_init__: what fields have to do with each other
        name, _, text = str(error).partition(": ")
        raise invalid_fields([FieldError(name, text)]) from error


class FieldType(msgspec.Struct, frozen=True):
    """``given``: of what is written in a query, where nothing is null.  A number there is no instant to us."""

    type: Any
    given: Any
    is_instant: bool


_FIELDS: dict[type[msgspec.Struct], dict[str, FieldType]] = {}


def _fields_of(wanted: type[msgspec.Struct]) -> dict[str, FieldType]:
    if wanted not in _FIELDS:
        hints = get_type_hints(wanted, include_extras=True)
        _FIELDS[wanted] = {name: _field_type(hints[name]) for name in wanted.__struct_fields__}
    return _FIELDS[wanted]


def _field_type(hint: Any) -> FieldType:
    return FieldType(hint, _without_none(hint), _is_instant(hint))


def _without_none(hint: Any) -> Any:
    kinds = get_args(hint)
    return Union[tuple(kind for kind in kinds if kind is not NoneType)] if NoneType in kinds else hint  # noqa: UP007


def _is_instant(hint: Any) -> bool:
    return hint is datetime or any(_is_instant(part) for part in get_args(hint))


def _message(error: msgspec.ValidationError) -> str:
    return str(error)[:MESSAGE_CHARS]


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:NAME_SHOWN_CHARS]


def _too_large() -> ProblemError:
    return ProblemError("too_large", f"the body is larger than {BODY_BYTES_MAX} bytes", headers={"Connection": "close"})
