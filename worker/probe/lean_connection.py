"""One HTTP/1.1 connection on httptools' parser: one exchange at a time, told to its owner in callbacks, without a task.

A connection says what it saw and decides nothing: when the request's last byte left, when the first byte of the answer
came, the status, how many body bytes, whether the answer is complete, how the connection ended.  Its owner looks at
that after each packet (``received``) and at the end (``lost``).

Headers are not looked at one by one: what arrived of a head is kept as it is, and read again only when one of its
fields is asked for.  The parser is as lenient as aiohttp's with the small sins of servers, and its words for the others
are the same.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from httptools import HttpParserError, HttpParserInvalidStatusError, HttpParserUpgrade, HttpResponseParser

from cluster.project import ProjectSpec
from worker.probe.connector import Openable
from worker.probe.expected import parse_expected
from worker.probe.in_flight import PollInFlight
from worker.probe.judging import LOOKED_AT_BYTES_MAX
from worker.probe.request import REDIRECT_STATUSES, HttpRequest, Origin, first_request, looks_at_body

HEAD_LINE_MAX_BYTES = 65_536
HEAD_HEADERS_MAX = 1_000
HEAD_MAX_BYTES = 262_144  # informational answers included
HEAD_ABOVE_SUSPICION_BYTES = 4 * HEAD_HEADERS_MAX  # the shortest header has four: fewer bytes break no limit
UNASKED_MAX_BYTES = 65_536
FRAMING_MAX_BYTES = 65_536  # around the pieces of a body, beside an eighth of the body: it can be sent without end

_ORDINARY_VERSION = b"HTTP/1."
_HTTP = re.compile(rb"[\r\n]*HTTP/[1-9]")  # the parser also takes HTTP/0.9 and other protocols that look like it
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class Hop:
    """A request, ready to be sent as often as it is asked for."""

    __slots__ = ("origin", "peer", "request", "wire", "without_body")

    def __init__(self, request: HttpRequest) -> None:
        self.request = request
        self.origin = request.origin
        self.peer = str(self.origin)
        self.wire = request.wire
        self.without_body = request.method == "HEAD"  # so is its answer


class Plan:
    """What the polls of a project have in common."""

    __slots__ = ("assertions", "body_limit_bytes", "expected", "first", "keeps_body", "spec")

    def __init__(self, spec: ProjectSpec, body_limit_bytes: int) -> None:
        """``body_limit_bytes``: unless the project has its own.  Raises ValueError, in words for people."""
        self.spec = spec
        self.body_limit_bytes = (spec.options and spec.options.body_limit_bytes) or body_limit_bytes
        self.expected = parse_expected(spec.expected_status)
        self.first = Hop(first_request(spec))
        self.assertions = spec.assertions
        self.keeps_body = looks_at_body(spec)


class LeanPoll(PollInFlight):
    __slots__ = ("grain", "hop", "plan", "reused")

    connection: "LeanConnection | None"
    plan: Plan
    hop: Hop  # the one it is at
    reused: bool  # the connection had waited for it
    grain: "set[LeanPoll] | None"  # where its deadline is kept; None: the poll is over

    only_new = False  # no more kept connections: one was lost
    opening: asyncio.Task[None] | None = None


class Exchanging(Protocol):
    """Who is told of an exchange."""

    def received(self, connection: "LeanConnection", poll: LeanPoll) -> None:
        """A packet came, and all of it was read."""

    def lost(self, connection: "LeanConnection", poll: LeanPoll) -> None:
        """The connection ended before the answer was complete."""


class LeanConnection(asyncio.Protocol, Openable):
    """Made by ``loop.create_connection``.  Errors of the owner's callbacks are the owner's to handle."""

    __slots__ = (
        "_feed",
        "_gone",
        "_is_new",
        "_owner",
        "_parser",
        "_paused",
        "_spoiled",
        "_transport",
        "_without_body",
        "began_at",
        "behind_head",
        "certificate",
        "complete",
        "fault",
        "first_byte_at",
        "head",
        "headed",
        "informational",
        "is_lost",
        "keep",
        "kept",
        "looked_at",
        "lost_error",
        "messages",
        "opened_at",
        "origin",
        "poll",
        "received_at",
        "remote_address",
        "sent_at",
        "size",
        "status",
    )

    def __init__(self, owner: Exchanging, origin: Origin) -> None:
        self._owner = owner
        self.origin = origin
        self.opened_at = 0.0
        self.remote_address: str | None = None
        self.is_lost = False
        self.lost_error: BaseException | None = None
        self.poll: LeanPoll | None = None
        self.sent_at: float | None = None
        self.head = b""  # what came before the body, with as much of the body as came along
        self.keep = True  # another request may follow
        self.began_at = self.received_at = 0.0
        self.first_byte_at: float | None = None
        self.headed = self.looked_at = self.complete = False
        self.status = self.size = 0
        self.behind_head = 0  # bytes in the packets after the one in which the head ended
        self.messages = 0  # answers begun, those that were informational and are over apart
        self.informational = 0
        self.fault: str | None = None  # why what came is no HTTP
        self.kept: list[bytes] | None = None  # the body, when it is looked at
        self.certificate: dict[str, Any] | None = None  # the peer's, as ``ssl`` decodes it
        self._feed: Callable[[bytes], None]
        self._transport: asyncio.Transport | None = None
        self._gone: asyncio.Future[None] | None = None
        self._paused = self._without_body = False
        self._is_new = True  # until its first exchange
        # No other exchange may follow: it is for one only, or more came than was asked for, or no HTTP.
        self._spoiled = origin.settings is not None and origin.settings.once
        self._renew_parser()

    def __repr__(self) -> str:
        return f"<LeanConnection to {self.origin}{' lost' if self.is_lost else ''}>"

    @property
    def closed(self) -> asyncio.Future[None] | None:
        if self.is_lost:
            return None
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        return self._gone

    # ---- what its owner does ----------------------------------------------------------------------------------------

    def send(self, poll: LeanPoll, hop: Hop, now: float) -> None:
        """Begin an exchange.

        The owner is told of nothing before this returns.  A connection that is lost already is for the caller to see.
        """
        self.poll = poll
        self._without_body = hop.without_body
        self.messages = 0
        self.size = self.behind_head = 0
        self.kept = [] if poll.plan.keeps_body else None
        self.headed = self.looked_at = self.complete = False
        self.first_byte_at = None
        self.began_at = now
        self.sent_at = None
        if self._is_new:
            self._is_new = False
            if self.head:
                asyncio.get_running_loop().call_soon(self._receive_early, poll, self.head)
                self.head = b""
        transport = self._transport
        if transport is None:
            return
        transport.write(hop.wire)
        if not self._paused:
            self.sent_at = time.monotonic()

    def end(self) -> None:
        """The exchange is over, complete or not: nothing more is told of it."""
        self.poll = None
        if self._without_body:
            self.keep = self._keeps_after_head()
            self._renew_parser()  # it may wait for a body that never comes
        if not self.complete or self.messages != 1 or self._spoiled or self._paused:
            self.keep = False
        self.informational = 0
        self.head = b""

    def discard(self) -> None:
        """Close without ceremony."""
        self.keep = False
        self.poll = None
        if self._transport is not None:
            self._transport.abort()

    def fields(self) -> "HeadFields":
        """The header fields of the answer, or of as much of its head as came."""
        return HeadFields(self.head)

    def is_delimited(self) -> bool:
        """Whether the answer says where its body ends; if not, it ends with the connection."""
        fields = self.fields()
        if (coding := fields.last("transfer-encoding")) is not None:
            return coding.rpartition(",")[2].strip().lower() == "chunked"
        return fields.first("content-length") is not None

    def is_mostly_framing(self) -> bool:
        """Whether more was sent around the pieces of the body than is read: it costs time and leads nowhere."""
        return self.behind_head - self.size > FRAMING_MAX_BYTES + self.size // 8

    def is_ordinary(self) -> bool:
        """Whether the answer is complete and was so simple that nothing about it has to be looked at."""
        head = self.head
        return (
            self.complete
            and head[:7] == _ORDINARY_VERSION
            and not self.informational
            and self.fault is None
            and len(head) <= HEAD_ABOVE_SUSPICION_BYTES
            and 0 not in head
            and self.status not in REDIRECT_STATUSES
        )

    # ---- what the loop does -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.opened_at = time.monotonic()
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        peer = transport.get_extra_info("peername")
        if peer:
            self.remote_address = str(peer[0])
        # The protocol is told when the last byte has left.  TLS transports compare with >=, so zero would always pause.
        high = 0
        if transport.get_extra_info("sslcontext") is not None:
            high = 1
            self.certificate = transport.get_extra_info("peercert") or {}
        self._transport.set_write_buffer_limits(high=high, low=0)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.keep = False
        self.lost_error = exc
        self._transport = None
        self._feed = _ended  # the parser refers to this object, and the collector need not find out
        del self._parser
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        poll = self.poll
        if poll is not None:
            self._owner.lost(self, poll)

    def eof_received(self) -> None:
        self.keep = False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self.sent_at is None:
            self.sent_at = time.monotonic()

    def data_received(self, data: bytes) -> None:
        poll = self.poll
        if poll is None:
            self._unasked(data)
            return
        self.received_at = now = time.monotonic()
        if self.first_byte_at is None:
            self.first_byte_at = now
        if self.headed:
            self.behind_head += len(data)
        else:
            self.head = self.head + data if self.head else data
        try:
            self._feed(data)
        except HttpParserUpgrade:
            self._spoiled = True
        except HttpParserError as error:
            self._spoiled = True
            if not self.complete:
                self.fault = self._words(error)
        self._owner.received(self, poll)

    # ---- what the parser does ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self._parser.get_status_code()
        if status >= 200 or status == 101:
            if status == 101:
                self._spoiled = True  # what follows is no HTTP
            self.status = status
            self.headed = True
            self.keep = self._parser.should_keep_alive()
            self.complete = self._without_body
        elif status < 100:
            self.fault = "bad status line"  # nothing that another answer follows

    def on_body(self, body: bytes) -> None:
        if self.complete:
            self._spoiled = True  # a body behind the answer to HEAD, or another answer
        else:
            if self.kept is not None and self.size < LOOKED_AT_BYTES_MAX:
                self.kept.append(body)
            self.size += len(body)

    def on_message_complete(self) -> None:
        if self.headed:
            self.complete = True
        else:
            self.messages -= 1
            self.informational += 1

    # ---- rarely -----------------------------------------------------------------------------------------------------

    def _renew_parser(self) -> None:
        self._parser: HttpResponseParser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._feed = self._parser.feed_data

    def _words(self, error: HttpParserError) -> str:
        if isinstance(error, HttpParserInvalidStatusError) or not self._parser.get_status_code():
            return "bad status line"
        return str(error).lower() or "malformed"

    def _unasked(self, data: bytes) -> None:
        """Bytes while no answer is awaited.

        What precedes the first request is taken for its answer; later all but a line break spoils the connection.
        """
        if self._is_new and self.keep:
            self.head += data
            if len(self.head) <= UNASKED_MAX_BYTES:
                return
        if data.strip(b"\r\n"):
            self.discard()

    def _receive_early(self, poll: LeanPoll, data: bytes) -> None:
        if self.poll is poll and not self.is_lost:
            self.data_received(data)

    def _keeps_after_head(self) -> bool:
        """After an answer to HEAD.

        The parser takes one without a length for one that ends with the connection, and the beginning of a body that
        some servers send all the same for the body it expects.
        """
        end = _END_OF_HEAD.search(self.head)
        if self.is_lost or end is None or self.head[end.end() :].strip(b"\r\n"):
            return False
        if self.keep:
            return True
        words = {word.strip().lower() for word in (self.fields().joined("connection") or "").split(",")}
        return "close" not in words and (self._parser.get_http_version() == "1.1" or "keep-alive" in words)

    def head_fault(self) -> str | None:
        """Why a head is none in spite of the parser, or which limit is broken, in what came so far."""
        head = self.head
        if self.headed and not _HTTP.match(head):
            return "bad status line"
        if len(head) <= HEAD_ABOVE_SUSPICION_BYTES and 0 not in head:
            return None
        if not self.headed:
            if len(head) > HEAD_MAX_BYTES:
                return f"a head of more than {HEAD_MAX_BYTES} bytes"
            is_long = len(head) - head.rfind(b"\n") - 1 > HEAD_LINE_MAX_BYTES
            return f"a line of more than {HEAD_LINE_MAX_BYTES} bytes" if is_long else None
        fields = self.fields()
        if any(len(name) + len(value) > HEAD_LINE_MAX_BYTES for name, value in fields.raw):
            return f"a line of more than {HEAD_LINE_MAX_BYTES} bytes"
        if len(head) > HEAD_MAX_BYTES and sum(len(name) + len(value) for name, value in fields.raw) > HEAD_MAX_BYTES:
            return f"a head of more than {HEAD_MAX_BYTES} bytes"
        if len(fields.raw) > HEAD_HEADERS_MAX:
            return "too many headers received"
        return "a header with an invalid value" if any(0 in value for _, value in fields.raw) else None


class HeadFields:
    """The header fields in the raw head of an answer; those of informational answers before it are not among them."""

    def __init__(self, head: bytes) -> None:
        self.raw: list[tuple[bytes, bytes]] = []
        self._over = False
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_headers=True, lenient_optional_cr_before_lf=True)
        with contextlib.suppress(HttpParserError, HttpParserUpgrade):  # what is behind the head plays no part here
            self._parser.feed_data(head)
        del self._parser

    def first(self, name: str) -> str | None:
        return next(iter(self._values(name)), None)

    def last(self, name: str) -> str | None:
        values = self._values(name)
        return values[-1] if values else None

    def joined(self, name: str) -> str | None:
        return ", ".join(self._values(name)) or None

    def pairs(self) -> list[tuple[str, str]]:
        return [(field.decode("latin-1").rstrip(), _text(value)) for field, value in self.raw]

    def _values(self, name: str) -> list[str]:
        wanted = name.encode()
        return [_text(value) for field, value in self.raw if field.rstrip().lower() == wanted]

    def on_message_begin(self) -> None:
        if not self._over:
            self.raw.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._over:
            self.raw.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._over = self._over or status >= 200 or status == 101


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape").strip(" \t")


def _ended(_data: bytes) -> None:
    raise AssertionError("bytes for a connection that is lost")
