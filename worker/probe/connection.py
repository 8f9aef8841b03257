"""One HTTP/1.1 connection on aiohttp's response protocol.

A ``Connection`` adds to aiohttp's parser and flow control what a result must say exactly: when the request's last byte
left, when the first byte of the answer came, and how the connection ended.  It is written to directly; aiohttp's
session, its header defaults, retries and redirects take no part.
"""

import asyncio
import contextlib
import re
import time
from typing import Any, cast

from aiohttp import EMPTY_PAYLOAD, ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpResponseParser, RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError, InvalidHeader, LineTooLong

from worker.probe.connector import Openable
from worker.probe.request import Origin

HEAD_LINE_MAX_BYTES = 65_536
HEAD_HEADERS_MAX = 1_000
HEAD_MAX_BYTES = 262_144  # informational answers included
READ_BUFFER_BYTES = 65_536
INFORMATIONAL_MAX = 32
SLICE_BYTES = 16_384  # of a packet, which has up to 16 times as much; the parser costs up to 0.2 us a byte
FRAMING_MAX_BYTES = 65_536  # around the pieces of a body, beside an eighth of the body: it can be sent without end

_HTTP = re.compile(rb"[\r\n]*HTTP/[1-9]")  # the parser also takes HTTP/0.9 and other protocols that look like it

Answer = tuple[RawResponseMessage, StreamReader]


class Connection(ResponseHandler, Openable):
    """Made by ``loop.create_connection``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin) -> None:
        super().__init__(loop)
        self.origin = origin
        self.opened_at = 0.0
        self.remote_address: str | None = None
        self.began_at = 0.0
        self.sent_at: float | None = None
        self.first_byte_at: float | None = None
        self.certificate: dict[str, Any] | None = None  # the peer's, as ``ssl`` decodes it
        self.lost = False
        self.lost_error: BaseException | None = None
        self.fault: str | None = None  # why what came is not HTTP
        self._once = origin.settings is not None and origin.settings.once
        self._without_body = False
        self._head_complete = True
        self._head = b""  # what came of the answer while its head is not complete
        self._behind_head = 0  # bytes in the packets after the one in which the head ended
        self._informational = 0
        self.mostly_framing = False  # given up for what came around the pieces of the body

    def __repr__(self) -> str:
        return f"<Connection to {self.origin}{' lost' if self.lost else ''}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.opened_at = time.monotonic()
        peer = transport.get_extra_info("peername")
        if peer:
            self.remote_address = str(peer[0])
        # The protocol is told when the last byte has left.  TLS transports compare with >=, so zero would always pause.
        high = 0
        if transport.get_extra_info("sslcontext") is not None:
            high = 1
            self.certificate = transport.get_extra_info("peercert") or {}
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=high, low=0)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        self.lost_error = exc
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A packet is read in slices, and no further than the answer goes: what is behind it may be ever so much."""
        if self.first_byte_at is None and data:
            self.first_byte_at = time.monotonic()
        if len(data) <= SLICE_BYTES:
            self._receive(data)
            return
        for start in range(0, len(data), SLICE_BYTES):
            if start and self._is_over():
                self.force_close()
                break
            self._receive(data[start : start + SLICE_BYTES])

    def _is_over(self) -> bool:
        """Whether nothing more is to be read."""
        if self.transport is None or self.transport.is_closing() or self._informational >= INFORMATIONAL_MAX:
            return True
        payload = self._payload
        return self._head_complete and (self._without_body or payload is None or payload.is_eof())

    def _receive(self, data: bytes) -> None:
        if self._head_complete:
            self._behind_head += len(data)
            super().data_received(data)
            self._expect_body()
            return
        self._head += data
        super().data_received(data)
        if len(self._head) > HEAD_MAX_BYTES and self.transport is not None:
            self.set_exception(HttpProcessingError(message=f"a head of more than {HEAD_MAX_BYTES} bytes"))
            self.transport.abort()

    def feed_data(self, data: Answer, size: int = 0) -> None:
        if not self._head_complete and (fault := self._head_fault(data[0])) is not None:
            self._head_complete = True
            self.set_exception(HttpProcessingError(message=fault))
            return
        if data[0].code >= 200 or data[0].code == 101:
            self._head_complete = True
            self._head = b""
        else:
            self._informational += 1
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        payload = self._payload
        if isinstance(exc, HttpProcessingError):
            if not self._head_complete and (answer := self._answer_that_came()) is not None:
                self.feed_data(answer)  # read before the exception, which keeps the connection from being reused
                payload = answer[1]
            self.fault = self.fault or _fault(exc, exc_cause)
            if payload is not None and not payload.is_eof():
                # A parse error in a later packet would otherwise never reach the reader of the body.
                payload.set_exception(ClientPayloadError(self.fault), exc)
        if exc_cause is None:
            super().set_exception(exc)
        else:
            super().set_exception(exc, exc_cause)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.sent_at is None:
            self.sent_at = time.monotonic()

    def send(self, wire: bytes, *, without_body: bool) -> None:
        """Begin an exchange: ``wire`` is the whole request; ``without_body``: its answer has none (HEAD)."""
        self.sent_at = None
        self.first_byte_at = None
        self._without_body = without_body
        self._head_complete = False
        self._head = b""
        self._behind_head = 0
        self.mostly_framing = False
        self._informational = 0
        self._payload = None
        self.began_at = time.monotonic()
        if self.lost:  # already: reading says how
            return
        self.set_response_params(
            skip_payload=without_body,
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEAD_LINE_MAX_BYTES,
            max_field_size=HEAD_LINE_MAX_BYTES,
            max_headers=HEAD_HEADERS_MAX,
        )
        if self.transport is None:  # what the peer had sent before being asked was no HTTP
            return
        self.transport.write(wire)
        if not self.writing_paused:
            self.sent_at = time.monotonic()

    def _expect_body(self) -> None:
        """End the connection when more is sent around its pieces than is read: it costs time and leads nowhere."""
        payload = self._payload
        if payload is None or payload.is_eof() or self.transport is None:
            return
        if self._reading_paused:  # the parser has bytes that it has not counted
            return
        size = payload.total_bytes
        if self._behind_head - size > FRAMING_MAX_BYTES + size // 8:
            self.mostly_framing = True
            self.transport.abort()

    def _answer_that_came(self) -> Answer | None:
        """The answer, when its head is sound, and as much of its body as is.

        Some servers send a body with a HEAD, a 204 or a 304, or more of it than they announced, or break off its
        chunks; when that comes in one packet the parser refuses all of it.
        """
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4 or len(self._head) > end + READ_BUFFER_BYTES:
            return None
        parser = HttpResponseParser(
            self,
            self._loop,
            READ_BUFFER_BYTES,
            payload_exception=ClientPayloadError,
            response_with_body=not self._without_body,
            auto_decompress=False,
            max_line_size=HEAD_LINE_MAX_BYTES,
            max_field_size=HEAD_LINE_MAX_BYTES,
            max_headers=HEAD_HEADERS_MAX,
        )
        try:
            messages, _, _ = parser.feed_data(self._head[:end])
            if len(messages) != 1 or messages[0][0].code < 200:
                return None
            message, payload = messages[0]
            if self._without_body or message.code in {204, 304}:
                return message, EMPTY_PAYLOAD
        except HttpProcessingError:
            return None
        body = self._head[end:]
        if not message.chunked and (length := message.headers.get("Content-Length")):
            body = body[: int(length)]
        if not payload.is_eof():
            with contextlib.suppress(HttpProcessingError):  # it is known already that something is wrong with it
                parser.feed_data(body)
        return message, payload

    def _head_fault(self, message: RawResponseMessage) -> str | None:
        """Why a head is none in spite of the parser, or too large though it came at once."""
        if message.code < 100 or not _HTTP.match(self._head):
            return "bad status line"
        if len(self._head) <= HEAD_MAX_BYTES:
            return None
        size = sum(len(name) + len(value) for name, value in message.raw_headers)
        return f"a head of more than {HEAD_MAX_BYTES} bytes" if size > HEAD_MAX_BYTES else None

    @property
    def keep(self) -> bool:
        return self.is_connected() and not self.should_close and not self.writing_paused and not self._once

    def discard(self) -> None:
        """Close without ceremony."""
        self.abort()


def _fault(error: HttpProcessingError, cause: BaseException | None) -> str:
    if isinstance(cause, LineTooLong):
        return f"a line of more than {HEAD_LINE_MAX_BYTES} bytes"
    if isinstance(cause, InvalidHeader):
        return "a header with an invalid value"
    return error.message.partition("\n")[0].rstrip(":").lower() or "malformed"
