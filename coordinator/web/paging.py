"""Cursors and entity tags: what clients hand back unread.

A cursor is the place where a page ended, as base64url of JSON.  It is not signed: it can say nothing that a client
could not ask for by other means, and what isn't one is refused.
"""

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from coordinator.web.problems import FieldError, ProblemError, invalid_fields

T = TypeVar("T")

EPOCH_AT = datetime(1970, 1, 1, tzinfo=UTC)
INSTANT_US_MAX = 32_503_680_000_000_000  # the year 3000
ETAGS_MAX = 50

_ETAGS = re.compile(r'\s*(?:W/)?"[\x21\x23-\x7e]*"\s*(?:,\s*(?:W/)?"[\x21\x23-\x7e]*"\s*)*')
_ETAG = re.compile(r'(W/)?("[\x21\x23-\x7e]*")')


def write_cursor(place: msgspec.Struct) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def read_cursor(text: str, wanted: type[T]) -> T:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=wanted)
    except (binascii.Error, ValueError) as error:  # a MsgspecError is one
        raise bad_cursor() from error


def bad_cursor() -> ProblemError:
    return invalid_fields([FieldError("cursor", "is none of ours for these parameters; leave it out to begin anew")])


def microseconds_of(instant: datetime) -> int:
    since = instant - EPOCH_AT
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def instant_of_us(microseconds: int) -> datetime:
    """Of a cursor."""
    if not 0 <= microseconds <= INSTANT_US_MAX:
        raise bad_cursor()
    return EPOCH_AT + timedelta(microseconds=microseconds)


def etag_of(row: Any) -> str:
    """Of a row of projects: each change of it gives another one.  What is known of its polls is not part of it."""
    return f'"{row["id"]}-{microseconds_of(row["updated_at"]):x}-{row["xmin"]:x}"'


def expect_match(request: web.Request, row: Any) -> None:
    """If-Match: 412 unless the row is one of those that the client has seen."""
    lines = request.headers.getall("If-Match", [])
    if not lines:
        return
    text = ", ".join(lines)
    if text.strip() == "*":
        return
    if not _ETAGS.fullmatch(text):
        raise invalid_fields([FieldError("If-Match", "must be an ETag in double quotes, several of them, or *")])
    found = {etag for weak, etag in _ETAG.findall(text)[:ETAGS_MAX] if not weak}
    if etag_of(row) not in found:
        raise ProblemError(
            "precondition_failed",
            f"project {row['id']} was changed since you read it; read it again, then decide",
            errors=[FieldError("If-Match", "is of an earlier version")],
        )
