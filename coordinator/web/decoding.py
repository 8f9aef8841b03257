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


async def read_json(request: web.Request, bytes_max: int) -> Any:
    """The body, decoded: at most so many bytes, within BODY_S, and said to be JSON."""
    if request.content_type != "application/json":
        raise ProblemError("unsupported_media_type", "send the body as Content-Type: application/json")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise ProblemError("unsupported_media_type", "JSON is UTF-8; leave the charset out")
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.content.iter_any():
                raw += chunk
                if len(raw) > bytes_max:
                    raise _too_large(bytes_max)
    except TimeoutError:
        text = f"the body did not arrive within {BODY_S:g} s"
        raise ProblemError("request_timeout", text, headers={"Connection": "close"}) from None
    except (ConnectionError, web.RequestPayloadError) as error:
        text = "the body ends too early, or its chunks are none"
        raise ProblemError("malformed", text, headers={"Connection": "close"}) from error
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
        FieldError(name, "is required") for name, field in fields.items() if field.required and name not in given
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
    required: bool


_FIELDS: dict[type[msgspec.Struct], dict[str, FieldType]] = {}


def _fields_of(wanted: type[msgspec.Struct]) -> dict[str, FieldType]:
    if wanted not in _FIELDS:
        hints = get_type_hints(wanted, include_extras=True)
        _FIELDS[wanted] = {
            field.name: _field_type(hints[field.name], required=field.required)
            for field in msgspec.structs.fields(wanted)
        }
    return _FIELDS[wanted]


def _field_type(hint: Any, *, required: bool) -> FieldType:
    return FieldType(hint, _without_none(hint), _is_instant(hint), required)


def _without_none(hint: Any) -> Any:
    kinds = get_args(hint)
    return Union[tuple(kind for kind in kinds if kind is not NoneType)] if NoneType in kinds else hint  # noqa: UP007


def _is_instant(hint: Any) -> bool:
    return hint is datetime or any(_is_instant(part) for part in get_args(hint))


def _message(error: msgspec.ValidationError) -> str:
    return str(error)[:MESSAGE_CHARS]


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:NAME_SHOWN_CHARS]


def _too_large(bytes_max: int) -> ProblemError:
    return ProblemError("too_large", f"the body is larger than {bytes_max} bytes", headers={"Connection": "close"})
