"""Spans to an OTLP/HTTP endpoint, from a thread of its own.  Needs the extra ``ringpoll[otel]``.

The queue holds ``QUEUE_SPANS``; what comes while it is full is dropped and counted, so a receiver that is away costs
some hundred KiB and nothing else.  A batch that could not be delivered within ``EXPORT_TIMEOUT_S`` is dropped, counted,
and logged once a minute at most.  The variables OTEL_EXPORTER_OTLP_HEADERS, ..._CERTIFICATE, ..._COMPRESSION and
OTEL_RESOURCE_ATTRIBUTES are understood by the library.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import cluster
from cluster.tracing import SpanAttributes, SpanEvents, SpanKindName

QUEUE_SPANS = 2_048
BATCH_SPANS = 256
EXPORT_EVERY_S = 2.0
EXPORT_TIMEOUT_S = 5.0
CLOSE_S = 2.0
SAY_EVERY_S = 60.0
ATTRIBUTE_CHARS_MAX = 500
TRACES_PATH = "/v1/traces"

_KINDS: dict[SpanKindName, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}

logger = logging.getLogger("cluster.tracing")


class OtlpTracing:
    def __init__(self, url: str, role: str, name: str) -> None:
        endpoint = endpoint_of(url)
        self._queue = SpanQueue(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S), _without_password(url))
        resource = {
            "service.name": "ringpoll",
            "service.version": cluster.__version__,
            "service.instance.id": name,
            "ringpoll.role": role,
        }
        provider = TracerProvider(
            resource=Resource.create(resource),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_span_attribute_length=ATTRIBUTE_CHARS_MAX),
        )
        provider.add_span_processor(self._queue)
        self._tracer = provider.get_tracer("ringpoll", cluster.__version__)
        self._propagator = TraceContextTextMapPropagator()

    @property
    def dropped(self) -> int:
        return self._queue.dropped

    def record(
        self,
        name: str,
        began_ns: int,
        ended_ns: int,
        attributes: SpanAttributes,
        *,
        kind: SpanKindName = "internal",
        error: str | None = None,
        events: SpanEvents = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        parent = Context()
        if headers is not None:
            carrier = {each: headers[each] for each in ("traceparent", "tracestate") if each in headers}
            parent = self._propagator.extract(carrier, Context())
        span = self._tracer.start_span(
            name, context=parent, kind=_KINDS[kind], attributes=_present(attributes), start_time=began_ns
        )
        for event, at_ns, details in events:
            span.add_event(event, _present(details), at_ns)
        if error is not None:
            span.set_status(StatusCode.ERROR, error[:ATTRIBUTE_CHARS_MAX])
        span.end(max(began_ns, ended_ns))

    async def close(self) -> None:
        await asyncio.to_thread(self._queue.close)


class SpanQueue(SpanProcessor):
    """Takes ended spans from one thread, the role's loop, and delivers them from its own."""

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self.dropped = 0
        self._exporter = exporter
        self._where = where
        self._spans: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._say_at_s = 0.0
        self._said = _LastWords()
        library = logging.getLogger("opentelemetry")
        library.propagate = False  # its lines come once for each attempt; ours has the last of them
        library.handlers = [self._said]
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        if len(self._spans) >= QUEUE_SPANS:
            self.dropped += 1
            return
        self._spans.append(span)
        if len(self._spans) >= BATCH_SPANS:
            self._wake.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_S)
        self._exporter.shutdown()  # ends the waiting between two attempts

    def shutdown(self) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(EXPORT_EVERY_S)
            self._wake.clear()
            while self._spans:
                self._export([self._spans.popleft() for _ in range(min(BATCH_SPANS, len(self._spans)))])

    def _export(self, batch: list[ReadableSpan]) -> None:
        try:
            delivered = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever the library meets costs spans, never a poll
            delivered = False
            self._said.text = str(error)
        if delivered:
            return
        self.dropped += len(batch)
        if not self._closing and time.monotonic() >= self._say_at_s:
            self._say_at_s = time.monotonic() + SAY_EVERY_S
            why = " ".join(self._said.text.split())[:300] or "no reason is known"
            logger.warning("spans can't be delivered to %s (%d dropped so far): %s", self._where, self.dropped, why)


class _LastWords(logging.Handler):
    """What the library logged last."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def endpoint_of(url: str) -> str:
    """A URL without a path is that of a receiver, whose place for traces is fixed."""
    parts = urlsplit(url)
    return url if parts.path not in {"", "/"} else parts._replace(path=TRACES_PATH).geturl()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _present(attributes: SpanAttributes) -> dict[str, str | bool | int | float]:
    return {name: value for name, value in attributes.items() if value is not None}
