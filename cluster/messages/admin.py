"""Messages on the admin socket, for people and programs: one request frame, one reply frame.

A request is a JSON map (its first byte is ``{`` or white space) or a msgpack map tagged ``type``; the reply comes in
the same encoding.  REQ and DEALER clients are answered with the envelope they used.  An unknown type, an unknown
field or a value out of bounds is an error that names it, and changes nothing::

    {"type": "add", "project": {"url": "https://example.org", "interval": "30s"}}   ->  {"type": "ok", "id": 7}
    {"type": "add", "id": 7}                  monitor a row that is already in the table
    {"type": "remove", "ids": [7], "delete": false, "purge": false}
    {"type": "reload"}                        ->  {"type": "ok", "added": 0, "changed": 0, "removed": 0}
    {"type": "status"}                        ->  {"type": "ok", "status": {...}}
    {"type": "scale", "workers": 8, "max_concurrent_http": 500}
    {"type": "drain", "worker": "worker-3"}
    anything that can't be done               ->  {"type": "error", "code": "unknown_project", "message": "..."}
"""

from typing import Annotated, Any, TypeAlias, get_args

import msgspec

from cluster.errors import InvalidInputError
from cluster.messages import UNDECODABLE

WORKERS_MAX = 256
SLOTS_MAX = 100_000
REMOVED_IDS_MAX = 10_000

ProjectId: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class AddProject(msgspec.Struct, tag="add", frozen=True, forbid_unknown_fields=True):
    """Exactly one of both: columns of table ``projects`` (see cluster.project), or the id of a row."""

    project: dict[str, Any] | None = None
    id: ProjectId | None = None

    def __post_init__(self) -> None:
        if (self.project is None) == (self.id is None):
            raise ValueError("give either project or id")


class RemoveProjects(msgspec.Struct, tag="remove", frozen=True, forbid_unknown_fields=True):
    """All or none.  ``delete``: the rows too; ``purge``: with ``delete``, their results and missed ticks too."""

    ids: Annotated[list[ProjectId], msgspec.Meta(min_length=1, max_length=REMOVED_IDS_MAX)]
    delete: bool = False
    purge: bool = False

    def __post_init__(self) -> None:
        if self.purge and not self.delete:
            raise ValueError("purge needs delete")


class ReloadProjects(msgspec.Struct, tag="reload", frozen=True, forbid_unknown_fields=True):
    pass


class GetStatus(msgspec.Struct, tag="status", frozen=True, forbid_unknown_fields=True):
    pass


class ScaleCluster(msgspec.Struct, tag="scale", frozen=True, forbid_unknown_fields=True):
    """At least one of both."""

    workers: Annotated[int, msgspec.Meta(ge=1, le=WORKERS_MAX)] | None = None
    max_concurrent_http: Annotated[int, msgspec.Meta(ge=1, le=SLOTS_MAX)] | None = None

    def __post_init__(self) -> None:
        if self.workers is None and self.max_concurrent_http is None:
            raise ValueError("give workers, max_concurrent_http or both")


class DrainWorker(msgspec.Struct, tag="drain", frozen=True, forbid_unknown_fields=True):
    worker: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]


AdminRequest: TypeAlias = AddProject | RemoveProjects | ReloadProjects | GetStatus | ScaleCluster | DrainWorker


class ErrorReply(msgspec.Struct, tag="error", frozen=True):
    code: str
    message: str


REQUEST_TYPES: tuple[str, ...] = tuple(str(each.__struct_config__.tag) for each in get_args(AdminRequest))

_decode_json = msgspec.json.Decoder(dict[str, Any]).decode
_decode_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode


def is_json(body: bytes) -> bool:
    """Whether people are to be answered in JSON: everything that can't be the beginning of a msgpack map."""
    return body[:1] < b"\x80"


def decode_request(body: bytes) -> AdminRequest:
    """Raises InvalidInputError with code malformed | unknown_type | invalid_request, whatever the bytes are."""
    try:
        fields = _decode_json(body) if is_json(body) else _decode_msgpack(body)
    except UNDECODABLE as error:
        raise InvalidInputError(
            f'a request is one JSON or msgpack map, such as {{"type": "status"}}: {error}', code="malformed"
        ) from error
    kind = fields.get("type")
    if kind not in REQUEST_TYPES:
        raise InvalidInputError(
            f"type must be one of {', '.join(REQUEST_TYPES)}, not {ascii(kind)[:60]}", code="unknown_type"
        )
    try:
        request: AdminRequest = msgspec.convert(fields, AdminRequest, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidInputError(f"{kind}: {error}") from error
    return request


def encode_reply(reply: dict[str, Any] | ErrorReply, *, as_json: bool) -> bytes:
    return msgspec.json.encode(reply) if as_json else msgspec.msgpack.encode(reply)
