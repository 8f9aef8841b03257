"""OpenTelemetry traces of a role, off unless ``--traces`` says where they go.

``open_tracing`` answers None when they are off, and when the extra ``ringpoll[otel]`` is not installed, which is one
line in the log.  Where a span may begin, a role asks ``is None`` and nothing else; the library is imported only when
there is something to trace.

A span is recorded when what it tells of is over, with its two instants: nothing is held open, and nothing of it can
raise, wait or fail what is traced (see otlp.py).
"""

import logging
from collections.abc import Mapping
from typing import Literal, Protocol

from cluster.settings import Settings

SpanKindName = Literal["internal", "server", "client"]
AttributeValue = str | bool | int | float
SpanAttributes = Mapping[str, AttributeValue | None]  # None: left out
SpanEvents = tuple[tuple[str, int, SpanAttributes], ...]  # name, nanoseconds since the epoch, attributes

logger = logging.getLogger("cluster.tracing")


class Tracing(Protocol):
    @property
    def dropped(self) -> int:
        """Spans that were recorded and will not be delivered: the queue was full, or its receiver did not take them."""
        ...

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
        """``headers``: of a request, which may name the span that this one belongs to (W3C trace context)."""
        ...

    async def close(self) -> None:
        """Deliver what is queued, for at most two seconds."""
        ...


def open_tracing(settings: Settings, role: str) -> Tracing | None:
    if settings.traces_url is None:
        return None
    try:
        from cluster.otlp import OtlpTracing  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        if role == "coordinator" or not settings.supervised:  # of the roles of one cluster, one says it
            logger.warning(
                "no traces are sent to --traces: %s is not installed; install ringpoll[otel], or leave --traces out",
                error.name or "opentelemetry",
            )
        return None
    return OtlpTracing(settings.traces_url, role, settings.name or role)
