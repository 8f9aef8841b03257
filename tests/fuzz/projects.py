"""Projects that nobody should write, through all that reads them: validation, the table's row, the first request.

The laws: a map of fields is refused with one line for people, or becomes fields that are their own canonical form, and
of which both the wire and the engines make the same project; the request made of it is read by an HTTP parser as what
the fields say.  A row that was written directly in SQL is a request, or a reason in words.  Never another exception.
"""

import msgspec
import orjson
from httptools import HttpRequestParser

from cluster.errors import InvalidInputError
from cluster.http_options import OPTION_NAMES, HttpOptions
from cluster.project import (
    JSON_FIELDS,
    SPEC_COLUMNS,
    ProjectSpec,
    compact,
    decode_spec,
    encode_spec,
    project_from_map,
    spec_from_row,
    validate,
)
from worker.probe.choose import engine_for
from worker.probe.lean_connection import Plan

MESSAGE_CHARS_MAX = 1_000
BODY_LIMIT_BYTES = 1 << 20


class Heard:
    """What an HTTP server understands of a request."""

    def __init__(self, wire):
        self.target = b""
        self.headers = []
        self.body = b""
        self.complete = 0
        parser = HttpRequestParser(self)
        parser.feed_data(wire)
        self.method = parser.get_method()

    def on_url(self, part):
        self.target += part

    def on_header(self, name, value):
        self.headers.append((name, value))

    def on_body(self, part):
        self.body += part

    def on_message_complete(self):
        self.complete += 1


def check_written(written):
    """``written``: a decoded map, as from admin ``add`` or a file.  Returns the fields, None when it is refused."""
    try:
        fields = project_from_map(written)
    except InvalidInputError as error:
        _check_words(str(error))
        return None
    assert validate(fields) == fields
    again = project_from_map(msgspec.structs.asdict(fields))
    assert again == fields
    decoded = orjson.loads(orjson.dumps(msgspec.structs.asdict(fields)))
    assert project_from_map(decoded) == fields
    row = {name: getattr(fields, name, None) for name in SPEC_COLUMNS} | {"id": 1, "since": None}
    for name in JSON_FIELDS:
        row[name] = None if getattr(fields, name) is None else orjson.dumps(getattr(fields, name)).decode()
    options = HttpOptions(**{name: getattr(fields, name) for name in OPTION_NAMES})
    row["options"] = None if options == HttpOptions() else msgspec.json.encode(options).decode()
    spec = spec_from_row(row)
    assert decode_spec(encode_spec(spec)) == spec == compact(spec)
    assert spec.options == (None if options == HttpOptions() else options)
    check_request(spec, Plan(spec, BODY_LIMIT_BYTES))
    return fields


def check_row(spec):
    """``spec``: of a row that only the table has looked at.  Returns whether a request could be made of it."""
    assert engine_for(spec) in {"lean", "aiohttp"}
    try:
        plan = Plan(spec, BODY_LIMIT_BYTES)
    except ValueError as error:
        _check_words(str(error), len(spec.url) * 10 + MESSAGE_CHARS_MAX)
        return False
    check_request(spec, plan)
    return True


def check_request(spec: ProjectSpec, plan: Plan):
    wire = plan.first.wire
    head, _, body = wire.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert not any(b"\n" in line or b"\r" in line for line in lines), head
    assert body == (spec.body or "").encode("utf-8", "surrogateescape")
    method, target, version = lines[0].split(b" ")
    assert (method.decode().upper(), version) == (spec.method.upper(), b"HTTP/1.1")
    is_for_proxy = spec.options is not None and spec.options.proxy is not None and spec.url[:5].lower() == "http:"
    assert target.startswith(b"http://" if is_for_proxy else b"/"), target
    sent = [line.split(b":", 1) for line in lines[1:]]
    names = [name.lower() for name, _ in sent]
    assert names.count(b"host") == 1
    for name, value in spec.headers:
        assert [name.encode(), b" " + value.encode("utf-8", "surrogateescape")] in sent
    if method.decode() in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"}:
        heard = Heard(wire)
        assert heard.complete == 1
        assert (heard.method, heard.target, heard.body) == (method, target, body)
        assert [name.lower() for name, _ in heard.headers] == names


def _check_words(message, chars_max=MESSAGE_CHARS_MAX):
    assert message
    assert len(message) <= chars_max, len(message)
    assert "\n" not in message, message
